"""AUROC and average precision against scikit-learn, pair counting and invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.metrics import average_precision_score, roc_auc_score

from jaxbalance import metrics

BOTH = [(metrics.auroc, roc_auc_score), (metrics.average_precision, average_precision_score)]
SIZE = 40
NAMES = ["auroc", "average_precision"]
JITTED = {metric: jax.jit(metric) for metric, _ in BOTH}

ranked = st.lists(
    st.tuples(st.integers(-8, 8), st.sampled_from([0, 1])), min_size=2, max_size=SIZE
).filter(lambda rows: {label for _, label in rows} == {0, 1})


def columns(rows):
    scores, labels = zip(*rows, strict=True)
    return np.array(scores, np.float32), np.array(labels, np.int32)


def compiled(metric, scores, labels):
    """Padded to one size, so that every example Hypothesis draws runs the same program."""
    missing = 2 * SIZE - len(scores)
    return JITTED[metric](
        np.pad(scores, (0, missing)), np.pad(labels, (0, missing), constant_values=-1)
    )


def draw(generator, size, share=0.3, decimals=None):
    labels = (generator.random(size) < share).astype(np.int32)
    scores = generator.normal(size=size) + 0.8 * labels
    scores = scores if decimals is None else np.round(scores, decimals)
    return scores.astype(np.float32), labels


@pytest.mark.parametrize(("got", "expected"), BOTH, ids=NAMES)
@pytest.mark.parametrize("decimals", [None, 1, 0], ids=["distinct", "ties", "many ties"])
@pytest.mark.parametrize("size", [40, 1025, 200_000])
def test_two_classes_are_scikit_learns(got, expected, size, decimals, generator):
    scores, labels = draw(generator, size, decimals=decimals)
    np.testing.assert_allclose(
        jax.jit(got)(scores, labels), expected(labels, scores), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("got", "expected"), BOTH, ids=NAMES)
def test_rare_positives_among_many(got, expected, generator):
    scores, labels = draw(generator, 200_000, share=1e-4)
    np.testing.assert_allclose(got(scores, labels), expected(labels, scores), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("got", "expected"), BOTH, ids=NAMES)
def test_many_classes_are_one_against_the_rest(got, expected, generator):
    labels = generator.choice(5, size=600, p=[0.6, 0.25, 0.1, 0.05, 0.0])
    scores = generator.normal(size=(600, 5)) + 1.5 * np.eye(5)[labels]
    scores = np.round(scores, 1).astype(np.float32)
    result = np.asarray(jax.jit(got)(scores, labels))
    wanted = [expected(labels == k, scores[:, k]) for k in range(4)]
    np.testing.assert_allclose(result[:4], wanted, rtol=0, atol=1e-6)
    assert np.isnan(result[4])


@settings(max_examples=60, deadline=None)
@given(ranked)
def test_auroc_counts_pairs(rows):
    scores, labels = columns(rows)
    positives, negatives = scores[labels == 1], scores[labels == 0]
    pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    np.testing.assert_allclose(compiled(metrics.auroc, scores, labels), np.mean(pairs), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(ranked)
def test_average_precision_goes_through_thresholds(rows):
    scores, labels = columns(rows)
    area, last = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        reached = labels[chosen].sum() / labels.sum()
        area += (reached - last) * labels[chosen].mean()
        last = reached
    np.testing.assert_allclose(compiled(metrics.average_precision, scores, labels), area, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(ranked, st.sampled_from([np.exp, np.arctan, lambda s: s**3, lambda s: 5 * s - 2]))
def test_only_the_order_of_scores_matters(rows, increasing):
    scores, labels = columns(rows)
    for metric in (metrics.auroc, metrics.average_precision):
        moved = compiled(metric, increasing(scores).astype(np.float32), labels)
        np.testing.assert_allclose(moved, compiled(metric, scores, labels), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(ranked)
def test_turning_scores_or_labels_around_turns_auroc_around(rows):
    scores, labels = columns(rows)
    value = compiled(metrics.auroc, scores, labels)
    np.testing.assert_allclose(compiled(metrics.auroc, -scores, labels), 1 - value, atol=2e-7)
    np.testing.assert_allclose(compiled(metrics.auroc, scores, 1 - labels), 1 - value, atol=2e-7)


@settings(max_examples=40, deadline=None)
@given(ranked, st.randoms(use_true_random=False))
def test_order_and_padding_change_nothing(rows, random):
    padded = [*rows, (float("nan"), -1), (3, -1), (-100, 2), (float("inf"), 7)]
    random.shuffle(padded)
    for metric in (metrics.auroc, metrics.average_precision):
        np.testing.assert_allclose(
            compiled(metric, *columns(padded)), compiled(metric, *columns(rows)), rtol=1e-6
        )


def test_perfect_reversed_and_constant_scores_are_exact():
    labels = np.array([0] * 999 + [1] * 7, np.int32)
    scores = np.arange(1006, dtype=np.float32)
    assert metrics.auroc(scores, labels) == 1.0
    assert metrics.auroc(-scores, labels) == 0.0
    assert metrics.auroc(0 * scores, labels) == 0.5
    assert metrics.average_precision(scores, labels) == 1.0
    np.testing.assert_allclose(metrics.average_precision(0 * scores, labels), 7 / 1006, rtol=1e-6)
    ends = np.where(labels == 1, np.inf, -np.inf).astype(np.float32)
    assert metrics.auroc(ends, labels) == 1.0
    zeros = np.array([0.0, -0.0], np.float32)
    assert metrics.auroc(zeros, np.array([0, 1])) == 0.5


@pytest.mark.parametrize(
    ("labels", "area", "precision"),
    [
        ([0, 0, -1], np.nan, np.nan),
        ([1, 1, -1], np.nan, 1.0),
        ([-1, -1, -1], np.nan, np.nan),
        ([5, 2, -1], np.nan, np.nan),
    ],
    ids=str,
)
def test_a_missing_side_gives_nan(labels, area, precision):
    scores = jnp.array([0.1, 0.7, 0.3])
    np.testing.assert_array_equal(metrics.auroc(scores, jnp.array(labels)), area)
    np.testing.assert_array_equal(metrics.average_precision(scores, jnp.array(labels)), precision)


@pytest.mark.parametrize("metric", [metrics.auroc, metrics.average_precision])
def test_no_examples_and_nan_scores_give_nan(metric):
    assert np.isnan(metric(jnp.zeros(0), jnp.zeros(0, jnp.int32)))
    assert np.all(np.isnan(metric(jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32))))
    assert np.isnan(metric(jnp.array([0.1, jnp.nan, 0.4]), jnp.array([0, 1, 1])))
    scores = jnp.array([[0.1, jnp.nan], [0.5, 0.2], [0.3, 0.3]])
    result = metric(scores, jnp.array([0, 1, 1]))
    assert np.isfinite(result[0])
    assert np.isnan(result[1])


@pytest.mark.parametrize(("got", "expected"), BOTH, ids=NAMES)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_split_batch_is_ranked_as_a_whole(got, expected, axis_type, generator):
    scores, labels = draw(generator, 160, decimals=1)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("batch"))
    with jax.set_mesh(mesh):
        s, y = (jax.device_put(jnp.asarray(a), split) for a in (scores, labels))
        both = jax.device_put(jnp.stack([-scores, scores], axis=-1), split)
        one, each = jax.jit(got)(s, y), jax.jit(got)(both, y)
    np.testing.assert_allclose(np.asarray(one), expected(labels, scores), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(each)[1], expected(labels, scores), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(each)[0], expected(1 - labels, -scores), rtol=1e-6)


@pytest.mark.parametrize(("got", "expected"), BOTH, ids=NAMES)
def test_dtypes_and_mapping(got, expected, generator):
    pairs = [draw(generator, 64, decimals=0) for _ in range(3)]
    scores, labels = np.stack([s for s, _ in pairs]), np.stack([y for _, y in pairs])
    wanted = [expected(y, s) for s, y in pairs]
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        values = jax.vmap(got)(jnp.asarray(scores, dtype), jnp.asarray(labels, jnp.int8))
        assert values.dtype == jnp.float32
        np.testing.assert_allclose(values, wanted, rtol=1e-6)
    with jax.enable_x64():
        double = got(jnp.asarray(scores[0], jnp.float64), jnp.asarray(labels[0], jnp.int64))
        assert double.dtype == jnp.float64
    np.testing.assert_allclose(double, wanted[0], rtol=1e-12)


@pytest.mark.parametrize("metric", [metrics.auroc, metrics.average_precision])
def test_bad_input_is_refused(metric):
    labels = jnp.zeros(3, jnp.int32)
    with pytest.raises(ValueError, match="scores: got dtype int32"):
        metric(labels, labels)
    with pytest.raises(ValueError, match="labels: got dtype float32"):
        metric(jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"labels: got shape \(3,\), wanted shape \(4,\)"):
        metric(jnp.zeros(4), labels)
    with pytest.raises(ValueError, match=r"labels: .*shape \(3,\).*wanted shape \(4,\)"):
        metric(jnp.zeros((4, 2)), labels)
    with pytest.raises(ValueError, match=r"scores: got shape \(3, 2, 2\)"):
        metric(jnp.zeros((3, 2, 2)), labels)
    with pytest.raises(ValueError, match=r"scores: got shape \(3, 1\)"):
        metric(jnp.zeros((3, 1)), labels)
