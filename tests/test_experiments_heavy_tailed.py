"""Experiments on heavy-tailed classes at a tiny size: they run, they measure, and they can fail."""

import copy
import dataclasses

import numpy as np
import pytest
from scipy.special import lambertw

from jaxbalance import data, experiments
from tests.experiment_helpers import assert_refused, kept

pytestmark = pytest.mark.usefixtures("as_users_do")

SIZES = {"seeds": 1, "step_sizes": 1, "steps": 4}


def run_few(experiment, config, results, *, instead):
    """Run it with one setting's arrays for others: compiling each would be all the time it takes.

    ``instead(setting)`` is the setting to compute, a tuple of what follows the config.
    """
    compute, known = experiment.trained, {}

    def trained(config, *setting):
        wanted = instead(setting)
        if wanted not in known:
            known[wanted] = compute(config, *wanted)
        return known[wanted]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "trained", trained)
        return experiments.run(experiment, config, results=results)


@pytest.fixture(scope="module")
def linear():
    return experiments.load("heavy_tailed_linear")


@pytest.fixture(scope="module")
def linear_run(linear, tmp_path_factory):
    config = linear.Config(levels=3, flow_classes=4, **SIZES)
    results, real = tmp_path_factory.mktemp("linear"), {"gd": ("gd",), "adam": ("adam",)}
    result = run_few(linear, config, results, instead=lambda s: real.get(s[0], ("gd_root",)))
    return config, result, kept(result)


def test_levels_halve_the_frequency_and_keep_the_examples(linear):
    config = linear.Config(levels=4)
    inputs, labels, start = linear.draw(config, 0, centred=False)
    members = np.bincount(labels)
    assert members.tolist() == [16] + 2 * [8] + 4 * [4] + 8 * [2]
    assert inputs.shape == (64, 5 * 16 + 1)
    assert start.shape == (81, 15)
    centred, *_ = linear.draw(config, 0, centred=True)
    np.testing.assert_allclose(inputs[:, :-1] - centred[:, :-1], 0.5, atol=1e-6)
    assert set(inputs[:, -1]) == {1}
    assert set(centred[:, -1]) == {0}
    assert abs(centred.mean()) < 0.02


def test_linear_losses_are_those_of_a_plain_loop(linear, linear_run):
    config, result, record = linear_run
    inputs, labels, weights = linear.draw(config, 0, centred=False)
    hits = labels[:, None] == np.arange(weights.shape[1])
    weights = weights.astype(float)
    for _ in range(config.steps):
        powers = np.exp(inputs @ weights)
        shares = powers / powers.sum(axis=1, keepdims=True)
        weights -= config.gd * inputs.T @ (shares - hits) / len(labels)
    powers = np.exp(inputs @ weights)
    losses = -np.log(powers[hits] / powers.sum(axis=1))
    assert result.numbers["gd"]["loss"][0] == pytest.approx(losses.mean(), rel=1e-3)
    groups = losses.reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(record["gd/groups"][0, 0, -1], groups, rtol=1e-4)


def test_one_hot_times_are_lamberts(linear_run):
    _, result, _ = linear_run
    flow, prior = result.numbers["flow"], 1 / np.arange(1, 5)
    margin = -np.log(np.expm1(0.1) / 3)
    times = (np.exp(margin) + 3 * margin - 1) / (4 * prior / prior.sum())
    np.testing.assert_allclose(flow["gd, closed form"], times, rtol=1e-3)
    level = (1 + 4 * prior / prior.sum() * times) / 3
    np.testing.assert_allclose(level - lambertw(np.exp(level) / 3).real, margin, rtol=1e-9)
    assert flow["sign"] == 4 * [int(np.ceil(margin / 2 / 0.05))]


@pytest.fixture(scope="module")
def linear_numbers(linear, linear_run):
    """What a run is expected to find, in the form of one."""
    good = copy.deepcopy(linear_run[1].numbers)
    levels = {"gd": [1, 3, 5], "gd_momentum": [1, 2, 4.5], "gd_root": [3, 2.5, 2]}
    for name in linear.ALL:
        groups = levels.get(name, [0.4, 0.2, 0.1] if "centred" not in name else 3 * [0.01])
        good[name]["groups"] = [3 * [float(value)] for value in groups]
        good[name]["loss"] = 3 * [float(np.mean(groups))]
        good[name]["start"] = 3 * [5.0]
        good[name]["grid"] = [[0.1, 2.0], [0.3, 1.0], [1.0, None]]
    good["share of Adam's gain"]["sign_momentum"] = 1.0
    good["at equal loss"] = {
        "gd": {"loss": 3.0, "groups": [1.0, 3.0, 5.0]},
        "centred_gd": {"loss": 3.1, "groups": [3.1, 3.15, 3.05]},
    }
    good["path"]["here, hessian_frequency"] = [3 * [0.1], 3 * [0.95]]
    good["path"]["opposite, hessian_frequency"] = [3 * [0.1], 3 * [-0.95]]
    return good


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("gd", "groups", 2, 0), 2.0, "another order"),
        (("adam", "groups", 2, 0), 0.3, "late with rare"),
        (("share of Adam's gain", "sign_momentum"), 0.5, "signs lose"),
        (("gd_root", "loss", 2), 4.0, "do not help"),
        (("sign", "grid", 2, 1), 0.5, "at an edge"),
        (("at equal loss", "centred_gd", "groups", 2), 4.0, "without any direction"),
        (("centred_gd", "loss", 2), 1.0, "null is not fitted"),
        (("path", "opposite, hessian_frequency", 1, 2), 0.5, "not reversed"),
        (("path", "here, hessian_frequency", 0, 0), 0.5, "correlated at the start"),
        (("flow", "gd", 3), 1, "Not equal"),
        (("flow", "sign error"), 0.1, "differs from its flow"),
    ],
)
def test_the_linear_check_holds_and_can_fail(linear, linear_numbers, keys, value, message):
    linear.check(linear_numbers)
    assert linear.summary(linear_numbers).startswith("The rarest classes start at a loss of 5.00")
    assert_refused(linear.check, linear_numbers, keys, value, message)


