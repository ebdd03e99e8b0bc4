"""The frame of the experiments: claims about imbalance that anybody can run and see checked.

An experiment is one file of the folder ``experiments/``, with a docstring that states the claim,
and these names:

- ``Config``: a frozen dataclass of numbers, strings and tuples of them, :data:`Positive`,
  :data:`Ratio`, :data:`Share` or :data:`OpenShare` where a float has to be one; its defaults run
  in a minute or two on two cores. ``PAPER``: the ``Config`` of the published size.
- ``parts(config)``: what there is to compute, a dict of functions without arguments that return
  arrays by name. A part that has finished is kept, so an interrupted run goes on where it was.
- ``measure(record)``: numbers for people, any JSON, from the arrays ``record["part/name"]``.
- ``summary(numbers)``: Markdown whose first line says it all.
- ``check(numbers)``: asserts the claim, and the null run beside it.
- ``plot(record)``: a matplotlib ``Figure``.
"""

from jaxbalance.experiments._command import command as command
from jaxbalance.experiments._command import main as main
from jaxbalance.experiments._find import load as load
from jaxbalance.experiments._find import names as names
from jaxbalance.experiments._find import title as title
from jaxbalance.experiments._numbers import mean_and_range as mean_and_range
from jaxbalance.experiments._numbers import rounded as rounded
from jaxbalance.experiments._run import Result as Result
from jaxbalance.experiments._run import finished as finished
from jaxbalance.experiments._run import recorded as recorded
from jaxbalance.experiments._run import run as run
from jaxbalance.experiments._settings import OpenShare as OpenShare
from jaxbalance.experiments._settings import Positive as Positive
from jaxbalance.experiments._settings import Ratio as Ratio
from jaxbalance.experiments._settings import Share as Share
