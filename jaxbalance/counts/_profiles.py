"""Class sizes of long-tailed and stepped data sets, on the host because they fix shapes."""

import numpy as np

from jaxbalance import _check
from jaxbalance._types import HostArray


def exponential(num_classes: int, *, largest: int, ratio: float) -> HostArray:
    r"""Long-tailed class sizes that fall exponentially.

    .. math:: n_i = \left\lfloor n_{\max}\, \rho^{-i/(K-1)} \right\rfloor

    Args:
      num_classes: K.
      largest: size of class 0.
      ratio: rho >= 1, the largest size over the smallest; 1 is the identity (balanced).

    Returns:
      Sizes ``[K]``, int64, on the host (they fix shapes).

    Raises:
      ValueError: ``num_classes`` or ``largest`` is below 1, or ``ratio`` is below 1.

    Source: the CIFAR-LT construction of Cui et al. 2019 and Cao et al. 2019, which truncates.

    >>> exponential(10, largest=5000, ratio=100).sum()
    np.int64(12406)
    """
    _check_profile(num_classes, largest, ratio)
    exponent = np.arange(num_classes) / max(num_classes - 1, 1)
    return (largest * ratio**-exponent).astype(np.int64)


def step(
    num_classes: int, *, largest: int, ratio: float, minority_fraction: float = 0.5
) -> HostArray:
    r"""Class sizes with two levels: majority classes first, then minority classes.

    .. math:: n_i = n_{\max} \text{ for } i < K - m, \quad
              \lfloor n_{\max}/\rho \rfloor \text{ for the last } m = \mathrm{round}(\mu K)

    Args:
      num_classes: K.
      largest: size of a majority class.
      ratio: rho >= 1; 1 is the identity.
      minority_fraction: mu in [0, 1], the share of classes that are small; 0 is the identity.

    Returns:
      Sizes ``[K]``, int64, on the host.

    Raises:
      ValueError: a setting is out of range.

    Source: Buda et al. 2018, arXiv:1710.05381, section 3.1. (The LDAM code drops a class when K is
    odd; this does not.)

    >>> step(4, largest=100, ratio=10)
    array([100, 100,  10,  10])
    """
    _check_profile(num_classes, largest, ratio)
    _check.between(0.0, 1.0, minority_fraction=minority_fraction)
    minority = int(np.floor(minority_fraction * num_classes + 0.5))
    small = np.arange(num_classes) >= num_classes - minority
    return np.where(small, int(largest / ratio), largest).astype(np.int64)


def linear(num_classes: int, *, largest: int, ratio: float) -> HostArray:
    r"""Class sizes that fall linearly from the largest to the smallest.

    .. math:: n_i = \left\lfloor n_{\max} - \frac{i}{K-1}\,(n_{\max} - n_{\max}/\rho) \right\rfloor

    Args:
      num_classes: K.
      largest: size of class 0.
      ratio: rho >= 1; 1 is the identity.

    Returns:
      Sizes ``[K]``, int64, on the host.

    Raises:
      ValueError: a setting is out of range.

    Source: Buda et al. 2018, arXiv:1710.05381, section 3.1.

    >>> linear(5, largest=100, ratio=5)
    array([100,  80,  60,  40,  20])
    """
    _check_profile(num_classes, largest, ratio)
    share = np.arange(num_classes) / max(num_classes - 1, 1)
    return np.floor(largest - share * (largest - largest / ratio) + 1e-9).astype(np.int64)


def zipf(num_classes: int, *, largest: int, exponent: float = 1.0) -> HostArray:
    r"""Class sizes of Zipf's law, as in words: heavy-tailed.

    .. math:: n_i = \lfloor n_{\max} (i + 1)^{-s} \rfloor

    Args:
      num_classes: K.
      largest: size of class 0.
      exponent: s >= 0; 0 is the identity.

    Returns:
      Sizes ``[K]``, int64, on the host.

    Raises:
      ValueError: a setting is out of range.

    >>> zipf(4, largest=120)
    array([120,  60,  40,  30])
    """
    _check_profile(num_classes, largest, 1.0)
    _check.at_least(0.0, exponent=exponent)
    sizes = largest * np.arange(1.0, num_classes + 1.0) ** -exponent
    return np.floor(sizes + 1e-9).astype(np.int64)


def _check_profile(num_classes: int, largest: int, ratio: float) -> None:
    _check.positive_integer(num_classes=num_classes, largest=largest)
    _check.at_least(1.0, ratio=ratio)
