"""Curves, partial areas, pairs of classes, reliability, separation and groups."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn import metrics as trusted
from sklearn.calibration import calibration_curve
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression

from jaxbalance import metrics

ROC, PRECISION_RECALL = jax.jit(metrics.roc_curve), jax.jit(metrics.precision_recall_curve)
PAIRWISE, HAND_TILL = jax.jit(metrics.pairwise_auroc), jax.jit(metrics.hand_till_auroc)
CLASSWISE = jax.jit(metrics.classwise_calibration_bins, static_argnames="num_bins")
ON_A_MESH = [
    metrics.partial_auroc,
    metrics.roc_curve,
    metrics.pairwise_auroc,
    metrics.classwise_calibration_bins,
    functools.partial(metrics.fisher_discriminant_ratio, num_classes=3),
]
ON_A_MESH_NAMES = ["partial", "roc", "pairwise", "calibration", "fisher"]


def draw(generator, size=300, decimals=None):
    labels = (generator.random(size) < 0.3).astype(np.int32)
    scores = generator.normal(size=size) + labels
    scores = scores if decimals is None else np.round(scores, decimals)
    return scores.astype(np.float32), labels


def real_probabilities(shared_data, name):
    """Held-out probabilities of a linear model, one column for each class of the data set."""
    data = np.load(shared_data / name / f"{name}.npz")
    features = (data["X"] - data["X"].mean(axis=0)) / (data["X"].std(axis=0) + 1e-9)
    labels = data["y"]
    model = LogisticRegression(max_iter=300).fit(features[::2], labels[::2])
    scores = np.zeros((len(labels[1::2]), labels.max() + 1), np.float32)
    scores[:, model.classes_] = model.predict_proba(features[1::2])
    return scores, labels[1::2], features[1::2].astype(np.float32)


def distinct(*columns):
    return np.array(sorted(set(zip(*(np.asarray(c).tolist() for c in columns)))))


@pytest.mark.parametrize("decimals", [None, 0], ids=["distinct", "ties"])
def test_curves_are_scikit_learns(decimals, generator):
    scores, labels = draw(generator, decimals=decimals)
    curve = ROC(scores, labels)
    wanted = trusted.roc_curve(labels, scores, drop_intermediate=False)
    got = distinct(-curve.thresholds, curve.false_positive_rate, curve.true_positive_rate)
    np.testing.assert_allclose(got, np.stack([-wanted[2], *wanted[:2]], axis=1), rtol=1e-6)
    curve = PRECISION_RECALL(scores, labels)
    precision, recall, thresholds = trusted.precision_recall_curve(labels, scores)
    got = distinct(-curve.thresholds, curve.precision, curve.recall)
    wanted = np.stack([-np.append(thresholds, np.inf), precision, recall], axis=1)
    np.testing.assert_allclose(got, wanted[::-1], rtol=1e-6)


def test_areas_under_the_curves_are_the_metrics(generator):
    scores, labels = draw(generator, decimals=1)
    curve = ROC(scores, labels)
    area = np.trapezoid(curve.true_positive_rate, curve.false_positive_rate)
    np.testing.assert_allclose(area, metrics.auroc(scores, labels), rtol=1e-5)
    curve = PRECISION_RECALL(scores, labels)
    steps = np.sum(np.diff(curve.recall) * np.asarray(curve.precision)[1:])
    np.testing.assert_allclose(steps, metrics.average_precision(scores, labels), rtol=1e-5)


def test_padding_repeats_the_last_point(generator):
    scores, labels = draw(generator, size=50)
    more = np.append(scores, [np.nan, -99.0, 99.0]).astype(np.float32)
    padded, plain = ROC(more, np.append(labels, [-1, 2, -1])), ROC(scores, labels)
    for got, wanted in zip(padded, plain, strict=True):
        np.testing.assert_array_equal(got, np.append(wanted, [wanted[-1]] * 3))


def test_curves_of_what_is_missing(generator):
    scores = jnp.array([0.1, 0.4])
    only = metrics.roc_curve(scores, jnp.ones(2, jnp.int32))
    assert np.all(np.isnan(only.false_positive_rate))
    np.testing.assert_allclose(only.true_positive_rate, [0, 0.5, 1])
    none = metrics.precision_recall_curve(scores, jnp.zeros(2, jnp.int32))
    assert np.all(np.isnan(none.recall))
    np.testing.assert_array_equal(none.precision, [1, 0, 0])
    for curve in (metrics.roc_curve, metrics.precision_recall_curve):
        broken = curve(jnp.array([0.1, jnp.nan]), jnp.array([0, 1]))
        assert np.all(np.isnan(np.array(broken)))
        assert curve(jnp.zeros(0), jnp.zeros(0, jnp.int32)).thresholds.shape == (1,)
        each = curve(jnp.eye(4)[:, :3], jnp.array([0, 1, 1, -1]))
        assert all(leaf.shape == (3, 5) for leaf in each)


@pytest.mark.parametrize("max_fpr", [0.01, 0.1, 0.37, 1.0])
def test_partial_area_is_scikit_learns(max_fpr, generator):
    for decimals in (None, 0):
        scores, labels = draw(generator, decimals=decimals)
        got = metrics.partial_auroc(scores, labels, max_fpr=max_fpr)
        wanted = trusted.roc_auc_score(labels, scores, max_fpr=max_fpr)
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
        rate, hits, _ = trusted.roc_curve(labels, scores)
        inside = rate < max_fpr
        rate = np.append(rate[inside], max_fpr)
        hits = np.append(hits[inside], np.interp(max_fpr, *trusted.roc_curve(labels, scores)[:2]))
        raw = metrics.partial_auroc(scores, labels, max_fpr=max_fpr, standardized=False)
        np.testing.assert_allclose(raw, np.trapezoid(hits, rate), rtol=1e-4, atol=1e-6)


def test_partial_area_of_everything_is_the_area(generator):
    scores, labels = draw(generator, decimals=1)
    for standardized in (True, False):
        got = metrics.partial_auroc(scores, labels, max_fpr=1.0, standardized=standardized)
        np.testing.assert_allclose(got, metrics.auroc(scores, labels), rtol=1e-6)


def brute_pairs(scores, labels):
    number = scores.shape[1]
    table = np.full((number, number), np.nan)
    for j, k in itertools.permutations(range(number), 2):
        first, second = scores[labels == j, j], scores[labels == k, j]
        if len(first) and len(second):
            wins = (first[:, None] > second) + 0.5 * (first[:, None] == second)
            table[j, k] = wins.mean()
    return table


def test_pairs_of_classes_by_counting(generator):
    labels = generator.choice([0, 1, 3, -1, 9], size=80)
    scores = np.round(generator.normal(size=(80, 4)), 1).astype(np.float32)
    scores[labels < 0] = np.nan
    wanted = brute_pairs(scores, labels)
    np.testing.assert_allclose(PAIRWISE(scores, labels), wanted, rtol=1e-5)
    value = HAND_TILL(scores, labels)
    np.testing.assert_allclose(value, np.nanmean(wanted), rtol=1e-5)
    scores[np.flatnonzero(labels == 3)[0], 1] = np.nan
    broken = PAIRWISE(scores, labels)
    assert np.isnan(broken[1, 3])
    np.testing.assert_allclose(broken[1, 0], wanted[1, 0], rtol=1e-5)
    assert np.isnan(HAND_TILL(scores, labels))


def test_multi_class_areas_are_scikit_learns(shared_data):
    scores, labels, _ = real_probabilities(shared_data, "glass")
    present = np.unique(labels)
    narrow = scores[:, present].astype(float)
    narrow /= narrow.sum(axis=1, keepdims=True)
    ids = np.searchsorted(present, labels)
    pairs = trusted.roc_auc_score(ids, narrow, multi_class="ovo")
    rest = trusted.roc_auc_score(ids, narrow, multi_class="ovr")
    wide = np.insert(np.float32(narrow), 2, 0.0, axis=1)
    moved = ids + (ids >= 2)
    np.testing.assert_allclose(HAND_TILL(wide, moved), pairs, rtol=1e-5)
    np.testing.assert_allclose(metrics.macro(jax.jit(metrics.auroc)(wide, moved)), rest, rtol=1e-5)


def test_two_opposite_columns_are_one_area(generator):
    scores, labels = draw(generator)
    both = np.stack([-scores, scores], axis=-1)
    area = metrics.auroc(scores, labels)
    np.testing.assert_allclose(HAND_TILL(both, labels), area, rtol=1e-5)
    assert np.isnan(HAND_TILL(both, np.zeros_like(labels)))


def test_classwise_bins_are_scikit_learns(shared_data):
    scores, labels, _ = real_probabilities(shared_data, "ecoli")
    bins = CLASSWISE(scores, labels, num_bins=10)
    shown = metrics.reliability(bins)
    gaps = []
    for k in range(scores.shape[1]):
        truth = labels == k
        share = np.asarray(shown.share[k])
        filled = share > 0
        # Its bins are rounded in float64; none of these probabilities is at an edge.
        got = shown.accuracy[k][filled], shown.confidence[k][filled]
        wanted = calibration_curve(truth, scores[:, k].astype(float), n_bins=10)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
        gaps.append(np.sum(share[filled] * np.abs(np.subtract(*wanted))))
        assert np.all(np.isnan(shown.accuracy[k][~filled]))
        squared = trusted.brier_score_loss(truth, scores[:, k])
        np.testing.assert_allclose(metrics.brier_score(bins)[k], squared, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(metrics.expected_calibration_error(bins), gaps, rtol=1e-4, atol=1e-7)


def test_classwise_bins_add_up_and_skip_padding(generator):
    scores = generator.dirichlet([1, 1, 1], size=60).astype(np.float32)
    labels = generator.integers(-1, 2, size=60)
    scores[labels < 0] = np.nan
    whole = CLASSWISE(scores, labels)
    halves = [CLASSWISE(scores[i::2], labels[i::2]) for i in (0, 1)]
    for got, wanted in zip(jax.tree.map(jnp.add, *halves), whole, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    known = labels >= 0
    absent = metrics.expected_calibration_error(whole)[2]
    np.testing.assert_allclose(absent, scores[known, 2].mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="num_bins: got 0"):
        metrics.classwise_calibration_bins(scores, labels, num_bins=0)


def fisher(features, labels):
    """The eigenvalues of linear discriminant analysis, by explicit inverse in float64."""
    centred, total = features - features.mean(axis=0), len(features)
    between = np.zeros((features.shape[1],) * 2)
    for k in np.unique(labels):
        mean = centred[labels == k].mean(axis=0)
        between += np.mean(labels == k) * np.outer(mean, mean)
    return np.trace(np.linalg.solve(centred.T @ centred / total - between, between))


FISHER = jax.jit(functools.partial(metrics.fisher_discriminant_ratio, num_classes=8))


def test_fisher_ratio_on_real_features(shared_data):
    data = np.load(shared_data / "ecoli" / "ecoli.npz")
    keep = [i for i in range(data["X"].shape[1]) if np.ptp(data["X"][:, i]) > 0]
    features, labels = data["X"][:, keep] + 50.0, data["y"]
    features = features[:, [i for i in range(len(keep)) if i not in (2, 3)]]
    single = features.astype(np.float32)
    got = FISHER(single, labels)
    wanted = fisher(single.astype(float), labels)
    np.testing.assert_allclose(got, wanted, rtol=1e-3)
    model = LinearDiscriminantAnalysis(solver="eigen").fit(features, labels)
    scattered = model.transform(features)
    np.testing.assert_allclose(FISHER(np.float32(scattered), labels), got, rtol=1e-3)
    one = single[:, :1]
    score, _ = f_classif(one.astype(float), labels)
    classes = len(np.unique(labels))
    np.testing.assert_allclose(
        FISHER(one, labels), score[0] * (classes - 1) / (len(labels) - classes), rtol=1e-3
    )


def test_fisher_ratio_has_its_symmetries_and_edges(generator):
    labels = generator.choice([0, 1, 4], size=90)
    features = generator.normal(size=(90, 4)) + 2 * np.eye(5)[labels, :4]
    wanted = fisher(features, labels)
    features, turned = np.float32(features), generator.normal(size=(4, 4))
    got = FISHER(features, labels)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    np.testing.assert_allclose(FISHER(np.float32(features @ turned - 9), labels), got, rtol=1e-2)
    np.testing.assert_allclose(FISHER(features * np.float32([1e-6, 1, 1e6, 1]), labels), got, 1e-3)
    assert float(FISHER(features, labels, ridge=1.0)) < float(got)
    constant, repeated = np.full_like(features[:, 0], 5.1), features[:, 0]
    more = np.column_stack([features, constant, repeated])
    padded = np.vstack([more, np.full((2, 6), np.nan, np.float32)])
    np.testing.assert_allclose(FISHER(padded, np.append(labels, [-1, 8])), got, rtol=1e-3)
    assert np.isinf(FISHER(np.eye(5, dtype=np.float32)[labels, :4] / 3, labels))
    assert np.isnan(FISHER(features, np.zeros_like(labels)))
    features[3, 1] = np.nan
    assert np.isnan(FISHER(features, labels))


def test_groups_of_examples(generator):
    labels, groups = generator.integers(-1, 3, 200), generator.integers(-1, 5, 200)
    predictions = np.where(generator.random(200) < 0.6, labels, 0)
    groups[groups == 2] = 3
    counted = functools.partial(metrics.group_confusion, num_classes=3, num_groups=4)
    confusion = counted(labels, predictions, groups)
    scores = []
    for g in range(4):
        rows = (groups == g) & (labels >= 0)
        wanted, score = np.zeros((3, 3)), np.nan
        if rows.any():
            wanted = trusted.confusion_matrix(labels[rows], predictions[rows], labels=range(3))
            score = trusted.accuracy_score(labels[rows], predictions[rows])
        np.testing.assert_array_equal(confusion[g], wanted)
        scores.append(score)
    np.testing.assert_allclose(metrics.accuracy(confusion), scores, rtol=1e-6)
    np.testing.assert_allclose(metrics.worst(metrics.accuracy(confusion)), np.nanmin(scores))
    whole = metrics.group_confusion(
        labels, predictions, np.zeros_like(groups), num_classes=3, num_groups=1
    )
    same = metrics.confusion_matrix(labels, predictions, num_classes=3)
    np.testing.assert_array_equal(whole[0], same)
    assert np.isnan(metrics.worst(jnp.full(3, jnp.nan)))
    np.testing.assert_array_equal(metrics.worst(jnp.array([[3, 1], [2, 4]])), [1, 2])


@pytest.mark.parametrize("metric", ON_A_MESH, ids=ON_A_MESH_NAMES)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_split_batch_is_one_batch(metric, axis_type, generator):
    labels = generator.integers(0, 3, 48).astype(np.int32)
    scores = (generator.normal(size=(48, 3)) + np.eye(3)[labels]).astype(np.float32)
    single = jax.jit(metric)(scores, labels)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("batch"))
    with jax.set_mesh(mesh):
        got = jax.jit(metric)(*(jax.device_put(jnp.asarray(a), split) for a in (scores, labels)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), got, single)


def test_bad_input_is_refused():
    scores, labels = jnp.zeros((3, 2)), jnp.zeros(3, jnp.int32)
    for value in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"max_fpr: got {value}"):
            metrics.partial_auroc(scores, labels, max_fpr=value)
    for pairs in (metrics.pairwise_auroc, metrics.hand_till_auroc):
        with pytest.raises(ValueError, match=r"scores: got shape \(3, 2, 2\)"):
            pairs(jnp.zeros((3, 2, 2)), labels)
        with pytest.raises(ValueError, match=r"labels: .*shape \(2,\).*wanted shape \(3,\)"):
            pairs(scores, labels[:2])
    for curve in (metrics.roc_curve, metrics.precision_recall_curve):
        with pytest.raises(ValueError, match=r"labels: .*shape \(2,\).*wanted shape \(3,\)"):
            curve(scores, labels[:2])
        with pytest.raises(ValueError, match=r"labels: got shape \(3, 3\), wanted shape \(3, 2\)"):
            curve(scores, jnp.zeros((3, 3), jnp.int32))
    with pytest.raises(ValueError, match="probabilities: got dtype int32"):
        metrics.classwise_calibration_bins(jnp.zeros((3, 2), jnp.int32), labels)
    with pytest.raises(ValueError, match=r"features: got shape \(3,\)"):
        metrics.fisher_discriminant_ratio(jnp.zeros(3), labels, num_classes=2)
    with pytest.raises(ValueError, match=r"labels: got shape \(2,\), wanted shape \(3,\)"):
        metrics.fisher_discriminant_ratio(scores, labels[:2], num_classes=2)
    with pytest.raises(ValueError, match="ridge: got -1"):
        metrics.fisher_discriminant_ratio(scores, labels, num_classes=2, ridge=-1)
    with pytest.raises(ValueError, match="num_groups: got 0"):
        metrics.group_confusion(labels, labels, labels, num_classes=2, num_groups=0)
    with pytest.raises(ValueError, match=r"groups: got shape \(2,\), wanted shape \(3,\)"):
        metrics.group_confusion(labels, labels, labels[:2], num_classes=2, num_groups=2)
    with pytest.raises(ValueError, match=r"values: got shape \(\)"):
        metrics.worst(jnp.zeros(()))
