"""Finished groups of runs are kept until the report is written."""

import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import jaxbalance
from jaxbalance._storage import from_npz, to_npz, write_atomically
from jaxbalance.compare._plan import Budget
from jaxbalance.compare._sweep import Outcome
from jaxbalance.compare._task import Task


def place(
    out: pathlib.Path, task: Task, budget: Budget, methods: Sequence[str], others: Sequence[Any]
) -> pathlib.Path:
    """The file for a group of methods, whose runs depend on ``others`` too: equal, equal runs."""
    known = tuple(budget), tuple(methods), jaxbalance.__version__
    content = hashlib.sha256(repr(known).encode())
    rows = (task.train, task.validation, task.test)
    for array in (task.dataset.inputs, task.dataset.labels, *rows, *others):
        content.update(np.ascontiguousarray(array).tobytes())
    return out / "finished-runs" / f"{content.hexdigest()[:16]}.npz"


def save_outcomes(path: pathlib.Path, outcomes: Sequence[Any]) -> None:
    """Keep the runs of a finished group."""
    leaves = jax.tree.leaves(list(outcomes))
    arrays = {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, to_npz(arrays))


def load_outcomes(
    path: pathlib.Path, like: Any, number: int, kind: Callable[..., Any] = Outcome
) -> list[Any] | None:
    """Read back what :func:`save_outcomes` kept; None where there is nothing usable.

    Args:
      path: the file.
      like: parameters of the model, for their tree structure.
      number: how many outcomes to expect.
      kind: what they are, three arrays and the parameters.
    """
    nothing = np.zeros(0)
    wanted = [kind(nothing, nothing, nothing, like)] * number
    try:
        stored = from_npz(path)
    except (OSError, ValueError):
        return None
    leaves = [stored[name] for name in sorted(stored)]
    if len(leaves) != len(jax.tree.leaves(wanted)):
        return None
    outcomes: list[Any] = jax.tree.unflatten(jax.tree.structure(wanted), leaves)
    return outcomes


def forget(out: pathlib.Path) -> None:
    """Delete what was kept: the report is written."""
    for kept in (out / "finished-runs").glob("*.npz"):
        kept.unlink()
    (out / "finished-runs").rmdir()
