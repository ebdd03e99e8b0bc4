"""Logit adjustment and thresholds against closed forms, brute force and scikit-learn."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxbalance import counts, metrics, posthoc


def draw(generator, size=300, share=(0.7, 0.2, 0.1), strength=1.5):
    """Float32 logits of a network that has learned the prior, and their labels."""
    labels = generator.choice(len(share), size=size, p=share)
    logits = generator.normal(size=(size, len(share))) + strength * np.eye(len(share))[labels]
    return (logits + np.log(share)).astype(np.float32), labels.astype(np.int32)


def test_adjusted_softmax_is_probability_over_prior(generator):
    sizes = np.array([700, 200, 90, 10])
    logits = generator.normal(size=(5, 6, 4)).astype(np.float32)
    expected = scipy.special.softmax(logits.astype(np.float64), axis=-1) / (sizes / sizes.sum())
    expected /= expected.sum(axis=-1, keepdims=True)
    for given_logits in (logits, jax.nn.log_softmax(logits)):
        got = posthoc.adjust_logits(given_logits, class_counts=sizes)
        np.testing.assert_allclose(jax.nn.softmax(got), expected, rtol=1e-5)
    half = posthoc.adjust_logits(logits, class_counts=sizes, tau=0.5)
    np.testing.assert_allclose(half, logits - 0.5 * np.log(sizes / sizes.sum()), atol=1e-6)


def test_adjusting_is_plain_prediction_at_the_identity(generator):
    logits = generator.normal(size=(20, 3)).astype(np.float32)
    same = posthoc.adjust_logits(logits, class_counts=np.array([90, 9, 1]), tau=0.0)
    np.testing.assert_array_equal(same, logits)
    equal = posthoc.adjust_logits(logits, class_counts=np.array([7, 7, 7]))
    np.testing.assert_allclose(jax.nn.softmax(equal), jax.nn.softmax(logits), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_adjusted_logits_keep_their_dtype_and_are_rounded_last(dtype, generator):
    logits = jnp.asarray(generator.normal(size=(50, 3)), dtype)
    sizes = jnp.array([900, 90, 0])
    got = jax.jit(posthoc.adjust_logits)(logits, class_counts=sizes, tau=jnp.float32(1.0))
    exact = np.asarray(logits, np.float64) - np.log(np.array([900, 90, 90]) / 990)
    assert got.dtype == dtype
    half_a_unit = 0.51 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=half_a_unit, atol=1e-6)


def test_adjusting_recovers_balanced_accuracy(generator):
    logits, labels = draw(generator, size=4000, share=(0.9, 0.08, 0.02))
    sizes = counts.class_counts(labels, num_classes=3)

    def balanced(scores):
        predictions = jnp.argmax(scores, axis=-1)
        return metrics.balanced_accuracy(
            metrics.confusion_matrix(labels, predictions, num_classes=3)
        )

    adjusted = posthoc.adjust_logits(logits, class_counts=sizes)
    assert balanced(adjusted) > balanced(logits) + 0.1


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_split_batches(axis_type, generator):
    logits, labels = draw(generator, size=160)
    sizes = jnp.array([7, 2, 1])
    single = posthoc.adjust_logits(logits, class_counts=sizes)
    temperature = posthoc.fit_temperature(logits, labels)
    bias = posthoc.fit_class_bias(logits, labels)
    fit = functools.partial(posthoc.fit_threshold, metric=metrics.accuracy)
    threshold = fit(logits[:, 1], labels)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("batch"))
    with jax.set_mesh(mesh):
        z, y = (jax.device_put(jnp.asarray(a), split) for a in (logits, labels))
        adjusted = jax.jit(posthoc.adjust_logits)(z, class_counts=sizes)
        fitted = jax.jit(posthoc.fit_temperature)(z, y)
        biased, cut = jax.jit(lambda z, y: (posthoc.fit_class_bias(z, y), fit(z[:, 1], y)))(z, y)
    np.testing.assert_allclose(np.asarray(adjusted), single, atol=1e-6)
    np.testing.assert_allclose(np.asarray(fitted), temperature, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(biased), bias, atol=1e-5)
    np.testing.assert_allclose(np.asarray(cut), threshold, rtol=1e-6)


SIZE = 24
METRICS = {
    metrics.accuracy: sklearn.metrics.accuracy_score,
    metrics.balanced_accuracy: sklearn.metrics.balanced_accuracy_score,
    metrics.macro_f1: functools.partial(sklearn.metrics.f1_score, average="macro", zero_division=0),
    metrics.matthews_correlation: sklearn.metrics.matthews_corrcoef,
}
FIT = {m: jax.jit(functools.partial(posthoc.fit_threshold, metric=m)) for m in METRICS}

scored = st.lists(
    st.tuples(st.integers(-6, 6), st.sampled_from([0, 1])), min_size=2, max_size=SIZE
).filter(lambda rows: {label for _, label in rows} == {0, 1})


def columns(rows, size=SIZE):
    """Scores and labels, padded to one size so that every drawn example runs one program."""
    scores, labels = (np.array(column) for column in zip(*rows, strict=True))
    missing = size - len(rows)
    padded = np.pad(scores, (0, missing), constant_values=99)
    return padded.astype(np.float32), np.pad(labels, (0, missing), constant_values=-1)


def by_brute_force(metric, rows):
    """Candidate thresholds in order (the ends as None) and the metric at each."""
    scores, labels = (np.array(column) for column in zip(*rows, strict=True))
    distinct = sorted(set(scores))
    splits = [(None, distinct[0])]
    splits += [((a + b) / 2, b) for a, b in itertools.pairwise(distinct)]
    splits += [(None, distinct[-1] + 1)]
    return [(t, metric(labels, (scores >= cut).astype(int))) for t, cut in splits]


@pytest.mark.parametrize("metric", METRICS, ids=lambda f: f.__name__)
@settings(max_examples=40, deadline=None)
@given(rows=scored)
def test_threshold_is_the_median_of_the_best(metric, rows):
    threshold = float(FIT[metric](*columns(rows)))
    tried = by_brute_force(METRICS[metric], rows)
    best = max(value for _, value in tried)
    good = [i for i, (_, value) in enumerate(tried) if value > best - 1e-7]
    median = good[(len(good) - 1) // 2]
    scores, labels = (np.array(column) for column in zip(*rows, strict=True))
    reached = METRICS[metric](labels, (scores >= threshold).astype(int))
    np.testing.assert_allclose(reached, best, atol=1e-6)
    if 0 < median < len(tried) - 1:
        assert threshold == tried[median][0]
    elif median == 0:
        assert scores.min() - 1e-3 < threshold < scores.min()
    else:
        assert scores.max() < threshold < scores.max() + 1e-3


@settings(max_examples=40, deadline=None)
@given(scored, st.sampled_from([np.exp, np.arctan, lambda s: s**3, lambda s: 5 * s - 2]))
def test_threshold_predicts_the_same_after_a_monotone_transform(rows, increasing):
    scores, labels = columns(rows)
    moved = increasing(np.where(labels >= 0, scores, 0)).astype(np.float32)
    fit = FIT[metrics.balanced_accuracy]
    before, after = scores >= fit(scores, labels), moved >= fit(moved, labels)
    np.testing.assert_array_equal(before[labels >= 0], after[labels >= 0])


def test_threshold_of_many_scores_is_best_to_rounding(generator):
    labels = (generator.random(20_000) < 0.02).astype(np.int32)
    scores = (generator.normal(size=20_000) + 1.5 * labels).astype(np.float32)
    false_rate, true_rate, _ = sklearn.metrics.roc_curve(labels, scores)
    threshold = FIT[metrics.balanced_accuracy](scores, labels)
    reached = sklearn.metrics.balanced_accuracy_score(labels, scores >= threshold)
    np.testing.assert_allclose(reached, np.max((1 + true_rate - false_rate) / 2), atol=2e-6)


@pytest.mark.parametrize("labels", [[0, 0, -1], [1, 1, 7], [-1, -1, -1]], ids=str)
def test_threshold_with_one_side_missing_is_the_default(labels):
    fit = functools.partial(posthoc.fit_threshold, metric=metrics.balanced_accuracy)
    scores = jnp.array([0.1, 0.8, jnp.nan])
    assert fit(scores, jnp.array(labels)) == 0.5
    assert fit(scores, jnp.array(labels), default=-2.0) == -2.0
    assert fit(jnp.zeros(0), jnp.zeros(0, jnp.int32), default=jnp.float32(3.0)) == 3.0


def test_threshold_passes_over_nan():
    """The metric is undefined unless both sides are predicted; it may also be so everywhere."""

    def precision_of_positives(confusion):
        hits = confusion[..., 1, 1].astype(jnp.float32)
        return hits / jnp.sum(confusion[..., 1], axis=-1).astype(jnp.float32)

    scores, labels = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([0, 1, 0, 1])
    assert posthoc.fit_threshold(scores, labels, metric=precision_of_positives) == 3.5

    def nowhere(confusion):
        return jnp.full(confusion.shape[:-2], jnp.nan)

    assert posthoc.fit_threshold(scores, labels, metric=nowhere, default=9.0) == 9.0


def test_threshold_between_neighbouring_floats_still_separates():
    for low in (np.float32(1.0), np.float32(-1.0), np.float32(3e38)):
        high = np.nextafter(low, np.float32(np.inf))
        threshold = FIT[metrics.accuracy](np.array([low, high]), np.array([0, 1]))
        assert low < threshold <= high
    halves = jnp.array([1.0, 1.0078125], jnp.bfloat16)
    threshold = FIT[metrics.accuracy](halves, jnp.array([0, 1]))
    assert threshold.dtype == jnp.float32
    assert 1.0 < threshold < 1.0078125


def test_threshold_of_any_function_of_the_four_counts(generator):
    """A cost with a fixed price for each false alarm and each miss, and one that is no rate."""

    def saving(confusion):
        negatives, positives = confusion[..., 0, :], confusion[..., 1, :]
        return -(negatives[..., 1] + 7 * positives[..., 0]).astype(jnp.float32)

    def few_alarms(confusion):
        alarms = confusion[..., 0, 1] + confusion[..., 1, 1]
        return jnp.where(alarms <= 5, confusion[..., 1, 1], -1).astype(jnp.float32)

    def counted(scores, labels, cut):
        predicted = scores >= cut
        return [np.sum((labels == y) & (predicted == p)) for y in (0, 1) for p in (0, 1)]

    labels = generator.integers(0, 2, size=40).astype(np.int32)
    scores = np.round(generator.normal(size=40) + labels, 1).astype(np.float32)
    for metric in (saving, few_alarms):
        cut = posthoc.fit_threshold(scores, labels, metric=metric)
        cuts = [-9, 9, *(np.unique(scores) - 0.01)]
        tables = [np.reshape(counted(scores, labels, c), (2, 2)) for c in (float(cut), *cuts)]
        reached, *others = (float(metric(jnp.asarray(table))) for table in tables)
        assert reached == max(others)


def test_threshold_maps(generator):
    rows = [
        [(int(s), int(y)) for s, y in zip(*generator.integers(0, [[6], [2]], (2, 12)), strict=True)]
        for _ in range(5)
    ]
    scores, labels = (np.stack(part) for part in zip(*map(columns, rows), strict=True))
    fit = functools.partial(posthoc.fit_threshold, metric=metrics.macro_f1)
    got = jax.vmap(fit)(scores, labels)
    np.testing.assert_array_equal(got, [fit(s, y) for s, y in zip(scores, labels, strict=True)])


def test_threshold_keeps_precision():
    with jax.enable_x64():
        scores = jnp.array([1.0, 1.0 + 1e-12], jnp.float64)
        fit = functools.partial(posthoc.fit_threshold, metric=metrics.accuracy)
        threshold = fit(scores, jnp.array([0, 1]))
        assert threshold.dtype == jnp.float64
        assert 1.0 < threshold < 1.0 + 1e-12
        assert fit(scores.astype(jnp.float32), jnp.array([0, 1])).dtype == jnp.float32


def test_bad_input_is_refused():
    logits, labels = jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match=r"class_counts: got shape \(2,\), wanted shape \(3,\)"):
        posthoc.adjust_logits(logits, class_counts=jnp.array([1, 2]))
    fit = functools.partial(posthoc.fit_threshold, metric=metrics.accuracy)
    with pytest.raises(ValueError, match=r"scores: got shape \(4, 3\), wanted \[N\]"):
        fit(logits, labels)
    with pytest.raises(ValueError, match=r"labels: got shape \(3,\), wanted shape \(4,\)"):
        fit(jnp.zeros(4), labels[:3])
    with pytest.raises(ValueError, match="labels: got dtype float32"):
        fit(jnp.zeros(4), jnp.zeros(4))
    with pytest.raises(ValueError, match="scores: got dtype int32"):
        fit(labels, labels)
