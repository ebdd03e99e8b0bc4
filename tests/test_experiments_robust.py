"""Weights against attacks, at a small size: the trade is the one described, and checks can fail."""

import copy

import jax
import numpy as np
import pytest
from flax import nnx
from scipy.stats import norm

import jaxbalance as jb
from jaxbalance import experiments
from tests.experiment_helpers import assert_refused, kept

pytestmark = pytest.mark.usefixtures("as_users_do")


@pytest.fixture(scope="module")
def robust():
    return experiments.load("robust_separation")


@pytest.fixture(scope="module")
def small(robust):
    return robust.Config(
        dimension=3,
        ratio=5.0,
        examples=48,
        few_examples=48,
        test_examples=16,
        other_powers=(1.5,),
        separations=(1.0,),
        hidden=4,
        attack_steps=1,
        test_attack_steps=2,
        batch_size=16,
        steps=4,
        step_sizes=(0.1, 0.01),
        seeds=2,
    )


@pytest.fixture(scope="module")
def result(robust, small, tmp_path_factory):
    return experiments.run(robust, small, results=tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def good(robust):
    """Numbers of the kind that a run of the usual size gives."""

    def row(rare, frequent):
        values = {"rare": rare, "frequent": frequent, "mean recall": (rare + frequent) / 2}
        return {"diverged": 0} | {name: [value] * 3 for name, value in values.items()}

    def part(**pairs):
        pairs = {power.removeprefix("p"): pair for power, pair in pairs.items()}
        exact = {power: list(pair[::-1]) for power, pair in pairs.items()}
        methods = {"separation 0": {power: row(*pair) for power, pair in pairs.items()}}
        return {"examples": [200, 10], "exact": exact, "methods": methods}

    return {
        "close": part(p0=(0.3, 0.99), p1=(0.83, 0.83)),
        "close, few examples": part(p0=(0.3, 0.99), p1=(0.83, 0.83)),
        "close, no attack": part(p0=(0.74, 0.99), p1=(0.94, 0.94)),
        "apart": part(p0=(0.96, 0.999), p1=(0.99, 0.99)),
        robust.EQUAL: part(p0=(0.83, 0.83), p1=(0.83, 0.83)),
    }


def test_every_part_leaves_a_finished_folder(robust, small, result):
    kept(result)
    assert list(result.numbers) == list(robust.settings(small))
    separated = result.numbers["close"]["methods"]["separation 1"]["1"]
    plain = result.numbers["close"]["methods"]["separation 0"]["1"]
    added = separated["area"][0] - plain["area"][0]
    assert separated["area, added"][0] == pytest.approx(added, abs=2e-4)
    lines = robust.summary(result.numbers).splitlines()
    assert f"{separated['area, added'][0]:+.3f}" in lines[0]
    assert sum(line.startswith("| ") for line in lines) == 2 + 5 + 7
    equal = list(result.numbers[robust.EQUAL]["methods"]["separation 0"].values())
    assert equal[0] == equal[1] == equal[2]


def test_closed_forms_by_hand(small, result):
    """A weight acts on the ratio of the classes, an attack of radius r takes 2 r off the means."""
    for name, length in (("close", 0.6 * 3**0.5), ("close, no attack", 3**0.5)):
        for power, exact in result.numbers[name]["exact"].items():
            shift = (1 - float(power)) * np.log(small.ratio) / length
            recalls = [norm.cdf(length / 2 + sign * shift) for sign in (1, -1)]
            np.testing.assert_allclose(exact, recalls, atol=1e-4)


def test_weights_are_powers_of_the_ratio_and_one_on_average(robust, small):
    setting = robust.settings(small)["close"]
    frequent, rare = robust.sizes(setting)
    assert (frequent, rare) == (40, 8)
    for power in (0.0, 1.0, 1.5):
        weights = robust.class_weights(setting, power)
        assert weights[1] / weights[0] == pytest.approx(5**power, rel=1e-5)
        assert frequent * weights[0] + rare * weights[1] == pytest.approx(48, rel=1e-5)


def linear(small, weights, bias, scale):
    """Parameters whose rectifiers are all open: logits are ∓ scale (weights @ x + bias) / 2."""
    module = jb.models.MLP(small.dimension, 2, hidden=(small.hidden,), rngs=nnx.Rngs(0))
    first, last = np.zeros((3, 4), np.float32), np.zeros((4, 2), np.float32)
    first[:, 0], last[0] = weights, [-scale / 2, scale / 2]
    module.layers[0].kernel[...], module.head.kernel[...] = first, last
    module.layers[0].bias[...] = np.full(4, 50, np.float32)
    module.head.bias[...] = np.array([50 - bias, bias - 50], np.float32) * scale / 2
    return jb.models.functional(module).params


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_recall_is_under_the_worst_attack_of_a_linear_model_however_confident(robust, small, scale):
    weights, bias, radius = np.array([1.0, -0.5, 2.0]), 0.3, 0.2
    _, _, measure = robust.programs(small, robust.reweighted)
    seed = robust.one_seed(small, robust.settings(small)["close"], 0)
    knobs = {"radius": radius, "weights": np.ones(2, np.float32)}
    params = linear(small, weights, bias, scale)
    loss, record = jax.jit(measure)(jb.dynamics.DescentState(params, ()), knobs, seed)
    margins = {}
    for part in ("train", "test"):
        inputs, labels = seed[part]
        signs = 2 * labels - 1
        margins[part] = signs * (inputs @ weights + bias) - radius * np.abs(weights).sum()
    right = (margins["test"] > 0).reshape(2, -1).mean(axis=1)
    np.testing.assert_allclose(record["recall"], right, atol=1e-6)
    expected = np.logaddexp(0, -scale * margins["train"]).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-3)


