"""What the settings of an experiment may be."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args, get_origin

from jaxbalance._check import InputError


class _Range(NamedTuple):
    """Of a finite number that is not negative."""

    wanted: str
    holds: Callable[[float], bool]


Positive: TypeAlias = Annotated[float, _Range("a finite number > 0", lambda x: x > 0)]
"""A step size, a length, a temperature."""

Ratio: TypeAlias = Annotated[float, _Range("a finite number >= 1", lambda x: x >= 1)]
"""Of the largest class to the smallest."""

Share: TypeAlias = Annotated[float, _Range("a number in [0, 1]", lambda x: x <= 1)]
"""Of a whole, perhaps all or nothing of it."""

OpenShare: TypeAlias = Annotated[float, _Range("a number in (0, 1)", lambda x: 0 < x < 1)]
"""Of a whole, neither all nor nothing of it: the prior of a class."""


def check_config(config: Any) -> None:
    """Each field is of its type, and what numbers, texts and tuples may be.

    Whole numbers count something: at least 1. Others are finite and not negative, and what
    :data:`Positive` and the like say beside that. No text and no tuple is empty.

    Raises:
      ValueError: naming the first field that is otherwise.
    """
    for field in dataclasses.fields(config):
        for value, wanted in _faults(field.type, getattr(config, field.name)):
            raise InputError(f"{field.name}: got {value}, wanted {wanted}")


def _faults(kind: Any, value: Any) -> Iterator[tuple[str, str]]:
    """Values that are unfit, as they are told, and what was wanted in their place."""
    inner = get_args(kind)
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            yield repr(value), "a tuple"
        elif not value:
            yield "nothing", "at least one value"
        else:
            for one in value:
                yield from _faults(inner[0], one)
    elif get_origin(kind) is Literal:
        if value not in inner:
            yield repr(value), f"one of {', '.join(map(str, inner))}"
    elif get_origin(kind) is Annotated:
        if not (_number(value) and inner[1].holds(value)):
            yield repr(value), inner[1].wanted
    else:
        wanted, fits = _KINDS[kind]
        if not fits(value):
            yield repr(value), wanted


def _number(value: Any) -> bool:
    # A truth value is an int to Python.
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and math.isfinite(value) and value >= 0


_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda value: isinstance(value, bool)),
    int: ("an integer >= 1", lambda value: type(value) is int and value >= 1),
    float: ("a finite number >= 0", _number),
    str: ("a text that is not empty", lambda value: isinstance(value, str) and value != ""),
}
