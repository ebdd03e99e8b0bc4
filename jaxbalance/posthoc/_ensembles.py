"""Several models or several heads made into one prediction."""

import jax
import jax.numpy as jnp

from jaxbalance import _check
from jaxbalance._types import Array, ArrayLike, Scalar


def ensemble_logits(logits: ArrayLike, other_logits: ArrayLike, *, alpha: Scalar = 1.0) -> Array:
    r"""Add the logits of a second head to those of the first.

    .. math:: z'_k = z_k + \alpha\, z^{\text{other}}_k

    Such as a zero-shot head and a Gaussian discriminant (:func:`gaussian_discriminant`) of the same
    features; ``alpha`` is chosen on validation.

    Identity: ``alpha=0``, whatever finite numbers ``other_logits`` hold.

    Args:
      logits: ``[..., K]``, floating.
      other_logits: ``[..., K]``, floating, of the same shape.
      alpha: weight of the second head.

    Returns:
      ``[..., K]`` in the dtype of ``logits``; computed in at least float32.

    Raises:
      ValueError: shapes or dtypes disagree.

    Source: Wang et al. 2024, arXiv:2402.04087, whose code multiplies the zero-shot cosines by 100
    first and tries alpha from 1e-4 to 1e2.

    >>> ensemble_logits(jnp.array([1.0, 0.0]), jnp.array([0.0, 4.0]), alpha=0.5)
    Array([1., 2.], dtype=float32)
    """
    first = _check.logits(logits)
    second = _check.logits(other_logits, name="other_logits")
    second = _check.same_shape("other_logits", second, "logits", first)
    dtype = _check.working_dtype(first)
    added = first.astype(dtype) + jnp.asarray(alpha, dtype) * second.astype(dtype)
    return added.astype(first.dtype)


def backdoor_average(logits: ArrayLike, *, weights: ArrayLike | None = None) -> Array:
    r"""Average the predicted probabilities of models, one for each value of a confounder.

    .. math:: z'_k = \log \sum_c P(c) \operatorname{softmax}(z_c)_k

    The backdoor formula P(y | do(x)) = sum over c of P(y | x, c) P(c): models that each see
    another incomplete part of what makes a class (other pre-training, other augmentation) stand
    for the values c. Unlike :func:`ensemble_logits` it averages probabilities, so a model that is
    sure cannot outvote the others without bound.

    Identity: one model, up to a constant: the result is its ``log_softmax``.

    Args:
      logits: ``[M, ..., K]``, floating, the models on the first axis.
      weights: P(c), ``[M]``, non-negative, normalised here to add up to one; None is uniform, and
        so are weights that are all zero.

    Returns:
      Log probabilities ``[..., K]`` in the dtype of ``logits``; computed in at least float32.

    Raises:
      ValueError: ``logits`` has no model axis, or ``weights`` is not ``[M]``.

    Source: Chen et al. 2025, arXiv:2501.15955.

    >>> pair = jnp.log(jnp.array([[0.8, 0.2], [0.4, 0.6]]))
    >>> [f"{p:.3f}" for p in jnp.exp(backdoor_average(pair))]
    ['0.600', '0.400']
    """
    scores = _check.logits(logits)
    if scores.ndim < 2 or scores.shape[0] < 1:
        raise ValueError(
            f"logits: got shape {scores.shape}, wanted [M, ..., K] with M >= 1 models first"
        )
    wide = scores.astype(_check.working_dtype(scores))
    number = scores.shape[0]
    given = jnp.ones(number) if weights is None else weights
    share = _check.class_vector("weights", given, number).astype(wide.dtype)
    total = jnp.sum(share)
    share = jnp.where(total > 0, share / jnp.where(total > 0, total, 1), 1 / number)
    share = jnp.broadcast_to(share.reshape(number, *[1] * (wide.ndim - 1)), wide.shape)
    return jax.nn.logsumexp(jax.nn.log_softmax(wide, axis=-1), axis=0, b=share).astype(scores.dtype)