def test_separation_adds_to_the_same_weighted_loss(robust, small):
    seed = robust.one_seed(small, robust.settings(small)["close"], 0)
    knobs = {"radius": 0.2, "weights": np.array([0.5, 2.0], np.float32)}
    batch = seed["params"], *seed["train"]

    @jax.jit
    def both(separation):
        known = knobs | {"separation": separation}
        return robust.reweighted(small, known)(*batch), robust.separated(small, known)(*batch)

    plain, same = both(0.0)
    np.testing.assert_allclose(same, plain, rtol=1e-6)
    assert np.all(both(1.0)[1] > plain)


def test_diverged_runs_are_counted_and_left_out(robust, result):
    record = kept(result)
    record["close/diverged"][0, 1] = [True, False]
    record["close/diverged"][1, 1] = True
    numbers = robust.measure(record)
    plain, separated = (numbers["close"]["methods"][f"separation {s}"]["1"] for s in (0, 1))
    assert (plain["diverged"], separated["diverged"]) == (1, 2)
    left = record["close/recall"][0, 1, 1, 1]
    assert plain["rare"] == pytest.approx([left] * 3, abs=1e-4)
    assert separated["rare"] is None
    assert separated["area, added"] is None
    assert "diverged" in robust.summary(numbers)
    with pytest.raises(AssertionError, match="diverged"):
        robust.check(numbers)


@pytest.mark.parametrize(
    ("name", "power", "what", "values", "message"),
    [
        ("close", "1", "rare", [0.35, 0.3, 0.4], "raise the rare"),
        ("close", "1", "frequent", [0.97, 0.96, 0.98], "cost nothing"),
        ("close", "1", "frequent", [0.6, 0.6, 0.6], "closed form"),
        ("close", "0", "mean recall", [0.9, 0.9, 0.9], "attack is too weak"),
        ("close", "0", "diverged", 1, "diverged"),
        ("close, no attack", "1", "frequent", [0.85, 0.85, 0.85], "without an attack"),
        ("apart", "1", "frequent", [0.93, 0.93, 0.93], "far apart"),
        ("close, equal classes", "1", "rare", [0.86, 0.86, 0.86], "of equal classes"),
    ],
)
def test_the_check_can_fail(robust, good, name, power, what, values, message):
    robust.check(good)
    place = (name, "methods", "separation 0", power, what)
    assert_refused(robust.check, good, place, values, message)


def test_a_class_ahead_of_its_equal_is_refused(robust, good):
    wrong = copy.deepcopy(good)
    for row in wrong[robust.EQUAL]["methods"]["separation 0"].values():
        row["rare"] = [0.9, 0.9, 0.9]
    with pytest.raises(AssertionError, match="is ahead"):
        robust.check(wrong)
