"""Columns of a table: numbers as they are, categories as one column for each level."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxbalance._check import InputError
from jaxbalance._types import HostArray

_MOST_LEVELS = 100


class Columns(NamedTuple):
    """Named columns: ``values [N, C]``, float32, with one of the C ``names`` each."""

    names: tuple[str, ...]
    values: HostArray


def numeric(label: str, values: HostArray) -> Columns:
    """One column of numbers ``[N]``; beyond float32 is infinity, which ``from_arrays`` refuses."""
    with np.errstate(over="ignore"):
        return Columns((label,), np.asarray(values).astype(np.float32)[:, None])


def categorical(
    source: str, label: str, values: Sequence[object], missing: HostArray | None = None
) -> Columns:
    """A column ``label=level`` of 0 and 1 for each distinct text, in sorted order.

    Where ``missing [N]`` is True the level is "missing". ``source`` is for the error message about
    columns with more levels than anybody would model.
    """
    gone = np.zeros(len(values), bool) if missing is None else missing
    texts = ["missing" if no else _text(value) for value, no in zip(values, gone, strict=True)]
    levels, codes = np.unique(np.array(texts, str), return_inverse=True)
    if len(levels) > _MOST_LEVELS:
        raise InputError(
            f"{source}: column {label!r} has {len(levels)} different levels such as "
            f"{str(levels[0])!r}, more than {_MOST_LEVELS}, as of an identifier or free text; drop "
            "the column or bin it"
        )
    table = (codes[:, None] == np.arange(len(levels))[None, :]).astype(np.float32)
    return Columns(tuple(f"{label}={level}" for level in levels), table)


def joined(source: str, parts: Sequence[Columns]) -> Columns:
    """All the columns side by side; there must be one at least."""
    if not parts:
        raise InputError(f"{source}: there is no column besides the label; add features")
    names = tuple(name for part in parts for name in part.names)
    return Columns(names, np.concatenate([part.values for part in parts], axis=1))


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
