"""Corrections of a linear classifier's class vectors, and of its logits by a factor per class."""

import jax.numpy as jnp

from jaxbalance import _check, counts
from jaxbalance._types import Array, ArrayLike, Scalar


def tau_normalize(class_vectors: ArrayLike, *, tau: Scalar = 1.0) -> Array:
    r"""Divide each class vector by a power of its length.

    .. math:: \tilde w_k = w_k / \lVert w_k \rVert_2^{\tau}

    Under cross entropy frequent classes grow longer vectors, which win more often; equal lengths
    take that advantage away. Leave the classifier's bias out afterwards, as the paper does, and
    choose ``tau`` on validation.

    Identity: ``tau=0``. At ``tau=1`` every length is 1.

    Args:
      class_vectors: ``[K, D]``, floating: row k is what features are multiplied with for class k (a
        Flax kernel is its transpose).
      tau: usually between 0 and 1.

    Returns:
      ``[K, D]`` in the dtype of ``class_vectors``; computed in at least float32. A row of zeros
      stays zero.

    Raises:
      ValueError: ``class_vectors`` is not a floating ``[K, D]``.

    Source: Kang et al. 2020, arXiv:1910.09217, section 4; its code searches tau up to 2.

    >>> tau_normalize(jnp.array([[3.0, 4.0], [0.6, 0.8]]))
    Array([[0.6, 0.8],
           [0.6, 0.8]], dtype=float32)
    """
    rows = _check.rows("class_vectors", class_vectors)
    wide = rows.astype(_check.working_dtype(rows))
    lengths = _lengths(wide)
    scale = jnp.where(lengths > 0, lengths, jnp.ones_like(lengths)) ** -jnp.asarray(tau, wide.dtype)
    return (wide * jnp.broadcast_to(scale, wide.shape)).astype(rows.dtype)


def _lengths(rows: Array) -> Array:
    """Euclidean lengths ``[..., 1]`` of rows of any size."""
    # Relative to the largest entry, no square overflows.
    largest = jnp.max(jnp.abs(rows), axis=-1, keepdims=True, initial=0)
    safe = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    relative = rows / jnp.broadcast_to(safe, rows.shape)
    return largest * jnp.sqrt(jnp.sum(relative**2, axis=-1, keepdims=True))


