"""Losses that change the shape of the loss in the probability of the label."""

import jax
import jax.numpy as jnp

from jaxbalance import _check
from jaxbalance._types import Array, ArrayLike, Scalar
from jaxbalance.losses import _log_odds


def softmax_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: Scalar = 2.0,
    class_weights: ArrayLike | None = None,
) -> Array:
    r"""Multi-class focal loss: cross entropy that fades where the label is already likely.

    .. math:: \ell(z, q) = -\sum_k w_k\, q_k\, (1 - p_k)^{\gamma} \log p_k, \qquad
              p = \operatorname{softmax}(z)

    Both factors are computed from the log odds of the label, so value and gradient are finite for
    every gamma >= 0, 0 < gamma < 1 included, at any finite logits.

    Identity: ``gamma=0, class_weights=None`` is cross entropy.

    Args:
      logits: ``[..., K]``, floating.
      labels: class ids ``[...]`` or class probabilities ``[..., K]``; −1 and any id outside
        ``0 .. K-1`` is unlabelled: loss and gradient exactly 0.
      gamma: focusing exponent >= 0.
      class_weights: per-class alpha ``[K]``, None is the identity.

    Returns:
      ``[...]`` in the dtype of ``logits``; computed in at least float32.

    Raises:
      ValueError: shapes or dtypes disagree, or ``gamma`` is negative.

    Source: Lin et al. 2017, arXiv:1708.02002, eq. 5, with softmax in place of the sigmoid. (Popular
    code takes p from the *weighted* cross entropy, which is another function; this does not.)

    >>> logits = jnp.array([[4.0, 0.0], [0.0, 4.0]])
    >>> softmax_focal_loss(logits, jnp.array([0, 0]), gamma=2.0)
    Array([5.87...e-06, 3.87...e+00], dtype=float32)
    """
    _check.at_least(0.0, gamma=gamma)
    problem = _log_odds.prepare(logits, labels)
    log_p, log_not_p = _log_odds.log_probabilities(problem)
    values = -jnp.exp(jnp.asarray(gamma, log_p.dtype) * log_not_p) * log_p
    return _log_odds.expected(values, problem, class_weights=class_weights)


def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: Scalar = 2.0,
    alpha: Scalar | ArrayLike | None = None,
) -> Array:
    r"""Binary focal loss of every output: for multi-label and one-against-rest problems.

    .. math:: \ell(z, t) = -\alpha\, t\, (1 - s)^{\gamma} \log s
              - (1 - \alpha)(1 - t)\, s^{\gamma} \log (1 - s), \qquad s = \sigma(z)

    Identity: ``gamma=0, alpha=None`` is binary cross entropy; ``alpha=None`` drops both factors of
    alpha, so it equals twice ``alpha=0.5``.

    Args:
      logits: ``[..., K]`` (or any shape), floating.
      labels: the same shape, in [0, 1], of any dtype; a negative value (−1) is unknown: loss and
        gradient exactly 0. Soft targets mix the two terms linearly.
      gamma: focusing exponent >= 0.
      alpha: weight of the positive term in [0, 1], a number or one per class ``[K]``; the negative
        term gets one minus it.

    Returns:
      The shape and dtype of ``logits``; computed in at least float32.

    Raises:
      ValueError: shapes or dtypes disagree, ``gamma`` is negative, or a Python ``alpha`` is outside
        [0, 1].

    Source: Lin et al. 2017, arXiv:1708.02002, eq. 5.

    >>> sigmoid_focal_loss(jnp.array([2.0, 2.0, 0.0]), jnp.array([1, 0, -1]), gamma=2.0)
    Array([0.0018..., 1.6500..., 0. ...], dtype=float32)
    """
    _check.at_least(0.0, gamma=gamma)
    scores = _check.floating("logits", logits)
    dtype = scores.dtype
    targets = _check.same_shape("labels", labels, "logits", scores)
    scores = scores.astype(_check.working_dtype(scores))
    targets = targets.astype(scores.dtype)
    known = targets >= 0
    scores = jnp.where(known, scores, jnp.zeros_like(scores))
    gamma = jnp.asarray(gamma, scores.dtype)
    off, on = jax.nn.softplus(scores), jax.nn.softplus(-scores)
    positive = targets * jnp.exp(-gamma * off) * on
    negative = (1 - targets) * jnp.exp(-gamma * on) * off
    if alpha is not None:
        share = _alpha(alpha, scores)
        positive, negative = share * positive, (1 - share) * negative
    return jnp.where(known, positive + negative, jnp.zeros_like(scores)).astype(dtype)


def _alpha(alpha: Scalar | ArrayLike, scores: Array) -> Array:
    if isinstance(alpha, float | int):
        _check.between(0.0, 1.0, alpha=alpha)
        return jnp.full_like(scores, alpha)
    if alpha.ndim == 0:
        return jnp.broadcast_to(jnp.asarray(alpha, scores.dtype), scores.shape)
    classes = scores.shape[-1] if scores.ndim else None
    return _log_odds.over_classes(_check.class_vector("alpha", alpha, classes), scores)
