"""Finished groups of regressions are kept until the report is written."""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxbalance._storage import from_npz, to_npz, write_atomically
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


def save_regressions(path: pathlib.Path, outcomes: Sequence[RegressionOutcome]) -> None:
    """Keep the runs of a finished group."""
    leaves = jax.tree.leaves(list(outcomes))
    arrays = {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    write_atomically(path, to_npz(arrays))


def load_regressions(path: pathlib.Path, like: Any, number: int) -> list[RegressionOutcome] | None:
    """Read back what :func:`save_regressions` kept; None where there is nothing usable.

    Args:
      path: the file.
      like: parameters of the model, for their tree structure.
      number: how many outcomes to expect.
    """
    nothing = np.zeros(0)
    empty = [RegressionOutcome(nothing, nothing, like)] * number
    try:
        stored = from_npz(path)
    except (OSError, ValueError):
        return None
    leaves = [stored[name] for name in sorted(stored)]
    if len(leaves) != len(jax.tree.leaves(empty)):
        return None
    outcomes: list[RegressionOutcome] = jax.tree.unflatten(jax.tree.structure(empty), leaves)
    return outcomes
