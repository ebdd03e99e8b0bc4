"""Multi-label metrics against scikit-learn, on real label sets too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn import metrics as trusted

from jaxbalance import metrics

CONFUSION, AGREEMENT = (
    jax.jit(metrics.multilabel_confusion),
    jax.jit(metrics.label_set_agreement),
)
PRECISION = jax.jit(metrics.average_precision)


def draw(generator, size=120, number=5):
    labels = (generator.random((size, number)) < 0.3).astype(np.int32)
    scores = (generator.normal(size=labels.shape) + labels).astype(np.float32)
    return labels, scores


def compare(labels, predictions):
    """Every metric of complete labels; those of labels that never occur are left out."""
    confusion, agreement = CONFUSION(labels, predictions), AGREEMENT(labels, predictions)
    wanted = trusted.multilabel_confusion_matrix(labels, predictions)
    np.testing.assert_array_equal(confusion, wanted)
    near = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    near(metrics.hamming_loss(confusion), trusted.hamming_loss(labels, predictions))
    near(metrics.micro_f1(confusion), trusted.f1_score(labels, predictions, average="micro"))
    seen = np.flatnonzero(labels.any(axis=0))
    kept = labels[:, seen], predictions[:, seen]
    by_label = {"average": None, "zero_division": 0.0}
    for got, expected in [
        (metrics.f_beta, trusted.f1_score),
        (metrics.recall, trusted.recall_score),
        (metrics.precision, trusted.precision_score),
        (metrics.jaccard_index, trusted.jaccard_score),
    ]:
        each = got(confusion)[..., 1]
        near(each[seen], expected(*kept, **by_label))
        assert np.isnan(each).sum() == labels.shape[1] - len(seen)
        near(metrics.macro(each), expected(*kept, average="macro", zero_division=0.0))
    near(metrics.subset_accuracy(agreement), trusted.accuracy_score(labels, predictions))
    overlap = trusted.jaccard_score(labels, predictions, average="samples", zero_division=1.0)
    near(metrics.label_set_overlap(agreement), overlap)


def test_all_metrics_are_scikit_learns(generator):
    labels, scores = draw(generator)
    labels[:, 3] = 0
    labels[7], scores[7] = 0, -1
    compare(labels, (scores > 0.5).astype(np.int32))


@pytest.mark.parametrize("name", ["multilabel_emotions", "multilabel_yeast"])
def test_real_label_sets(name, shared_data, generator):
    labels = np.load(shared_data / name / f"{name}.npz")["Y"]
    scores = (generator.normal(size=labels.shape) + 1.5 * labels).astype(np.float32)
    compare(labels, (scores > 0.7).astype(np.uint8))
    got = metrics.macro(PRECISION(scores, labels))
    np.testing.assert_allclose(got, trusted.average_precision_score(labels, scores), rtol=1e-5)
    area = metrics.macro(jax.jit(metrics.auroc)(scores, labels))
    np.testing.assert_allclose(area, trusted.roc_auc_score(labels, scores), rtol=1e-5)


def test_rare_labels_of_bibtex_may_be_absent(shared_data, generator):
    with np.load(shared_data / "multilabel_bibtex" / "multilabel_bibtex.npz") as data:
        labels = data["Y"][:80]
    assert not labels.any(axis=0).all()
    scores = (generator.normal(size=labels.shape) + 1.5 * labels).astype(np.float32)
    compare(labels, (scores > 1).astype(np.int32))
    seen = labels.any(axis=0)
    got = PRECISION(scores, labels)
    assert np.array_equal(np.isnan(got), ~seen)
    wanted = trusted.average_precision_score(labels[:, seen], scores[:, seen])
    np.testing.assert_allclose(metrics.macro(got), wanted, rtol=1e-5)


def test_unknown_labels_count_nowhere(generator):
    labels, scores = draw(generator)
    unknown = generator.random(labels.shape) < 0.3
    unknown[5] = True
    predictions = (scores > 0).astype(np.int32)
    hidden = np.where(unknown, -1, labels)
    confusion, agreement = CONFUSION(hidden, predictions), AGREEMENT(hidden, predictions)
    exact, overlap, counted = 0, 0.0, 0
    for truth, guess, gone in zip(labels, predictions, unknown, strict=True):
        first, second = set(np.flatnonzero(truth & ~gone)), set(np.flatnonzero(guess & ~gone))
        if gone.all():
            continue
        counted += 1
        exact += first == second
        overlap += len(first & second) / len(first | second) if first | second else 1.0
    np.testing.assert_allclose(np.array(agreement), [counted, exact, overlap], rtol=1e-5)
    for k in range(labels.shape[1]):
        rows = ~unknown[:, k]
        pair = labels[rows, k], predictions[rows, k]
        np.testing.assert_array_equal(confusion[k], trusted.confusion_matrix(*pair))
        got = PRECISION(np.where(unknown, np.nan, scores), hidden)[k]
        wanted = trusted.average_precision_score(labels[rows, k], scores[rows, k])
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_tables_add_up_and_take_booleans(generator):
    labels, scores = draw(generator)
    predictions = scores > 0
    for table in (CONFUSION, AGREEMENT):
        whole = table(labels, predictions.astype(np.int32))
        halves = [table(labels[i::2] == 1, predictions[i::2]) for i in (0, 1)]
        stacked = table(labels.reshape(10, 12, 5), predictions.reshape(10, 12, 5))
        for other in (jax.tree.map(jnp.add, *halves), stacked):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), other, whole)


def test_one_against_the_rest_is_one_label_each(generator):
    """Class ids and their one-hot label matrix rank alike."""
    ids = generator.integers(-1, 3, 60)
    scores = generator.normal(size=(60, 3)).astype(np.float32)
    matrix = np.where(ids[:, None] < 0, -1, np.eye(3, dtype=int)[ids])
    for metric in (metrics.auroc, metrics.average_precision):
        got, wanted = jax.jit(metric)(scores, matrix), jax.jit(metric)(scores, ids)
        np.testing.assert_array_equal(got, wanted)


def test_jaccard_index_of_many_classes(generator):
    labels, predictions = generator.integers(0, 4, 90), generator.integers(0, 5, 90)
    confusion = metrics.confusion_matrix(labels, predictions, num_classes=6)
    wanted = trusted.jaccard_score(labels, predictions, average=None, labels=range(4))
    counted = labels < 4
    rows = counted & (predictions < 6)
    assert rows.all()
    np.testing.assert_allclose(metrics.jaccard_index(confusion)[:4], wanted, rtol=1e-6)
    assert np.all(np.isnan(metrics.jaccard_index(confusion)[4:]))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_split_batch_is_one_batch(axis_type, generator):
    labels, scores = draw(generator, size=48)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("batch"))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(jnp.asarray(a), split) for a in (labels, scores > 0)]
        got = jax.jit(lambda *a: (CONFUSION(*a), AGREEMENT(*a)))(*placed)
    wanted = CONFUSION(labels, scores > 0), AGREEMENT(labels, scores > 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, wanted)


def test_nothing_known_gives_nan():
    nothing = jnp.full((3, 2), -1)
    confusion = metrics.multilabel_confusion(nothing, jnp.zeros_like(nothing))
    agreement = metrics.label_set_agreement(nothing, jnp.zeros_like(nothing))
    for value in (
        metrics.hamming_loss(confusion),
        metrics.micro_f1(confusion),
        metrics.subset_accuracy(agreement),
        metrics.label_set_overlap(agreement),
    ):
        assert np.isnan(value)


def test_bad_input_is_refused():
    labels = jnp.zeros((3, 2), jnp.int32)
    for table in (metrics.multilabel_confusion, metrics.label_set_agreement):
        with pytest.raises(ValueError, match="labels: got dtype float32"):
            table(jnp.zeros((3, 2)), labels)
        with pytest.raises(ValueError, match="predictions: got dtype float32"):
            table(labels, jnp.zeros((3, 2)))
        with pytest.raises(ValueError, match=r"predictions: got shape \(2, 2\).* shape \(3, 2\)"):
            table(labels, labels[:2])
        with pytest.raises(ValueError, match=r"labels: got shape \(\)"):
            table(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
    for metric in (metrics.hamming_loss, metrics.micro_f1):
        with pytest.raises(ValueError, match=r"confusion: got shape \(2, 2\)"):
            metric(jnp.zeros((2, 2)))
        with pytest.raises(ValueError, match=r"confusion: got shape \(2, 3, 3\)"):
            metric(jnp.zeros((2, 3, 3)))
