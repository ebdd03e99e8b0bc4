"""What class Gaussians are good for: classifiers, distances and virtual features."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import _check
from jaxbalance._types import Array, ArrayLike
from jaxbalance.posthoc._gaussians import ClassGaussians, ClassMoments, class_means


class LinearHead(NamedTuple):
    """A linear classifier: ``features @ class_vectors.T + bias``."""

    class_vectors: Array
    """``[K, D]``."""
    bias: Array
    """``[K]``."""


class VirtualFeatures(NamedTuple):
    """Drawn features and their labels, class-major."""

    features: Array
    """``[K, b, D]``."""
    labels: Array
    """``[K, b]``, int32; −1 for an absent class."""


def _never(dtype: np.dtype) -> float:
    """A score no class wins with: finite, and so far from the edge that adding to it is safe."""
    return float(np.finfo(dtype).min) / 2


def _inverse(variances: Array) -> Array:
    """One over each variance, 0 where there is none: the pseudo-inverse along the axes."""
    some = variances > 0
    return jnp.where(some, 1 / jnp.where(some, variances, 1), 0)


def gaussian_discriminant(
    gaussians: ClassGaussians, *, class_prior: ArrayLike | None = None
) -> LinearHead:
    r"""The Bayes classifier of Gaussian classes that share a covariance: linear, no training.

    .. math:: w_k = \Sigma^{+} \mu_k, \qquad
              b_k = \log q_k - \tfrac12 \mu_k^{\top} \Sigma^{+} \mu_k

    With the uniform prior the counts only decide how well the means are known, not who is
    preferred: a strong and cheap baseline on a long tail. Its logits may be added to those of
    another head (:func:`ensemble_logits`).

    Identity: ``class_prior`` None and equal priors are the same classifier up to a constant; with
    shares as in training it is linear discriminant analysis.

    Args:
      gaussians: from :func:`fit_class_gaussians` with the default ``borrowed_examples=None``.
      class_prior: q, ``[K]``, non-negative, need not add up to one: the shares expected where it is
        used. None is uniform.

    Returns:
      :class:`LinearHead`, at least float32. A class that is absent or of prior zero has vector 0
      and a bias of half the lowest finite number: never predicted. Directions without variance
      (:func:`fit_class_gaussians`) count nothing, so constant features get weight 0; shrinkage
      brings them back.

    Raises:
      ValueError: ``gaussians`` has more than one covariance, or ``class_prior`` is not ``[K]``.

    Source: Wang et al. 2024, arXiv:2402.04087. Its precision is a multiple of that of
    ``shrinkage = D / (n - 1 + D)``, its code's covariance divides by n − 1, and it knows the
    uniform prior only.

    >>> from jaxbalance import posthoc
    >>> features, labels = jnp.array([[-1.0], [1.0], [3.0], [5.0]]), jnp.array([0, 0, 1, 1])
    >>> moments = posthoc.class_moments(features, labels, num_classes=2)
    >>> head = gaussian_discriminant(posthoc.fit_class_gaussians(moments))
    >>> head.class_vectors
    Array([[0.],
           [4.]], dtype=float32)
    """
    if gaussians.variances.shape[0] != 1:
        raise ValueError(
            f"gaussians: got {gaussians.variances.shape[0]} covariances, wanted one, as "
            "fit_class_gaussians makes with borrowed_examples=None"
        )
    means, axes = gaussians.means, gaussians.axes[0]
    given = jnp.ones_like(means[:, 0]) if class_prior is None else class_prior
    prior = _check.class_vector("class_prior", given, means.shape[0]).astype(means.dtype)
    along = jnp.matmul(means, axes, precision="highest")
    vectors = along * jnp.broadcast_to(_inverse(gaussians.variances), along.shape)
    possible = (gaussians.class_counts > 0) & (prior > 0)
    bias = jnp.log(jnp.where(possible, prior, 1)) - jnp.sum(vectors * along, axis=-1) / 2
    vectors = jnp.matmul(vectors, axes.T, precision="highest")
    return LinearHead(
        class_vectors=jnp.where(possible[:, None], vectors, jnp.zeros_like(vectors)),
        bias=jnp.where(possible, bias, _never(bias.dtype)),
    )


def mahalanobis_scores(features: ArrayLike, gaussians: ClassGaussians) -> Array:
    r"""Minus the squared Mahalanobis distance of features to each class.

    .. math:: s_k(f) = -(f - \mu_k)^{\top} \Sigma_k^{+} (f - \mu_k)

    The largest one, ``max`` over the classes, is a confidence: low for what looks like no class.
    Covariances may be shared or the classes' own.

    Args:
      features: ``[..., D]``, floating.
      gaussians: from :func:`fit_class_gaussians`.

    Returns:
      ``[..., K]`` in the dtype of the statistics, at most 0. An absent class scores half the lowest
      finite number. Directions without variance count nothing.

    Raises:
      ValueError: ``features`` is not a floating ``[..., D]``.

    Source: Lee et al. 2018, arXiv:1807.03888, eq. 2. (pytorch-ood 0.4 has half of it with the sign
    turned, and a scatter that is not divided by n.)

    >>> from jaxbalance import posthoc
    >>> features, labels = jnp.array([[-1.0], [1.0], [3.0], [5.0]]), jnp.array([0, 0, 1, 1])
    >>> moments = posthoc.class_moments(features, labels, num_classes=2)
    >>> mahalanobis_scores(jnp.array([1.0]), posthoc.fit_class_gaussians(moments))
    Array([-1., -9.], dtype=float32)
    """
    means, axes = gaussians.means, gaussians.axes
    wide = _features_like(features, means)
    # Differences along the axes: unlike the expanded square, nothing large cancels.
    along = jnp.einsum("...d,cde->...ce", wide, axes, precision="highest")
    centres = jnp.einsum(
        "kd,kde->ke",
        means,
        jnp.broadcast_to(axes, (means.shape[0], *axes.shape[1:])),
        precision="highest",
    )
    shape = (*wide.shape[:-1], *means.shape)
    gaps = jnp.broadcast_to(along, shape) - jnp.broadcast_to(centres, shape)
    worth = jnp.broadcast_to(_inverse(gaussians.variances), shape)
    return _of_present(-jnp.sum(worth * gaps**2, axis=-1), gaussians.class_counts)


def _features_like(features: ArrayLike, means: Array) -> Array:
    """Features in the dtype of the statistics."""
    array = _check.floating("features", features)
    if array.ndim < 1 or array.shape[-1] != means.shape[1]:
        raise ValueError(
            f"features: got shape {array.shape}, wanted [..., {means.shape[1]}], that of the "
            "statistics"
        )
    return array.astype(means.dtype)


def _of_present(scores: Array, class_counts: Array) -> Array:
    present = jnp.broadcast_to(class_counts > 0, scores.shape)
    return jnp.where(present, scores, _never(scores.dtype))


def nearest_mean_scores(features: ArrayLike, moments: ClassMoments) -> Array:
    r"""Minus the squared distance of features to each class mean (NCM).

    .. math:: s_k(f) = -\lVert f - \mu_k \rVert_2^2

    Every class has one prototype, so counts give no class an advantage. For the variants with
    L2-normalised and centred features apply :func:`normalize_features` to the features that make
    the moments and to those scored; the means of unit vectors are *not* scaled to length one again.

    Args:
      features: ``[..., D]``, floating.
      moments: from :func:`class_moments`, added up over batches.

    Returns:
      ``[..., K]`` in the dtype of the statistics, at most 0. An absent class scores half the lowest
      finite number.

    Raises:
      ValueError: ``features`` is not a floating ``[..., D]``.

    Source: Kang et al. 2020, arXiv:1910.09217, section 4. (The inner product its code calls
    "cos" divides by D and not by lengths.)

    >>> from jaxbalance import posthoc
    >>> features, labels = jnp.array([[0.0], [2.0], [5.0]]), jnp.array([0, 0, 1])
    >>> moments = posthoc.class_moments(features, labels, num_classes=2)
    >>> nearest_mean_scores(jnp.array([2.0]), moments)
    Array([-1., -9.], dtype=float32)
    """
    means = class_means(moments)
    wide = _features_like(features, means)
    shape = (*wide.shape[:-1], *means.shape)
    gaps = jnp.broadcast_to(wide[..., None, :], shape) - jnp.broadcast_to(means, shape)
    return _of_present(-jnp.sum(gaps**2, axis=-1), moments.class_counts)


def virtual_features(
    key: Array, gaussians: ClassGaussians, *, examples_per_class: int
) -> VirtualFeatures:
    r"""Draw the same number of features of every class from its Gaussian.

    .. math:: \tilde f_{kj} = \mu_k + V_k \Lambda_k^{1/2} z_{kj}, \qquad z_{kj} \sim N(0, I)

    A balanced set on which to refit or calibrate a linear head. Rare classes may borrow their
    covariance (``borrowed_examples`` of :func:`fit_class_gaussians`); trim noisy ones first
    (:func:`trim_outliers`).

    Args:
      key: a JAX PRNG key; fold the step into it for new draws at every step.
      gaussians: from :func:`fit_class_gaussians`.
      examples_per_class: b, static.

    Returns:
      :class:`VirtualFeatures`: features ``[K, b, D]``, at least float32, and labels ``[K, b]``, −1
      and unlabelled for an absent class, of which nothing is known. A class without variance, such
      as one of a single example that borrows nothing, repeats its mean.

    Raises:
      ValueError: ``examples_per_class`` is not an integer >= 1.

    Source: Zhang et al. 2022, arXiv:2211.10955 (RCAL), and Pan et al. 2025, arXiv:2502.03238 (LMD),
    train classifiers on features drawn from class Gaussians.

    >>> from jaxbalance import posthoc
    >>> features, labels = jnp.array([[-1.0], [1.0], [3.0]]), jnp.array([0, 0, 1])
    >>> gaussians = posthoc.fit_class_gaussians(
    ...     posthoc.class_moments(features, labels, num_classes=2)
    ... )
    >>> drawn = virtual_features(jax.random.key(0), gaussians, examples_per_class=3)
    >>> drawn.labels
    Array([[0, 0, 0],
           [1, 1, 1]], dtype=int32)
    """
    _check.positive_integer(examples_per_class=examples_per_class)
    number, size = gaussians.means.shape
    normal = jax.random.normal(key, (number, examples_per_class, size), gaussians.means.dtype)
    spread = jnp.broadcast_to(jnp.sqrt(gaussians.variances)[:, None, :], normal.shape)
    axes = jnp.broadcast_to(gaussians.axes, (number, size, size))
    moved = jnp.einsum("kbe,kde->kbd", spread * normal, axes, precision="highest")
    classes = jnp.arange(number, dtype=jnp.int32)
    classes = jnp.where(gaussians.class_counts > 0, classes, -1)
    return VirtualFeatures(
        features=moved + jnp.broadcast_to(gaussians.means[:, None, :], moved.shape),
        labels=jnp.broadcast_to(classes[:, None], (number, examples_per_class)),
    )
