"""Paths as people write them."""

import os
from pathlib import Path

from jaxbalance._check import InputError
from jaxbalance.data import _wording

TABLE_ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")


def existing(path: str | os.PathLike[str]) -> Path:
    """The path with ``~`` expanded, if there is something."""
    found = Path(path).expanduser()
    if found.exists():
        return found
    parent = found.absolute().parent
    if not parent.is_dir():
        raise InputError(f"{path}: no such file, nor is there a folder {parent}; check the path")
    close = _wording.suggestion(found.name, ["digits", *sorted(os.listdir(parent))])
    raise InputError(f"{path}: no such file or folder{close}; check the path")


def stem(path: Path) -> str:
    """The last part of the path without the ending of a file that can be read."""
    name = path.resolve().name
    endings = sorted((".npz", *TABLE_ENDINGS), key=len, reverse=True)
    ending = next((one for one in endings if name.lower().endswith(one)), "")
    return name[: len(name) - len(ending)]
