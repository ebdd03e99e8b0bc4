"""Errors by bin and by shot against scikit-learn and SciPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import stats
from sklearn import metrics as trusted
from sklearn.linear_model import LinearRegression

from jaxbalance import counts, losses, metrics

ERRORS = jax.jit(metrics.regression_errors, static_argnames="num_bins")
PEARSON = jax.jit(metrics.pearson_correlation, static_argnames="num_bins")


def real(shared_data):
    """Held-out ages of abalones, by bins of two rings: predictions, targets, bins and counts."""
    data = np.load(shared_data / "abalone" / "abalone.npz")
    targets = np.asarray(data["class_names"][data["y"]], np.float32)
    features = data["X"]
    model = LinearRegression().fit(features[::2], targets[::2])
    edges = np.arange(0.5, 33, 2, dtype=np.float32)
    bins = np.asarray(losses.target_bins(targets, edges=edges))
    training = counts.class_counts(bins[::2], num_classes=len(edges) - 1)
    predictions = model.predict(features[1::2]).astype(np.float32)
    return predictions, targets[1::2], bins[1::2], training


def expected(predictions, targets):
    """All four of one group, in float64, from the trusted packages."""
    first, second = predictions.astype(float), targets.astype(float)
    defined = len(first) > 1 and np.ptp(first) > 0 and np.ptp(second) > 0
    return (
        trusted.mean_absolute_error(second, first),
        trusted.mean_squared_error(second, first),
        stats.gmean(np.abs(first - second)),
        stats.pearsonr(first, second).statistic if defined else np.nan,
    )


def measured(errors):
    return np.stack([
        metrics.mean_absolute_error(errors),
        metrics.mean_squared_error(errors),
        metrics.geometric_mean_error(errors),
    ])  # fmt: skip


def test_by_bin_and_by_shot_on_real_targets(shared_data):
    predictions, targets, bins, training = real(shared_data)
    number = training.size
    errors = ERRORS(predictions, targets, bins, num_bins=number)
    groups = np.asarray(counts.shot_groups(training))
    by_shot = metrics.group_errors(errors, groups, num_groups=3)
    assert len(set(groups)) == 3
    for ids, size, sums in ((bins, number, errors), (groups[bins], 3, by_shot)):
        table = np.vstack([measured(sums), PEARSON(predictions, targets, ids, num_bins=size)])
        for b in range(size):
            rows = ids == b
            wanted = expected(predictions[rows], targets[rows]) if rows.any() else [np.nan] * 4
            np.testing.assert_allclose(table[:, b], wanted, rtol=2e-4)
    assert np.isnan(metrics.mean_absolute_error(errors)).any()
    balanced = metrics.macro(metrics.mean_absolute_error(errors))
    each = [np.abs(predictions - targets)[bins == b].mean() for b in np.unique(bins)]
    np.testing.assert_allclose(balanced, np.mean(each), rtol=1e-5)


def test_one_bin_is_everything_and_own_groups_change_nothing(generator):
    predictions, targets = generator.normal(size=(2, 50)).astype(np.float32)
    errors = ERRORS(predictions, targets, np.zeros(50, int), num_bins=1)
    wanted = expected(predictions, targets)
    np.testing.assert_allclose(measured(errors)[:, 0], wanted[:3], rtol=1e-5)
    correlation = PEARSON(predictions, targets, np.zeros(50, int), num_bins=1)
    np.testing.assert_allclose(correlation, wanted[3:], rtol=1e-5)
    errors = ERRORS(predictions, targets, np.arange(50) % 3, num_bins=3)
    same = metrics.group_errors(errors, np.arange(3), num_groups=3)
    jax.tree.map(np.testing.assert_array_equal, same, errors)
    none = metrics.group_errors(errors, np.array([-1, 5, 0]), num_groups=1)
    np.testing.assert_array_equal(none.examples, errors.examples[2:])


def test_errors_add_up_and_skip_padding(generator):
    predictions, targets = generator.normal(size=(2, 60)).astype(np.float32)
    bins = generator.integers(-1, 4, 60)
    predictions[bins < 0], targets[bins == 3] = np.nan, np.inf
    bins[bins == 3] = 9
    whole = ERRORS(predictions, targets, bins, num_bins=3)
    assert all(np.all(np.isfinite(leaf)) for leaf in whole)
    halves = [ERRORS(predictions[i::2], targets[i::2], bins[i::2], num_bins=3) for i in (0, 1)]
    square = [array.reshape(6, 10) for array in (predictions, targets, bins)]
    for other in (jax.tree.map(jnp.add, *halves), ERRORS(*square, num_bins=3)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), other, whole)
    correlation = PEARSON(predictions, targets, bins, num_bins=3)
    np.testing.assert_array_equal(PEARSON(*square, num_bins=3), correlation)
    for b in range(3):
        rows = bins == b
        wanted = stats.pearsonr(predictions[rows], targets[rows]).statistic
        np.testing.assert_allclose(correlation[b], wanted, rtol=1e-5)


def test_edges():
    """A perfect prediction has a geometric mean of 0, a NaN spoils its bin alone."""
    predictions = jnp.array([1.0, 2.0, 5.0, jnp.nan, 0.1, 0.1])
    targets = jnp.array([1.0, 4.0, 1.0, 1.0, 3.0, 4.0])
    bins = jnp.array([0, 0, 1, 2, 3, 3])
    errors = ERRORS(predictions, targets, bins, num_bins=5)
    got = metrics.geometric_mean_error(errors)
    np.testing.assert_allclose(got, [0, 4, np.nan, np.sqrt(2.9 * 3.9), np.nan], rtol=1e-6)
    assert np.all(np.isnan(PEARSON(predictions, targets, bins, num_bins=5)[1:]))
    np.testing.assert_allclose(PEARSON(predictions, targets, bins, num_bins=5)[0], 1.0, rtol=1e-6)


def test_correlation_far_from_zero_keeps_its_digits(generator):
    first = generator.normal(size=100)
    second = first + generator.normal(size=100)
    single = np.float32(first + 1000), np.float32(second - 5000)
    got = PEARSON(*single, np.zeros(100, int), num_bins=1)
    wanted = stats.pearsonr(*(array.astype(float) for array in single)).statistic
    np.testing.assert_allclose(got, [wanted], rtol=1e-5)


@pytest.mark.parametrize("metric", [metrics.regression_errors, metrics.pearson_correlation])
def test_dtypes_and_mapping(metric, generator):
    predictions, targets = generator.normal(size=(2, 3, 20)).astype(np.float32)
    bins = generator.integers(0, 2, (3, 20))
    call = functools.partial(metric, num_bins=2)
    mapped = jax.jit(jax.vmap(call))(predictions, targets, bins)
    single = call(predictions[1], targets[1], bins[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4), mapped, single)
    half = call(jnp.asarray(predictions[1], jnp.bfloat16), targets[1], jnp.asarray(bins[1], "int8"))
    assert jax.tree.leaves(half)[-1].dtype == jnp.float32


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_split_batch_is_one_batch(axis_type, generator):
    arrays = [*generator.normal(size=(2, 48)).astype(np.float32), generator.integers(-1, 3, 48)]

    def both(*rows):
        return ERRORS(*rows, num_bins=3), PEARSON(*rows, num_bins=3)

    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("batch"))
    with jax.set_mesh(mesh):
        got = jax.jit(both)(*(jax.device_put(jnp.asarray(array), split) for array in arrays))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), got, both(*arrays))


def test_bad_input_is_refused():
    values, bins = jnp.zeros(3), jnp.zeros(3, jnp.int32)
    for metric in (metrics.regression_errors, metrics.pearson_correlation):
        with pytest.raises(ValueError, match="predictions: got dtype int32"):
            metric(bins, values, bins, num_bins=1)
        with pytest.raises(ValueError, match=r"targets: got shape \(2,\), wanted shape \(3,\)"):
            metric(values, values[:2], bins, num_bins=1)
        with pytest.raises(ValueError, match="bins: got dtype float32"):
            metric(values, values, values, num_bins=1)
        with pytest.raises(ValueError, match=r"bins: got shape \(2,\), wanted shape \(3,\)"):
            metric(values, values, bins[:2], num_bins=1)
        with pytest.raises(ValueError, match="num_bins: got 0"):
            metric(values, values, bins, num_bins=0)
    errors = metrics.regression_errors(values, values, bins, num_bins=2)
    with pytest.raises(ValueError, match=r"groups: got shape \(3,\), wanted shape \(2,\)"):
        metrics.group_errors(errors, bins, num_groups=1)
    with pytest.raises(ValueError, match="groups: got dtype float32"):
        metrics.group_errors(errors, jnp.zeros(2), num_groups=1)
    with pytest.raises(ValueError, match="num_groups: got 0"):
        metrics.group_errors(errors, bins[:2], num_groups=0)
