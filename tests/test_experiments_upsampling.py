"""Sampling against weighting, and the order of tasks, at a small size."""

import numpy as np
import pytest

from jaxbalance import experiments
from tests.experiment_helpers import assert_refused, kept

pytestmark = pytest.mark.usefixtures("as_users_do")


@pytest.fixture(scope="module")
def upsample():
    return experiments.load("upsample_vs_upweight")


@pytest.fixture(scope="module")
def result(upsample, tmp_path_factory):
    small = upsample.Config(
        sizes=(60, 12, 5),
        test_examples=4,
        hidden=3,
        batch_size=4,
        temperatures=(1.0, 3.0),
        cooldown_from=3.0,
        step_sizes=(0.3,),
        records=3,
        seeds=2,
        batches=200,
        # As many steps everywhere: one program trains them all.
        **dict.fromkeys(("steps", "early_steps", "memorise_steps"), 6),
    )
    return experiments.run(upsample, small, results=tmp_path_factory.mktemp("results"))


def test_the_closed_form_has_both_signs(upsample):
    sizes = (1000, 100, 10)
    known = {(1, 1, 1): 4.616, (1, 1, 4): 16.8, (4, 1, 0.1): 0.277, (1, 0.05, 0.01): -0.144}
    for moments, value in known.items():
        assert upsample.noise_difference(sizes, 5.0, moments) == pytest.approx(value, rel=5e-3)
        assert upsample.noise_difference(sizes, 1.0, moments) == 0


def test_the_noise_is_that_of_all_draws(result, upsample):
    record = kept(result)
    for when in ("early", "memorised"):
        numbers = result.numbers["noise"][when]
        assert numbers["expected gradients apart"] < 1e-12
        assert numbers["closed form off by"] < 1e-9
        assert numbers["mini-batches off by, standard errors"] < 5
        # By hand: draws of all examples alike, each with its weight.
        wanted = upsample.probabilities((60, 12, 5), 3.0)
        plain = np.array([60, 12, 5]) / 77
        moments = record[f"{when}/moments"][0, 1]
        gap = record[f"{when}/weighting"][0, 1] - record[f"{when}/sampling"][0, 1]
        assert gap == pytest.approx(moments @ (wanted**2 / plain - wanted))


def test_at_temperature_one_both_are_one_run(result):
    record = kept(result)
    np.testing.assert_array_equal(record["sampling/1/loss"], record["weighting/1/loss"])
    assert np.any(record["sampling/3/loss"] != record["weighting/3/loss"])
    # Cooldown begins as the high temperature does, and leaves it at half the steps.
    hot, cool = record["sampling/3/train"], record["cooldown/train"]
    np.testing.assert_array_equal(hot[:, :2], cool[:, :2])
    assert np.any(hot[:, -1] != cool[:, -1])


def good(upsample):
    """Numbers such as the full size gives."""

    def noise(differences):
        rows = [[value, value - 0.1, value + 0.1] for value in differences[1:]]
        return {
            "expected gradients apart": 1e-16,
            "expected gradient moved from tau = 1": [0.5, 0.4, 0.6],
            "closed form off by": 1e-15,
            "mini-batches off by, standard errors": 2.0,
            "sampling": [[10.0] * 3] * 3,
            "weighting": [[10.0] * 3] * 3,
            "difference": [[0.0] * 3, *rows],
            "difference, drawn": [[0.0] * 3, *rows],
        }

    names = ("sampling/1", "sampling/5", "sampling/100", "weighting/1", "cooldown")
    methods = {
        name: {
            "step size": 0.3,
            "loss": [0.5] * 3,
            "test": [[0.5] * 3] * 3,
            "smallest, test less train": [gap] * 3,
            "smallest, risen since its best": [0.5] * 3,
        }
        for name, gap in zip(names, (0.5, 1.0, 1.5, 0.5, 0.9), strict=True)
    }
    return {
        "noise": {"early": noise([0, 30, 500]), "memorised": noise([0, -3, 1])},
        "methods": methods,
        "sampling ahead by": {"1": [0.0] * 3, "5": [0.2, 0.1, 0.3], "100": [0.3, 0.2, 0.4]},
        "cooldown": {
            "smallest, below tau = 1": [0.5, 0.4, 0.6],
            "smallest, gain kept": 1.0,
            "largest, loss given back": 0.8,
        },
    }


