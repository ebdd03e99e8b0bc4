"""Data sets by name: what to read where, and folders in the MNIST layout."""

import gzip
import lzma
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxbalance._check import InputError
from jaxbalance._types import HostArray
from jaxbalance.data import _paths, _wording
from jaxbalance.data._csv import read_csv
from jaxbalance.data._dataset import Dataset, from_arrays
from jaxbalance.data._embedded import digits
from jaxbalance.data._npz import read_npz, stacked
from jaxbalance.data._tfds import read_tfds

_IDX_STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def load(source: str, *, target: str | None = None) -> Dataset:
    """Read a data set from whatever ``source`` names.

    Args:
      source: ``"digits"`` (the embedded set, :func:`digits`), ``"tfds:NAME"`` (:func:`read_tfds`),
        a path ending in .npz (:func:`read_npz`), .csv, .csv.gz, .tsv or .tsv.gz
        (:func:`read_csv`), or a folder. A folder is read if it holds one .npz of its own name
        (``yeast/yeast.npz``) or the MNIST layout: ``train-images-idx3-ubyte``,
        ``train-labels-idx1-ubyte`` and the same two with ``t10k``, each plain, .gz or .xz.
      target: the column (csv) or key (npz) that holds the labels; None finds the usual names.

    Returns:
      The :class:`Dataset`, named after the source. In the MNIST layout the t10k part is the test
      split.

    Raises:
      InputError: (a ValueError) in one line: nothing there, an unknown ending, a ``target`` where
        none can be chosen, or whatever the reader found wrong.

    >>> load("digits").class_names
    ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
    """
    if source == "digits" or source.startswith("tfds:"):
        _refuse_target(source, target)
        return digits() if source == "digits" else read_tfds(source.removeprefix("tfds:"))
    path = _paths.existing(source)
    if path.is_dir():
        return _read_folder(path, target)
    if path.name.lower().endswith(".npz"):
        return read_npz(path, target=target)
    if path.name.lower().endswith(_paths.TABLE_ENDINGS):
        return read_csv(path, target=target)
    raise InputError(
        f"{source}: unknown ending; give a file ending in .npz, {', '.join(_paths.TABLE_ENDINGS)}, "
        "a folder, digits or tfds:NAME"
    )


def _refuse_target(source: object, target: str | None) -> None:
    if target is not None:
        raise InputError(f"{source}: brings its own labels; leave out the target {target!r}")


def _read_folder(path: Path, target: str | None) -> Dataset:
    archive = path / f"{path.resolve().name}.npz"
    if archive.is_file():
        return read_npz(archive, target=target)
    files = [file for stem in _IDX_STEMS if (file := _idx_file(path, stem)) is not None]
    if len(files) == len(_IDX_STEMS):
        _refuse_target(path, target)
        return _read_idx(files, path.resolve().name)
    raise InputError(
        f"{path}: a folder must hold {archive.name} or the four files {', '.join(_IDX_STEMS)} "
        f"(plain, .gz or .xz); it holds {_wording.listed(sorted(os.listdir(path)))}"
    )


def _idx_file(folder: Path, stem: str) -> Path | None:
    files = (folder / f"{stem}{ending}" for ending in ("", ".gz", ".xz"))
    return next((file for file in files if file.is_file()), None)


def _read_idx(files: list[Path], name: str) -> Dataset:
    train_images, train_labels, test_images, test_labels = (_idx_array(file) for file in files)
    images = stacked(name, "images", train_images, test_images)
    return from_arrays(
        images,
        stacked(name, "labels", train_labels, test_labels),
        name=name,
        test_indices=np.arange(len(train_images), len(images)),
    )


def _idx_array(path: Path) -> HostArray:
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        with openers.get(path.suffix, open)(path, "rb") as stream:
            content: bytes = stream.read()
        zeros, kind, rank = struct.unpack(">HBB", content[:4])
        if (zeros, kind) != (0, 8):
            raise ValueError("it does not start like an idx file of bytes")
        shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error, lzma.LZMAError) as error:
        raise InputError(
            f"{path}: cannot be read ({_wording.reason(error)}); fetch the file again"
        ) from error
