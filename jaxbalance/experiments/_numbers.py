"""Numbers as people read them."""

from typing import Any

from jaxbalance._types import HostArray


def rounded(value: Any) -> float:
    """A number to four significant figures.

    Args:
      value: any real scalar.

    >>> rounded(0.00123456)
    0.001235
    """
    return float(f"{float(value):.4g}")


def mean_and_range(values: HostArray) -> list[float]:
    """Mean, lowest and highest of the seeds, to four significant figures.

    Args:
      values: any shape, not empty.

    >>> import numpy as np
    >>> mean_and_range(np.array([1.0, 2.0, 6.0]))
    [3.0, 1.0, 6.0]
    """
    return [rounded(value) for value in (values.mean(), values.min(), values.max())]
