"""From logits to numbers: which step size validation chooses, and what the test set then says."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import metrics, posthoc
from jaxbalance._types import Array, ArrayTree, HostArray
from jaxbalance.compare._corrections import Correction, Evidence
from jaxbalance.compare._heads import linear_head
from jaxbalance.compare._methods import Method
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
BINARY_METRICS = ("rare_f1", "rare_f1_calibrated", "geometric_mean_calibrated")
"""What problems of two classes have besides: F1 of the rare one, and F1 and G-mean each at the
threshold that makes it best on validation data."""


class Score(NamedTuple):
    """One method on the test set, at the step size that validation chose for each seed."""

    values: dict[str, HostArray]
    """One number per seed ``[S]`` for every name in ``METRICS``, and in ``BINARY_METRICS`` where
    there are two classes."""
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
    scaling: posthoc.LogitScaling
    """What the method multiplies that run's logits with, and adds to them, ``[K]`` each."""


def score(task: Task, method: Method, outcome: Outcome) -> Score:
    """Choose step sizes on validation data, then measure once on test data."""
    finite = np.isfinite(outcome.validation_logits).all(axis=(2, 3))
    finite &= np.isfinite(outcome.test_logits).all(axis=(2, 3))
    validation_logits = np.nan_to_num(outcome.validation_logits)
    test_logits = np.nan_to_num(outcome.test_logits)
    class_counts = jnp.asarray(task.class_counts, jnp.float32)
    heads = jax.tree.map(np.nan_to_num, linear_head(outcome.params))
    labels = jnp.asarray(task.dataset.labels[task.validation], jnp.int32)
    folds = jnp.asarray(np.stack([_folds(row) for row in np.asarray(labels)]))
    judged = _judge_runs(method.correction, class_counts, validation_logits, heads, labels, folds)
    accuracy, loss = (np.asarray(a) for a in judged)
    # Ties in balanced accuracy, common with few rare examples, go to the lower balanced log loss.
    order = np.where(finite, np.round(accuracy, 6) - 1e-9 * np.tanh(loss / 10), -1.0)
    chosen = np.argmax(order, axis=1)
    seeds = np.arange(len(chosen))
    runs = (validation_logits, heads, test_logits)
    held_out, heads, test = jax.tree.map(lambda leaf: leaf[seeds, chosen], runs)
    test_labels = jnp.asarray(task.dataset.labels[task.test], jnp.int32)
    # Every example has a label: what has none fills the test set up to a common size.
    there = test_labels >= 0
    fitted = _fit(method.correction, class_counts, held_out, heads, test, there, labels)
    measured = _measure_runs(_rarest(task), fitted, held_out, labels, test, test_labels)
    values, recall, right = jax.tree.map(np.asarray, measured)
    best = int(np.argmax(order[seeds, chosen]))
    return Score(
        values=values,
        recall=recall,
        right=right,
        validation=accuracy[seeds, chosen],
        chosen=chosen,
        curve=outcome.curve[seeds, chosen],
        diverged=int(np.sum(~finite)),
        seed=best,
        params=jax.tree.map(lambda leaf: leaf[best, chosen[best]], outcome.params),
        scaling=jax.tree.map(lambda leaf: np.asarray(leaf)[best], fitted),
    )


def _folds(labels: HostArray) -> HostArray:
    """Two halves of the validation set, alternating within every class."""
    fold = np.empty(len(labels), np.int32)
    for k in np.unique(labels):
        members = np.flatnonzero(labels == k)
        fold[members] = np.arange(len(members)) % 2
    return fold


# Compiled once for each kind of correction, not for each method.
@partial(jax.jit, static_argnums=0)
def _fit(
    correction: Correction,
    class_counts: Array,
    logits: Array,
    heads: posthoc.LinearHead | None,
    target_logits: Array,
    target_mask: Array,
    labels: Array,
) -> posthoc.LogitScaling:
    def one(
        logits: Array, head: Any, target: Array, mask: Array, labels: Array
    ) -> posthoc.LogitScaling:
        return correction(Evidence(logits, labels, class_counts, head, target, mask))

    return jax.vmap(one)(logits, heads, target_logits, target_mask, labels)


