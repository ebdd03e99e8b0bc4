"""Calibration bins and scores against slow NumPy float64 twins and scikit-learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxbalance import metrics


def draw(generator, size=500, num_classes=4):
    """Float32 probabilities and labels that follow sharper ones, so that they are miscalibrated."""
    probabilities = generator.dirichlet(np.full(num_classes, 0.5), size=size).astype(np.float32)
    sharper = probabilities.astype(np.float64) ** 2 + 1e-9
    sharper /= sharper.sum(axis=1, keepdims=True)
    labels = np.array([generator.choice(num_classes, p=p) for p in sharper])
    labels[::11] = -1
    return probabilities, labels


def twin(probabilities, labels, num_bins):
    """One example at a time: (examples, confidence, correct) by bin and the squared error."""
    sums, squared = np.zeros((num_bins, 3)), 0.0
    for p, y in zip(probabilities, labels, strict=True):
        if not 0 <= y < len(p):
            continue
        top = int(np.argmax(p))
        place = next(
            m
            for m in range(num_bins)
            if p[top] <= np.float32((m + 1) / num_bins) or m + 1 == num_bins
        )
        sums[place] += 1, float(p[top]), top == y
        squared += sum((float(p[k]) - (k == y)) ** 2 for k in range(len(p)))
    return *sums.T, squared


def expected_error(sums):
    examples, confidence, correct, _ = sums
    gaps = [
        n / examples.sum() * abs(c / n - r / n)
        for n, c, r in zip(examples, confidence, correct, strict=True)
        if n
    ]
    return sum(gaps)


@pytest.mark.parametrize("num_bins", [1, 2, 10, 15, 100])
def test_bins_and_scores_are_the_twins(num_bins, generator):
    probabilities, labels = draw(generator)
    bins = jax.jit(functools.partial(metrics.calibration_bins, num_bins=num_bins))(
        probabilities, labels
    )
    sums = twin(probabilities, labels, num_bins)
    assert bins.examples.dtype == bins.correct.dtype == jnp.int32
    for got, wanted in zip(bins, sums, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert expected_error(sums) > 0.05
    np.testing.assert_allclose(
        metrics.expected_calibration_error(bins), expected_error(sums), rtol=1e-4
    )
    np.testing.assert_allclose(metrics.brier_score(bins), sums[3] / (labels >= 0).sum(), rtol=1e-5)


def test_the_default_is_fifteen_bins(generator):
    assert metrics.calibration_bins(*draw(generator)).examples.shape == (15,)


def test_intervals_are_closed_on_the_right():
    top = jnp.array([0.0, 0.25, 0.250001, 0.5, 0.75, 0.9, 1.0])
    probabilities = jnp.stack([top, jnp.zeros_like(top)], axis=-1)
    bins = metrics.calibration_bins(probabilities, jnp.zeros(7, jnp.int32), num_bins=4)
    np.testing.assert_array_equal(bins.examples, [2, 2, 1, 2])


def test_brier_score_is_scikit_learns(generator):
    probabilities, labels = draw(generator)
    seen = labels >= 0
    exact = probabilities[seen].astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    got = metrics.brier_score(metrics.calibration_bins(probabilities, labels))
    expected = sklearn.metrics.brier_score_loss(
        labels[seen], exact, scale_by_half=False, labels=range(4)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_brier_score_of_two_classes_is_twice_scikit_learns(generator):
    positive = generator.random(200)
    labels = (generator.random(200) < positive).astype(np.int32)
    probabilities = jnp.asarray(np.stack([1 - positive, positive], axis=-1), jnp.float32)
    got = metrics.brier_score(metrics.calibration_bins(probabilities, labels))
    np.testing.assert_allclose(
        got, 2 * sklearn.metrics.brier_score_loss(labels, positive), rtol=1e-5
    )


def test_closed_forms():
    """Confidently wrong is the worst there is; an even guess of two is off by its own squares."""
    wrong = metrics.calibration_bins(jnp.array([[1.0, 0.0]]), jnp.array([1]))
    assert metrics.brier_score(wrong) == 2.0
    assert metrics.expected_calibration_error(wrong) == 1.0
    even = metrics.calibration_bins(jnp.full((2, 2), 0.5), jnp.array([0, 1]))
    assert metrics.brier_score(even) == 0.5
    assert metrics.expected_calibration_error(even) == 0.0


def test_bins_add_up_and_map(generator):
    probabilities, labels = draw(generator)
    probabilities, labels = probabilities.reshape(10, 50, 4), labels.reshape(10, 50)
    each = jax.vmap(metrics.calibration_bins)(probabilities, labels)
    whole = metrics.calibration_bins(probabilities, labels)
    first, rest = (
        metrics.calibration_bins(probabilities[part], labels[part])
        for part in (slice(0, 3), slice(3, None))
    )
    added = jax.tree.map(jnp.add, first, rest)
    for got in (added, jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), each)):
        for a, b in zip(got, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
    for score in (metrics.expected_calibration_error, metrics.brier_score):
        one = metrics.calibration_bins(probabilities[4], labels[4])
        np.testing.assert_allclose(score(each)[4], score(one), rtol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_bins_of_a_split_batch(axis_type, generator):
    probabilities, labels = draw(generator, size=160)
    single = metrics.calibration_bins(probabilities, labels)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("batch"))
    with jax.set_mesh(mesh):
        p, y = (jax.device_put(jnp.asarray(a), split) for a in (probabilities, labels))
        got = jax.jit(metrics.calibration_bins)(p, y)
    for a, b in zip(got, single, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-5)


@pytest.mark.parametrize("labels", [[-1, -1], [2, 7]])
def test_padding_counts_nowhere_whatever_it_holds(labels):
    bins = metrics.calibration_bins(jnp.full((2, 2), jnp.nan), jnp.array(labels))
    for leaf in bins:
        np.testing.assert_array_equal(leaf, 0)
    assert np.isnan(metrics.expected_calibration_error(bins))
    assert np.isnan(metrics.brier_score(bins))


def test_no_digit_is_lost_over_many_examples(generator):
    probabilities = generator.dirichlet([0.4, 0.3, 0.3], size=200_000).astype(np.float32)
    labels = generator.integers(0, 3, size=200_000)
    bins = jax.jit(metrics.calibration_bins)(probabilities, labels)
    exact = probabilities.astype(np.float64)
    squared = np.mean(np.sum((exact - np.eye(3)[labels]) ** 2, axis=1))
    np.testing.assert_allclose(metrics.brier_score(bins), squared, rtol=2e-6)
    np.testing.assert_allclose(np.sum(bins.confidence), exact.max(axis=1).sum(), rtol=2e-6)


def test_half_precision_is_summed_in_float32(generator):
    probabilities, labels = draw(generator)
    half = jnp.asarray(probabilities, jnp.bfloat16)
    bins = metrics.calibration_bins(half, labels)
    assert bins.confidence.dtype == bins.squared_error.dtype == jnp.float32
    wide = np.asarray(half.astype(jnp.float32))
    for got, wanted in zip(bins, twin(wide, labels, 15), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_bad_input_is_refused():
    probabilities, labels = jnp.full((3, 2), 0.5), jnp.zeros(3, jnp.int32)
    with pytest.raises(ValueError, match="num_bins: got 0"):
        metrics.calibration_bins(probabilities, labels, num_bins=0)
    with pytest.raises(ValueError, match="probabilities: got dtype int32"):
        metrics.calibration_bins(jnp.ones((3, 2), jnp.int32), labels)
    with pytest.raises(ValueError, match=r"probabilities: got shape \(3, 1\)"):
        metrics.calibration_bins(jnp.ones((3, 1)), labels)
    with pytest.raises(ValueError, match=r"labels: .*shape \(2,\).*wanted shape \(3,\)"):
        metrics.calibration_bins(probabilities, labels[:2])
    with pytest.raises(ValueError, match="labels: got dtype float32"):
        metrics.calibration_bins(probabilities, probabilities)
