"""Logits moved from one class prior to another."""

import jax.numpy as jnp
import numpy as np

from jaxbalance import _check, counts
from jaxbalance._types import Array, ArrayLike, Scalar


def adjust_logits(logits: ArrayLike, *, class_counts: ArrayLike, tau: Scalar = 1.0) -> Array:
    r"""Take the training prior out of the predictions of a network trained *without* correction.

    .. math:: z'_k = z_k - \tau \log \pi_k, \qquad \pi_k = n_k / n

    Subtracting at prediction time is the counterpart of adding at training time
    (:func:`jaxbalance.losses.logit_adjusted_cross_entropy`): either one aims ``argmax`` at the
    balanced error, both together overcorrect. At ``tau=1`` the softmax becomes p/π, renormalised.
    Logs of probabilities do as well as logits.

    Identity: ``tau=0``, and equal counts up to a constant.

    Args:
      logits: ``[..., K]``, floating.
      class_counts: training counts ``[K]``. An absent class takes the prior of the rarest present
        class.
      tau: strength; 1 is the correction for the balanced error.

    Returns:
      ``[..., K]`` in the dtype of ``logits``; computed in at least float32.

    Raises:
      ValueError: shapes or dtypes disagree.

    Source: Menon et al. 2021, arXiv:2007.07314, post-hoc logit adjustment; at ``tau=1`` the
    thresholding of Buda et al. 2018, arXiv:1710.05381.

    >>> import jax
    >>> adjusted = adjust_logits(jnp.log(jnp.array([0.9, 0.1])), class_counts=jnp.array([9, 1]))
    >>> jax.nn.softmax(adjusted).round(4)
    Array([0.5, 0.5], dtype=float32)
    """
    scores = _check.logits(logits)
    prior = counts.log_prior(_check.class_vector("class_counts", class_counts, scores.shape[-1]))
    wide = scores.astype(_check.working_dtype(scores))
    shift = jnp.asarray(tau, wide.dtype) * prior.astype(wide.dtype)
    return (wide - jnp.broadcast_to(shift, wide.shape)).astype(scores.dtype)


def adapt_logits(logits: ArrayLike, *, class_counts: ArrayLike, class_prior: ArrayLike) -> Array:
    r"""Move predictions from the training prior to any other prior.

    .. math:: z'_k = z_k - \log \pi_k + \log q_k, \qquad \pi_k = n_k / n

    Exact where only the class shares differ between training and use (label shift). With a
    prior estimated from the unlabelled examples themselves (:func:`fit_target_prior`,
    :func:`fit_target_prior_from_confusion`) this is label-shift correction; with a uniform one it
    is :func:`adjust_logits` at ``tau=1``.

    Identity: ``class_prior`` proportional to ``class_counts``, all present, up to a constant.

    Args:
      logits: ``[..., K]``, floating.
      class_counts: training counts ``[K]``. An absent class takes the prior of the rarest present
        class.
      class_prior: q, ``[K]``, non-negative; need not add up to one. A class of prior zero gets the
        logarithm of the smallest normal float32, about −87: practically never predicted, but
        finite.

    Returns:
      ``[..., K]`` in the dtype of ``logits``; computed in at least float32.

    Raises:
      ValueError: shapes or dtypes disagree.

    Source: Saerens, Latinne and Decaestecker 2002, Neural Computation 14(1), 21-41, eq. 2.4.

    >>> import jax
    >>> logits = jnp.log(jnp.array([0.5, 0.5]))
    >>> prior = jnp.array([0.9, 0.1])
    >>> adapted = adapt_logits(logits, class_counts=jnp.array([50, 50]), class_prior=prior)
    >>> [f"{p:.3f}" for p in jax.nn.softmax(adapted)]
    ['0.900', '0.100']
    """
    scores = _check.logits(logits)
    prior = _check.class_vector("class_prior", class_prior, scores.shape[-1])
    adjusted = adjust_logits(
        scores.astype(_check.working_dtype(scores)), class_counts=class_counts, tau=1.0
    )
    return (adjusted + _over_classes(_log_of_prior(prior), adjusted)).astype(scores.dtype)


def _log_of_prior(prior: Array) -> Array:
    """Logarithm of a prior that may hold zeros, where it is very low but finite."""
    return jnp.log(jnp.maximum(prior, float(np.finfo(np.float32).tiny)))


def _over_classes(vector: Array, scores: Array) -> Array:
    return jnp.broadcast_to(vector.astype(scores.dtype), scores.shape)


def debias_logits(
    logits: ArrayLike,
    *,
    source_prior: ArrayLike,
    class_counts: ArrayLike,
    source_tau: Scalar = 1.0,
    tau: Scalar = 1.0,
) -> Array:
    r"""Take two priors out of a fine-tuned model: that of its pre-training and that of its data.

    .. math:: z'_k = z_k - \tau_s \log q_k - \tau \log \pi_k, \qquad \pi_k = n_k / n

    Fine-tuning on a long tail inherits a second imbalance through the parameters it starts from.
    ``source_prior`` is that of the pre-training data, which :func:`fit_source_prior` recovers from
    the logits of the model *before* fine-tuning. Both at full strength assume that the two biases
    multiply; the strengths are there because a fine-tuned model has often forgotten some of the
    first.

    Identity: ``source_tau=0`` and ``tau=0``; a uniform source prior leaves :func:`adjust_logits`,
    up to a constant.

    Args:
      logits: ``[..., K]``, floating.
      source_prior: q, ``[K]``, positive; need not add up to one. Zeros count as the smallest normal
        float32.
      class_counts: counts of the fine-tuning data ``[K]``. An absent class takes the prior of the
        rarest present class.
      source_tau: strength against the pre-training prior.
      tau: strength against the prior of the fine-tuning data.

    Returns:
      ``[..., K]`` in the dtype of ``logits``; computed in at least float32.

    Raises:
      ValueError: shapes or dtypes disagree.

    Source: the two imbalances are those of Chen et al. 2025, arXiv:2501.15955. Zhu et al. 2023,
    arXiv:2310.08106 (generalised logit adjustment), take one prior out of each of two models and
    add the results: ``source_tau=1, tau=0`` for the zero-shot logits, ``source_tau=0, tau=1`` for
    the fine-tuned ones.

    >>> import jax
    >>> biased = jnp.log(jnp.array([0.81, 0.01]))
    >>> prior, sizes = jnp.array([0.9, 0.1]), jnp.array([9, 1])
    >>> even = debias_logits(biased, source_prior=prior, class_counts=sizes)
    >>> [f"{p:.3f}" for p in jax.nn.softmax(even)]
    ['0.500', '0.500']
    """
    scores = _check.logits(logits)
    prior = _check.class_vector("source_prior", source_prior, scores.shape[-1])
    adjusted = adjust_logits(
        scores.astype(_check.working_dtype(scores)), class_counts=class_counts, tau=tau
    )
    shift = jnp.asarray(source_tau, prior.dtype) * _log_of_prior(prior)
    return (adjusted - _over_classes(shift, adjusted)).astype(scores.dtype)
