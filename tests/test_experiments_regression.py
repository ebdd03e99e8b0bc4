"""Classification beside regression, at a small size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbalance import experiments
from tests.experiment_helpers import assert_refused, kept

pytestmark = pytest.mark.usefixtures("as_users_do")


@pytest.fixture(scope="module")
def experiment():
    return experiments.load("classification_helps_regression")


@pytest.fixture(scope="module")
def small(experiment):
    sizes = {"examples": 200, "test_examples": 400, "hidden": 3, "budgets": (3,), "batch_size": 4}
    grid = {"coefficients": (1.0,), "step_sizes": (0.01,), "seeds": 2, "many": 20, "few": 5}
    return experiment.Config(**sizes, **grid, classes=4)


def test_it_runs_and_keeps_its_results(experiment, small, tmp_path):
    result = experiments.run(experiment, small, results=tmp_path)
    record = kept(result)
    row = result.numbers["settings"]["imbalanced, 3 steps"]["losses"]["1"]
    with_it, alone = (
        record[f"imbalanced, 3 steps/{name}/test"].mean(axis=-1)[0] for name in ("1", "0")
    )
    assert row["gain"] == pytest.approx(1 - with_it.mean() / alone.mean(), abs=1e-3)
    assert row["better in"] == np.sum(with_it < alone)
    assert experiment.summary(result.numbers).startswith("The published gain does not show")


def test_targets_are_as_wanted(experiment, small):
    even, peaked = (experiment.draw(small, kind, 0) for kind in ("balanced", "imbalanced"))
    for problem in (even, peaked):
        assert problem.counts.sum() == small.examples
        assert np.all(np.diff(problem.edges[np.isfinite(problem.edges)]) > 0)
        # Held-out targets are even and without noise.
        held = np.bincount((problem.test_targets * 20).astype(int).clip(0, 19), minlength=20)
        assert held.min() > 5
        assert problem.test_targets.min() >= 0
    assert even.counts.min() > 2
    assert peaked.counts.max() > 5 * np.median(peaked.counts)
    noise = peaked.targets.std() ** 2 - np.var(peaked.targets.clip(0, 1))
    assert abs(noise) < 0.01


def test_the_objective_is_squared_error_and_cross_entropy(experiment, small):
    params = jax.jit(experiment.initial, static_argnums=0)(small, jax.random.key(0))
    inputs, targets = jnp.array([[0.1], [-0.4]]), jnp.array([0.2, 0.9])
    edges = jnp.array([0.0, 0.3, 0.6, jnp.inf, jnp.inf])
    values, logits = jax.jit(experiment.predict)(params, inputs)
    squared = np.mean((np.asarray(values) - np.asarray(targets)) ** 2)
    logs = np.asarray(jax.nn.log_softmax(logits))
    entropy = -(logs[0, 0] + logs[1, 2]) / 2
    found = jax.jit(experiment.objective)(params, 0.5, inputs, targets, edges)
    assert float(found) == pytest.approx(squared + entropy / 2, rel=1e-5)


def numbers():
    def losses(error, chosen_gain):
        groups = {"many": [0.01] * 3, "medium": [0.02] * 3, "few": [0.05] * 3}
        rows = {"0": 0.0, "0.01": chosen_gain, "1": -0.5}
        return {
            name: {"error": [error] * 3, "error by group": dict(groups), "gain": gain}
            for name, gain in rows.items()
        }

    settings = {
        "imbalanced, 9 steps": {"chosen": "0.01", "losses": losses(0.03, 0.02)},
        "balanced, 9 steps": {"chosen": "0.01", "losses": losses(0.01, -0.02)},
    }
    return {"settings": settings}


DOCTORED = {
    "few shots no worse": ("imbalanced", "0", "error by group", {"many": [1], "few": [1]}),
    "imbalance harmless": ("imbalanced", "0", "error", [0.01] * 3),
    "a gain after all": ("imbalanced", "0.01", "gain", 0.3),
    "null broken": ("balanced", "0.01", "gain", 0.3),
    "a free lunch": ("balanced", "1", "gain", 0.1),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_the_check_refuses(experiment, name):
    experiment.check(numbers())
    sampling, loss, what, value = DOCTORED[name]
    place = ("settings", f"{sampling}, 9 steps", "losses", loss, what)
    assert_refused(experiment.check, numbers(), place, value)
