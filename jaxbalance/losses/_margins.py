"""Losses that shift or scale the logits by class."""

import jax
import jax.numpy as jnp

from jaxbalance import _check, counts
from jaxbalance._types import Array, ArrayLike, Scalar
from jaxbalance.losses import _log_odds


def logit_adjusted_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    class_counts: ArrayLike,
    tau: Scalar = 1.0,
    class_weights: ArrayLike | None = None,
) -> Array:
    r"""Cross entropy of logits to which the log prior is *added* during training.

    .. math:: \ell(z, q) = -\sum_k w_k\, q_k \log \operatorname{softmax}(z + \tau \log \pi)_k,
              \qquad \pi_k = n_k / n

    The network then learns scores for balanced classes: predict with ``argmax(z)``, unadjusted.
    At ``tau=1`` this is the balanced softmax. To correct a network trained *without* it, subtract
    instead: :func:`jaxbalance.posthoc.adjust_logits`. Never do both.

    Identity: ``tau=0`` (or equal counts) is cross entropy.

    Args:
      logits: ``[..., K]``, floating.
      labels: class ids ``[...]`` or class probabilities ``[..., K]``; −1 and any id outside
        ``0 .. K-1`` is unlabelled: loss and gradient exactly 0.
      class_counts: training counts ``[K]``. An absent class takes the prior of the rarest present
        class, so every loss is finite.
      tau: strength of the adjustment; 1 is consistent for the balanced error.
      class_weights: ``[K]``, None is the identity.

    Returns:
      ``[...]`` in the dtype of ``logits``; computed in at least float32.

    Raises:
      ValueError: shapes or dtypes disagree.

    Source: Menon et al. 2021, arXiv:2007.07314, eq. 10; balanced softmax: Ren et al. 2020,
    arXiv:2007.10740, eq. 4. (Google's code adds 1e-12 inside the logarithm; this floors counts.)

    >>> logits = jnp.zeros((2, 2))
    >>> logit_adjusted_cross_entropy(logits, jnp.array([0, 1]), class_counts=jnp.array([9, 1]))
    Array([0.105..., 2.302...], dtype=float32)
    """
    problem = _log_odds.prepare(logits, labels)
    log_prior = counts.log_prior(_log_odds.class_vector("class_counts", class_counts, problem))
    shift = jnp.asarray(tau, log_prior.dtype) * log_prior
    adjusted = problem.scores + _log_odds.over_classes(shift, problem.scores)
    return _log_odds.cross_entropy(problem._replace(scores=adjusted), class_weights=class_weights)


def label_distribution_aware_margin_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    class_counts: ArrayLike,
    max_margin: Scalar = 0.5,
    scale: Scalar = 30.0,
    class_weights: ArrayLike | None = None,
) -> Array:
    r"""LDAM: cross entropy in which rare classes must win by a larger margin.

    .. math:: \ell(z, q) = \sum_k w_k\, q_k \operatorname{softplus}\Bigl(
              \log \textstyle\sum_{j \ne k} e^{s z_j} - s (z_k - m_k)\Bigr), \qquad
              m_k = m_{\max} \Bigl(\frac{\min_j n_j}{n_k}\Bigr)^{1/4}

    that is, cross entropy of s(z − m_y e_y) for an example of class y, averaged over a soft label.
    The margins are meant for bounded logits, cosines of features and class weights (a cosine
    classification head); with unbounded logits a network can outgrow any margin.

    Identity: ``max_margin=0, scale=1`` is cross entropy.

    With *deferred re-weighting* (LDAM-DRW) the same loss takes ``class_weights`` from
    :func:`jaxbalance.counts.effective_number_weights` for the last part of training only.

    Args:
      logits: ``[..., K]``, floating; cosines in [−1, 1] for the published settings.
      labels: class ids ``[...]`` or class probabilities ``[..., K]``; −1 and any id outside
        ``0 .. K-1`` is unlabelled: loss and gradient exactly 0.
      class_counts: training counts ``[K]``; an absent class gets the margin of the rarest present.
      max_margin: margin of the rarest class, in units of the logits.
      scale: inverse temperature s > 0 applied after the margin.
      class_weights: ``[K]``, None is the identity.

    Returns:
      ``[...]`` in the dtype of ``logits``; computed in at least float32. (At float16, scale 30
      times logits beyond ±1000 exceeds the dtype's largest number.)

    Raises:
      ValueError: shapes or dtypes disagree, ``max_margin`` is negative or ``scale`` not positive.

    Source: Cao et al. 2019, arXiv:1906.07413, eq. 13. (Its code scales after the margin, as here;
    some re-implementations scale the margin alone.)

    >>> cosines = jnp.array([[0.9, 0.1], [0.1, 0.9]])
    >>> label_distribution_aware_margin_loss(
    ...     cosines, jnp.array([0, 1]), class_counts=jnp.array([1600, 100]), scale=1.0
    ... )
    Array([0.455..., 0.554...], dtype=float32)
    """
    _check.at_least(0.0, max_margin=max_margin)
    _check.more_than(0.0, scale=scale)
    problem = _log_odds.prepare(logits, labels)
    sizes = counts.floor_absent(_log_odds.class_vector("class_counts", class_counts, problem))
    margins = jnp.asarray(max_margin, sizes.dtype) * (jnp.min(sizes) / sizes) ** 0.25
    scale = jnp.asarray(scale, problem.scores.dtype)
    scaled = problem._replace(scores=scale * problem.scores)
    margin = scale * _log_odds.at_labels(_log_odds.over_classes(margins, scaled.scores), scaled)
    values = jax.nn.softplus(margin - _log_odds.log_odds(scaled))
    return _log_odds.expected(values, scaled, class_weights=class_weights)


