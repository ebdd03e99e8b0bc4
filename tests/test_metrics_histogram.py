"""Score histograms and their certified errors; areas on the host and on the device alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from jaxbalance import metrics

PAIRS = [
    (metrics.histogram_auroc, metrics.auroc, roc_auc_score),
    (metrics.histogram_average_precision, metrics.average_precision, average_precision_score),
]
NAMES = ["auroc", "average precision"]
BITS = 10


def fill(scores, labels, num_bits=BITS):
    return metrics.score_histogram(scores, labels, num_bits=num_bits)


def draw(generator, size=3000, share=0.2):
    labels = (generator.random(size) < share).astype(np.int32)
    return (generator.normal(size=size) + labels).astype(np.float32), labels


def orders(generator):
    """Scores that are hard on a bound: separate, reversed, all in one bin, tied, of both signs."""
    scores, labels = draw(generator)
    near = 1 + 1e-7 * np.arange(scores.size)
    return {
        "normal": (scores, labels),
        "reversed": (-scores, labels),
        "perfect": (scores + 50 * labels, labels),
        "constant": (np.ones_like(scores), labels),
        "positives first within a bin": (near + 1e-3 * labels, labels),
        "negatives first within a bin": (near - 1e-3 * labels, labels),
        "probabilities near one": (1 - 1e-3 * np.abs(scores), labels),
        "few positives": (scores, (np.arange(scores.size) < 3).astype(np.int32)),
        "few negatives": (scores, (np.arange(scores.size) >= 3).astype(np.int32)),
        "steps": (np.round(scores), labels),
    }


@pytest.mark.parametrize(("got", "exact", "expected"), PAIRS, ids=NAMES)
def test_the_error_is_a_bound(got, exact, expected, generator):
    for name, (scores, labels) in orders(generator).items():
        single = scores.astype(np.float32)
        value, error = got(fill(single, labels))
        gap = abs(float(value) - expected(labels, single))
        assert gap <= float(error), name
        assert 0 < float(error) <= 0.51, name


@pytest.mark.parametrize(("got", "exact", "expected"), PAIRS, ids=NAMES)
def test_twenty_bits_of_many_scores(got, exact, expected, generator):
    scores, labels = draw(generator, size=200_000, share=0.1)
    value, error = got(metrics.score_histogram(scores, labels))
    assert abs(float(value) - expected(labels, scores)) <= float(error) < 2e-4


@pytest.mark.parametrize(("got", "exact", "expected"), PAIRS, ids=NAMES)
def test_error_falls_by_bits(got, exact, expected, generator):
    scores, labels = draw(generator)
    errors = [float(got(fill(scores, labels, bits)).error) for bits in (9, 11, 13)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_a_tie_within_each_bin_is_exact(generator):
    """Where all scores of a bin are equal the middle of the AUROC's interval is the number."""
    scores, labels = draw(generator, size=1000)
    steps = np.round(scores, 1).astype(jnp.bfloat16)
    value = metrics.histogram_auroc(fill(steps, labels, 16)).value
    np.testing.assert_allclose(value, roc_auc_score(labels, steps.astype(float)), rtol=1e-6)


def test_bins_are_the_ranks_of_floats(generator):
    """Against NumPy's own order of float32 numbers, subnormal and infinite ones included."""
    some = generator.normal(size=200) * 10.0 ** generator.integers(-30, 30, size=200)
    scores = np.sort(np.concatenate([some, [-np.inf, np.inf, 0.0, 1.0, -1.0]])).astype(np.float32)
    one_hot = jax.vmap(lambda score: fill(score[None], jnp.ones(1, jnp.int32), 12))(scores)
    bins = np.argmax(one_hot.positives, axis=-1)
    bits = scores.view(np.uint32).astype(np.int64)
    ranks = np.where(bits >= 2**31, 2**32 - 1 - bits, bits + 2**31)
    np.testing.assert_array_equal(bins, ranks >> 20)
    assert np.all(np.diff(bins) >= 0)
    zeros = fill(jnp.array([0.0, -0.0]), jnp.ones(2, jnp.int32))
    assert int(jnp.max(zeros.positives)) == 2


def test_histograms_add_up_and_skip_padding(generator):
    scores, labels = draw(generator)
    whole = fill(scores, labels)
    parts = [fill(scores[part], labels[part]) for part in (slice(0, 100), slice(100, None))]
    added = jax.tree.map(jnp.add, *parts)
    padded = fill(
        np.append(scores, [np.nan, 3.0, np.nan]).astype(np.float32), np.append(labels, [-1, -1, 7])
    )
    square = fill(scores.reshape(30, 100), labels.reshape(30, 100))
    for other in (added, padded, square):
        jax.tree.map(np.testing.assert_array_equal, other, whole)
    assert int(whole.positives.sum()) == labels.sum()
    assert int(whole.negatives.sum()) == (1 - labels).sum()


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_split_batch_fills_one_histogram(axis_type, generator):
    scores, labels = draw(generator, size=160)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("batch"))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(jnp.asarray(a), split) for a in (scores, labels)]
        got = jax.jit(fill)(*placed)
    jax.tree.map(np.testing.assert_array_equal, got, fill(scores, labels))


