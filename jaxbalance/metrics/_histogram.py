"""Ranking metrics that add up over batches: histograms of scores, with a bound on the error."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import _check, _sharding
from jaxbalance._types import Array, ArrayLike
from jaxbalance.metrics import _confusion, _host_ranking

_SIGN = -(2**31)
# For value and error together: some ten for each term, and one for each addition on the way of a
# term into the sum, at most 8 along a row and 21 halvings, or 24 halvings.
_ROUNDINGS = 64
_ROW = 8


class ScoreHistogram(NamedTuple):
    """Labelled examples by bin of their score; all of it adds up."""

    positives: Array
    """How many positives there are in each bin ``[M]``, in order of rising score, int32."""
    negatives: Array
    """How many negatives there are in each bin ``[M]``, int32."""
    undefined: Array
    """How many labelled examples have a score of NaN ``[]``, int32."""


class Bounded(NamedTuple):
    """A number known to within an error."""

    value: Array
    """``[...]``."""
    error: Array
    """``[...]``: the exact number is in the closed interval ``value ± error``."""


def score_histogram(scores: ArrayLike, labels: ArrayLike, *, num_bits: int = 20) -> ScoreHistogram:
    r"""Count positives and negatives by the leading bits of their score.

    .. math:: \operatorname{bin}(s) = \left\lfloor 2^{b-32}\, \rho(s) \right\rfloor

    with :math:`\rho(s)` the rank of s, as a float32, among all float32 numbers: its bit pattern,
    turned around where s is negative. So bins have no range to be chosen, are in the order of the
    scores, and 20 bits keep the sign, the exponent and 11 bits of the significand: two scores of
    one bin differ by less than 1 part in 2048. Give *logits* where there is a choice: probabilities
    of nearly 1 lie in few bins.

    Identity: scores in bfloat16 are told apart entirely by ``num_bits=16``.

    Args:
      scores: ``[...]``, floating: the higher, the more positive. float64 is rounded to float32.
      labels: integer ``[...]``, 1 positive, 0 negative; everything else (−1) counts nowhere,
        whatever its score.
      num_bits: b from 1 to 24, static: M = 2**b bins. 20 bits take 8 MiB.

    Returns:
      :class:`ScoreHistogram` of int32; histograms of batches, hosts and devices add up, to at most
      2**31 − 1 examples. :func:`jax.vmap` over the columns makes those of many classes.

    Raises:
      ValueError: shapes or dtypes disagree, or ``num_bits`` is not an integer from 1 to 24.

    >>> histogram = score_histogram(jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1]))
    >>> area = histogram_auroc(histogram)
    >>> area.value
    Array(0.75, dtype=float32)
    """
    _check.positive_integer(num_bits=num_bits)
    _check.between(1, 24, num_bits=num_bits)
    array, ids = _check.floating("scores", scores), _check.class_ids(labels)
    ids = _check.same_shape("labels", ids, "scores", array)
    array, ids = _sharding.replicated(array), _sharding.replicated(ids)
    return _counted(array.reshape(-1), ids.reshape(-1), num_bits)


# Compiled here, each of the three is one program also where nobody compiles the caller.
@partial(jax.jit, static_argnums=2)
def _counted(scores: Array, ids: Array, num_bits: int) -> ScoreHistogram:
    labelled, broken = (ids == 0) | (ids == 1), jnp.isnan(scores)
    size = 2**num_bits
    # Past the end, where a scatter drops them.
    places = jnp.where(labelled & ~broken, ids * size + _bins(scores, num_bits), 2 * size)
    counts = jnp.zeros_like(places, shape=2 * size, dtype=jnp.int32).at[places].add(1, mode="drop")
    return ScoreHistogram(
        positives=counts[size:],
        negatives=counts[:size],
        undefined=jnp.sum(labelled & broken, dtype=jnp.int32),
    )


def _bins(scores: Array, num_bits: int) -> Array:
    single = scores.astype(jnp.float32)
    single = jnp.where(single == 0, jnp.zeros_like(single), single)
    bits = jax.lax.bitcast_convert_type(single, jnp.int32)
    ranks = jnp.where(bits < 0, ~bits, bits ^ jnp.int32(_SIGN))
    return jax.lax.shift_right_logical(ranks, jnp.full_like(ranks, 32 - num_bits))


def histogram_auroc(histogram: ScoreHistogram) -> Bounded:
    r"""Area under the ROC curve from a histogram of scores, and how far off it can be.

    .. math:: \sum_b \frac{p_b}{P} \cdot \frac{\sum_{c < b} n_c + n_b / 2}{N}
              \ \pm\ \sum_b \frac{p_b n_b}{2 P N}

    Pairs in different bins are ordered as their scores are; a pair in one bin, taken for a tie
    here, counts 0, ½ or 1 in :func:`auroc`. The error also holds all rounding. The value is exact,
    up to rounding, if all scores of any one bin are equal.

    Args:
      histogram: of :func:`score_histogram`, any number of them added up.

    Returns:
      :class:`Bounded` of two ``[]``, float32 (float64 where x64 is enabled). NaN without positives,
      without negatives, or with a labelled score that is NaN.

    Raises:
      ValueError: ``histogram`` does not hold two vectors of 2**b bins of one length.

    >>> histogram = score_histogram(jnp.array([0.1, 0.4, 0.4, 0.8]), jnp.array([0, 0, 1, 1]))
    >>> histogram_auroc(histogram)
    Bounded(value=Array(0.875, dtype=float32), error=Array(0.1250..., dtype=float32))
    """
    return _auroc(_without_empty(_checked(histogram)))


@jax.jit
def _auroc(histogram: ScoreHistogram) -> Bounded:
    # Neighbouring bins in rows of a few: a running sum over a row is a few additions of columns,
    # and only the sums of rows need the slow one over all.
    width = min(_ROW, histogram.positives.size)
    shares, rows = (
        counts.reshape(-1, width) for counts in (_shares(histogram.positives), histogram.negatives)
    )
    dtype, in_row = shares.dtype, jnp.sum(rows, axis=-1, dtype=rows.dtype)
    up_to = jnp.cumsum(in_row)
    below, total = up_to - in_row, jnp.broadcast_to(up_to[-1], up_to.shape)
    value = error = jnp.zeros_like(total, dtype=dtype)
    for place in range(width):
        same = _confusion.ratio(rows[:, place], total, jnp.nan) / 2
        middle = _confusion.ratio(below, total, jnp.nan) + same
        value, error = value + shares[:, place] * middle, error + shares[:, place] * same
        below = below + rows[:, place]
    return _with_rounding(_sum(value), _sum(error), histogram)


def histogram_average_precision(histogram: ScoreHistogram) -> Bounded:
    r"""Average precision from a histogram of scores, and how far off it can be.

    .. math:: \sum_b \frac{p_b}{P} \cdot \frac{l_b + u_b}{2}
              \ \pm\ \sum_b \frac{p_b}{P} \cdot \frac{u_b - l_b}{2}, \qquad
              u_b = \frac{P_b}{P_b + N_b - n_b}, \qquad
              l_b = \frac12 \left( \frac{P_b - p_b + 1}{P_b - p_b + 1 + N_b}
                    + \frac{P_b}{P_b + N_b} \right)

    with :math:`P_b, N_b` the numbers in bin b and above. No positive of the bin has a precision
    above :math:`u_b`, which is that of positives tied above all of the bin's negatives; and the
    i-th of them from the top has at least :math:`P_b - p_b + i` positives and at most
    :math:`N_b` negatives at or above its score, which is concave in i and so on average at least
    the mean of its ends, :math:`l_b`. The error also holds all rounding.

    Args:
      histogram: of :func:`score_histogram`, any number of them added up.

    Returns:
      :class:`Bounded` of two ``[]``, float32 (float64 where x64 is enabled). NaN without positives
      or with a labelled score that is NaN.

    Raises:
      ValueError: ``histogram`` does not hold two vectors of 2**b bins of one length.

    >>> scores, labels = jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1])
    >>> histogram_average_precision(score_histogram(scores, labels)).value
    Array(0.833..., dtype=float32)
    """
    return _average_precision(_without_empty(_checked(histogram)))


@jax.jit
def _average_precision(histogram: ScoreHistogram) -> Bounded:
    positives, negatives, _ = histogram
    dtype = _check.working_dtype(positives)
    hits, false_alarms = _from_top(positives), _from_top(negatives)
    before = hits - positives + 1

    def precision(right: Array, wrong: Array) -> Array:
        right = right.astype(dtype)
        return right / jnp.maximum(right + wrong.astype(dtype), jnp.ones_like(right))

    upper = precision(hits, false_alarms - negatives)
    lower = (precision(before, false_alarms) + precision(hits, false_alarms)) / 2
    shares = _shares(positives)
    value = _sum(shares * ((lower + upper) / 2))
    # Never negative in exact numbers; where a bin leaves no doubt the difference is rounding.
    doubt = jnp.maximum(upper - lower, jnp.zeros_like(upper)) / 2
    return _with_rounding(value, _sum(shares * doubt), histogram)


def _checked(histogram: ScoreHistogram) -> ScoreHistogram:
    positives = _check.class_ids(histogram.positives, name="histogram.positives")
    negatives = _check.class_ids(histogram.negatives, name="histogram.negatives")
    negatives = _check.same_shape(
        "histogram.negatives", negatives, "histogram.positives", positives
    )
    if positives.ndim != 1 or positives.size < 2 or positives.size & (positives.size - 1):
        raise ValueError(f"histogram.positives: got shape {positives.shape}, wanted [2**b] bins")
    return ScoreHistogram(positives, negatives, jnp.asarray(histogram.undefined))


def _without_empty(histogram: ScoreHistogram) -> ScoreHistogram:
    """The same without empty bins, which are most and say nothing, where NumPy can drop them."""
    if not _host_ranking.reachable(*histogram):
        return histogram
    positives, negatives = np.asarray(histogram.positives), np.asarray(histogram.negatives)
    bins = np.flatnonzero((positives | negatives) != 0)
    # A power of two is a size that has been compiled before.
    more = max(2, 1 << max(bins.size - 1, 0).bit_length()) - bins.size
    few = [jnp.asarray(np.pad(counts[bins], (0, more))) for counts in (positives, negatives)]
    return ScoreHistogram(few[0], few[1], histogram.undefined)


def _shares(counts: Array) -> Array:
    whole = jnp.broadcast_to(jnp.sum(counts, dtype=counts.dtype), counts.shape)
    return _confusion.ratio(counts, whole, jnp.nan)


def _from_top(counts: Array) -> Array:
    up_to = jnp.cumsum(counts)
    return up_to[-1] - up_to + counts


def _sum(values: Array) -> Array:
    """Sum by halves, so that the rounding error is as many units as there are halvings."""
    # Without the barrier XLA computes the values anew at each of them.
    values = jax.lax.optimization_barrier(values)
    while values.size > 1:
        middle = values.size // 2
        values = values[:middle] + values[middle:]
    return values[0]


def _with_rounding(value: Array, error: Array, histogram: ScoreHistogram) -> Bounded:
    # Terms are non-negative and sum to at most 1, so each rounding is off by at most half an eps.
    slack = _ROUNDINGS * float(np.finfo(value.dtype).eps) / 2
    undefined = histogram.undefined > 0
    return Bounded(
        value=jnp.where(undefined, jnp.full_like(value, jnp.nan), value),
        error=jnp.where(undefined, jnp.full_like(error, jnp.nan), error + slack),
    )
