"""Which data sets a folder, or an archive of many, holds."""

import pathlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from jaxbalance import data
from jaxbalance._check import InputError
from jaxbalance._types import HostArray
from jaxbalance.data import _columns, _paths, _wording

_INPUTS, _LABELS, _CATEGORICAL = "X__", "y__", "cat__"
_IDX = "-ubyte"


class Source(NamedTuple):
    """A data set that has not been read yet."""

    name: str
    file: str
    read: Callable[[str | None], data.Dataset]
    """``read(target) -> dataset``, or an error of one line."""


def is_suite(source: str) -> bool:
    """Whether there are several data sets: a folder of files, or an archive of X__NAME, y__NAME.

    A folder that reads as one data set is one: with an .npz of its own name, or in the MNIST
    layout. So is a folder without anything to read, for the reader to say what is wrong.
    """
    path = pathlib.Path(source).expanduser()
    if path.is_dir():
        return not _is_one(path) and bool(_files(path))
    return path.is_file() and bool(_members(path))


def find(source: str) -> list[Source]:
    """The data sets of a suite, by name; where names are alike, with that of the file."""
    path = pathlib.Path(source).expanduser()
    files = _files(path) if path.is_dir() else [path]
    found = [one for file in files for one in _sources(file)]
    number = Counter(one.name for one in found)
    named = (
        one if number[one.name] == 1 else one._replace(name=f"{one.name} of {one.file}")
        for one in found
    )
    return sorted(named, key=lambda one: one.name)


def _is_one(folder: pathlib.Path) -> bool:
    own = folder / f"{folder.resolve().name}.npz"
    return own.is_file() or any(_IDX in file.name for file in folder.iterdir())


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files with an ending that is read, and folders that are one data set."""
    endings = (".npz", *_paths.TABLE_ENDINGS)
    return [
        path
        for path in sorted(folder.iterdir())
        if (path.is_dir() and _is_one(path)) or path.name.lower().endswith(endings)
    ]


def _sources(path: pathlib.Path) -> list[Source]:
    members = _members(path)
    if members:
        return [Source(name, path.name, partial(_read_member, path, name)) for name in members]
    return [Source(_paths.stem(path), path.name, partial(_read_file, path))]


def _read_file(path: pathlib.Path, target: str | None) -> data.Dataset:
    return data.load(str(path), target=target)


def _members(path: pathlib.Path) -> list[str]:
    """The NAMEs of an archive's X__NAME."""
    if not path.name.lower().endswith(".npz") or not zipfile.is_zipfile(path):
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist()]
    except zipfile.BadZipFile:
        return []  # Its reader says what is wrong with it.
    return [key.removeprefix(_INPUTS) for key in keys if key.startswith(_INPUTS)]


def _read_member(path: pathlib.Path, name: str, target: str | None) -> data.Dataset:
    if target is not None:
        raise InputError(f"{path}: its labels are {_LABELS}NAME; leave out the target {target!r}")
    arrays = _arrays(path, name)
    inputs, labels, key = arrays[_INPUTS], arrays[_LABELS], _CATEGORICAL + name
    coded = arrays.get(_CATEGORICAL, np.zeros(inputs.shape[1:], bool))
    if inputs.ndim != 2 or not np.any(coded):
        return data.from_arrays(inputs, labels, name=name)
    if coded.shape != inputs.shape[1:]:
        raise InputError(
            f"{path}: {key} has shape {coded.shape}; give one True or False for each of the "
            f"{inputs.shape[1]} columns"
        )
    columns = [_column(name, f"x{i}", column, bool(coded[i])) for i, column in enumerate(inputs.T)]
    table = _columns.joined(name, columns)
    return data.from_arrays(table.values, labels, name=name, feature_names=table.names)


def _arrays(path: pathlib.Path, name: str) -> dict[str, HostArray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if _LABELS + name not in archive.files:
                raise InputError(f"{path}: has {_INPUTS}{name} but no {_LABELS}{name}")
            kinds = (_INPUTS, _LABELS, _CATEGORICAL)
            return {kind: archive[kind + name] for kind in kinds if kind + name in archive.files}
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: is damaged ({_wording.reason(error)}); save or fetch it again"
        ) from error


def _column(name: str, label: str, column: HostArray, coded: bool) -> _columns.Columns:
    if not coded:
        return _columns.numeric(label, column)
    texts = [f"{code:g}" for code in column]
    return _columns.categorical(name, label, texts, np.isnan(column))
