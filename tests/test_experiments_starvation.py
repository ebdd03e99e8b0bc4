"""Gradient starvation at a tiny size: it runs, its fixed points are right, it can fail."""

import copy

import numpy as np
import pytest
from scipy.optimize import brentq, fsolve

from jaxbalance import experiments
from tests.experiment_helpers import assert_refused, kept

pytestmark = pytest.mark.usefixtures("as_users_do")


@pytest.fixture(scope="module")
def starvation():
    return experiments.load("gradient_starvation")


@pytest.fixture(scope="module")
def result(starvation, tmp_path_factory):
    small = {"examples": 20, "hidden": 4, "steps": 3, "seeds": 2, "step_sizes": (0.1, 0.2)}
    config = starvation.Config(strong=(2.0, 5.0), toy_steps=20_000, **small)
    return experiments.run(starvation, config, results=tmp_path_factory.mktemp("results"))


def test_it_runs_and_keeps_its_results(starvation, result):
    kept(result)
    lines = starvation.summary(result.numbers).splitlines()
    assert f"{result.numbers['margin/plain']['accuracy'][0]:.3f}" in lines[0]
    assert sum(line.startswith(("| margin/", "| overlap/", "| unmoved/")) for line in lines) == 18


def test_fixed_points_are_roots(starvation, result):
    toy, basis = result.numbers["fixed points"], starvation.directions()
    np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-15)
    for strong, found in zip(toy["strong"], toy["weak response, weight decay"], strict=True):
        kernel = basis @ np.diag([strong**2, 4.0]) @ basis.T
        margins = fsolve(lambda u, k=kernel: u - k @ (1 / (1 + np.exp(u))) / 0.01, np.full(2, 4.0))
        np.testing.assert_allclose(found, basis[:, 1] @ margins, atol=1e-4)
    level = brentq(lambda u: 1 / (1 + np.exp(u)) - 0.002 * u, 0, 50)
    np.testing.assert_allclose(
        toy["weak response, decoupling"], level * basis[:, 1].sum(), atol=1e-4
    )
    assert toy["largest difference to trained"] < 1e-4


@pytest.mark.parametrize(("kind", "gap"), [("margin", 0.1), ("overlap", -0.1)])
def test_moons_lie_as_far_apart_as_they_should(starvation, kind, gap):
    points, labels = starvation.moons(starvation.Config(), kind, 3)
    measured = points[labels > 0, 1].min() - points[labels < 0, 1].max()
    np.testing.assert_allclose(measured, gap, atol=1e-6)
    unmoved, _ = starvation.moons(starvation.Config(), "unmoved", 3)
    np.testing.assert_array_equal(points[:, 0], unmoved[:, 0])
    np.testing.assert_allclose(np.ptp((points - unmoved)[labels > 0, 1]), 0, atol=1e-6)


def good(numbers):
    """Numbers of a run in which all that is claimed holds."""
    numbers = copy.deepcopy(numbers)
    for name, row in numbers.items():
        if "/" in name:
            cured = not name.startswith(("margin/plain", "margin/weight"))
            value = 0.99 if cured else 0.87
            row |= {"accuracy": 3 * [value], "training accuracy": 3 * [1.0]}
            row["bend"] = 3 * [0.5 if cured else 0.1]
    return numbers


BROKEN = [
    ("margin/plain", "accuracy", [0.95, 0.95, 0.95]),
    ("margin/weight decay 0.01", "bend", [0.5, 0.5, 0.5]),
    ("margin/decoupling 0.006", "accuracy", [0.9, 0.9, 0.9]),
    ("unmoved/plain", "accuracy", [0.9, 0.87, 0.92]),
    ("fixed points", "weak response, weight decay", [1.2, 1.6]),
    ("fixed points", "weak response, decoupling", [1.7, 1.6]),
    ("fixed points", "largest difference to trained", 0.1),
]


@pytest.mark.parametrize(("name", "what", "value"), BROKEN)
def test_the_check_can_fail(starvation, result, name, what, value):
    fine = good(result.numbers)
    starvation.check(fine)
    assert_refused(starvation.check, fine, (name, what), value)
