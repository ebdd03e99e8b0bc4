"""A small real data set inside the package, so that a first try needs no network."""

import importlib.resources

import numpy as np

from jaxbalance.data._dataset import Dataset, from_arrays


def digits() -> Dataset:
    r"""Handwritten digits: 1797 images of 8 × 8 pixels in ten classes of about 180.

    The original ink :math:`v \in \{0, \dots, 16\}` is stored as :math:`\mathrm{round}(255 v/16)`,
    half to even, so that full ink is 255 as in any other 8-bit image.

    Returns:
      The :class:`Dataset`: uint8 images ``[1797, 8, 8, 1]``, classes "0" to "9", no official test
      split.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, 1998, CC BY 4.0; its test part, as distributed with scikit-learn.

    >>> digits().inputs.shape
    (1797, 8, 8, 1)
    """
    resource = importlib.resources.files("jaxbalance.data").joinpath("digits.npz")
    with resource.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    ink = np.rint(images * (255 / 16)).astype(np.uint8)
    return from_arrays(ink, labels, name="digits")
