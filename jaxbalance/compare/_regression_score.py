"""From predictions to errors: which step size validation chooses, and what the test set says."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import counts, metrics
from jaxbalance._types import Array, ArrayTree, HostArray
from jaxbalance.compare._regression_sweep import RegressionOutcome
from jaxbalance.compare._regression_task import RegressionTask

ERRORS = ("balanced_mae", "mae", "rmse", "geometric_mean", "many", "medium", "few")
"""In units of the target. The last three are MAEs of the bins of many, medium and few shots."""


class RegressionScore(NamedTuple):
    """One method on the test set, at the step size that validation chose for each seed."""

    values: dict[str, HostArray]
    """One number per seed ``[S]`` for every name in ``ERRORS``, and ``pearson``; NaN where it is
    not defined."""
    by_bin: HostArray
    """Test MAE of each bin ``[S, M]``, NaN where the test set has none of it."""
    absolute: HostArray
    """Absolute error of each test example ``[S, m]``."""
    validation: HostArray
    """Validation balanced MAE of the chosen run of each seed ``[S]``."""
    chosen: HostArray
    """Index of the chosen step size of each seed ``[S]``."""
    curve: HostArray
    """Validation MAE of each bin along the chosen runs ``[S, segments, M]``."""
    diverged: int
    """Runs, of all seeds and step sizes, that ended in non-finite predictions; never chosen unless
    all step sizes of a seed did."""
    seed: int
    """The seed whose chosen run has the lowest validation error, in its standard deviations."""
    params: ArrayTree
    """Parameters of that run."""


def score_regression(task: RegressionTask, outcome: RegressionOutcome) -> RegressionScore:
    """Choose step sizes on validation data, then measure once on test data."""
    finite = np.isfinite(outcome.validation).all(axis=2) & np.isfinite(outcome.test).all(axis=2)
    validation, test = (np.nan_to_num(part) for part in (outcome.validation, outcome.test))
    judged = np.asarray(_judge(task.num_bins, validation, *_truth(task, task.split.validation)))
    order = np.where(finite, judged, np.inf)
    chosen = np.argmin(order, axis=1)
    seeds = np.arange(len(chosen))
    predictions, truth = test[seeds, chosen], _truth(task, task.split.test)
    shots = counts.shot_groups(jnp.asarray(task.split.class_counts))
    values, by_bin = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64),
        _measure(task.num_bins, shots, predictions, *truth),
    )
    pearson = values.pop("pearson")
    best = int(np.argmin(order[seeds, chosen]))
    return RegressionScore(
        values={**{name: task.scale * value for name, value in values.items()}, "pearson": pearson},
        by_bin=task.scale[:, None] * by_bin,
        absolute=task.scale[:, None] * np.abs(predictions - np.asarray(truth[0])),
        validation=task.scale * judged[seeds, chosen],
        chosen=chosen,
        curve=task.scale[:, None, None] * outcome.curve[seeds, chosen],
        diverged=int(np.sum(~finite)),
        seed=best,
        params=jax.tree.map(lambda leaf: leaf[best, chosen[best]], outcome.params),
    )


def _truth(task: RegressionTask, rows: HostArray) -> tuple[Array, Array]:
    """Standardised targets and bins of each seed's rows ``[S, n]``."""
    targets = np.take_along_axis(task.standardized, rows, axis=1)
    return jnp.asarray(targets), jnp.asarray(task.split.dataset.labels[rows], jnp.int32)


@partial(jax.jit, static_argnums=0)
def _judge(num_bins: int, predictions: Array, targets: Array, bins: Array) -> Array:
    """Balanced MAE of every run ``[S, L]``."""

    def one(predictions: Array, targets: Array, bins: Array) -> Array:
        errors = metrics.regression_errors(predictions, targets, bins, num_bins=num_bins)
        return metrics.macro(metrics.mean_absolute_error(errors))

    return jax.vmap(jax.vmap(one, in_axes=(0, None, None)))(predictions, targets, bins)


@partial(jax.jit, static_argnums=0)
def _measure(
    num_bins: int, shots: Array, predictions: Array, targets: Array, bins: Array
) -> tuple[dict[str, Array], Array]:
    def one(predictions: Array, targets: Array, bins: Array) -> tuple[dict[str, Array], Array]:
        errors = metrics.regression_errors(predictions, targets, bins, num_bins=num_bins)
        together = jnp.zeros_like(bins)
        whole = metrics.regression_errors(predictions, targets, together, num_bins=1)
        by_bin = metrics.mean_absolute_error(errors)
        groups = metrics.group_errors(errors, shots, num_groups=3)
        values = (
            metrics.macro(by_bin),
            metrics.mean_absolute_error(whole)[0],
            jnp.sqrt(metrics.mean_squared_error(whole)[0]),
            metrics.geometric_mean_error(whole)[0],
            *metrics.mean_absolute_error(groups),
        )
        named = dict(zip(ERRORS, values, strict=True))
        correlation = metrics.pearson_correlation(predictions, targets, together, num_bins=1)
        return {**named, "pearson": correlation[0]}, by_bin

    return jax.vmap(one)(predictions, targets, bins)