def align_weights(class_vectors: ArrayLike, *, is_new: ArrayLike) -> Array:
    r"""Scale the vectors of newly learned classes to the mean length of those of the old ones.

    .. math:: \tilde w_k = w_k \,
              \frac{\operatorname{mean}_{j \text{ old}} \lVert w_j \rVert}
                   {\operatorname{mean}_{j \text{ new}} \lVert w_j \rVert}
              \quad \text{for new } k

    One factor for all new classes: the order among them stays. For class-incremental learning,
    where old classes have only a few stored examples, and for any head/tail split.

    Identity: groups of equal mean length, no new class, no old class, or new vectors all zero.

    Args:
      class_vectors: ``[K, D]``, floating.
      is_new: bool ``[K]``.

    Returns:
      ``[K, D]`` in the dtype of ``class_vectors``; computed in at least float32. Old rows as they
      came.

    Raises:
      ValueError: ``class_vectors`` is not a floating ``[K, D]`` or ``is_new`` not a bool ``[K]``.

    Source: Zhao et al. 2020, arXiv:1911.07053. (The paper also keeps weights non-negative
    in training and has no bias; common code leaves the bias as it is.)

    >>> align_weights(jnp.array([[1.0, 0.0], [0.0, 4.0]]), is_new=jnp.array([False, True]))
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    rows = _check.rows("class_vectors", class_vectors)
    new = new_classes(is_new, rows.shape[0])
    wide = rows.astype(_check.working_dtype(rows))
    lengths = _lengths(wide)[:, 0]
    old_mean, new_mean = (_mean_where(lengths, group) for group in (~new, new))
    usable = jnp.any(~new) & (new_mean > 0)
    factor = jnp.where(usable, old_mean / jnp.where(new_mean > 0, new_mean, 1), 1)
    factors = jnp.where(new, factor, jnp.ones_like(lengths))
    return (wide * jnp.broadcast_to(factors[:, None], wide.shape)).astype(rows.dtype)


def new_classes(is_new: ArrayLike, num_classes: int) -> Array:
    """Return ``is_new`` if it is one truth value per class."""
    new = jnp.asarray(is_new)
    if new.dtype != jnp.bool_ or new.shape != (num_classes,):
        raise ValueError(
            f"is_new: got dtype {new.dtype} and shape {new.shape}, wanted bool ({num_classes},)"
        )
    return new


def _mean_where(values: Array, group: Array) -> Array:
    total = jnp.sum(jnp.where(group, values, jnp.zeros_like(values)))
    return total / jnp.maximum(jnp.sum(group), 1).astype(values.dtype)


def scale_logits(
    logits: ArrayLike, *, class_factors: ArrayLike, class_bias: ArrayLike | None = None
) -> Array:
    r"""Multiply logits by one factor per class and add one bias per class.

    .. math:: z'_k = f_k z_k + b_k

    The one way to apply what is fitted or computed per class: inverse image frequency
    (:func:`jaxbalance.losses.inverse_image_frequency` and its variants), learned scales
    (:func:`fit_class_factors`), :func:`fit_vector_scaling` and :func:`fit_bias_correction`.
    Factors turn a negative logit of a rare class *further* down, so they suit cosines and heads
    without bias.

    Identity: factors 1 and bias 0 (None); equal factors above 0 change no ``argmax``.

    Args:
      logits: ``[..., K]``, floating.
      class_factors: f, ``[K]``.
      class_bias: b, ``[K]``; None is none.

    Returns:
      ``[..., K]`` in the dtype of ``logits``; computed in at least float32.

    Raises:
      ValueError: shapes or dtypes disagree.

    Source: Alexandridis et al. 2022, arXiv:2209.04861, for factors after training (its code does so
    with the variant "smooth" on cosine classifiers); Guo et al. 2017, arXiv:1706.04599, section
    4.2, for factors and bias.

    >>> scale_logits(jnp.array([1.0, 2.0]), class_factors=jnp.array([3.0, 1.0]))
    Array([3., 2.], dtype=float32)
    """
    scores = _check.logits(logits)
    wide = scores.astype(_check.working_dtype(scores))
    factors = _check.class_vector("class_factors", class_factors, scores.shape[-1])
    scaled = wide * jnp.broadcast_to(factors.astype(wide.dtype), wide.shape)
    if class_bias is not None:
        bias = _check.class_vector("class_bias", class_bias, scores.shape[-1])
        scaled = scaled + jnp.broadcast_to(bias.astype(wide.dtype), wide.shape)
    return scaled.astype(scores.dtype)


def multiply_logits(logits: ArrayLike, *, class_counts: ArrayLike, gamma: Scalar) -> Array:
    r"""Multiplicative logit adjustment: multiply each logit by a power of its class's rarity.

    .. math:: z'_k = \left( \frac{\max_j n_j}{n_k} \right)^{\gamma} z_k

    Under neural collapse the angle a class needs grows as its count falls, and a factor on its
    logit moves the boundary by an angle, where an added constant (:func:`adjust_logits`) moves it
    by a distance. Like :func:`scale_logits` it suits cosines and heads without bias; the most
    frequent class keeps its logit.

    Identity: ``gamma=0``, and equal counts.

    Args:
      logits: ``[..., K]``, floating.
      class_counts: training counts ``[K]``. An absent class takes the factor of the rarest present
        class.
      gamma: strength, usually between 0 and 1; chosen on validation.

    Returns:
      ``[..., K]`` in the dtype of ``logits``; computed in at least float32.

    Raises:
      ValueError: shapes or dtypes disagree.

    Source: Hasegawa and Sato 2023, arXiv:2305.16573, and 2024, arXiv:2409.17582, after Kim and Kim
    2020, arXiv:1912.01857. A common factor, such as that of shares in place of counts relative to
    the largest, is an inverse temperature and changes no ``argmax``.

    >>> multiply_logits(jnp.array([2.0, 1.0]), class_counts=jnp.array([900, 100]), gamma=0.5)
    Array([2., 3.], dtype=float32)
    """
    scores = _check.logits(logits)
    sizes = counts.floor_absent(_check.class_vector("class_counts", class_counts, scores.shape[-1]))
    factors = (jnp.max(sizes) / sizes) ** jnp.asarray(gamma, sizes.dtype)
    return scale_logits(scores, class_factors=factors)


def normalize_features(features: ArrayLike, *, center: ArrayLike | None = None) -> Array:
    r"""Scale feature vectors to length one, after taking off a centre if one is given.

    .. math:: \tilde f = \frac{f - c}{\lVert f - c \rVert_2}

    The transforms of nearest-class-mean classification: none at all; ``center=None`` (L2); and
    ``center`` the mean of the training features (centred and L2). Apply the same one to the
    features of the class means and to those to be classified.

    Identity: vectors that already have length one, with no centre.

    Args:
      features: ``[..., D]``, floating.
      center: c, ``[D]``; None is none.

    Returns:
      ``[..., D]`` in the dtype of ``features``; computed in at least float32. A vector equal to the
      centre becomes zero.

    Raises:
      ValueError: ``features`` is not floating or has no feature axis, or ``center`` is not ``[D]``.

    Source: Kang et al. 2020, arXiv:1910.09217 (its code's "l2n" and "cl2n"), after Wang et al.
    2019, arXiv:1911.04623.

    >>> normalize_features(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    Array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    array = _check.floating("features", features)
    if array.ndim < 1:
        raise ValueError(f"features: got shape {array.shape}, wanted [..., D]")
    wide = array.astype(_check.working_dtype(array))
    if center is not None:
        middle = _check.floating("center", center)
        if middle.shape != array.shape[-1:]:
            raise ValueError(
                f"center: got shape {middle.shape}, wanted shape {array.shape[-1:]}, one number "
                "per feature"
            )
        wide = wide - jnp.broadcast_to(middle.astype(wide.dtype), wide.shape)
    lengths = _lengths(wide)
    lengths = jnp.where(lengths > 0, lengths, jnp.ones_like(lengths))
    return (wide / jnp.broadcast_to(lengths, wide.shape)).astype(array.dtype)
