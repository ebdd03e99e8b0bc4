"""Whether predicted probabilities can be believed: additive bins, and functions of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import _check, counts
from jaxbalance._types import Array, ArrayLike
from jaxbalance.metrics import _confusion


class CalibrationBins(NamedTuple):
    """Sums over labelled examples, by bin of the top class's probability; all of them add up."""

    examples: Array
    """How many there are in each bin ``[M]``, int32."""
    confidence: Array
    """Sum of their top probabilities ``[M]``."""
    correct: Array
    """How many of them have the top class as label ``[M]``, int32."""
    squared_error: Array
    """Sum over *all* examples of their squared distance to the one-hot label, ``[]``."""


class Reliability(NamedTuple):
    """What a reliability diagram shows, by bin."""

    confidence: Array
    """Mean probability ``[..., M]``, the horizontal axis; NaN for an empty bin."""
    accuracy: Array
    """Share of the examples that are correct ``[..., M]``, the vertical axis; NaN for an empty."""
    share: Array
    """Share of all examples that are in the bin ``[..., M]``; NaN without any example."""


def calibration_bins(
    probabilities: ArrayLike, labels: ArrayLike, *, num_bins: int = 15
) -> CalibrationBins:
    r"""Sort examples into bins of equal width by the probability of their most probable class.

    .. math:: B_m = \left\{ i : \tfrac{m-1}{M} < \max_k p_{ik} \le \tfrac{m}{M} \right\},
              \qquad m = 1, \dots, M

    A top probability of 0 is in the first bin; edges are rounded to the dtype computed in. Ties
    for the top go to the lowest class. Nothing checks that the probabilities sum to 1.

    Args:
      probabilities: ``[..., K]``, floating.
      labels: integer class ids ``[...]``; −1 and any id outside ``0 .. K-1`` counts nowhere.
      num_bins: M, static; 15 is what is usually reported, 1 compares mean confidence and accuracy.

    Returns:
      :class:`CalibrationBins`, floats at least float32. Bins of batches add up.

    Raises:
      ValueError: shapes or dtypes disagree, or ``num_bins`` is not an integer >= 1.

    Source: Guo et al. 2017, arXiv:1706.04599, section 2.

    >>> probabilities = jnp.array([[0.25, 0.75], [0.75, 0.25]])
    >>> bins = calibration_bins(probabilities, jnp.array([1, 1]), num_bins=2)
    >>> bins.examples, bins.confidence, bins.correct
    (Array([0, 2], dtype=int32), Array([0. , 1.5], dtype=float32), Array([0, 1], dtype=int32))
    """
    _check.positive_integer(num_bins=num_bins)
    scores = _check.logits(probabilities, name="probabilities")
    ids = _check.labels(_check.class_ids(labels), scores, scores_name="probabilities")
    labelled = (ids >= 0) & (ids < scores.shape[-1])
    # Zeroed before use rather than masked after: a padding row may hold anything, even NaN.
    scores = jnp.where(labelled[..., None], scores, jnp.zeros_like(scores))
    scores = scores.astype(_check.working_dtype(scores))
    top, confidence = jnp.argmax(scores, axis=-1).astype(ids.dtype), jnp.max(scores, axis=-1)
    bins = jnp.where(labelled, _bin_of(confidence, num_bins), -1)
    return CalibrationBins(
        examples=counts.class_counts(bins, num_classes=num_bins),
        confidence=counts.class_sums(confidence, bins, num_classes=num_bins),
        correct=counts.class_counts(jnp.where(top == ids, bins, -1), num_classes=num_bins),
        squared_error=jnp.sum(_squared_error(scores, ids, labelled)),
    )


def classwise_calibration_bins(
    probabilities: ArrayLike, labels: ArrayLike, *, num_bins: int = 15
) -> CalibrationBins:
    r"""Sort examples, for each class, into bins of equal width by the probability of that class.

    .. math:: B_{km} = \left\{ i : \tfrac{m-1}{M} < p_{ik} \le \tfrac{m}{M} \right\}

    Each class is a two-class problem of its own: *correct* are its own examples, the squared error
    is that of its probability alone. So ``expected_calibration_error`` of these bins is the error
    of each class, and ``macro`` of that the class-wise (static) calibration error, in which the
    probabilities given to rare classes count as much as those given to frequent ones. An absent
    class has a value too, the mean probability it was given, as nothing was ever right about that.

    Args:
      probabilities: ``[..., K]``, floating.
      labels: integer class ids ``[...]``; −1 and any id outside ``0 .. K-1`` counts nowhere.
      num_bins: M, static; 1 compares each class's mean probability with its share of the examples.

    Returns:
      :class:`CalibrationBins` with a leading class axis, ``[K, M]`` and ``[K]``. Bins of batches
      add up.

    Raises:
      ValueError: shapes or dtypes disagree, or ``num_bins`` is not an integer >= 1.

    Source: Nixon et al. 2019, arXiv:1904.01685, section 3; Kull et al. 2019, arXiv:1910.12656,
    section 2.

    >>> probabilities = jnp.array([[0.25, 0.75], [0.75, 0.25]])
    >>> bins = classwise_calibration_bins(probabilities, jnp.array([1, 1]), num_bins=2)
    >>> expected_calibration_error(bins)
    Array([0.5, 0.5], dtype=float32)
    """
    _check.positive_integer(num_bins=num_bins)
    scores = _check.logits(probabilities, name="probabilities")
    ids = _check.labels(_check.class_ids(labels), scores, scores_name="probabilities")
    scores = scores.reshape(-1, scores.shape[-1]).astype(_check.working_dtype(scores))
    ids = ids.reshape(-1)
    labelled = (ids >= 0) & (ids < scores.shape[-1])

    def of_class(column: Array, own: Array) -> CalibrationBins:
        column = jnp.where(labelled, column, jnp.zeros_like(column))
        bins, correct = jnp.where(labelled, _bin_of(column, num_bins), -1), ids == own
        error = jnp.where(labelled, column - correct.astype(column.dtype), jnp.zeros_like(column))
        return CalibrationBins(
            examples=counts.class_counts(bins, num_classes=num_bins),
            confidence=counts.class_sums(column, bins, num_classes=num_bins),
            correct=counts.class_counts(jnp.where(correct, bins, -1), num_classes=num_bins),
            squared_error=jnp.sum(error * error),
        )

    classes = jnp.arange(scores.shape[-1], dtype=ids.dtype)
    return jax.vmap(of_class, in_axes=(1, 0))(scores, classes)