def vector_scaling_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    class_counts: ArrayLike,
    tau: Scalar = 1.0,
    gamma: Scalar = 0.3,
    class_weights: ArrayLike | None = None,
) -> Array:
    r"""VS loss: multiplies each logit by a power of its class size and adds the log prior.

    .. math:: \ell(z, q) = -\sum_k w_k\, q_k \log \operatorname{softmax}(\Delta z + \iota)_k, \qquad
              \Delta_k = (n_k / n_{\max})^{\gamma}, \quad \iota_k = \tau \log \pi_k

    The additive part acts early in training, the multiplicative part once the training error is
    zero. Predict with ``argmax(z)``, unscaled.

    Identity: ``gamma=0, tau=0`` is cross entropy; ``gamma=0`` alone is
    :func:`logit_adjusted_cross_entropy`, ``tau=0`` alone :func:`class_dependent_temperature_loss`.

    Args:
      logits: ``[..., K]``, floating.
      labels: class ids ``[...]`` or class probabilities ``[..., K]``; −1 and any id outside
        ``0 .. K-1`` is unlabelled: loss and gradient exactly 0.
      class_counts: training counts ``[K]``; an absent class is treated as the rarest present one.
      tau: strength of the additive adjustment.
      gamma: strength of the multiplicative adjustment, >= 0.
      class_weights: ``[K]``, None is the identity.

    Returns:
      ``[...]`` in the dtype of ``logits``; computed in at least float32.

    Raises:
      ValueError: shapes or dtypes disagree, or ``gamma`` is negative.

    Source: Kini et al. 2021, arXiv:2103.01550, eq. 3. (The authors' binary code flips the sign of
    iota and fixes a scale of 30; this follows the paper.)

    >>> logits = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> vector_scaling_loss(logits, jnp.array([0, 1]), class_counts=jnp.array([9, 1]))
    Array([0.0400..., 3.2372...], dtype=float32)
    """
    _check.at_least(0.0, gamma=gamma)
    problem = _log_odds.prepare(logits, labels)
    class_counts = _log_odds.class_vector("class_counts", class_counts, problem)
    sizes = counts.floor_absent(class_counts)
    factor = (sizes / jnp.max(sizes)) ** jnp.asarray(gamma, sizes.dtype)
    shift = jnp.asarray(tau, sizes.dtype) * counts.log_prior(class_counts)
    scores = problem.scores * _log_odds.over_classes(factor, problem.scores)
    scores = scores + _log_odds.over_classes(shift, scores)
    return _log_odds.cross_entropy(problem._replace(scores=scores), class_weights=class_weights)


def class_dependent_temperature_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    class_counts: ArrayLike,
    gamma: Scalar = 0.3,
    class_weights: ArrayLike | None = None,
) -> Array:
    r"""CDT: divides each logit by a temperature that is higher for rare classes.

    .. math:: \ell(z, q) = -\sum_k w_k\, q_k \log \operatorname{softmax}(z / a)_k, \qquad
              a_k = (n_{\max} / n_k)^{\gamma}

    Training must push rare classes' logits further, which undoes the drift of their features
    between training and test. Predict with ``argmax(z)``, undivided.

    Identity: ``gamma=0`` (or equal counts) is cross entropy.

    Args:
      logits: ``[..., K]``, floating.
      labels: class ids ``[...]`` or class probabilities ``[..., K]``; −1 and any id outside
        ``0 .. K-1`` is unlabelled: loss and gradient exactly 0.
      class_counts: training counts ``[K]``; an absent class is treated as the rarest present one.
      gamma: >= 0; the paper uses 0.1 to 0.4.
      class_weights: ``[K]``, None is the identity.

    Returns:
      ``[...]`` in the dtype of ``logits``; computed in at least float32.

    Raises:
      ValueError: shapes or dtypes disagree, or ``gamma`` is negative.

    Source: Ye et al. 2020, arXiv:2001.01385. It is the multiplicative half of
    :func:`vector_scaling_loss`.

    >>> logits = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> class_dependent_temperature_loss(logits, jnp.array([0, 1]), class_counts=jnp.array([16, 1]))
    Array([0.313..., 0.4990...], dtype=float32)
    """
    return vector_scaling_loss(
        logits, labels, class_counts=class_counts, tau=0.0, gamma=gamma, class_weights=class_weights
    )
