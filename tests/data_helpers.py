"""What the tests of the data package share."""

import pytest

from jaxbalance._check import InputError


def refusal(function, *args, **kwargs):
    """The message of the InputError that the call must raise: one line that is not too long."""
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def one_hot_by_hand(texts):
    """Levels in sorted order and the 0/1 table, row by row."""
    levels = sorted(set(texts))
    return levels, [[float(text == level) for level in levels] for text in texts]
