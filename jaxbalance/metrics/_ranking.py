"""Metrics of the order in which scores put the examples."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import _check, _sharding
from jaxbalance._types import Array, ArrayLike, Scalar
from jaxbalance.metrics import _host_ranking

_BLOCK = 32
_Result = TypeVar("_Result")


class _Ranking(NamedTuple):
    """One class against the rest; for each example in order of rising score, exact counts."""

    positive: Array
    """Whether it is a positive ``[N]``, bool."""
    negative: Array
    """Whether it is a negative ``[N]``, bool."""
    positives_below: Array
    """Positives of strictly lower score ``[N]``, int32."""
    positives_up_to: Array
    """Positives of lower or equal score ``[N]``, int32."""
    negatives_below: Array
    """Negatives of strictly lower score ``[N]``, int32."""
    negatives_up_to: Array
    """Negatives of lower or equal score ``[N]``, int32."""
    num_positives: Array
    """All positives ``[]``, int32."""
    num_negatives: Array
    """All negatives ``[]``, int32."""


def auroc(scores: ArrayLike, labels: ArrayLike) -> Array:
    r"""Area under the ROC curve: how often a positive outranks a negative, ties counting half.

    .. math:: \frac{1}{P N} \sum_{i:\, y_i = 1} \sum_{j:\, y_j = 0}
              \left( [s_i > s_j] + \tfrac12 [s_i = s_j] \right)

    Exact: the examples are sorted and counted in integers, nothing is binned. Depends on the order
    of the scores alone (logits or probabilities will do), has no gradient, and adds up over no
    batches: it needs all scores at once (:func:`score_histogram` does not).

    ``macro(auroc(scores, labels))`` is the multi-class area, one class against the rest; for pairs
    of classes see :func:`pairwise_auroc`. Called outside a trace with ``[N]`` scores on a CPU, it
    sorts with NumPy instead of XLA: the same number, several times faster.

    Args:
      scores: ``[N]``, two classes: the higher, the more positive; or ``[N, K]``: each class
        against the rest.
      labels: integer ``[N]``; for ``[N]`` scores 1 is positive, 0 negative; for ``[N, K]`` class
        ids. Or, multi-label, integer ``[N, K]``: each column with its own positives (1) and
        negatives (0). Everything else (−1) counts nowhere.

    Returns:
      ``[]`` or ``[K]``, at least float32. NaN without positives, without negatives, or where a
      labelled example's score is NaN.

    Raises:
      ValueError: shapes or dtypes disagree.

    Source: Hanley and McNeil 1982, Radiology 143(1), 29-36.

    >>> auroc(jnp.array([0.1, 0.4, 0.4, 0.8]), jnp.array([0, 0, 1, 1]))
    Array(0.875, dtype=float32)
    """
    host = _host_value(_host_ranking.auroc, scores, labels)
    return _ranked(_auroc, scores, labels) if host is None else host


def average_precision(scores: ArrayLike, labels: ArrayLike) -> Array:
    r"""Area under the precision-recall curve as a step function (AP).

    .. math:: \frac{1}{P} \sum_{i:\, y_i = 1}
              \frac{\#\{j : y_j = 1,\ s_j \ge s_i\}}{\#\{j : s_j \ge s_i\}}

    The mean over positives of the precision at the threshold that just includes them; tied scores
    share a threshold. A random order scores about the share of positives, not one half. Exact, and
    like :func:`auroc` it needs all scores at once, has no gradient and sorts with NumPy where it
    can. ``macro(average_precision(scores, labels))`` is the mean average precision (mAP), over the
    classes or labels that have a positive; scikit-learn averages in 0 for the others.

    Args:
      scores: ``[N]`` or ``[N, K]``, as in :func:`auroc`.
      labels: integer ``[N]``, as in :func:`auroc`.

    Returns:
      ``[]`` or ``[K]``, at least float32. NaN without positives or where a labelled example's
      score is NaN; 1 without negatives.

    Raises:
      ValueError: shapes or dtypes disagree.

    Source: the definition of scikit-learn's ``average_precision_score``.

    >>> average_precision(jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1]))
    Array(0.833..., dtype=float32)
    """
    host = _host_value(_host_ranking.average_precision, scores, labels)
    return _ranked(_average_precision, scores, labels) if host is None else host


def partial_auroc(
    scores: ArrayLike, labels: ArrayLike, *, max_fpr: Scalar = 1.0, standardized: bool = True
) -> Array:
    r"""Area under the ROC curve up to some share of false positives.

    .. math:: A_x = \int_0^x \mathrm{TPR}\, d\mathrm{FPR}, \qquad
              \frac12 \left( 1 + \frac{A_x - x^2 / 2}{x - x^2 / 2} \right)

    The first is the area itself, of the curve with straight lines between its points (through tied
    scores, too); the second, standardised, is one half for a random order and 1 for a perfect one
    at any x, and below one half, down to 0 at x = 1, for orders worse than random. Identity:
    ``max_fpr=1`` is :func:`auroc` in both forms. Exact, with no gradient, like that.

    Args:
      scores: ``[N]`` or ``[N, K]``, as in :func:`auroc`.
      labels: integer ``[N]`` or ``[N, K]``, as in :func:`auroc`.
      max_fpr: x, the largest share of false positives, in (0, 1].
      standardized: whether to return the second form.

    Returns:
      ``[]`` or ``[K]``, at least float32; NaN where :func:`auroc` is.

    Raises:
      ValueError: shapes or dtypes disagree, or ``max_fpr`` is outside (0, 1].

    Source: McClish 1989, Medical Decision Making 9(3), 190-195; scikit-learn's
    ``roc_auc_score(max_fpr=...)``, which returns the standardised form only.

    >>> scores, labels = jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1])
    >>> partial_auroc(scores, labels, max_fpr=0.5, standardized=False)
    Array(0.25, dtype=float32)
    """
    _check.more_than(0.0, max_fpr=max_fpr)
    _check.between(0.0, 1.0, max_fpr=max_fpr)

    def area(ranking: _Ranking, dtype: np.dtype) -> Array:
        share = jnp.asarray(max_fpr, dtype)
        raw, chance = _area_up_to(ranking, share), share * share / 2
        return (1 + (raw - chance) / (share - chance)) / 2 if standardized else raw

    return _ranked(area, scores, labels)


def _host_value(
    metric: Callable[[Array, Array], float], scores: ArrayLike, labels: ArrayLike
) -> Array | None:
    """``metric`` on the host if that is where two-class scores are; None where it is not."""
    array, ids = _check.floating("scores", scores), _check.class_ids(labels)
    if array.ndim != 1 or not _host_ranking.reachable(array, ids):
        return None
    ids = _check.same_shape("labels", ids, "scores", array)
    return jnp.asarray(metric(array, ids), _check.working_dtype(array))


def _ranked(
    metric: Callable[[_Ranking, np.dtype], Array], scores: ArrayLike, labels: ArrayLike
) -> Array:
    def of_column(column: Array, positive: Array, negative: Array) -> Array:
        return metric(_rank(column, positive, negative), _check.working_dtype(column))

    return one_against_rest(of_column, scores, labels)


def one_against_rest(
    function: Callable[[Array, Array, Array], _Result], scores: ArrayLike, labels: ArrayLike
) -> _Result:
    """``function(scores [N], positive [N], negative [N])`` of the one column, or of each of K."""
    array, ids = _check.floating("scores", scores), _check.class_ids(labels)
    if array.ndim not in (1, 2):
        raise ValueError(f"scores: got shape {array.shape}, wanted [N] or [N, K]")
    if array.ndim == 1 or ids.ndim == 2:
        ids, num_classes = _check.same_shape("labels", ids, "scores", array), 2
    else:
        array = _check.logits(array, name="scores")
        ids, num_classes = _check.labels(ids, array, scores_name="scores"), array.shape[-1]
    array, ids = _sharding.replicated(array), _sharding.replicated(ids)

    def one(column: Array, own_ids: Array, own: Array) -> _Result:
        return _of_class(function, column, own_ids, own, num_classes)

    if array.ndim == 1:
        return one(array, ids, jnp.ones_like(ids, shape=()))
    if ids.ndim == 2:
        return jax.vmap(one, in_axes=(1, 1, None))(array, ids, jnp.ones_like(ids, shape=()))
    return jax.vmap(one, in_axes=(1, None, 0))(array, ids, jnp.arange(num_classes, dtype=ids.dtype))


def _of_class(
    function: Callable[[Array, Array, Array], _Result],
    scores: Array,
    ids: Array,
    own: Array,
    num_classes: int,
) -> _Result:
    labelled = (ids >= 0) & (ids < num_classes)
    result = function(scores, ids == own, labelled & (ids != own))
    broken = jnp.any(jnp.isnan(scores) & labelled)
    return jax.tree.map(lambda leaf: jnp.where(broken, jnp.full_like(leaf, jnp.nan), leaf), result)


def _rank(scores: Array, positive: Array, negative: Array) -> _Ranking:
    """Sort and count. Padding is sorted along: it is of neither kind, so its place is no matter."""
    scores, positive, negative = jax.lax.sort((scores, positive, negative), num_keys=1)
    differs = scores[1:] != scores[:-1]
    end = jnp.ones_like(positive, shape=min(scores.size, 1))
    first, last = jnp.concatenate([end, differs]), jnp.concatenate([differs, end])
    positives, negatives = (jnp.cumsum(kind, dtype=jnp.int32) for kind in (positive, negative))
    return _Ranking(
        positive=positive,
        negative=negative,
        positives_below=at_first(positives - positive.astype(jnp.int32), first),
        positives_up_to=at_last(positives, last),
        negatives_below=at_first(negatives - negative.astype(jnp.int32), first),
        negatives_up_to=at_last(negatives, last),
        num_positives=jnp.sum(positive, dtype=jnp.int32),
        num_negatives=jnp.sum(negative, dtype=jnp.int32),
    )


def at_first(rising: Array, first: Array) -> Array:
    """For each example, ``rising`` at the first of its tied scores."""
    return jax.lax.cummax(jnp.where(first, rising, 0))


def at_last(rising: Array, last: Array) -> Array:
    """For each example, ``rising`` at the last of its tied scores."""
    return jax.lax.cummin(jnp.where(last, rising, np.iinfo(np.int32).max), reverse=True)


def _auroc(ranking: _Ranking, dtype: np.dtype) -> Array:
    # An exact integer: twice the number of negatives an example outranks, ties counting half.
    twice = ranking.negatives_below + ranking.negatives_up_to
    negatives = ranking.num_negatives.astype(dtype)
    beaten = twice.astype(dtype) / (2 * jnp.maximum(negatives, 1))
    value = mean_over(beaten, ranking.positive)
    return jnp.where(negatives > 0, value, jnp.full_like(value, jnp.nan))


def _average_precision(ranking: _Ranking, dtype: np.dtype) -> Array:
    hits = ranking.num_positives - ranking.positives_below
    chosen = hits + ranking.num_negatives - ranking.negatives_below
    return mean_over(hits.astype(dtype) / chosen.astype(dtype), ranking.positive)


def _area_up_to(ranking: _Ranking, share: Array) -> Array:
    """Each negative's part of the area: that of its group of tied scores, shared equally."""
    tied = (ranking.negatives_up_to - ranking.negatives_below).astype(share.dtype)
    negatives = ranking.num_negatives.astype(share.dtype)
    positives = ranking.num_positives.astype(share.dtype)
    before = (ranking.num_negatives - ranking.negatives_up_to).astype(share.dtype)
    reached = (ranking.num_positives - ranking.positives_up_to).astype(share.dtype)
    rise = (ranking.positives_up_to - ranking.positives_below).astype(share.dtype)
    part = jnp.clip(share * negatives - before, 0, tied) / jnp.maximum(tied, 1)
    area = part * (reached + rise * part / 2) / jnp.maximum(positives, 1)
    mean = mean_over(area, ranking.negative)
    return jnp.where(positives > 0, mean, jnp.full_like(mean, jnp.nan))


def mean_over(values: Array, members: Array) -> Array:
    """Mean of ``values`` ``[N]`` where ``members``, NaN without any."""
    total = _block_sum(jnp.where(members, values, jnp.zeros_like(values)))
    number = jnp.sum(members, dtype=jnp.int32).astype(values.dtype)
    mean = total / jnp.maximum(number, 1)
    return jnp.where(number > 0, mean, jnp.full_like(mean, jnp.nan))


def _block_sum(values: Array) -> Array:
    """Sum in blocks of blocks: the rounding error grows with the logarithm of the length only."""
    while values.size > 1:
        padded = jnp.pad(values, (0, -values.size % _BLOCK))
        values = jnp.sum(padded.reshape(-1, _BLOCK), axis=-1)
    return jnp.sum(values)
