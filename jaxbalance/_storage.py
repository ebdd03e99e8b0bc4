"""Files that are written whole or not at all."""

import io
import os
import pathlib
import tempfile
import zipfile

import numpy as np

from jaxbalance._check import InputError
from jaxbalance._types import HostArray


def prepare_folder(folder: pathlib.Path, *, option: str) -> None:
    """Create the output folder and prove, before any training, that it can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"cannot write to {str(folder)!r} ({error.strerror})"
        raise InputError(f"{reason}; choose another folder with {option}") from None


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
