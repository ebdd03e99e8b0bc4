"""Experiments on metrics, at a small size: identities, closed forms, and checks that can fail."""

import copy

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from jaxbalance import experiments
from tests.experiment_helpers import assert_refused, kept

pytestmark = pytest.mark.usefixtures("as_users_do")


@pytest.fixture(scope="module")
def ranking():
    return experiments.load("auroc_vs_auprc")


@pytest.fixture(scope="module")
def mended(ranking, tmp_path_factory):
    config = ranking.Config(examples=200, prevalences=(0.1,), starts=(0.85,), seeds=100)
    return experiments.run(ranking, config, results=tmp_path_factory.mktemp("results"))


def test_areas_keep_their_results(ranking, mended):
    kept(mended)
    assert mended.holds, mended.provenance["check"]
    text = ranking.summary(mended.numbers)
    assert text.count("\n| start") == 1 + len(mended.numbers["groups"]) == 7


def test_the_rates_give_both_areas(ranking, generator):
    scores, labels = ranking.draw(generator, 300, 0.1, 0.8)
    scores = scores.round(2)
    areas = ranking.by_rates(scores, labels)
    wanted = roc_auc_score(labels, scores), average_precision_score(labels, scores)
    np.testing.assert_allclose(areas, wanted, atol=1e-12)


def test_groups_start_at_the_area_asked_for(ranking, mended):
    scores, labels = ranking.draw(np.random.default_rng(0), 20_000, 0.2, 0.7)
    assert roc_auc_score(labels, scores) == pytest.approx(0.7, abs=0.01)
    assert scores.mean() == pytest.approx(0.2)
    order = np.argsort(-scores)
    groups = np.zeros(len(order) + 2, int)
    groups[-2:] = 1
    ranked = np.append(labels[order], [1, 0])
    areas = ranking.group_auroc(ranked[None], groups[None])[0]
    np.testing.assert_allclose(areas, [roc_auc_score(labels, scores), 1], atol=1e-12)


def test_the_check_of_areas_can_fail(ranking, mended):
    ahead = "favours first by"
    for place, value in (
        (("identities, largest error",), 1e-9),
        (("gain of average precision, highest over lowest",), 2.0),
        (("groups", "start 0.85, highest, unequal", ahead), [0.0, 0.001]),
        (("groups", "start 0.85, any, unequal", ahead), [0.02, 0.001]),
        (("groups", "start 0.85, largest gain, equal", ahead), [0.02, 0.001]),
    ):
        assert_refused(ranking.check, mended.numbers, place, value)


@pytest.fixture(scope="module")
def annotated():
    return experiments.load("metric_under_label_noise")


@pytest.fixture(scope="module")
def noisy(annotated, tmp_path_factory):
    sizes = {"classifiers": 60, "examples": 20_000, "simulated": 3, "seeds": 1}
    config = annotated.Config(priors=(0.01, 0.5), **sizes)
    return experiments.run(annotated, config, results=tmp_path_factory.mktemp("results"))


def test_annotations_keep_their_results(annotated, noisy):
    kept(noisy)
    assert noisy.holds, noisy.provenance["check"]
    headline = annotated.summary(noisy.numbers).partition("\n")[0]
    assert "Matthews, balanced accuracy, AUROC keep" in headline


def test_confusion_is_that_of_arithmetic(annotated):
    found = annotated.confusion(0.2, 0.25, 0.125, np.array([0.5, 0.9]))
    hits = 0.2 * 0.75 * 0.9 + 0.8 * 0.125 * 0.5
    misses = 0.2 * 0.75 * 0.1 + 0.8 * 0.125 * 0.5
    alarms = 0.2 * 0.25 * 0.9 + 0.8 * 0.875 * 0.5
    np.testing.assert_allclose(found, [[1 - hits - misses - alarms, alarms], [misses, hits]])


def test_auroc_shrinks_by_the_share_of_wrong_labels(annotated):
    config = annotated.Config(classifiers=5, thresholds=8000)
    some = annotated.draw(config)
    true = norm.cdf(some.separations / np.sqrt(1 + some.spreads**2))
    prior, missed, alarms = 0.1, 0.3, 0.02
    positive = prior * (1 - missed) + (1 - prior) * alarms
    wrong = (1 - prior) * alarms / positive + prior * missed / (1 - positive)
    found = annotated.ranked(config, prior, missed, alarms)["AUROC"]
    np.testing.assert_allclose(found - 0.5, (1 - wrong) * (true - 0.5), atol=1e-4)


def test_the_check_of_annotations_can_fail(annotated, noisy):
    null, other = "prior 0.01, missed 0, false 0", "prior 0.01, missed 0.3, false 0.01"
    tau = {"tau": 0.99}
    for place, value in (
        (("largest deviation",), 7.0),
        (("agreement", other, "Matthews"), tau),
        (("agreement", null, "F1"), tau),
        (("agreement", "prior 0.5, missed 0.1, false 0.1", "kappa"), tau),
    ):
        assert_refused(annotated.check, noisy.numbers, place, value)
    best = copy.deepcopy(noisy.numbers)
    for row in best["agreement"].values():
        row["F1"] = {"tau": 1.0}
    with pytest.raises(AssertionError, match="F1 keeps every order"):
        annotated.check(best)
