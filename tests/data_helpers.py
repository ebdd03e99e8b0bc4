"""What the tests of the data package share."""

import numpy as np
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


def two_classes(generator, *, rows=90, rare=15, columns=3):
    """A table in which every column tells the rare class apart a little."""
    labels = (np.arange(rows) < rare).astype(int)
    return generator.normal(size=(rows, columns)) + 1.5 * labels[:, None], labels
