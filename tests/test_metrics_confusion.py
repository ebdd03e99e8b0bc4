"""Confusion matrices and their functions against scikit-learn, imbalanced-learn and arithmetic."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from imblearn.metrics import geometric_mean_score
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxbalance import counts, metrics

K = 6
SCALARS = [
    metrics.accuracy,
    metrics.macro_f1,
    metrics.balanced_accuracy,
    metrics.geometric_mean,
    metrics.matthews_correlation,
    metrics.cohen_kappa,
    metrics.worst_class_recall,
]
VECTORS = [metrics.recall, metrics.precision, metrics.f_beta]


def draw(generator, size=400, num_classes=K, absent=(4,)):
    """Imbalanced labels without the absent classes; predictions right two times in three."""
    share = np.array([0.0 if k in absent else 0.5**k for k in range(num_classes)])
    labels = generator.choice(num_classes, size=size, p=share / share.sum())
    other = generator.integers(0, num_classes, size=size)
    return labels, np.where(generator.random(size) < 0.67, labels, other)


def matrix(labels, predictions, num_classes=K):
    return metrics.confusion_matrix(
        jnp.asarray(labels), jnp.asarray(predictions), num_classes=num_classes
    )


def test_confusion_matrix_is_scikit_learns(generator):
    labels, predictions = draw(generator)
    expected = sklearn.metrics.confusion_matrix(labels, predictions, labels=range(K))
    got = matrix(labels, predictions)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(
        jax.jit(functools.partial(metrics.confusion_matrix, num_classes=K))(
            labels.reshape(20, 20).astype(np.int8), predictions.reshape(20, 20).astype(np.uint8)
        ),
        expected,
    )


def test_confusion_matrix_leaves_out_what_is_no_class(generator):
    labels, predictions = generator.integers(-2, 8, size=(2, 500))
    kept = (labels >= 0) & (labels < K) & (predictions >= 0) & (predictions < K)
    expected = np.zeros((K, K), int)
    np.add.at(expected, (labels[kept], predictions[kept]), 1)
    assert 0 < kept.sum() < 500
    np.testing.assert_array_equal(matrix(labels, predictions), expected)
    np.testing.assert_array_equal(matrix([-1], [0]), 0)


def test_confusion_matrices_add_up_and_map(generator):
    labels, predictions = (a.reshape(8, 50) for a in draw(generator))
    each = jax.vmap(matrix)(labels, predictions)
    assert each.shape == (8, K, K)
    np.testing.assert_array_equal(jnp.sum(each, axis=0), matrix(labels, predictions))
    np.testing.assert_array_equal(each[3], matrix(labels[3], predictions[3]))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_confusion_matrix_of_a_split_batch(axis_type, generator):
    labels, predictions = (a.reshape(80, 5) for a in draw(generator))
    expected = sklearn.metrics.confusion_matrix(
        labels.ravel(), predictions.ravel(), labels=range(K)
    )
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("batch"))
    with jax.set_mesh(mesh):
        y, p = (jax.device_put(jnp.asarray(a), split) for a in (labels, predictions))
        for count in (matrix, jax.jit(matrix)):
            np.testing.assert_array_equal(count(y, p), expected)
        by_row = jax.jit(jax.vmap(matrix))(y, p)
        recalls = jax.jit(metrics.recall)(by_row)

        def local(y, p):
            return jax.lax.psum(matrix(y, p), "batch")

        by_device = jax.shard_map(
            local, in_specs=(PartitionSpec("batch"),) * 2, out_specs=PartitionSpec()
        )
        np.testing.assert_array_equal(jax.jit(by_device)(y, p), expected)
    np.testing.assert_array_equal(jnp.asarray(np.asarray(by_row)).sum(axis=0), expected)
    np.testing.assert_array_equal(recalls, metrics.recall(jnp.asarray(np.asarray(by_row))))


def test_confusion_matrix_needs_memory_for_examples_and_classes_only():
    abstract = jax.ShapeDtypeStruct((20_000,), jnp.int32)
    count = functools.partial(metrics.confusion_matrix, num_classes=300)
    memory = jax.jit(count).lower(abstract, abstract).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * 4 * (20_000 + 300**2)


@pytest.mark.parametrize("absent", [(), (0,), (2, 4)], ids=str)
def test_per_class_metrics_are_scikit_learns(absent, generator):
    labels, predictions = draw(generator, absent=absent)
    predictions[predictions == 1] = 0  # present, never predicted
    confusion = matrix(labels, predictions)
    expected_present = [k not in absent for k in range(K)]
    np.testing.assert_array_equal(metrics.present(confusion), expected_present)
    np.testing.assert_array_equal(metrics.support(confusion), np.bincount(labels, minlength=K))
    shared = {"labels": range(K), "average": None, "zero_division": 0}
    for got, expected in [
        (metrics.recall, sklearn.metrics.recall_score),
        (metrics.precision, sklearn.metrics.precision_score),
        (metrics.f_beta, sklearn.metrics.f1_score),
        (
            functools.partial(metrics.f_beta, beta=2.0),
            functools.partial(sklearn.metrics.fbeta_score, beta=2.0),
        ),
        (
            functools.partial(metrics.f_beta, beta=0.5),
            functools.partial(sklearn.metrics.fbeta_score, beta=0.5),
        ),
    ]:
        wanted = np.where(expected_present, expected(labels, predictions, **shared), np.nan)
        np.testing.assert_allclose(got(confusion), wanted, rtol=1e-6)


def test_f_beta_between_precision_and_recall(generator):
    confusion = matrix(*draw(generator))
    for beta, end in [(0.0, metrics.precision), (float("inf"), metrics.recall)]:
        np.testing.assert_allclose(
            metrics.f_beta(confusion, beta=beta), end(confusion), rtol=1e-6, equal_nan=True
        )


@pytest.mark.parametrize("absent", [(), (0,), (2, 4)], ids=str)
def test_summaries_are_scikit_learns_and_imbalanced_learns(absent, generator):
    labels, predictions = draw(generator, absent=absent)
    confusion = matrix(labels, predictions)
    seen = sorted(set(range(K)) - set(absent))
    recalls = sklearn.metrics.recall_score(labels, predictions, labels=seen, average=None)
    assert recalls.min() > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that are only ever predicted
        balanced = sklearn.metrics.balanced_accuracy_score(labels, predictions)
    expected = {
        metrics.accuracy: sklearn.metrics.accuracy_score(labels, predictions),
        metrics.balanced_accuracy: balanced,
        metrics.macro_f1: sklearn.metrics.f1_score(
            labels, predictions, labels=seen, average="macro", zero_division=0
        ),
        metrics.geometric_mean: geometric_mean_score(
            labels, predictions, labels=seen, average="multiclass"
        ),
        metrics.matthews_correlation: sklearn.metrics.matthews_corrcoef(labels, predictions),
        metrics.cohen_kappa: sklearn.metrics.cohen_kappa_score(labels, predictions),
        metrics.worst_class_recall: recalls.min(),
    }
    assert set(expected) == set(SCALARS)
    for metric, value in expected.items():
        np.testing.assert_allclose(metric(confusion), value, rtol=2e-6, err_msg=metric.__name__)


@pytest.mark.parametrize("metric", SCALARS + VECTORS, ids=lambda f: f.__name__)
def test_functions_of_a_confusion_matrix_map_compile_and_take_floats(metric, generator):
    confusion = np.stack(
        [[matrix(*draw(generator, absent=(k,))) for k in range(2)] for _ in range(3)]
    )
    one_by_one = np.array([[metric(c) for c in row] for row in confusion])
    got = jax.jit(metric)(jnp.asarray(confusion))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, one_by_one, rtol=1e-6)
    scaled = metric(jnp.asarray(confusion, jnp.float32) / 7)
    np.testing.assert_allclose(scaled, one_by_one, rtol=2e-5, atol=1e-6)
    half = metric(jnp.asarray([[3, 1], [2, 4]], jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_array_equal(half, metric(jnp.array([[3, 1], [2, 4]])))
    with jax.enable_x64():
        double = metric(jnp.asarray(confusion, jnp.float64) / 7)
        assert double.dtype == jnp.float64
        assert metric(jnp.asarray(confusion)).dtype == jnp.float64
    np.testing.assert_allclose(double, one_by_one, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("metric", SCALARS + VECTORS, ids=lambda f: f.__name__)
def test_without_examples_everything_is_nan(metric):
    assert np.all(np.isnan(metric(jnp.zeros((3, 3), jnp.int32))))


@pytest.mark.parametrize("metric", SCALARS + VECTORS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 0, 0)], ids=str)
def test_shapes_that_are_no_confusion_matrix_are_refused(metric, shape):
    with pytest.raises(ValueError, match=r"confusion: got shape .*wanted \[\.\.\., K, K\]"):
        metric(jnp.zeros(shape))


def test_other_bad_input_is_refused():
    ids = jnp.array([0, 1])
    with pytest.raises(ValueError, match=r"labels: got dtype float32"):
        metrics.confusion_matrix(jnp.array([0.0, 1.0]), ids, num_classes=2)
    with pytest.raises(ValueError, match=r"predictions: got dtype float32"):
        metrics.confusion_matrix(ids, jnp.array([0.0, 1.0]), num_classes=2)
    with pytest.raises(ValueError, match=r"predictions: got shape \(3,\), wanted shape \(2,\)"):
        metrics.confusion_matrix(ids, jnp.array([0, 1, 1]), num_classes=2)
    with pytest.raises(ValueError, match="num_classes: got 0"):
        metrics.confusion_matrix(ids, ids, num_classes=0)
    with pytest.raises(ValueError, match="beta: got -1"):
        metrics.f_beta(jnp.eye(2), beta=-1.0)
    with pytest.raises(ValueError, match=r"values: got shape \(\)"):
        metrics.macro(jnp.array(1.0))


def test_macro_is_over_what_has_a_value():
    values = jnp.array([[1.0, jnp.nan, 0.0], [jnp.nan] * 3, [1.0, 2.0, 6.0]])
    np.testing.assert_allclose(metrics.macro(values), [0.5, np.nan, 3.0])
    assert metrics.macro(jnp.array([1, 2])) == 1.5


def test_geometric_mean_of_many_classes_does_not_underflow():
    """0.01 to the power 1000 is far below any float; the mean is 0.01 all the same."""
    confusion = np.eye(1000, dtype=np.int32)
    confusion += 99 * np.roll(np.eye(1000, dtype=np.int32), 1, axis=1)
    np.testing.assert_allclose(metrics.geometric_mean(jnp.asarray(confusion)), 0.01, rtol=1e-5)


def test_one_missed_class_makes_the_geometric_mean_zero_with_finite_gradient():
    confusion = jnp.array([[5.0, 1.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert metrics.geometric_mean(confusion) == 0.0
    for metric in SCALARS:
        assert np.all(np.isfinite(jax.grad(metric)(confusion))), metric.__name__
    np.testing.assert_array_equal(jax.grad(metrics.geometric_mean)(confusion), 0.0)


def test_gradient_of_the_geometric_mean_is_that_of_the_product():
    confusion = jnp.array([[6.0, 2.0], [3.0, 9.0]])
    expected = jax.grad(lambda c: jnp.sqrt(c[0, 0] / jnp.sum(c[0]) * c[1, 1] / jnp.sum(c[1])))
    np.testing.assert_allclose(
        jax.grad(metrics.geometric_mean)(confusion), expected(confusion), rtol=1e-5
    )


@pytest.mark.parametrize("confusion", [[[5, 3], [0, 0]], [[5, 0], [3, 0]], [[8, 0], [0, 0]]])
def test_chance_corrected_metrics_of_one_class_are_zero(confusion):
    """scikit-learn: 0 for the correlation; for kappa only by ``replace_undefined_by=0``."""
    confusion = np.array(confusion)
    labels, predictions = np.repeat([[0, 0, 1, 1], [0, 1, 0, 1]], confusion.ravel(), axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the single class
        assert sklearn.metrics.matthews_corrcoef(labels, predictions) == 0
    assert metrics.matthews_correlation(jnp.asarray(confusion)) == 0
    assert metrics.cohen_kappa(jnp.asarray(confusion)) == 0


def test_chance_corrected_metrics_survive_large_counts_and_rare_classes():
    """In float32 the textbook n * sum C_kk - sum t_k p_k loses every digit here."""
    confusion = np.array([[900_000_000, 800], [900, 150]])
    true, predicted, n = (float(v) for v in (150 + 900, 150 + 800, confusion.sum()))
    covariance = 900_000_000.0 * 150 - 800.0 * 900
    correlation = covariance / np.sqrt(true * (n - true) * predicted * (n - predicted))
    kappa = 2 * covariance / (true * (n - predicted) + predicted * (n - true))
    integers = jnp.asarray(confusion, jnp.int32)
    np.testing.assert_allclose(metrics.matthews_correlation(integers), correlation, rtol=1e-5)
    np.testing.assert_allclose(metrics.cohen_kappa(integers), kappa, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=16, max_size=16), st.permutations(range(4)))
def test_renaming_the_classes_changes_nothing(cells, order):
    confusion = np.array(cells, np.int32).reshape(4, 4)
    renamed = confusion[np.ix_(order, order)]
    for metric in SCALARS:
        before, after = metric(jnp.asarray(confusion)), metric(jnp.asarray(renamed))
        np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6, err_msg=metric.__name__)
        assert np.isnan(before) or -1.000001 <= before <= 1.000001


def test_group_recall_averages_over_present_classes():
    train_counts = jnp.array([500, 200, 50, 30, 5, 2])
    groups = counts.shot_groups(train_counts)
    confusion = np.zeros((K, K), np.int32)
    for k, (right, wrong) in enumerate([(9, 1), (5, 5), (0, 0), (3, 1), (0, 0), (0, 0)]):
        confusion[k, k], confusion[k, 0 if k else 1] = right, wrong
    got = metrics.group_recall(jnp.asarray(confusion), groups, num_groups=3)
    np.testing.assert_allclose(got, [0.7, 0.75, np.nan], rtol=1e-6)


def test_group_recall_maps_and_knows_its_limits(generator):
    confusion = jnp.stack([matrix(*draw(generator, absent=(k,))) for k in range(3)])
    groups = jnp.array([0, 1, 1, 0, -1, 7])
    got = jax.jit(functools.partial(metrics.group_recall, num_groups=3))(confusion, groups)
    recalls = np.asarray(metrics.recall(confusion))
    expected = np.stack(
        [np.nanmean(recalls[:, [0, 3]], axis=1), np.nanmean(recalls[:, [1, 2]], axis=1)], axis=1
    )
    np.testing.assert_allclose(got[:, :2], expected, rtol=1e-6)
    assert np.all(np.isnan(got[:, 2]))
    everyone = metrics.group_recall(confusion, jnp.zeros(K, jnp.int32), num_groups=1)
    np.testing.assert_allclose(everyone[:, 0], metrics.balanced_accuracy(confusion), rtol=1e-6)
    with pytest.raises(ValueError, match=r"groups: got shape \(3,\), wanted shape \(6,\)"):
        metrics.group_recall(confusion, jnp.array([0, 1, 1]), num_groups=2)
    with pytest.raises(ValueError, match="groups: got dtype float32"):
        metrics.group_recall(confusion, jnp.zeros(K), num_groups=2)
    with pytest.raises(ValueError, match="num_groups: got 0"):
        metrics.group_recall(confusion, groups, num_groups=0)
