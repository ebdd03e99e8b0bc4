"""Finished groups of runs are kept until the report is written."""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from jaxbalance._storage import from_npz, to_npz, write_atomically
from jaxbalance.compare._plan import Budget
from jaxbalance.compare._sweep import Outcome
from jaxbalance.compare._task import Task

Tree = TypeVar("Tree")


def digest(task: Task, budget: Budget, methods: Sequence[str], version: str) -> str:
    """Names the runs of a group: equal digest, equal numbers."""
    content = hashlib.sha256(repr((tuple(budget), tuple(methods), version)).encode())
    rows = (task.train, task.validation, task.test)
    for array in (task.dataset.inputs, task.dataset.labels, *rows):
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:16]


def save_outcomes(path: pathlib.Path, outcomes: Sequence[Any]) -> None:
    """Keep the runs of a finished group."""
    leaves = jax.tree.leaves(list(outcomes))
    arrays = {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    write_atomically(path, to_npz(arrays))


def load_outcomes(path: pathlib.Path, like: Any, number: int) -> list[Outcome] | None:
    """Read back what :func:`save_outcomes` kept; None where there is nothing usable.

    Args:
      path: the file.
      like: parameters of the model, for their tree structure.
      number: how many outcomes to expect.
    """
    nothing = np.zeros(0)
    return load_like(path, [Outcome(nothing, nothing, nothing, like)] * number)


def load_like(path: pathlib.Path, like: Tree) -> Tree | None:
    """Read the leaves of a tree into the structure of ``like``; None if they are not as many."""
    try:
        stored = from_npz(path)
    except (OSError, ValueError):
        return None
    leaves = [stored[name] for name in sorted(stored)]
    if len(leaves) != len(jax.tree.leaves(like)):
        return None
    tree: Tree = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return tree