DOCTORED = {
    "unequal gradients": (("noise", "early", "expected gradients apart"), 0.01),
    "another variance": (("noise", "memorised", "closed form off by"), 0.01),
    "noise at tau = 1": (("noise", "early", "difference", 0), [1.0, 0.5, 1.5]),
    "no sign turned": (("noise", "memorised", "difference", 1), [3.0, 2.0, 4.0]),
    "null broken": (("sampling ahead by", "1"), [0.1, 0.0, 0.2]),
    "weighting ahead": (("sampling ahead by", "100"), [-0.3, -0.4, -0.2]),
    "no overfitting": (("methods", "sampling/100", "smallest, test less train"), [0.1] * 3),
    "no cooldown": (("cooldown", "largest, loss given back"), 0.0),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_the_check_refuses(upsample, name):
    numbers = good(upsample)
    upsample.check(numbers)
    assert upsample.summary(numbers).startswith("Weighting has")
    assert_refused(upsample.check, numbers, *DOCTORED[name])


@pytest.fixture(scope="module")
def order():
    return experiments.load("order_matters")


def test_the_order_of_tasks_runs(order, tmp_path):
    sizes = {"large": 30, "small": 6, "test_examples": 5, "hidden": 3, "steps": 10, "batch_size": 4}
    small = order.Config(**sizes, rates=(0.2,), step_sizes=(0.01, 0.1), records=5, seeds=2)
    result = experiments.run(order, small, results=tmp_path)
    record = kept(result)
    assert order.summary(result.numbers).startswith("Where tasks are alike")
    assert set(result.numbers["fronts"]["both large"]["10%"]) == set(order.METHODS[:3])
    train = {method: record[f"alike/{method}/train"] for method in order.METHODS}
    # Pre-training is on its own path at once, the late ones are one until the first switch.
    steps = record["alike/static/steps"]
    assert np.any(train["static"][..., 1, :] != train["pre-training"][..., 1, :])
    late = steps <= 8
    np.testing.assert_array_equal(
        train["late, last 20 %"][..., late, :], train["late, last 10 %"][..., late, :]
    )


def test_policies_draw_what_they_say(order):
    one = order.setting(order.Config(large=90, small=10, steps=100), "alike")
    shares = {
        method: order.policy(one, method, 0.5, 0.1).draw[:, 1].tolist() for method in order.METHODS
    }
    late = pytest.approx([0.1, 0.5])
    expected = ([0.5, 0.5], [0.5, 0.5], [0.0, 0.5], late, late)
    assert list(shares.values()) == list(expected)
    switches = [int(order.policy(one, method, 0.5, 0.1).switch) for method in order.METHODS]
    assert switches == [100, 80, 80, 80, 90]


def test_runs_are_chosen_on_validation_within_the_limit(order):
    # One share, two step sizes, two seeds, two records, two tasks.
    validation = np.array([[[1.0, 9.0], [1.2, 5.0]], [[1.0, 9.0], [1.2, 5.0]]])
    validation = np.stack([validation, [[[1.1, 7.0], [2.0, 1.0]]] * 2])[None]
    record = {
        "part/validation": validation,
        "part/test": validation + 100,
        "part/diverged": np.zeros((1, 2, 2), bool),
        "part/rates": np.array([0.5]),
        "part/sizes": np.array([0.1, 0.3]),
        "part/steps": np.array([0, 8]),
    }
    found = order.chosen(record, "part", np.array([1.15, 0.5]))
    # The first seed takes the best within the limit, the second what comes nearest to it.
    np.testing.assert_array_equal(found["test"], [[101.1, 107.0], [101.0, 109.0]])
    assert found["size"].tolist() == [0.3, 0.1]
    record["part/diverged"][0, 1, 0] = True
    assert order.chosen(record, "part", np.array([1.15, 0.5]))["test"][0].tolist() == [101.0, 109.0]


def order_numbers(order, pre=0.02, restart=0.0, null=-0.1, above=0.1):
    def limits(values):
        return {"10%": {m: {"small, below static": [v, v, v]} for m, v in values.items()}}

    alike = dict.fromkeys(order.METHODS, 0.0) | {"pre-training": pre, "restart": restart}
    return {
        "fronts": {"alike": limits(alike), "both large": limits({"pre-training": null})},
        "small, training loss above static": {"pre-training": [above] * 3},
    }


def test_the_check_of_the_order_refuses(order):
    order.check(order_numbers(order))
    for wrong in ({"pre": 0.0}, {"restart": 0.02}, {"null": 0.02}, {"above": -0.1}):
        with pytest.raises(AssertionError):
            order.check(order_numbers(order, **wrong))
