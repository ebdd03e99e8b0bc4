"""Outputs: written whole or not at all; finished groups are kept until the report is."""

import hashlib
import io
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxbalance._check import InputError
from jaxbalance._types import HostArray
from jaxbalance.compare._sweep import Budget, Outcome
from jaxbalance.compare._task import Task


def prepare_folder(folder: pathlib.Path) -> None:
    """Create the output folder and prove, before any training, that it can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to {str(folder)!r} ({error.strerror}); choose another folder with --out"
        ) from None


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that no reader ever sees part of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def to_npz(arrays: dict[str, HostArray]) -> bytes:
    """Arrays as the bytes of an ``.npz`` file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)
    return buffer.getvalue()


def from_npz(path: pathlib.Path) -> dict[str, HostArray]:
    """Read what :func:`to_npz` made; a damaged file is a ``ValueError``."""
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{str(path)!r} is damaged or no .npz file: {error}") from None


def digest(task: Task, budget: Budget, methods: Sequence[str], version: str) -> str:
    """Names the runs of a group: equal digest, equal numbers."""
    content = hashlib.sha256(repr((tuple(budget), tuple(methods), version)).encode())
    rows = (task.train, task.validation, task.test)
    for array in (task.dataset.inputs, task.dataset.labels, *rows):
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:16]


def save_outcomes(path: pathlib.Path, outcomes: Sequence[Outcome]) -> None:
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
    empty = Outcome(nothing, nothing, nothing, like)
    structure = jax.tree.structure([empty] * number)
    try:
        stored = from_npz(path)
    except (OSError, ValueError):
        return None
    leaves = [stored[name] for name in sorted(stored)]
    if len(leaves) != len(jax.tree.leaves([empty] * number)):
        return None
    outcomes: list[Outcome] = jax.tree.unflatten(structure, leaves)
    return outcomes
