"""Remedies on images, at a small size: batches, priors, and a check that can fail."""

import copy

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jaxbalance import experiments
from tests.experiment_helpers import assert_refused, kept

pytestmark = pytest.mark.usefixtures("as_users_do")


@pytest.fixture(scope="module")
def remedies():
    return experiments.load("remedy_grid")


@pytest.fixture(scope="module")
def config(remedies):
    sizes = {"largest": 40, "test_per_class": 20, "hidden": 16, "steps": 60, "seeds": 2}
    return remedies.Config(**sizes, ratios=(10.0,), fractions=(0.5,), step_sizes=(0.1, 3e38))


@pytest.fixture(scope="module")
def result(remedies, config, tmp_path_factory):
    return experiments.run(remedies, config, results=tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def numbers(result):
    return result.numbers


def test_it_keeps_its_results(result, numbers):
    assert list(numbers["settings"]) == ["equal", "step, ratio 10, small 0.5", "linear, ratio 10"]
    assert all(np.isfinite(values).all() for values in kept(result).values())


def test_a_diverged_step_size_is_said_to_be_and_not_chosen(numbers):
    for row in numbers["settings"].values():
        for method in row.values():
            assert method["diverged"] == pytest.approx([3e38])
            assert method["step size"] == 0.1


def test_batches_are_those_of_the_method(remedies, config):
    data = remedies.sample(config)
    assert np.bincount(data.labels).tolist() == [40] * 10
    sizes = remedies.sizes_of(config, "step", 10.0, 0.5, 0)
    assert sorted(sizes.tolist()) == [4] * 5 + [40] * 5
    chosen = np.concatenate([np.flatnonzero(data.labels == k)[:n] for k, n in enumerate(sizes)])
    shares = {}
    for method in remedies.TRAINED:
        plan = remedies.plan(config, method, chosen, 0)
        assert plan.rows.shape == (config.steps, config.batch_size)
        assert np.isin(plan.rows, chosen).all()
        assert plan.shares.sum() == pytest.approx(1, abs=1e-5)
        assert plan.head_from == config.steps // (2 if method.startswith("two-phase") else 1)
        shares[method] = np.bincount(data.labels, plan.shares, minlength=10)
    np.testing.assert_allclose(shares["oversampling"], 0.1, atol=0.005)
    np.testing.assert_allclose(shares["undersampling"], 0.1, atol=0.005)
    for method in ("plain", "two-phase, over", "two-phase, under"):
        np.testing.assert_allclose(shares[method], sizes / sizes.sum(), atol=0.01)
    under = remedies.plan(config, "undersampling", chosen, 0).rows
    assert len(np.unique(under)) == 4 * 10


def test_scores_are_those_of_other_programs(remedies, generator):
    logits = generator.normal(size=(1, 60, 3))
    labels = np.repeat(np.arange(3), 20)
    logits[0, np.arange(60), labels] += 1
    sizes = np.array([[50, 5, 1]])
    found = remedies.scored(logits, labels, sizes)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum(axis=1, keepdims=True)
    assert found["area"][0] == pytest.approx(roc_auc_score(labels, p, multi_class="ovr"))
    divided = p / sizes
    wanted = roc_auc_score(labels, divided / divided.sum(1, keepdims=True), multi_class="ovr")
    assert found["area renormalised"][0] == pytest.approx(wanted)
    assert abs(wanted - found["area"][0]) > 1e-3
    assert found["area changed by priors"][0] < 1e-12
    assert found["accuracy, thresholded"][0] == (divided.argmax(1) == labels).mean()
    assert found["other classes by logits"][0] == 0


def fitting(numbers):
    """Numbers that the check accepts, made from those of a run too short to have them all."""
    good = copy.deepcopy(numbers)
    for name, row in good["settings"].items():
        for method in row.values():
            area, accuracy = (0.99, 0.95) if name == "equal" else (0.95, 0.8)
            method["area"], method["accuracy"] = [area] * 3, [accuracy] * 3
            method["accuracy, thresholded"] = [accuracy + (name != "equal") * 0.05] * 3
    return good


def test_the_check_can_fail(remedies, numbers):
    remedies.check(fitting(numbers))
    step = "step, ratio 10, small 0.5"
    for place, value in (
        (("rows shared with test",), 1),
        (("largest change of an area by priors",), 1e-3),
        (("other classes by logits",), 2),
        (("settings", "equal", "plain", "accuracy, thresholded"), [0.96] * 3),
        (("settings", "equal", "oversampling", "accuracy"), [0.9] * 3),
        (("settings", step, "plain", "area"), [0.995] * 3),
        (("settings", step, "plain", "accuracy, thresholded"), [0.79] * 3),
    ):
        assert_refused(remedies.check, fitting(numbers), place, value)
    worse = fitting(numbers)
    worse["settings"]["step, ratio 20, small 0.5"] = copy.deepcopy(worse["settings"][step])
    with pytest.raises(AssertionError, match="ratio 20 costs no more"):
        remedies.check(worse)


def test_the_summary_has_a_row_for_every_setting(remedies, numbers):
    text = remedies.summary(numbers)
    assert text.count("\n| ") == 2 + len(numbers["settings"])
