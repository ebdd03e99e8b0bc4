"""Label shift: the class shares where a classifier is used, from unlabelled examples."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import _check, counts
from jaxbalance._types import Array, ArrayLike


def fit_target_prior(
    logits: ArrayLike,
    *,
    class_counts: ArrayLike,
    mask: ArrayLike | None = None,
    num_steps: int = 500,
) -> Array:
    r"""Estimate the class prior of unlabelled examples by expectation maximisation.

    .. math:: q^{(t+1)}_k = \frac1N \sum_i
              \frac{p_{ik}\, q^{(t)}_k / \pi_k}{\sum_j p_{ij}\, q^{(t)}_j / \pi_j},
              \qquad q^{(0)} = \pi, \quad p_i = \operatorname{softmax}(z_i)

    Maximum likelihood, and concave in q, if only the class shares differ between training and use
    and the softmax is a calibrated posterior under the training prior (:func:`fit_temperature`,
    :func:`fit_vector_scaling`). Apply the result with :func:`adapt_logits`.

    Identity: examples whose mean posterior is the training prior give it back, in one step or many;
    ``mask=None`` and a mask that is true everywhere look at all examples.

    Args:
      logits: ``[..., K]``, floating, of unlabelled examples.
      class_counts: training counts ``[K]``.
      mask: ``[...]``, true for examples of the target; whatever the others hold, even NaN, has no
        effect, so that sets of many sizes fit one compiled shape. N counts those that take part.
        None is all.
      num_steps: EM steps, static. Each raises the likelihood; where classes overlap much, the last
        digits take hundreds.

    Returns:
      q, ``[K]``, at least float32, adding up to one. A class absent in training keeps prior 0 and
      takes part in nothing. Without any example the training prior; without any count the
      uniform start.

    Raises:
      ValueError: shapes or dtypes disagree, or ``num_steps`` is not an integer >= 1.

    Source: Saerens, Latinne and Decaestecker 2002, Neural Computation 14(1), 21-41, eq. 2.9. (QuaPy
    stops once the mean change is below 1e-4; the abstention package starts at the mean posterior of
    its validation set instead of the prior.)

    >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]))
    >>> fit_target_prior(logits, class_counts=jnp.array([5, 5])).round(4)
    Array([0.8125, 0.1875], dtype=float32)
    >>> half = jnp.array([False, True, False, True])
    >>> fit_target_prior(logits, class_counts=jnp.array([5, 5]), mask=half).round(4)
    Array([0.5, 0.5], dtype=float32)
    """
    _check.positive_integer(num_steps=num_steps)
    scores = _check.logits(logits)
    wide = scores.astype(_check.working_dtype(scores))
    sizes = _check.class_vector("class_counts", class_counts, scores.shape[-1])
    sizes = jnp.where(jnp.sum(sizes) > 0, sizes, jnp.ones_like(sizes)).astype(wide.dtype)
    there = jnp.ones_like(wide[..., 0], bool)
    if mask is not None:
        there = _check.same_shape("mask", mask, "the examples, [...]", there).astype(bool)
    # Zeroed before use, not only weighted by zero after it: padding may hold anything, even NaN.
    known = jnp.where(there[..., None], wide, jnp.zeros_like(wide))
    ratio, weight = _posterior_over_prior(known, sizes), there[..., None].astype(wide.dtype)
    smallest = float(np.finfo(wide.dtype).tiny)

    def step(_: int, q: Array) -> Array:
        joint = ratio * jnp.broadcast_to(q, ratio.shape)
        evidence = jnp.maximum(jnp.sum(joint, axis=-1, keepdims=True), smallest)
        return _shares(jnp.sum(weight * (joint / evidence), axis=tuple(range(joint.ndim - 1))))

    prior = sizes / jnp.sum(sizes)
    q = jax.lax.fori_loop(0, num_steps, step, prior)
    # All zero without an example; NaN, of an example that is one, stays.
    return jnp.where(jnp.sum(q) == 0, prior, q)


def _posterior_over_prior(logits: Array, sizes: Array) -> Array:
    """Of every example and class, up to a factor for each example; 0 for absent classes."""
    present = jnp.broadcast_to(sizes > 0, logits.shape)
    log_prior = jnp.broadcast_to(counts.log_prior(sizes).astype(logits.dtype), logits.shape)
    log_ratio = jnp.where(present, logits - log_prior, -jnp.inf)
    # Relative to the best class, the ratio of every example has a 1 and none overflows.
    return jnp.exp(log_ratio - jnp.max(log_ratio, axis=-1, keepdims=True))


def fit_target_prior_from_confusion(confusion: ArrayLike, predicted_counts: ArrayLike) -> Array:
    r"""Estimate the class prior of unlabelled examples from a confusion matrix (BBSE).

    .. math:: \sum_k \frac{C_{kj}}{n} w_k = \frac{m_j}{m}, \qquad
              q_k \propto \max(w_k, 0) \sum_j C_{kj}

    Works for any black box, calibrated or not: hard predictions, or soft ones with sums of
    probabilities in place of counts. Both arguments add up over batches. Solved for w − 1 by least
    squares of smallest length, so what the confusion matrix cannot tell apart is left unshifted.
    Apply the result with :func:`adapt_logits`.

    Identity: ``predicted_counts`` in proportion to the matrix's own column sums give the prior of
    its rows.

    Args:
      confusion: C, ``[K, K]``, of held-out labelled examples of the source: rows true, columns
        predicted, such as :func:`jaxbalance.metrics.confusion_matrix` or
        ``jax.nn.one_hot(labels, K).T @ probabilities``.
      predicted_counts: m, ``[K]``: how many of the target's examples are predicted as each class,
        or their summed probabilities.

    Returns:
      q, ``[K]``, at least float32, adding up to one. A class without a row in the source gets 0.
      Without target examples the source's prior; without source examples, or if every w is
      negative, uniform.

    Raises:
      ValueError: ``confusion`` is not ``[K, K]`` or ``predicted_counts`` not ``[K]``.

    Source: Lipton et al. 2018, arXiv:1802.03916, which inverts C and clips likewise.

    >>> confusion = jnp.array([[40, 10], [10, 40]])
    >>> prior = fit_target_prior_from_confusion(confusion, jnp.array([26, 74]))
    >>> [f"{share:.3f}" for share in prior]
    ['0.100', '0.900']
    """
    matrix = jnp.asarray(confusion)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] < 1:
        raise ValueError(f"confusion: got shape {matrix.shape}, wanted [K, K] with K >= 1 classes")
    predicted = _check.class_vector("predicted_counts", predicted_counts, matrix.shape[0])
    joint = _shares(matrix.astype(_check.working_dtype(matrix))).astype(predicted.dtype)
    source, own = jnp.sum(joint, axis=1), jnp.sum(joint, axis=0)
    target = jnp.where(jnp.sum(predicted) > 0, _shares(predicted), own)
    excess = jnp.linalg.pinv(joint.T) @ (target - own)
    q = jnp.maximum(1 + excess, 0) * source
    found = jnp.sum(q) > 0
    return jnp.where(found, _shares(q), jnp.full_like(q, 1 / q.size))


def _shares(values: Array) -> Array:
    total = jnp.sum(values)
    return values / jnp.where(total > 0, total, jnp.ones_like(total))