def test_a_missing_side_and_nan_scores_give_nan():
    scores = jnp.array([0.1, 0.4, 0.7])
    for labels, area, precision in [
        ([0, 0, 0], np.nan, np.nan),
        ([1, 1, -1], np.nan, 1.0),
        ([-1, -1, 3], np.nan, np.nan),
    ]:
        histogram = fill(scores, jnp.array(labels))
        for got, wanted in [
            (metrics.histogram_auroc(histogram), area),
            (metrics.histogram_average_precision(histogram), precision),
        ]:
            assert np.isnan(got.error) == np.isnan(wanted)
            np.testing.assert_allclose(got.value, wanted, atol=float(np.nan_to_num(got.error)))
    broken = fill(jnp.array([0.1, jnp.nan, 0.7]), jnp.array([0, 1, 1]))
    assert int(broken.undefined) == 1
    for got, _, _ in PAIRS:
        assert np.all(np.isnan(np.array(got(broken))))


@pytest.mark.parametrize(("got", "exact", "expected"), PAIRS, ids=NAMES)
def test_bins_dropped_on_the_host_change_nothing(got, exact, expected, generator):
    """An untraced call reads occupied bins alone; a traced one has to read all."""
    for scores, labels in orders(generator).values():
        histogram = fill(scores.astype(np.float32), labels)
        for one, other in zip(got(histogram), jax.jit(got)(histogram), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    empty = metrics.ScoreHistogram(*jnp.zeros((2, 8), jnp.int32), jnp.zeros((), jnp.int32))
    assert np.all(np.isnan(np.array(got(empty))))


@pytest.mark.parametrize(("got", "exact", "expected"), PAIRS, ids=NAMES)
def test_mapped_over_classes(got, exact, expected, generator):
    scores, labels = draw(generator, size=300)
    both = np.stack([scores, -scores], axis=-1)
    each = jax.jit(jax.vmap(lambda s: got(fill(s, labels)), in_axes=1))(both)
    for k in range(2):
        assert abs(float(each.value[k]) - expected(labels, both[:, k])) <= float(each.error[k])


@pytest.mark.parametrize(("got", "exact", "expected"), PAIRS, ids=NAMES)
def test_real_scores(got, exact, expected, shared_data):
    data = np.load(shared_data / "mammography" / "mammography.npz")
    features = (data["X"] - data["X"].mean(axis=0)) / data["X"].std(axis=0)
    model = LogisticRegression().fit(features[::2], data["y"][::2])
    scores = model.decision_function(features[1::2]).astype(np.float32)
    labels = data["y"][1::2]
    wanted = expected(labels, scores)
    np.testing.assert_allclose(exact(scores, labels), wanted, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(exact)(scores, labels), wanted, rtol=1e-6)
    value, error = got(fill(scores, labels, 16))
    assert abs(float(value) - wanted) <= float(error) < 0.01


@pytest.mark.parametrize(("got", "exact", "expected"), PAIRS, ids=NAMES)
def test_host_and_device_agree(got, exact, expected, generator):
    """The host path is what an untraced call takes; a traced one sorts with XLA."""
    compiled = jax.jit(exact)
    for decimals, share in [(6, 0.3), (1, 0.9), (0, 0.5)]:
        scores, labels = draw(generator, size=700, share=share)
        scores = np.round(scores, decimals)
        labels[::13], scores[::26] = -1, np.nan
        on_host = exact(scores, labels)
        assert on_host.dtype == jnp.float32
        np.testing.assert_allclose(on_host, compiled(scores, labels), rtol=1e-6)
        known = labels >= 0
        np.testing.assert_allclose(on_host, expected(labels[known], scores[known]), rtol=1e-7)
    signed = jnp.array([0.0, -0.0, 1.0], jnp.bfloat16), jnp.array([0, 1, 0])
    np.testing.assert_allclose(exact(*signed), jax.jit(exact)(*signed))


def test_bad_input_is_refused():
    scores, labels = jnp.zeros(3), jnp.zeros(3, jnp.int32)
    with pytest.raises(ValueError, match="scores: got dtype int32"):
        fill(labels, labels)
    with pytest.raises(ValueError, match="labels: got dtype float32"):
        fill(scores, scores)
    with pytest.raises(ValueError, match=r"labels: got shape \(3,\), wanted shape \(4,\)"):
        fill(jnp.zeros(4), labels)
    with pytest.raises(ValueError, match="num_bits: got 0"):
        fill(scores, labels, 0)
    with pytest.raises(ValueError, match="num_bits: got 25"):
        fill(scores, labels, 25)
    counts, none = jnp.zeros(4, jnp.int32), jnp.zeros((), jnp.int32)
    for got, _, _ in PAIRS:
        with pytest.raises(ValueError, match=r"histogram.positives: got shape \(3,\)"):
            got(metrics.ScoreHistogram(counts[:3], counts[:3], none))
        with pytest.raises(ValueError, match=r"histogram.negatives: got shape \(2,\)"):
            got(metrics.ScoreHistogram(counts, counts[:2], none))
        with pytest.raises(ValueError, match=r"histogram\.positives: got dtype float32"):
            got(metrics.ScoreHistogram(jnp.zeros(4), counts, none))
