"""Exact ranking metrics of values that are at hand on a CPU, where NumPy sorts faster than XLA."""

from typing import NamedTuple

import jax
import numpy as np

from jaxbalance._types import Array, HostArray


class _Sides(NamedTuple):
    """Scores of either kind in rising order, in float32 or float64."""

    positives: HostArray
    negatives: HostArray


def reachable(*arrays: Array) -> bool:
    """Whether all of them are values, not traces, in the memory of the one CPU that computes."""
    return jax.default_backend() == "cpu" and all(
        not isinstance(array, jax.core.Tracer) and len(array.sharding.device_set) == 1
        for array in arrays
    )


def auroc(scores: Array, labels: Array) -> float:
    """Area under the ROC curve of scores ``[N]`` and labels ``[N]`` in {0, 1}."""
    positives, negatives = _sides(scores, labels)
    pairs = positives.size * negatives.size
    if pairs == 0 or _broken(positives) or _broken(negatives):
        return float("nan")
    below = np.searchsorted(negatives, positives, side="left").sum(dtype=np.int64)
    up_to = np.searchsorted(negatives, positives, side="right").sum(dtype=np.int64)
    return float(below + up_to) / (2.0 * pairs)


def average_precision(scores: Array, labels: Array) -> float:
    """Average precision of scores ``[N]`` and labels ``[N]`` in {0, 1}."""
    positives, negatives = _sides(scores, labels)
    if positives.size == 0 or _broken(positives) or _broken(negatives):
        return float("nan")
    hits = positives.size - np.searchsorted(positives, positives, side="left")
    false_alarms = negatives.size - np.searchsorted(negatives, positives, side="left")
    return float(np.mean(hits / (hits + false_alarms)))


def _sides(scores: Array, labels: Array) -> _Sides:
    values, ids = np.asarray(scores), np.asarray(labels)
    # NumPy's fast sorts know no half precision, and the wider dtype keeps order and ties.
    values = values if values.dtype == np.float64 else values.astype(np.float32, copy=False)
    return _Sides(np.sort(values[ids == 1]), np.sort(values[ids == 0]))


def _broken(rising: HostArray) -> bool:
    """Whether there is a NaN, which NumPy sorts last."""
    return rising.size > 0 and bool(np.isnan(rising[-1]))
