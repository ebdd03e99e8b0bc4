"""What the tests of the experiments share."""

import copy

import numpy as np
import pytest

FILES = {"config.json", "numbers.json", "provenance.json", "record.npz", "figure.png"}


def kept(result):
    """The arrays of a run whose folder is complete."""
    assert {path.name for path in result.place.iterdir()} == FILES
    assert (result.place / "figure.png").stat().st_size > 10_000
    with np.load(result.place / "record.npz") as record:
        return dict(record)


def doctored(numbers, place, value):
    """The same numbers with another one at the end of a path of keys."""
    wrong = copy.deepcopy(numbers)
    *path, last = place
    inside = wrong
    for key in path:
        inside = inside[key]
    inside[last] = value
    return wrong


def assert_refused(check, numbers, place, value, message=None):
    """The check finds out about one doctored number."""
    wrong = doctored(numbers, place, value)
    with pytest.raises(AssertionError, match=message):
        check(wrong)
