"""From logits to numbers: which step size validation chooses, and what the test set then says."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import metrics
from jaxbalance._types import Array, ArrayTree, HostArray
from jaxbalance.compare._methods import Bias, Method
from jaxbalance.compare._sweep import Outcome
from jaxbalance.compare._task import Task

METRICS = (
    "balanced_accuracy",
    "macro_f1",
    "worst_class_recall",
    "geometric_mean",
    "auroc",
    "average_precision",
    "expected_calibration_error",
    "accuracy",
)


class Score(NamedTuple):
    """One method on the test set, at the step size that validation chose for each seed."""

    values: dict[str, HostArray]
    """One number per seed ``[S]`` for every name in ``METRICS``."""
    recall: HostArray
    """Test recall of each class ``[S, K]``, NaN where the test set has none of it."""
    right: HostArray
    """Whether each test example was classified correctly ``[S, m]``."""
    validation: HostArray
    """Validation balanced accuracy of the chosen run of each seed ``[S]``."""
    chosen: HostArray
    """Index of the chosen step size of each seed ``[S]``."""
    curve: HostArray
    """Recall of each class along the chosen runs ``[S, segments, K]``."""
    diverged: int
    """Runs, of all seeds and step sizes, that ended in non-finite logits; never chosen unless all
    step sizes of a seed did."""
    seed: int
    """The seed whose chosen run has the best validation score."""
    params: ArrayTree
    """Parameters of that run."""
    bias: HostArray
    """What the method adds to that run's logits ``[K]``."""


def score(task: Task, method: Method, outcome: Outcome) -> Score:
    """Choose step sizes on validation data, then measure once on test data."""
    finite = np.isfinite(outcome.validation_logits).all(axis=(2, 3))
    finite &= np.isfinite(outcome.test_logits).all(axis=(2, 3))
    validation_logits = np.nan_to_num(outcome.validation_logits)
    test_logits = np.nan_to_num(outcome.test_logits)
    class_counts = jnp.asarray(task.class_counts, jnp.float32)
    labels = jnp.asarray(task.dataset.labels[task.validation], jnp.int32)
    folds = jnp.asarray(np.stack([_folds(row) for row in np.asarray(labels)]))
    judged = _judge_runs(method.bias, class_counts, validation_logits, labels, folds)
    accuracy, loss = (np.asarray(a) for a in judged)
    # Ties in balanced accuracy, common with few rare examples, go to the lower balanced log loss.
    order = np.where(finite, np.round(accuracy, 6) - 1e-9 * np.tanh(loss / 10), -1.0)
    chosen = np.argmax(order, axis=1)
    seeds = np.arange(len(chosen))
    fitted = _fit_biases(method.bias, class_counts, validation_logits[seeds, chosen], labels)
    measured = _measure_runs(
        _rarest(task),
        test_logits[seeds, chosen] + np.asarray(fitted)[:, None, :],
        jnp.asarray(task.dataset.labels[task.test], jnp.int32),
    )
    values, recall, right = jax.tree.map(np.asarray, measured)
    best = int(np.argmax(order[seeds, chosen]))
    return Score(
        values=dict(zip(METRICS, values, strict=True)),
        recall=recall,
        right=right,
        validation=accuracy[seeds, chosen],
        chosen=chosen,
        curve=outcome.curve[seeds, chosen],
        diverged=int(np.sum(~finite)),
        seed=best,
        params=jax.tree.map(lambda leaf: leaf[best, chosen[best]], outcome.params),
        bias=np.asarray(fitted)[best],
    )


def _folds(labels: HostArray) -> HostArray:
    """Two halves of the validation set, alternating within every class."""
    fold = np.empty(len(labels), np.int32)
    for k in np.unique(labels):
        members = np.flatnonzero(labels == k)
        fold[members] = np.arange(len(members)) % 2
    return fold


def _bias(bias: Bias | None, class_counts: Array, logits: Array, labels: Array) -> Array:
    if bias is None:
        return jnp.zeros_like(logits[0])
    return bias(logits, labels, class_counts)


# Compiled once for each kind of bias, not for each method.
@partial(jax.jit, static_argnums=0)
def _fit_biases(bias: Bias | None, class_counts: Array, logits: Array, labels: Array) -> Array:
    return jax.vmap(partial(_bias, bias, class_counts))(logits, labels)


@partial(jax.jit, static_argnums=0)
def _judge_runs(
    bias: Bias | None, class_counts: Array, logits: Array, labels: Array, folds: Array
) -> tuple[Array, Array]:
    judge = partial(_validation_score, bias, class_counts)
    return jax.vmap(jax.vmap(judge, in_axes=(0, None, None)))(logits, labels, folds)


def _validation_score(
    bias: Bias | None, class_counts: Array, logits: Array, labels: Array, folds: Array
) -> tuple[Array, Array]:
    """Balanced accuracy and balanced log loss; what is fitted is judged on the other half."""
    fit = partial(_bias, bias, class_counts, logits)
    halves = [fit(jnp.where(folds == half, labels, -1)) for half in (1, 0)]
    shifted = logits + jnp.where((folds == 0)[:, None], halves[0][None, :], halves[1][None, :])
    number = logits.shape[-1]
    predictions = jnp.argmax(shifted, axis=-1).astype(jnp.int32)
    matrix = metrics.confusion_matrix(labels, predictions, num_classes=number)
    log_likelihood = jax.nn.log_softmax(shifted)[jnp.arange(labels.size), labels]
    weights = 1 / jnp.maximum(metrics.support(matrix), 1).astype(logits.dtype)
    loss = -jnp.sum(weights[labels] * log_likelihood)
    return metrics.balanced_accuracy(matrix), loss / number


@partial(jax.jit, static_argnums=0)
def _measure_runs(rare: int | None, logits: Array, labels: Array) -> tuple[Any, Array, Array]:
    return jax.vmap(partial(_measure, rare))(logits, labels)


def _rarest(task: Task) -> int | None:
    """The rare class of a two-class problem; None where there are more."""
    return int(np.argmin(task.class_counts)) if task.num_classes == 2 else None


def _measure(
    rare: int | None, logits: Array, labels: Array
) -> tuple[tuple[Array, ...], Array, Array]:
    number = logits.shape[-1]
    predictions = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    matrix = metrics.confusion_matrix(labels, predictions, num_classes=number)
    probabilities = jax.nn.softmax(logits)
    precision = metrics.average_precision(probabilities, labels)
    values = (
        metrics.balanced_accuracy(matrix),
        metrics.macro_f1(matrix),
        metrics.worst_class_recall(matrix),
        metrics.geometric_mean(matrix),
        metrics.macro(metrics.auroc(probabilities, labels)),
        metrics.macro(precision) if rare is None else precision[rare],
        metrics.expected_calibration_error(metrics.calibration_bins(probabilities, labels)),
        metrics.accuracy(matrix),
    )
    return values, metrics.recall(matrix), predictions == labels
