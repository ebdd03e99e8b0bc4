"""Decision thresholds: one for two classes, one bias per class for many."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import _check, _sharding, counts
from jaxbalance._types import Array, ArrayLike, Scalar
from jaxbalance.posthoc._held_out import class_shares, held_out

_SAME = 1e-6
"""Metric values closer than this are equally good: float32 does not tell them apart."""


def fit_threshold(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    metric: Callable[[Array], Array],
    default: Scalar = 0.5,
) -> Array:
    r"""Find the threshold that makes a metric of the confusion matrix best on held-out examples.

    .. math:: t^* \in \arg\max_t M\bigl(C(t)\bigr), \qquad \hat y_i = [s_i \ge t]

    Every split of the examples by score is tried: thresholds midway between consecutive distinct
    scores, one just below the lowest and one just above the highest; tied scores stay together.
    The counts of all splits come from one sort, so any function of true and false positives and
    negatives can be searched exactly, however it is shaped.
    Splits within 1e-6 of the best metric are equally good, and the median one is taken (of an even
    number the lower median).

    Args:
      scores: ``[N]``, floating: the higher, the more positive.
      labels: integer ``[N]``: 1 positive, 0 negative, anything else (−1) counts nowhere.
      metric: function of confusion matrices ``[..., 2, 2]`` (int32, rows true, columns predicted:
        true negatives, false positives; false negatives, true positives) to ``[...]``, the larger
        the better, such as :func:`jaxbalance.metrics.balanced_accuracy` or minus a cost; splits
        where it is NaN are passed over.
      default: the answer without positives, without negatives, or where the metric is always NaN;
        0.5 is the plain rule for probabilities, 0 for the difference of two logits.

    Returns:
      ``[]``, at least float32. For multi-label scores ``[N, K]`` map over the columns with
      ``jax.vmap(fit, in_axes=1)``.

    Raises:
      ValueError: shapes or dtypes disagree.

    >>> def accuracy(confusion):
    ...     return jnp.trace(confusion, axis1=-2, axis2=-1)
    >>> scores, labels = jnp.array([0.1, 0.2, 0.3, 0.9]), jnp.array([0, 0, 1, 1])
    >>> fit_threshold(scores, labels, metric=accuracy)
    Array(0.25, dtype=float32)
    """
    values = _check.floating("scores", scores)
    if values.ndim != 1:
        raise ValueError(f"scores: got shape {values.shape}, wanted [N]")
    ids = _check.same_shape("labels", _check.class_ids(labels), "scores", values)
    values = _sharding.replicated(values.astype(_check.working_dtype(values)))
    ids = _sharding.replicated(ids)
    default = jnp.asarray(default, values.dtype)
    if values.size == 0:
        return default
    thresholds, confusion, possible = _splits(values, ids)
    quality = jnp.asarray(metric(confusion))
    quality = quality.astype(_check.working_dtype(quality))
    quality = jnp.where(possible & ~jnp.isnan(quality), quality, -jnp.inf)
    good = possible & (quality >= jnp.max(quality) - _SAME)
    rank = jnp.cumsum(good, dtype=jnp.int32)
    median = jnp.argmax(good & (rank == (rank[-1] + 1) // 2))
    usable = jnp.any(ids == 0) & jnp.any(ids == 1) & (jnp.max(quality) > -jnp.inf)
    return jnp.where(usable, thresholds[median], default)


def _splits(scores: Array, ids: Array) -> tuple[Array, Array, Array]:
    """Threshold, confusion matrix and validity of putting the j lowest apart, j = 0 .. N."""
    padding = ((ids != 0) & (ids != 1)).astype(jnp.int32)
    padding, scores, ids = jax.lax.sort((padding, scores, ids), num_keys=2)
    number = scores.size - jnp.sum(padding, dtype=jnp.int32)
    highest = jnp.maximum(number - 1, 0)
    below = jnp.stack([_before(ids == 0), _before(ids == 1)], axis=-1)
    total = below[-1:]
    confusion = jnp.stack([below, jnp.broadcast_to(total, below.shape) - below], axis=-1)
    place = jnp.arange(scores.size + 1, dtype=jnp.int32)
    lower = scores[jnp.maximum(place - 1, 0)]
    upper = scores[jnp.minimum(place, highest)]
    outside = float(np.finfo(scores.dtype).eps) * jnp.maximum(jnp.abs(scores), 1)
    middle = lower / 2 + upper / 2
    # Between neighbouring floats there is no middle, but the upper one separates them as well.
    thresholds = jnp.where(middle > lower, middle, upper)
    thresholds = jnp.where(place == 0, upper - outside[0], thresholds)
    thresholds = jnp.where(place == number, lower + outside[highest], thresholds)
    inside = (place < number) & (lower < upper)
    return thresholds, confusion, (place == 0) | (place == number) | inside


def _before(kind: Array) -> Array:
    """How many of ``kind [N]`` are among the first j, for j = 0 .. N."""
    return jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(kind, dtype=jnp.int32)])


def fit_class_bias(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    num_passes: int = 3,
) -> Array:
    r"""Find one additive bias per class that makes class-weighted accuracy best on held-out data.

    .. math:: \max_b \sum_i w_{y_i} \bigl[\arg\max_k (z_{ik} + b_k) = y_i\bigr]

    The objective is piecewise constant, so each class's bias is set by exact search with the
    others held: example i is predicted k once the change of b_k exceeds
    :math:`\max_{j \ne k}(z_{ij} + b_j) - (z_{ik} + b_k)`, and sums over the sorted changes give
    the objective of every interval between them. Of the best intervals the one nearest to the
    present bias is chosen, and in it the middle; if it has no other end, as far beyond its end as
    the present bias lies before it. A bias moves only if the objective rises by more than 1e-6 of
    its largest possible value, so it never falls below that of the logits as they are; the result
    is a coordinate-wise, not always the global, optimum.

    Args:
      logits: ``[N, K]``, floating.
      labels: integer class ids ``[N]``; −1 and any id outside ``0 .. K-1`` counts nowhere.
      class_weights: ``[K]``, non-negative. None weighs by inverse frequency in ``labels``, which
        makes the objective the balanced accuracy over present classes.
      num_passes: rounds over all classes, static.

    Returns:
      ``[K]``, mean zero, at least float32; add it to logits before ``argmax``. The bias of an
      absent class is not fitted: it stays 0 until the mean is taken off. All zeros without a
      labelled example and where no single change of a bias helps.

    Raises:
      ValueError: shapes or dtypes disagree, or ``num_passes`` is not an integer >= 1.

    >>> logits = jnp.array([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [4.0, 0.0]])
    >>> fit_class_bias(logits, jnp.array([0, 1, 1, 0]))
    Array([-1.25,  1.25], dtype=float32)
    """
    _check.positive_integer(num_passes=num_passes)
    scores, ids = held_out(logits, labels)
    if scores.ndim != 2:
        raise ValueError(f"logits: got shape {scores.shape}, wanted [N, K]")
    scores, ids = _sharding.replicated(scores), _sharding.replicated(ids)
    num_classes = scores.shape[-1]
    number = counts.class_counts(ids, num_classes=num_classes)
    weights = class_shares(class_weights, number, scores.dtype)

    def value(shifted: Array) -> Array:
        right = jnp.where(jnp.argmax(shifted, axis=-1).astype(ids.dtype) == ids, ids, -1)
        hits = counts.class_counts(right, num_classes=num_classes)
        return jnp.sum(weights * hits.astype(weights.dtype))

    def update(step: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        bias, best = state
        k = step % num_classes
        change = _best_change(scores + bias[None, :], ids, weights, k)
        proposal = bias.at[k].add(change)
        reached = value(scores + proposal[None, :])
        better = (reached > best + _SAME) & (number[k] > 0)
        return jnp.where(better, proposal, bias), jnp.where(better, reached, best)

    start = jnp.zeros(num_classes, scores.dtype)
    steps = num_passes * num_classes
    bias: Array = jax.lax.fori_loop(0, steps, update, (start, value(scores)))[0]
    return bias - jnp.mean(bias)


def _best_change(shifted: Array, ids: Array, weights: Array, k: Array) -> Array:
    """The change of class k's bias that makes the weighted accuracy best, the others held."""
    is_own = jnp.broadcast_to(jnp.arange(weights.size) == k, shifted.shape)
    others = jnp.where(is_own, -jnp.inf, shifted)
    worth = jnp.where(ids >= 0, weights[ids], jnp.zeros_like(weights, shape=()))
    loss = jnp.where(jnp.argmax(others, axis=-1).astype(ids.dtype) == ids, worth, 0)
    gain = jnp.where(ids == k.astype(ids.dtype), worth, -loss)
    # An example that is wrong on both sides of its own boundary must not split an interval.
    boundary = jnp.where(gain != 0, jnp.max(others, axis=-1) - shifted[:, k], jnp.inf)
    boundary, gain = jax.lax.sort((boundary, gain), num_keys=1)
    end = jnp.full(1, jnp.inf, boundary.dtype)
    left, right = jnp.concatenate([-end, boundary]), jnp.concatenate([boundary, end])
    reached = jnp.concatenate([jnp.zeros_like(end), jnp.cumsum(gain)])
    reached = jnp.where(left < right, reached, -jnp.inf)
    distance = jnp.maximum(jnp.maximum(left, -right), 0)
    distance = jnp.where(reached >= jnp.max(reached) - _SAME, distance, jnp.inf)
    nearest = jnp.argmin(distance)
    return _inside(left[nearest], right[nearest])


def _inside(left: Array, right: Array) -> Array:
    """The middle of an interval; if an end is infinite, 0 or its reflection in the other end."""
    bounded = jnp.isfinite(left) & jnp.isfinite(right)
    middle = jnp.where(bounded, left / 2 + right / 2, jnp.zeros_like(left))
    above, below = jnp.maximum(2 * left, 0), jnp.minimum(2 * right, 0)
    return jnp.where(bounded, middle, jnp.where(jnp.isfinite(left), above, below))
