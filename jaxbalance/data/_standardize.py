"""Zero mean and unit variance by the training rows, missing values filled."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxbalance._types import Array, ArrayLike, HostArray

_CHUNK = 1024


class Standardizer(NamedTuple):
    """What :func:`standardize` needs: float32, ``[F]`` each for tables, ``[]`` for images."""

    center: ArrayLike
    inverse_scale: ArrayLike
    fill: ArrayLike


def fit_standardizer(inputs: HostArray) -> Standardizer:
    r"""Learn mean, standard deviation and filling from training rows, and from them alone.

    For each column of a table, a missing value is filled with the median :math:`m` of those there
    (0 where there is none); mean :math:`\mu` and standard deviation :math:`\sigma` (divisor N) are
    those of the filled column. Images have one mean and one deviation, over all pixels of all
    images. What is constant in the training rows gets an inverse scale of 0 instead of
    :math:`1/\sigma`: it comes out as 0 for every row ever, so that a value never trained on cannot
    reach the model. The same holds where :math:`1/\sigma` is beyond float32. Computed in float64.

    Args:
      inputs: the rows to train on: a table ``[N, F]`` with NaN for missing, or images
        ``[N, H, W, C]``. Pass ``inputs[split.train]``, never validation or test rows.

    Returns:
      The :class:`Standardizer`, a pytree of float32.

    Raises:
      ValueError: ``inputs`` are neither a table nor images, or there are no rows.

    >>> fit_standardizer(np.array([[1.0, 7.0], [3.0, 7.0], [np.nan, 7.0]])).inverse_scale
    array([1.2247449, 0.       ], dtype=float32)
    """
    array = np.asarray(inputs)
    if array.ndim not in (2, 4) or array.size == 0:
        raise ValueError(
            f"inputs: got shape {array.shape}, wanted rows of a table [N, F] or images [N, H, W, C]"
        )
    if array.ndim == 4:
        return _fit_images(array)
    table = array.astype(np.float64)
    empty = np.all(np.isnan(table), axis=0)
    fill = np.nanmedian(np.where(empty[None, :], 0.0, table), axis=0)
    table = np.where(np.isnan(table), fill[None, :], table)
    varies = table.min(axis=0) < table.max(axis=0)
    return _standardizer(table.mean(axis=0), table.std(axis=0), varies, fill)


def _fit_images(images: HostArray) -> Standardizer:
    center = np.asarray(np.mean(images, dtype=np.float64))
    # A chunk at a time: float64 copies of all images at once can take more memory than they do.
    chunks = (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))
    squares = sum(float(np.sum(np.square(chunk - center))) for chunk in chunks)
    deviation = np.asarray(np.sqrt(squares / images.size))
    varies = np.asarray(images.min() < images.max())
    return _standardizer(center, deviation, varies, np.zeros(()))


def _standardizer(
    center: HostArray, deviation: HostArray, varies: HostArray, fill: HostArray
) -> Standardizer:
    with np.errstate(divide="ignore"):
        inverse = 1 / np.where(varies, deviation, np.inf)
    limits = np.finfo(np.float32)
    # Outside these XLA would make 0 or infinity of it, in ways that differ between devices.
    usable = (inverse >= limits.tiny) & (inverse <= limits.max)
    parts = center, np.where(usable, inverse, 0.0), fill
    return Standardizer(*(np.asarray(part, np.float32) for part in parts))


def standardize(standardizer: Standardizer, inputs: ArrayLike) -> Array:
    r"""Fill what is missing and bring inputs to the scale of the training rows.

    .. math:: z = (x' - \mu)\, \sigma^{-1}, \qquad x' = m \text{ where } x \text{ is NaN, else } x

    Zeros for ``center`` and ``fill`` with ones for ``inverse_scale`` are the identity. Nothing is
    clipped: a value far outside the training rows stays far outside.

    Args:
      standardizer: from :func:`fit_standardizer`.
      inputs: ``[..., F]`` for a table, any shape for images; uint8, another integer or floating
        dtype.

    Returns:
      Array of the same shape, float32; exactly 0 wherever ``inverse_scale`` is 0.

    Raises:
      ValueError: the last axis is not the F columns of the standardizer.

    >>> standardize(fit_standardizer(np.array([[1.0], [3.0]])), np.array([[2.0], [np.nan], [5.0]]))
    Array([[0.],
           [0.],
           [3.]], dtype=float32)
    """
    values = jnp.asarray(inputs).astype(jnp.float32)
    columns = np.shape(standardizer.center)
    if columns and values.shape[-1:] != columns:
        raise ValueError(
            f"inputs: got shape {values.shape}, wanted {columns[0]} columns on the last axis, "
            "those of the standardizer"
        )
    center, inverse, fill = (
        jnp.broadcast_to(jnp.asarray(part, jnp.float32), values.shape) for part in standardizer
    )
    filled = jnp.where(jnp.isnan(values), fill, values)
    return jnp.where(inverse > 0, (filled - center) * inverse, jnp.zeros((), jnp.float32))
