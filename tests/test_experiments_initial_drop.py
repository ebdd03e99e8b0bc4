"""The minority initial drop at a tiny size: it runs, its numbers are right, and it can fail."""

import copy
import sys

import jax
import numpy as np
import pytest

from jaxbalance import experiments
from tests.experiment_helpers import kept

pytestmark = pytest.mark.usefixtures("as_users_do")


@pytest.fixture(scope="module")
def drop():
    return experiments.load("minority_initial_drop")


@pytest.fixture(scope="module")
def config(drop):
    sizes = {"dimension": 4, "hidden": 3, "examples": 44, "full_steps": 12, "seeds": 2}
    # As many examples, rows and steps wherever there are batches, so that one program draws all.
    batches = {"batch_examples": 44, "image_examples": 44, "batch_size": 12, "image_batch": 12}
    steps = {"batch_steps": 100, "image_steps": 100}
    few = {"ratios": (1, 10), "offsets": (4.0,), "image_ratio": 10}
    return drop.Config(**sizes, **batches, **steps, **few)


@pytest.fixture(scope="module")
def result(drop, config, tmp_path_factory):
    """Of all methods on mini-batches, and one on images: compiling is all the time this takes."""
    every = drop.parts(config)
    left_out = {f"images/{method}" for method in (*drop.METHODS, "PCNGD")}
    assert left_out < set(every)
    some = {name: part for name, part in every.items() if name not in left_out}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drop, "parts", lambda config: some)
        return experiments.run(drop, config, results=tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def record(result):
    return kept(result)


def test_it_runs_and_keeps_its_results(drop, result):
    text = drop.summary(result.numbers)
    assert text.splitlines()[0].startswith("Gradient descent first multiplies")
    for method in drop.METHODS:
        assert f"| offset 4/{method} |" in text
    assert "| all examples 10:1/PCNGD |" in text


def test_what_is_known_exactly(result):
    known = result.numbers["logistic"]
    # (1 + m^2 + mu^2) / (1 + m^2 - mu^2), which is below zero once.
    wanted = [17 / 15, 5 / 3, 1.81 / 0.19, None, 6.44 / 3.56, 9.0]
    np.testing.assert_allclose(
        [x or 0 for x in known["thresholds"]], [x or 0 for x in wanted], rtol=1e-9
    )
    two = result.numbers["two points"]
    times, losses = np.array(two["time of the top"]), np.array(two["loss"])
    # The flow as an implicit method of SciPy has it.
    np.testing.assert_allclose(times[:3, 1], [39383, 17936, 44.1], rtol=2e-3)
    np.testing.assert_allclose(losses[:3, 1], [8.023, 5.411, 1.922], rtol=2e-4)
    np.testing.assert_allclose(losses[3], np.log(2), rtol=1e-12)
    assert two["normalized error"] < 1e-9


def test_the_first_step_is_what_numpy_says(drop, config, record):
    """One step of GD and of PCNGD, from gradients of the linear head by hand."""
    module = sys.modules["_initial_drop"]
    counts = module.sizes(config.examples, 10)
    assert counts == (40, 4)
    problem = module.gaussians(config, counts, 4.0, 1)
    inputs, labels, params = problem.inputs, problem.labels, problem.params

    def losses(params):
        hidden = np.tanh(inputs @ params["kernel"] + params["bias"])
        scores = hidden @ params["head"] + params["shift"]
        own = scores[np.arange(len(labels)), labels]
        return np.log(np.exp(scores).sum(axis=1)) - own

    def class_gradients(step=1e-6):
        found = []
        for name, leaf in params.items():
            for place in np.ndindex(leaf.shape):
                ends = []
                for sign in (1, -1):
                    moved = {key: value.copy() for key, value in params.items()}
                    moved[name][place] += sign * step
                    ends.append(losses(moved))
                slope = (ends[0] - ends[1]) / (2 * step) / len(labels)
                found.append([slope[labels == k].sum() for k in range(2)])
        return np.array(found).T

    grads = class_gradients()
    units = grads / np.linalg.norm(grads, axis=1, keepdims=True)
    for method, total, sizes in (("GD", grads, config.sizes), ("PCNGD", units, config.lengths)):
        flat = -sizes[drop.SMALL] * total.sum(axis=0)
        moved, used = {}, 0
        for name, leaf in params.items():
            moved[name] = leaf + flat[used : used + leaf.size].reshape(leaf.shape)
            used += leaf.size
        wanted = [losses(moved)[labels == k].mean() for k in range(2)]
        seen = record[f"all examples/{method}/loss"][drop.SMALL, 1, 1, 1]
        np.testing.assert_allclose(seen, wanted, rtol=1e-7)


def test_batches_hold_what_they_should(drop):
    module = sys.modules["_initial_drop"]
    assert module.batch_sizes("PCNSGD", 62, 60) == (61, 1)
    assert module.batch_sizes("PCNSGD+O", 62, 60) == (31, 31)
    rows = np.asarray(module.batches(jax.random.key(0), (20, 4), (5, 3), 4))
    assert sorted(rows[:, :5].ravel()) == list(range(20))
    assert set(rows[:, 5:].ravel()) == {20, 21, 22, 23}


def good(drop, numbers):
    """Numbers of a run in which all that is claimed holds."""
    numbers = copy.deepcopy(numbers)
    numbers["images/PCNGD"] = dict(numbers["images/GD"])
    peak, falls = "highest / first loss", 3 * [1.0]
    for name, row in numbers.items():
        if "/" in name:
            row |= {peak: falls, drop.DELAY: [3, 3]}
            row |= {"minority, progress": 3 * [-0.1]} if name == "offset 4/PCNSGD" else {}
    for name in ("all examples 10:1/GD", "offset 4/SGD", "offset 4/PCNSGD", "images/GD"):
        numbers[name] |= {peak: 3 * [2.0], drop.DELAY: [9, 9]}
    return numbers


BROKEN = [
    ("all examples 1:1/GD", [1.2, 1.0, 1.4]),
    ("all examples 10:1/GD", [1.0, 1.0, 1.0]),
    ("all examples 10:1/PCNGD", [1.1, 1.0, 1.3]),
    ("offset 4/SGD", [1.0, 1.0, 1.0]),
    ("offset 4/PCNSGD", [1.0, 1.0, 1.0]),
    ("offset 4/PCNSGD+O", [1.2, 1.0, 1.4]),
    ("offset 4/PCNSGD+R", [1.2, 1.0, 1.4]),
    ("images/GD", [1.0, 1.0, 1.0]),
    ("images/PCNGD", [2.0, 2.0, 2.0]),
    ("balanced images/GD", [1.5, 1.4, 1.6]),
]


@pytest.mark.parametrize(("name", "value"), BROKEN)
def test_the_check_can_fail(drop, result, name, value):
    fine = good(drop, result.numbers)
    drop.check(fine)
    fine[name]["highest / first loss"] = value
    with pytest.raises(AssertionError):
        drop.check(fine)


def test_the_check_looks_at_closed_forms_and_delays(drop, result):
    for name, what, value in (
        ("logistic", "error of 1 / threshold", 0.1),
        ("logistic", "rises below and above", 6 * [[True, True]]),
        ("logistic", "overlap", [0.7, 3.0, 0.7]),
        ("two points", "normalized error", 0.1),
        ("two points", "loss", 4 * [[1.0, 2.0]]),
        ("all examples 10:1/GD", drop.DELAY, [2, 2]),
    ):
        wrong = good(drop, result.numbers)
        wrong[name][what] = value
        with pytest.raises(AssertionError):
            drop.check(wrong)