@pytest.fixture(scope="module")
def vision():
    return experiments.load("heavy_tailed_vision")


@pytest.fixture(scope="module")
def small(vision):
    return vision.Config(originals=6, bits=2, copies=2, width=2, hidden=8, **SIZES)


def test_barcodes_tell_every_label(vision, small):
    drawn = vision.draw(small, "both", 0)
    inputs, labels = np.asarray(drawn["inputs"]), drawn["labels"]
    assert inputs.shape == (10 * 6 + 10 * 3 * 2, 9, 8, 1)
    assert np.bincount(labels).tolist() == 10 * [6] + 30 * [2]
    np.testing.assert_array_equal(drawn["small"], labels >= 10)
    bits = inputs[:, 0, :, 0] > 0
    assert not bits[labels < 10].any()
    codes = {tuple(row) for row in bits[labels >= 10]}
    assert codes == {(a, b, *6 * (False,)) for a, b in ((True, False), (False, True), (True, True))}
    of_digit = {(label - 10) // 3 for label in labels[labels >= 10]}
    assert of_digit == set(range(10))
    originals = {image.tobytes() for image in data.load("digits").inputs}
    pixels = (inputs[:, 1:] - inputs.min()) / (inputs.max() - inputs.min()) * 255
    assert {image.tobytes() for image in np.rint(pixels).astype(np.uint8)} <= originals
    alone = vision.draw(small, "small", 0)
    assert alone["small"].all()
    assert set(alone["labels"]) == set(range(30))


def test_images_that_are_too_few_or_too_narrow_are_named(vision, tmp_path):
    with pytest.raises(ValueError, match="originals: got 5000, wanted at most 174 with the images"):
        vision.draw(vision.PAPER, "both", 0)
    with pytest.raises(ValueError, match="bits: got 9, wanted at most 8"):
        vision.draw(vision.Config(bits=9), "both", 0)
    np.savez(tmp_path / "table.npz", inputs=np.eye(4), labels=[0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"data: got inputs of shape \(4, 4\), wanted images"):
        vision.draw(vision.Config(data=str(tmp_path / "table.npz")), "both", 0)


@pytest.fixture(scope="module")
def vision_numbers(vision, small, tmp_path_factory):
    """What a run is expected to find, in the form of one; the run's own shapes are looked at."""
    few = dataclasses.replace(small, steps=2)
    results = tmp_path_factory.mktemp("vision")
    result = run_few(vision, few, results, instead=lambda s: ("both", "adam"))
    record = kept(result)
    groups, loss = record["both, adam/groups"], record["both, adam/loss"]
    assert groups.shape == (1, 1, 3, 2)
    np.testing.assert_allclose(groups.mean(axis=-1), loss, rtol=1e-5)
    assert result.numbers["classes"]["small"] == {"number": 30, "images each": 2}
    good = copy.deepcopy(result.numbers)
    for name, row in good.items():
        if name != "classes":
            row |= {group: 3 * [0.02] for group in ("large", "small") if group in row}
            row |= {"start": 3 * [6.0], "grid": [[0.1, 2.0], [0.3, 1.0], [1.0, None]]}
    good["both, gd"]["small"] = 3 * [4.0]
    return good


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("both, gd", "small", 1), 1.0, "fits the small classes as well"),
        (("both, adam", "small", 2), 2.0, "adam leaves"),
        (("both, gd", "large", 2), 1.0, "does not fit the large"),
        (("both, sign", "grid", 1, 1), 3.0, "at an edge"),
        (("large, gd", "large", 2), 0.5, "a gap on large"),
    ],
)
def test_the_vision_check_holds_and_can_fail(vision, vision_numbers, keys, value, message):
    vision.check(vision_numbers)
    assert "all end at 0.02 to 0.02." in vision.summary(vision_numbers).splitlines()[0]
    assert "alone reproduces here" in vision.summary(vision_numbers)
    assert_refused(vision.check, vision_numbers, keys, value, message)
