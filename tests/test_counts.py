"""Counts, weights, profiles and groups against arithmetic and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxbalance import counts

some_counts = st.lists(st.integers(0, 10**6), min_size=1, max_size=30)


def test_class_counts_ignore_padding_and_strangers(generator):
    labels = generator.integers(-3, 9, size=(50, 7))
    expected = [np.sum(labels == k) for k in range(5)]
    got = jax.jit(lambda y: counts.class_counts(y, num_classes=5))(jnp.asarray(labels))
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(
        counts.class_counts(labels.astype(np.int8), num_classes=300)[:5], expected
    )
    with jax.enable_x64(True):
        assert counts.class_counts(jnp.asarray(labels), num_classes=5).dtype == jnp.int32


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_class_statistics_of_a_split_batch(axis_type, generator):
    labels = generator.integers(-1, 4, size=64)
    values = generator.normal(size=64).astype(np.float32)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("batch"))
    with jax.set_mesh(mesh):
        y, v = (
            jax.device_put(jnp.asarray(labels), split),
            jax.device_put(jnp.asarray(values), split),
        )
        number = jax.jit(lambda y: counts.class_counts(y, num_classes=4))(y)
        total = jax.jit(lambda v, y: counts.class_sums(v, y, num_classes=4))(v, y)
    np.testing.assert_array_equal(number, np.bincount(labels[labels >= 0], minlength=4))
    expected = np.bincount(labels[labels >= 0], weights=values[labels >= 0], minlength=4)
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_multilabel_counts_leave_out_the_unknown(generator):
    labels = generator.integers(-1, 2, size=(40, 6))
    got = counts.multilabel_counts(jnp.asarray(labels))
    np.testing.assert_array_equal(got.positive, (labels == 1).sum(0))
    np.testing.assert_array_equal(got.negative, (labels == 0).sum(0))
    with pytest.raises(ValueError, match=r"labels: got shape \(\)"):
        counts.multilabel_counts(jnp.array(1))


def test_class_sums_of_ids_and_probabilities(generator):
    values = generator.normal(size=30)
    labels = generator.integers(-1, 3, size=30)
    expected = [values[labels == k].sum() for k in range(3)]
    as_ids = counts.class_sums(jnp.asarray(values, jnp.float32), jnp.asarray(labels), num_classes=3)
    one_hot = jax.nn.one_hot(labels, 3)
    as_shares = counts.class_sums(jnp.asarray(values, jnp.float32), one_hot, num_classes=3)
    np.testing.assert_allclose(as_ids, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(as_shares, expected, rtol=1e-5, atol=1e-5)
    nothing = counts.class_sums(jnp.array([jnp.nan, 1.0]), jnp.array([-1, 0]), num_classes=2)
    np.testing.assert_array_equal(nothing, [1.0, 0.0])


@given(some_counts)
@settings(deadline=None, max_examples=40)
def test_log_prior_is_the_log_share_and_always_finite(sizes):
    got = np.asarray(counts.log_prior(jnp.asarray(sizes)), np.float64)
    assert np.all(np.isfinite(got))
    present = np.array(sizes) > 0
    if present.any():
        share = np.array(sizes)[present] / np.sum(sizes)
        np.testing.assert_allclose(np.exp(got[present]), share, rtol=2e-5)
        np.testing.assert_allclose(got[~present], got[present].min(), rtol=1e-6)
    else:
        np.testing.assert_allclose(got, -np.log(len(sizes)), rtol=1e-6)


@given(some_counts, st.sampled_from([1, 7, 1000]))
@settings(deadline=None, max_examples=30)
def test_floor_absent_replaces_zeros_by_the_smallest_count(sizes, factor):
    rarest = min((n for n in sizes if n > 0), default=1 / factor)
    expected = [factor * (n if n > 0 else rarest) for n in sizes]
    got = counts.floor_absent(jnp.asarray(sizes, jnp.float32) * factor)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@given(some_counts, st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.999999, 1.0]))
@settings(deadline=None, max_examples=60)
def test_effective_number_equals_the_sum_it_stands_for(sizes, beta):
    got = np.asarray(counts.effective_number(jnp.asarray(sizes), beta=beta), np.float64)
    b = np.float64(np.float32(beta))
    n = np.array(sizes, np.float64)
    exact = n if beta == 1 else -np.expm1(n * np.log(b)) / (1 - b) if beta else np.minimum(n, 1)
    np.testing.assert_allclose(got, exact, rtol=2e-5)


def test_effective_number_of_one_example_is_one_and_is_a_geometric_sum():
    for beta in (0.0, 0.3, 0.9999, 1.0):
        assert counts.effective_number(jnp.array([1]), beta=beta)[0] == pytest.approx(1, rel=1e-4)
    series = sum(0.9**i for i in range(7))
    got = counts.effective_number(jnp.array([7]), beta=0.9)[0]
    assert got == pytest.approx(series, rel=1e-5)


weighers = pytest.mark.parametrize(
    "weigh",
    [
        lambda n: counts.inverse_frequency_weights(n, power=0.0),
        lambda n: counts.inverse_frequency_weights(n, power=0.5),
        counts.inverse_frequency_weights,
        lambda n: counts.effective_number_weights(n, beta=0.0),
        counts.effective_number_weights,
        lambda n: counts.effective_number_weights(n, beta=1.0),
    ],
    ids=["power0", "power0.5", "power1", "beta0", "beta0.999", "beta1"],
)


@weighers
@given(sizes=some_counts)
@settings(deadline=None, max_examples=25)
def test_weights_have_mean_one_over_present_classes_and_never_favour_the_frequent(weigh, sizes):
    got = np.asarray(weigh(jnp.asarray(sizes)), np.float64)
    n = np.array(sizes)
    assert np.all(np.isfinite(got))
    assert np.all(got[n == 0] == 0)
    if (n > 0).any():
        assert got[n > 0].mean() == pytest.approx(1, rel=1e-5)
        order = np.argsort(n[n > 0], kind="stable")
        assert np.all(np.diff(got[n > 0][order]) <= 1e-5 * got.max())
        without = weigh(jnp.asarray(n[n > 0]))
        np.testing.assert_allclose(got[n > 0], without, rtol=2e-5)


def test_weights_by_arithmetic():
    n = jnp.array([100, 25, 0])
    np.testing.assert_allclose(
        counts.inverse_frequency_weights(n), [2 * 0.01 / 0.05, 2 * 0.04 / 0.05, 0], rtol=1e-5
    )
    np.testing.assert_allclose(
        counts.inverse_frequency_weights(n, power=0.5), [2 / 3, 4 / 3, 0], rtol=1e-5
    )
    effective = np.array([(1 - 0.9**100) / 0.1, (1 - 0.9**25) / 0.1])
    expected = (1 / effective) / (1 / effective).mean()
    got = counts.effective_number_weights(n, beta=0.9)
    np.testing.assert_allclose(got, [*expected, 0], rtol=1e-5)
    np.testing.assert_allclose(
        counts.effective_number_weights(n, beta=1.0), counts.inverse_frequency_weights(n), rtol=1e-5
    )


def test_balanced_weights_equal_scikit_learn_up_to_scale():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat(np.arange(4), [50, 20, 5, 25])
    theirs = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    ours = counts.inverse_frequency_weights(counts.class_counts(labels, num_classes=4))
    np.testing.assert_allclose(ours, theirs / theirs.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("num_classes", "largest", "ratio", "total"),
    [
        (10, 5000, 100, 12_406),
        (10, 5000, 50, 13_996),
        (100, 500, 100, 10_847),
        (100, 500, 50, 12_608),
    ],
)
def test_exponential_profile_gives_the_published_cifar_sizes(num_classes, largest, ratio, total):
    sizes = counts.exponential(num_classes, largest=largest, ratio=ratio)
    assert sizes.sum() == total
    exact = [int(largest * ratio ** (-i / (num_classes - 1))) for i in range(num_classes)]
    assert sizes.tolist() == exact


def test_profiles_by_arithmetic():
    assert counts.step(5, largest=100, ratio=10).tolist() == [100, 100, 10, 10, 10]
    assert counts.step(5, largest=100, ratio=10, minority_fraction=0.2).tolist() == [100] * 4 + [10]
    assert counts.step(3, largest=7, ratio=3, minority_fraction=0.0).tolist() == [7, 7, 7]
    assert counts.linear(3, largest=100, ratio=10).tolist() == [100, 55, 10]
    assert counts.zipf(5, largest=60).tolist() == [60, 30, 20, 15, 12]
    assert counts.zipf(3, largest=60, exponent=0.0).tolist() == [60, 60, 60]


@pytest.mark.parametrize("profile", [counts.exponential, counts.step, counts.linear])
def test_ratio_one_is_balanced_and_one_class_is_allowed(profile):
    assert profile(4, largest=9, ratio=1).tolist() == [9] * 4
    assert profile(1, largest=9, ratio=1).tolist() == [9]


@given(st.integers(2, 40), st.integers(1, 5000), st.floats(1, 200))
@settings(deadline=None, max_examples=60)
def test_profiles_fall_from_the_largest_to_the_smallest(num_classes, largest, ratio):
    for profile in (counts.exponential, counts.step, counts.linear):
        sizes = profile(num_classes, largest=largest, ratio=ratio)
        assert sizes[0] == largest
        assert np.all(np.diff(sizes) <= 0)
        assert abs(sizes[-1] - largest / ratio) <= 1


def _slow_groups(sizes, num_groups):
    order = sorted(range(len(sizes)), key=lambda k: -sizes[k])
    total, before, group = sum(sizes), 0, [0] * len(sizes)
    for k in order:
        group[k] = min(num_groups - 1, (num_groups * before) // total)
        before += sizes[k]
    return group


@given(st.lists(st.integers(1, 10**4), min_size=1, max_size=40), st.integers(1, 11))
@settings(deadline=None, max_examples=60)
def test_frequency_groups_equal_exact_integer_arithmetic(sizes, num_groups):
    got = counts.frequency_groups(jnp.asarray(sizes), num_groups=num_groups)
    assert got.tolist() == _slow_groups(sizes, num_groups)


def test_a_class_larger_than_its_share_leaves_groups_empty():
    groups = counts.frequency_groups(jnp.array([90, 5, 5]), num_groups=10)
    assert groups.tolist() == [0, 9, 9]


def test_shot_groups_include_both_ends_in_medium():
    groups = counts.shot_groups(jnp.array([101, 100, 20, 19, 0]))
    assert groups.tolist() == [0, 1, 1, 2, 2]
    assert counts.shot_groups(jnp.array([6, 5, 2]), many=5, few=3).tolist() == [0, 1, 2]


def test_bad_input_is_named():
    n = jnp.ones(3)
    with pytest.raises(ValueError, match="num_classes: got 0"):
        counts.class_counts(jnp.zeros(3, jnp.int32), num_classes=0)
    with pytest.raises(ValueError, match="labels: got dtype float32"):
        counts.class_counts(jnp.zeros(3), num_classes=2)
    with pytest.raises(ValueError, match=r"labels: got .*\(2,\).*wanted shape \(3,\)"):
        counts.class_sums(jnp.zeros(3), jnp.zeros(2, jnp.int32), num_classes=2)
    with pytest.raises(ValueError, match=r"beta: got 1.5"):
        counts.effective_number(n, beta=1.5)
    with pytest.raises(ValueError, match="power: got -1"):
        counts.inverse_frequency_weights(n, power=-1)
    with pytest.raises(ValueError, match=r"class_counts: got shape \(3, 1\)"):
        counts.log_prior(n[:, None])
    with pytest.raises(ValueError, match=r"class_counts: got no classes"):
        counts.log_prior(jnp.zeros(0))
    with pytest.raises(ValueError, match=r"ratio: got 0.5"):
        counts.exponential(3, largest=10, ratio=0.5)
    with pytest.raises(ValueError, match="largest: got 0"):
        counts.linear(3, largest=0, ratio=2)
    with pytest.raises(ValueError, match="minority_fraction: got 2"):
        counts.step(3, largest=10, ratio=2, minority_fraction=2)
    with pytest.raises(ValueError, match="exponent: got -1"):
        counts.zipf(3, largest=10, exponent=-1)
    with pytest.raises(ValueError, match="few: got 9"):
        counts.shot_groups(n, many=3, few=9)
    with pytest.raises(ValueError, match=r"num_groups: got 2.0"):
        counts.frequency_groups(n, num_groups=2.0)
