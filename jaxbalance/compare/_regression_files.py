"""Finished groups of regressions are kept until the report is written."""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxbalance.compare._files import load_like
from jaxbalance.compare._plan import Budget
from jaxbalance.compare._regression_sweep import RegressionOutcome
from jaxbalance.compare._regression_task import RegressionTask


def digest(task: RegressionTask, budget: Budget, methods: Sequence[str], version: str) -> str:
    """Names the runs of a group: equal digest, equal numbers."""
    known = ("regression", tuple(budget), tuple(methods), version)
    content, split = hashlib.sha256(repr(known).encode()), task.split
    rows = (split.train, split.validation, split.test)
    for array in (split.dataset.inputs, task.targets, task.edges, *rows):
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:16]


def load_regressions(path: pathlib.Path, like: Any, number: int) -> list[RegressionOutcome] | None:
    """Read back what :func:`save_outcomes` kept; None where there is nothing usable.

    Args:
      path: the file.
      like: parameters of the model, for their tree structure.
      number: how many outcomes to expect.
    """
    nothing = np.zeros(0)
    return load_like(path, [RegressionOutcome(nothing, nothing, like)] * number)