def reliability(bins: CalibrationBins) -> Reliability:
    r"""Mean confidence, accuracy and share of the examples of each bin: a reliability diagram.

    .. math:: \mathrm{conf}(B_m) = \frac{1}{|B_m|} \sum_{i \in B_m} p_i, \qquad
              \mathrm{acc}(B_m) = \frac{1}{|B_m|} \sum_{i \in B_m} [\hat y_i = y_i], \qquad
              \frac{|B_m|}{n}

    The expected calibration error is the sum of share times distance from the diagonal.

    Args:
      bins: ``[..., M]``: of :func:`calibration_bins`, or by class of
        :func:`classwise_calibration_bins`.

    Returns:
      :class:`Reliability`; NaN in empty bins, for which a plot leaves a gap.

    Source: Guo et al. 2017, arXiv:1706.04599, section 2; by class, scikit-learn's
    ``calibration_curve``, which leaves empty bins out.

    >>> probabilities = jnp.array([[0.25, 0.75], [0.75, 0.25]])
    >>> reliability(calibration_bins(probabilities, jnp.array([1, 1]), num_bins=2)).accuracy
    Array([nan, 0.5], dtype=float32)
    """
    dtype = bins.confidence.dtype
    examples = bins.examples.astype(dtype)
    total = jnp.broadcast_to(jnp.sum(examples, axis=-1, keepdims=True), examples.shape)
    return Reliability(
        confidence=_confusion.ratio(bins.confidence, examples, jnp.nan),
        accuracy=_confusion.ratio(bins.correct.astype(dtype), examples, jnp.nan),
        share=_confusion.ratio(examples, total, jnp.nan),
    )


def _bin_of(confidence: Array, num_bins: int) -> Array:
    """How many inner edges lie strictly below: intervals closed on the right."""
    edges = jnp.asarray(np.arange(1, num_bins) / num_bins, confidence.dtype)
    shape = (*confidence.shape, num_bins - 1)
    above = confidence[..., None] > jnp.broadcast_to(edges, shape)
    return jnp.sum(above, axis=-1, dtype=jnp.int32)


def _squared_error(scores: Array, ids: Array, labelled: Array) -> Array:
    classes = jnp.broadcast_to(jnp.arange(scores.shape[-1], dtype=ids.dtype), scores.shape)
    target = (classes == ids[..., None]).astype(scores.dtype)
    distance = jnp.sum((scores - target) ** 2, axis=-1)
    return jnp.where(labelled, distance, jnp.zeros_like(distance))


def _per_example(total: Array, bins: CalibrationBins) -> Array:
    number = jnp.sum(bins.examples, axis=-1).astype(total.dtype)
    mean = total / jnp.maximum(number, jnp.ones_like(number))
    return jnp.where(number > 0, mean, jnp.full_like(mean, jnp.nan))


def expected_calibration_error(bins: CalibrationBins) -> Array:
    r"""Mean gap between confidence and accuracy, over bins weighted by their examples (ECE).

    .. math:: \mathrm{ECE} = \sum_m \frac{|B_m|}{n}
              \left| \mathrm{acc}(B_m) - \mathrm{conf}(B_m) \right|

    Args:
      bins: ``[..., M]`` (leading axes as from ``vmap``).

    Returns:
      ``[...]`` in [0, 1]; NaN without any example. Empty bins contribute nothing.

    Source: Guo et al. 2017, arXiv:1706.04599, section 2.

    >>> probabilities = jnp.array([[0.25, 0.75], [0.75, 0.25]])
    >>> expected_calibration_error(calibration_bins(probabilities, jnp.array([1, 1])))
    Array(0.25, dtype=float32)
    """
    gaps = jnp.abs(bins.confidence - bins.correct.astype(bins.confidence.dtype))
    return _per_example(jnp.sum(gaps, axis=-1), bins)


def brier_score(bins: CalibrationBins) -> Array:
    r"""Mean squared distance between the probabilities and the one-hot label.

    .. math:: \frac{1}{n} \sum_i \sum_k (p_{ik} - [y_i = k])^2

    Brier's original, summed over classes: from 0 to 2. For K = 2 it is twice the mean of
    (p − y)², which is what scikit-learn reports for two classes unless ``scale_by_half=False``.

    Args:
      bins: ``[..., M]``; any number of bins gives the same score.

    Returns:
      ``[...]`` in [0, 2]; NaN without any example.

    Source: Brier 1950, Monthly Weather Review 78(1), 1-3.

    >>> probabilities = jnp.array([[0.25, 0.75], [0.75, 0.25]])
    >>> brier_score(calibration_bins(probabilities, jnp.array([1, 1])))
    Array(0.625, dtype=float32)
    """
    return _per_example(bins.squared_error, bins)