@partial(jax.jit, static_argnums=0)
def _judge_runs(
    correction: Correction,
    class_counts: Array,
    logits: Array,
    heads: posthoc.LinearHead | None,
    labels: Array,
    folds: Array,
) -> tuple[Array, Array]:
    judge = partial(_validation_score, correction, class_counts)
    return jax.vmap(jax.vmap(judge, in_axes=(0, 0, None, None)))(logits, heads, labels, folds)


def _validation_score(
    correction: Correction,
    class_counts: Array,
    logits: Array,
    head: posthoc.LinearHead | None,
    labels: Array,
    folds: Array,
) -> tuple[Array, Array]:
    """Balanced accuracy and balanced log loss; what is fitted is judged on the other half."""

    def fit(half: Array) -> posthoc.LogitScaling:
        seen = jnp.where(folds == half, labels, -1)
        # Without labels, the half that is judged may be looked at too.
        return correction(Evidence(logits, seen, class_counts, head, logits, labels >= 0))

    of_other_half = jax.tree.map(lambda leaf: leaf[folds], jax.vmap(fit)(jnp.array([1, 0])))
    corrected = logits * of_other_half.class_factors + of_other_half.class_bias
    number = logits.shape[-1]
    predictions = jnp.argmax(corrected, axis=-1).astype(jnp.int32)
    matrix = metrics.confusion_matrix(labels, predictions, num_classes=number)
    log_likelihood = jax.nn.log_softmax(corrected)[jnp.arange(labels.size), labels]
    weights = 1 / jnp.maximum(metrics.support(matrix), 1).astype(logits.dtype)
    weights = jnp.where(labels >= 0, weights[labels], jnp.zeros_like(log_likelihood))
    loss = -jnp.sum(weights * log_likelihood)
    return metrics.balanced_accuracy(matrix), loss / number


@partial(jax.jit, static_argnums=0)
def _measure_runs(
    rare: int | None,
    scaling: posthoc.LogitScaling,
    held_out: Array,
    labels: Array,
    test: Array,
    test_labels: Array,
) -> tuple[dict[str, Array], Array, Array]:
    def one(
        scaling: posthoc.LogitScaling, held_out: Array, labels: Array, test: Array, truth: Array
    ) -> tuple[dict[str, Array], Array, Array]:
        held_out, test = (posthoc.scale_logits(z, **scaling._asdict()) for z in (held_out, test))
        values, recall, right = _measure(rare, test, truth)
        if rare is not None:
            values |= _at_thresholds(rare, held_out, labels, test, truth)
        return values, recall, right

    return jax.vmap(one)(scaling, held_out, labels, test, test_labels)


def _rarest(task: Task) -> int | None:
    """The rare class of a two-class problem; None where there are more."""
    return int(np.argmin(task.class_counts)) if task.num_classes == 2 else None


def _measure(
    rare: int | None, logits: Array, labels: Array
) -> tuple[dict[str, Array], Array, Array]:
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
    return dict(zip(METRICS, values, strict=True)), metrics.recall(matrix), predictions == labels


def _at_thresholds(
    rare: int, held_out: Array, labels: Array, test: Array, test_labels: Array
) -> dict[str, Array]:
    """``BINARY_METRICS``: as they are, and each at the threshold that validation likes best."""

    def scores(logits: Array) -> Array:
        return logits[:, rare] - logits[:, 1 - rare]

    def confusion(threshold: Array) -> Array:
        predictions = (scores(test) >= threshold).astype(jnp.int32)
        return metrics.confusion_matrix(_of_rare(test_labels, rare), predictions, num_classes=2)

    def at_best(metric: Callable[[Array], Array]) -> Array:
        threshold = posthoc.fit_threshold(
            scores(held_out), _of_rare(labels, rare), metric=metric, default=0.0
        )
        return metric(confusion(threshold))

    plain = _rare_f1(confusion(jnp.zeros(())))
    values = plain, at_best(_rare_f1), at_best(metrics.geometric_mean)
    return dict(zip(BINARY_METRICS, values, strict=True))


def _of_rare(labels: Array, rare: int) -> Array:
    """1 for the rare class, 0 for the other, −1 for neither."""
    return jnp.where(labels >= 0, (labels == rare).astype(labels.dtype), labels)


def _rare_f1(confusion: Array) -> Array:
    return metrics.f_beta(confusion)[..., 1]
