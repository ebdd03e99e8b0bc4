"""Balance by bins of a number or by several labels: against loops, NumPy and scikit-learn."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.preprocessing import KBinsDiscretizer

from jaxbalance import samplers

KEY = jax.random.key(5)
FALSE_ALARM = 1e-6
"""Every statistical test here fails by chance about once in a million seeds; seeds are fixed."""

NUM_BINS = 10


def hard_examples(generator, size=4000):
    """Errors of a classifier that finds most of the majority easy; some bins are empty."""
    hardness = generator.beta(0.4, 4.0, size=size)
    hardness = hardness[(hardness < 0.5) | (hardness > 0.7)]
    return np.concatenate([hardness, [0.0, 1.0]])


# Bins of a statistic.


@given(
    st.lists(st.floats(-1e300, 1e300, allow_nan=False), min_size=1, max_size=30),
    st.integers(1, 9),
)
@settings(deadline=None, max_examples=200)
def test_bins_are_numpys_histogram(values, num_bins):
    bins = samplers.statistic_bins(values, num_bins=num_bins)
    assert bins.dtype == np.int32
    assert bins.shape == (len(values),)
    assert np.all((bins >= 0) & (bins < num_bins))
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(bins[order]) >= 0)
    low, high = min(values), max(values)
    if low == high:
        assert not bins.any()
        return
    assert bins[order[0]] == 0
    assert bins[order[-1]] == num_bins - 1
    # Away from the edges, where either side is right, the bin is that of exact arithmetic.
    for value, got in zip(values, bins.tolist(), strict=True):
        place = num_bins * ((value / 2 - low / 2) / (high / 2 - low / 2))
        assert abs(place - (got + 0.5)) <= 0.5 + 1e-9 * num_bins


def test_bins_of_real_targets_are_scikit_learns(shared_data):
    for name in ("abalone", "airfoil"):
        with np.load(shared_data / name / f"{name}.npz") as archive:
            target = archive["y"].astype(np.float64)
        theirs = KBinsDiscretizer(NUM_BINS, encode="ordinal", strategy="uniform")
        expected = theirs.fit_transform(target[:, None])[:, 0].astype(int)
        bins = samplers.statistic_bins(target, num_bins=NUM_BINS)
        np.testing.assert_array_equal(bins, expected)
        counts, _ = np.histogram(target, NUM_BINS)
        np.testing.assert_array_equal(np.bincount(bins, minlength=NUM_BINS), counts)


def test_every_batch_has_rare_targets_of_a_real_regression(shared_data):
    with np.load(shared_data / "abalone" / "abalone.npz") as archive:
        target = archive["y"].astype(np.float64)
    bins = samplers.statistic_bins(target, num_bins=NUM_BINS)
    sizes = np.bincount(bins, minlength=NUM_BINS)
    assert sizes.min() < 0.002 * len(target)
    index = samplers.class_index(bins, num_classes=NUM_BINS)
    for row in np.asarray(samplers.class_aware(KEY, index, batch_size=32, steps=20)):
        drawn = np.bincount(bins[row], minlength=NUM_BINS)
        assert np.all(drawn[sizes == 0] == 0)
        assert drawn[sizes > 0].min() >= 32 // np.count_nonzero(sizes)


def test_one_bin_is_plain_sampling(generator):
    index = samplers.class_index(
        samplers.statistic_bins(generator.normal(size=50), num_bins=1), num_classes=1
    )
    rows = np.asarray(samplers.class_aware(KEY, index, batch_size=25, steps=2))
    assert sorted(rows.reshape(-1).tolist()) == list(range(50))


def test_constant_and_duplicated_statistics_share_a_bin():
    assert samplers.statistic_bins(np.full(4, 7), num_bins=3).tolist() == [0] * 4
    assert samplers.statistic_bins([True, False, True], num_bins=2).tolist() == [1, 0, 1]
    bins = samplers.statistic_bins([1, 1, 1, 9, 9], num_bins=4)
    assert bins.tolist() == [0, 0, 0, 3, 3]
    index = samplers.class_index(bins, num_classes=4)
    rows = np.asarray(samplers.class_aware(KEY, index, batch_size=4, steps=5))
    assert np.all(np.sort(bins[rows], axis=1) == np.array([0, 0, 3, 3])[None])


def test_bad_statistics_are_named():
    with pytest.raises(ValueError, match=r"statistic: got shape \(2, 1\)"):
        samplers.statistic_bins(np.zeros((2, 1)), num_bins=2)
    with pytest.raises(ValueError, match=r"statistic: got shape \(0,\)"):
        samplers.statistic_bins([], num_bins=2)
    with pytest.raises(ValueError, match="statistic: got 2 of 3 not finite"):
        samplers.statistic_bins([1.0, math.nan, math.inf], num_bins=2)
    with pytest.raises(ValueError, match="statistic: got dtype <U1"):
        samplers.statistic_bins(np.array(["a"]), num_bins=2)
    with pytest.raises(ValueError, match="statistic: got dtype complex128"):
        samplers.statistic_bins(np.array([1j]), num_bins=2)
    with pytest.raises(ValueError, match="num_bins: got 0"):
        samplers.statistic_bins([1.0], num_bins=0)


# Self-paced under-sampling.


def shares_by_hand(hardness, bins, num_bins, alpha):
    """The published loop, in Python floats; an infinite factor by a very large one."""
    raw = []
    for b in range(num_bins):
        inside = [h for h, own in zip(hardness, bins, strict=True) if own == b]
        mean = sum(inside) / len(inside) if inside else 0.0
        raw.append(1 / (mean + min(alpha, 1e12)) if inside else 0.0)
    return np.array(raw) / sum(raw)


@pytest.mark.parametrize("alpha", [0.0, 0.01, 1.0, 30.0, math.inf])
def test_shares_of_hardness_bins_against_a_loop(alpha, generator):
    hardness = hard_examples(generator)
    bins = samplers.statistic_bins(hardness, num_bins=NUM_BINS)
    assert np.bincount(bins, minlength=NUM_BINS).min() == 0
    got = jax.jit(samplers.self_paced_probabilities, static_argnames="num_bins")(
        jnp.asarray(hardness, jnp.float32), bins, num_bins=NUM_BINS, alpha=alpha
    )
    expected = shares_by_hand(hardness.tolist(), bins.tolist(), NUM_BINS, alpha)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-12)


def test_without_alpha_every_bin_holds_the_same_hardness(generator):
    hardness = hard_examples(generator)
    bins = samplers.statistic_bins(hardness, num_bins=NUM_BINS)
    values = jnp.asarray(hardness, jnp.float32)
    harmonised = samplers.self_paced_probabilities(values, bins, num_bins=NUM_BINS, alpha=0.0)
    equal = samplers.self_paced_probabilities(values, bins, num_bins=NUM_BINS, alpha=math.inf)
    present = np.bincount(bins, minlength=NUM_BINS) > 0
    mean = np.array([hardness[bins == b].mean() for b in np.flatnonzero(present)])
    mass = np.asarray(harmonised)[present] * mean
    np.testing.assert_allclose(mass, mass[0], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(equal), present / present.sum(), rtol=1e-6)


def test_one_hardness_bin_is_random_under_sampling():
    values = jnp.array([0.2, 0.9, 0.4])
    share = samplers.self_paced_probabilities(values, jnp.zeros(3, int), num_bins=1, alpha=0.3)
    np.testing.assert_array_equal(share, [1.0])


def test_the_minority_and_empty_bins_take_no_part():
    values = jnp.array([0.2, 0.4, jnp.nan, jnp.inf], jnp.float16)
    share = samplers.self_paced_probabilities(
        values, jnp.array([0, 2, -1, 4]), num_bins=4, alpha=0.0
    )
    assert share.dtype == jnp.float32
    np.testing.assert_allclose(share, [2 / 3, 0, 1 / 3, 0], rtol=1e-3)
    nothing = samplers.self_paced_probabilities(values, jnp.full(4, -1), num_bins=4, alpha=jnp.inf)
    np.testing.assert_array_equal(nothing, np.zeros(4))


def test_a_bin_without_hardness_has_a_finite_share():
    values = jnp.array([0.0, 0.0, 1.0])
    bins = jnp.array([0, 0, 1])
    share = samplers.self_paced_probabilities(values, bins, num_bins=2, alpha=0.0)
    tiny = np.finfo(np.float32).eps
    np.testing.assert_allclose(share, [1 / (1 + tiny), tiny / (1 + tiny)], rtol=1e-5)


def test_the_factor_goes_from_zero_to_infinity():
    for i in range(10):
        got = samplers.self_paced_factor(i, num_iterations=10)
        np.testing.assert_allclose(got, math.tan(i * math.pi / 20), rtol=1e-5)
    compiled = jax.jit(lambda i: samplers.self_paced_factor(i, num_iterations=10))
    assert np.all(np.isinf(compiled(jnp.array(10))))
    assert compiled(jnp.array(0)) == 0


def test_a_round_of_under_sampling_without_replacement(generator):
    """As many majority examples as the minority has, none twice; a small bin gives all it has."""
    hardness = hard_examples(generator)
    bins = samplers.statistic_bins(hardness, num_bins=NUM_BINS)
    index = samplers.class_index(bins, num_classes=NUM_BINS)
    alpha = samplers.self_paced_factor(2, num_iterations=10)
    share = samplers.self_paced_probabilities(
        jnp.asarray(hardness, jnp.float32), bins, num_bins=NUM_BINS, alpha=alpha
    )
    targets = samplers.apportioned_counts(index.class_counts, class_probabilities=share, total=200)
    row = samplers.resampled_epochs(KEY, index, target_counts=targets, batch_size=200, steps=1)[0]
    assert len(set(row.tolist())) == 200
    drawn = np.bincount(bins[np.asarray(row)], minlength=NUM_BINS)
    np.testing.assert_array_equal(drawn, targets)
    sizes = np.bincount(bins, minlength=NUM_BINS)
    assert np.any((drawn == sizes) & (sizes > 0))
    assert np.all(np.abs(drawn - filled_by_bisection(sizes, np.asarray(share), 200)) < 1)


def test_draws_with_replacement_follow_the_shares(generator):
    hardness = hard_examples(generator)
    bins = samplers.statistic_bins(hardness, num_bins=NUM_BINS)
    share = samplers.self_paced_probabilities(
        jnp.asarray(hardness, jnp.float32), bins, num_bins=NUM_BINS, alpha=0.1
    )
    index = samplers.class_index(bins, num_classes=NUM_BINS)
    rows = samplers.class_balanced(KEY, index, batch_size=200, steps=100, class_probabilities=share)
    drawn = np.bincount(bins[np.asarray(rows)].reshape(-1), minlength=NUM_BINS)
    expected = shares_by_hand(hardness.tolist(), bins.tolist(), NUM_BINS, 0.1) * drawn.sum()
    present = expected > 0
    assert drawn[~present].sum() == 0
    assert stats.chisquare(drawn[present], expected[present]).pvalue > FALSE_ALARM


def test_bad_hardness_is_named():
    values, bins = jnp.ones(3), jnp.zeros(3, int)
    with pytest.raises(ValueError, match="alpha: got -1"):
        samplers.self_paced_probabilities(values, bins, num_bins=2, alpha=-1.0)
    with pytest.raises(ValueError, match="num_bins: got 0"):
        samplers.self_paced_probabilities(values, bins, num_bins=0, alpha=1.0)
    with pytest.raises(ValueError, match="hardness: got dtype int32"):
        samplers.self_paced_probabilities(bins, bins, num_bins=2, alpha=1.0)
    with pytest.raises(ValueError, match=r"hardness: got shape \(1, 3\)"):
        samplers.self_paced_probabilities(values[None], bins[None], num_bins=2, alpha=1.0)
    with pytest.raises(ValueError, match="bins: got dtype float32"):
        samplers.self_paced_probabilities(values, values, num_bins=2, alpha=1.0)
    with pytest.raises(ValueError, match=r"bins: got shape \(2,\), wanted shape \(3,\)"):
        samplers.self_paced_probabilities(values, bins[:2], num_bins=2, alpha=1.0)
    with pytest.raises(ValueError, match=r"iteration: got 11, wanted a number in \[0, 10\]"):
        samplers.self_paced_factor(11, num_iterations=10)
    with pytest.raises(ValueError, match="num_iterations: got 0"):
        samplers.self_paced_factor(0, num_iterations=0)


# Whole numbers from shares.


def filled_by_bisection(sizes, share, total):
    """``min(sizes, c share)`` that adds up to the total, by halving an interval for c."""
    low, high = 0.0, 1.0
    while np.minimum(sizes, high * share).sum() < total and high < 1e15:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if np.minimum(sizes, middle * share).sum() < total:
            low = middle
        else:
            high = middle
    return np.minimum(sizes, high * share)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), min_size=1, max_size=8),
    st.floats(0, 1),
)
@settings(deadline=None, max_examples=200)
def test_apportioned_counts_are_nearest_to_the_shares(classes, part):
    sizes, share = (np.array(column) for column in zip(*classes, strict=True))
    available = int(sizes[share > 0].sum())
    if available == 0:
        return
    total = max(1, round(part * available))
    got = samplers.apportioned_counts(sizes, class_probabilities=share, total=total)
    assert got.dtype == np.int64
    assert got.sum() == total
    assert np.all((got >= 0) & (got <= sizes))
    assert np.all(got[share == 0] == 0)
    exact = filled_by_bisection(sizes * (share > 0), share.astype(float), total)
    assert np.all(np.abs(got - exact) < 1 + 1e-6)


def test_class_counts_apportioned_to_their_sum_are_themselves():
    sizes = np.array([7, 0, 123, 1, 9_000_000])
    got = samplers.apportioned_counts(sizes, class_probabilities=sizes, total=int(sizes.sum()))
    np.testing.assert_array_equal(got, sizes)


def test_apportioning_by_arithmetic():
    def apportion(sizes, share, total):
        return samplers.apportioned_counts(sizes, class_probabilities=share, total=total).tolist()

    assert apportion([100, 100, 3], [1, 1, 2], 21) == [9, 9, 3]
    assert apportion([10, 10, 10], [1, 1, 1], 10) == [4, 3, 3]
    assert apportion([10, 10], [0, 1], 4) == [0, 4]
    assert apportion([1, 10], [1, 1], 11) == [1, 10]


def test_bad_totals_are_named():
    with pytest.raises(ValueError, match="total: got 5, wanted at most 4"):
        samplers.apportioned_counts([4, 9], class_probabilities=[1, 0], total=5)
    with pytest.raises(ValueError, match="total: got 1, wanted at most 0"):
        samplers.apportioned_counts([4, 9], class_probabilities=[0, 0], total=1)
    with pytest.raises(ValueError, match="total: got 0, wanted an integer"):
        samplers.apportioned_counts([4], class_probabilities=[1], total=0)
    with pytest.raises(ValueError, match=r"class_probabilities: got shape \(2,\)"):
        samplers.apportioned_counts([4], class_probabilities=[1, 1], total=1)
    with pytest.raises(ValueError, match=r"class_probabilities: got .*no negative"):
        samplers.apportioned_counts([4, 4], class_probabilities=[1, -1], total=1)
    with pytest.raises(ValueError, match=r"class_counts: got .*no negative"):
        samplers.apportioned_counts([4, -4], class_probabilities=[1, 1], total=1)


# Several labels per example.


def test_multilabel_members_are_the_positives(generator):
    labels = generator.choice([0, 1, -1], size=(40, 6), p=[0.7, 0.2, 0.1])
    labels[:, 4] = 0
    index = samplers.multilabel_index(labels)
    for k in range(6):
        first, number = int(index.starts[k]), int(index.class_counts[k])
        expected = [i for i in range(40) if labels[i, k] == 1]
        assert index.members[first : first + number].tolist() == expected


def test_one_label_each_is_the_ordinary_index():
    labels = np.array([3, 0, 0, -1, 1, 3])
    one_hot = np.eye(4, dtype=int)[labels] * (labels >= 0)[:, None]
    ordinary = samplers.class_index(labels, num_classes=4)
    for got, expected in zip(samplers.multilabel_index(one_hot), ordinary, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_multilabel_frequencies_on_real_labels(shared_data):
    with np.load(shared_data / "multilabel_emotions" / "multilabel_emotions.npz") as archive:
        labels = archive["Y"].astype(int)
    index = samplers.multilabel_index(labels)
    rows = samplers.class_balanced(KEY, index, batch_size=200, steps=200)
    uses = np.bincount(np.asarray(rows).reshape(-1), minlength=len(labels))
    share = (labels / labels.sum(axis=0)).mean(axis=1)
    assert uses[share == 0].sum() == 0
    reached = share > 0
    assert stats.chisquare(uses[reached], share[reached] * uses.sum()).pvalue > FALSE_ALARM
    for row in np.asarray(samplers.class_aware(KEY, index, batch_size=12, steps=20)):
        assert np.all(labels[row].sum(axis=0) >= 2)


def test_bad_labels_are_named():
    with pytest.raises(ValueError, match=r"labels: got shape \(4,\), wanted shape \[N, K\]"):
        samplers.multilabel_index(np.zeros(4, int))
    with pytest.raises(ValueError, match="labels: got numbers other than 0, 1 and -1"):
        samplers.multilabel_index(np.array([[1, 2]]))
    with pytest.raises(ValueError, match="labels: got no 1"):
        samplers.multilabel_index(np.array([[0, -1]]))
