"""How sure one can be of a metric: intervals from resampling the examples."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbalance import _check, _sharding
from jaxbalance._types import Array, ArrayLike, Scalar


class BootstrapInterval(NamedTuple):
    """A metric and a range for it, each of the metric's own shape ``[...]``."""

    value: Array
    """The metric of the data themselves."""
    low: Array
    """Lower end of the interval."""
    high: Array
    """Upper end of the interval."""
    undefined: Array
    """In how many resamples the metric is NaN, int32; the interval is over the others."""


def bootstrap_interval(
    metric: Callable[..., Array],
    *data: ArrayLike,
    key: Array,
    strata: ArrayLike | None = None,
    num_resamples: int = 1000,
    confidence: Scalar = 0.95,
    batch_size: int | None = None,
) -> BootstrapInterval:
    r"""Percentile interval of any metric, from resamples of the examples with replacement.

    .. math:: \left[ q_{(1 - c)/2},\ q_{(1 + c)/2} \right] \text{ of } m(D^*_1), \dots, m(D^*_R),
              \qquad D^*_r = (d_{j_{r1}}, \dots, d_{j_{rN}})

    with each j drawn uniformly from all examples or, with ``strata``, from those of the stratum of
    the example whose place it takes: ``strata=labels`` keeps every class's count, so that a rare
    class is never lost and no resample of :func:`auroc` is NaN. It holds for the variation *given*
    the class counts. Intervals of a few examples are too narrow, whichever the metric.

    Identity: strata of one example each make every resample the data, so both ends are the value.

    Args:
      metric: ``metric(*data) -> [...]``, one array, of the arguments below: ``auroc`` and the like,
        or a lambda around a statistic and a function of it. It is traced, once.
      data: arrays ``[N, ...]`` of one N, resampled together: scores and labels, for instance.
      key: a JAX PRNG key.
      strata: integer ``[N]``, any ids; None is one stratum of all. Examples of stratum −1 (or any
        negative one) stay where they are in every resample: give padding that. Labels as strata do.
      num_resamples: R, static.
      confidence: c in [0, 1]; 0 makes both ends the median of the resamples.
      batch_size: resamples at a time, static; None is all at once, in R times the memory of one.

    Returns:
      :class:`BootstrapInterval`, in the dtype of the metric, at least float32. Ends are NaN where
      every resample is.

    Raises:
      ValueError: there are no data, lengths disagree or are 0, ``strata`` is not integer ``[N]``, a
        number is not an integer >= 1, or ``confidence`` is outside [0, 1].

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3 (percentile).

    >>> values = jnp.arange(100.0)
    >>> interval = bootstrap_interval(jnp.mean, values, key=jax.random.key(0))
    >>> interval.value
    Array(49.5, dtype=float32)
    >>> bool(interval.low < 47) and bool(interval.high > 52)
    True
    """
    _check.positive_integer(num_resamples=num_resamples)
    if batch_size is not None:
        _check.positive_integer(batch_size=batch_size)
    _check.between(0.0, 1.0, confidence=confidence)
    arrays = tuple(_sharding.replicated(array) for array in _of_one_length(data))
    place = _all_alike(arrays[0]) if strata is None else _by_stratum(arrays[0], strata)

    def resampled(one: Array) -> Array:
        chosen = place(one)
        return _floating(metric(*(array[chosen] for array in arrays)))

    keys = jax.random.split(key, num_resamples)
    results = jax.lax.map(resampled, keys, batch_size=batch_size or num_resamples)
    tail = (1 - jnp.asarray(confidence, results.dtype)) / 2
    low, high = jnp.nanquantile(results, jnp.stack([tail, 1 - tail]), axis=0)
    return BootstrapInterval(
        value=_floating(metric(*arrays)),
        low=low,
        high=high,
        undefined=jnp.sum(jnp.isnan(results), axis=0, dtype=jnp.int32),
    )


def _floating(value: ArrayLike) -> Array:
    array = jnp.asarray(value)
    return array.astype(_check.working_dtype(array))


def _of_one_length(data: tuple[ArrayLike, ...]) -> tuple[Array, ...]:
    arrays = tuple(jnp.asarray(array) for array in data)
    lengths = [array.shape[:1] for array in arrays]
    if not arrays or lengths[0] in ((), (0,)) or any(one != lengths[0] for one in lengths):
        shapes = [array.shape for array in arrays]
        raise ValueError(f"data: got shapes {shapes}, wanted arrays [N, ...] of one N >= 1")
    return arrays


def _all_alike(first: Array) -> Callable[[Array], Array]:
    number = first.shape[0]
    return lambda key: jax.random.randint(key, (number,), 0, number)


def _by_stratum(first: Array, strata: ArrayLike) -> Callable[[Array], Array]:
    """A draw, for each example, from those that share its stratum."""
    ids = _check.same_shape("strata", strata, "data by row", jnp.arange(first.shape[0]))
    ids = _sharding.replicated(_check.class_ids(ids, name="strata"))
    order = jnp.argsort(ids)
    rising = ids[order]
    starts = jnp.searchsorted(rising, ids, side="left").astype(jnp.int32)
    sizes = jnp.searchsorted(rising, ids, side="right").astype(jnp.int32) - starts

    def place(key: Array) -> Array:
        chosen = order[starts + jax.random.randint(key, ids.shape, 0, sizes)]
        return jnp.where(ids < 0, jnp.arange(ids.size, dtype=chosen.dtype), chosen)

    return place
