"""Data sets of many shapes brought to few, so that one compiled program serves many of them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import data
from jaxbalance._types import HostArray
from jaxbalance.compare._task import Task

_WIDTHS = (16, 64)
_ROWS = (512, 2048)
_SHARE = 4


def padded(task: Task, *, columns: bool) -> Task:
    """The task with unlabelled rows and columns of zeros added, up to one of a few shapes.

    Neither changes a number: nothing draws, counts or averages over the rows, and what the columns
    are multiplied with starts as zero and stays there.

    Args:
      task: of a table; images stay as they are.
      columns: whether to add columns too. A last layer that is fitted to the columns themselves, as
        in a linear model, would notice them.
    """
    if data.is_images(task.dataset):
        return task
    number, width = task.dataset.inputs.shape
    # One row is added at least, for the parts to be filled up with.
    rows = _at_least(number + 1, _ROWS) - number
    # A table wider than all of these is rare, and costs more to train on than to compile for.
    wide = next((one for one in _WIDTHS if one >= width), width)
    more = wide - width if columns else 0
    inputs = np.pad(task.dataset.inputs, ((0, rows), (0, more)))
    labels = np.pad(task.dataset.labels, (0, rows), constant_values=-1)
    dataset = task.dataset._replace(inputs=inputs, labels=labels)
    share = len(labels) // _SHARE
    index = task.class_index
    members = jnp.asarray(_filled(np.asarray(index.members), len(labels), number))
    return task._replace(
        dataset=dataset,
        inputs=jnp.asarray(inputs),
        labels=jnp.asarray(labels, jnp.int32),
        train=_filled(task.train, len(labels), number),
        validation=_filled(task.validation, share, number),
        test=_filled(task.test, share, number),
        class_index=index._replace(members=members),
        standardizer=jax.tree.map(
            lambda leaf: np.pad(leaf, ((0, 0), (0, more))), task.standardizer
        ),
    )


def _at_least(number: int, sizes: tuple[int, ...]) -> int:
    """The first of the sizes that is large enough, else four times the last as often as needed."""
    size = next((one for one in sizes if one >= number), sizes[-1])
    while size < number:
        size *= _SHARE
    return size


def _filled(rows: HostArray, size: int, row: int) -> HostArray:
    """Rows ``[S, n]`` as ``[S, size]``, with ``row`` in the new places; as many as it takes."""
    while size < rows.shape[1]:
        size *= 2
    return np.pad(rows, ((0, 0), (0, size - rows.shape[1])), constant_values=row)
