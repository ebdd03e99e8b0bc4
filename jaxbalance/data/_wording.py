"""Pieces of error messages that several readers share."""

import difflib
from collections.abc import Iterable


def listed(names: Iterable[object]) -> str:
    """At most twelve names, and dots for the rest."""
    every = [str(name) for name in names]
    return ", ".join(every[:12]) + ", ..." * (len(every) > 12) or "nothing"


def suggestion(name: str, names: Iterable[object]) -> str:
    """Which of ``names`` somebody who wrote ``name`` may have meant, in brackets; else nothing."""
    close = difflib.get_close_matches(name, [str(one) for one in names], n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def reason(error: BaseException) -> str:
    """The first line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(":") if lines else type(error).__name__
