"""Experiments that check theory, at a small size: they run, keep their results, and can fail."""

import importlib
import json
import math
import pathlib
import sys

import jax
import numpy as np
import pytest
from scipy.stats import norm

from jaxbalance import experiments

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "experiments"


RESULTS = {"config.json", "numbers.json", "provenance.json", "record.npz", "figure.png"}


@pytest.fixture(scope="module", autouse=True)
def as_users_do():
    """An experiment is a user's program: JAX's own defaults hold."""
    sys.path.insert(0, str(FOLDER))
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def disparity():
    return importlib.import_module("accuracy_disparity")


@pytest.fixture(scope="module")
def numbers(disparity, tmp_path_factory):
    small = disparity.Config(ratios=(1.0, 5.0), step_sizes=(0.1,), seeds=2)
    folder = tmp_path_factory.mktemp("results")
    result = experiments.run(disparity, small, results=folder)
    assert {path.name for path in result.place.iterdir()} == RESULTS
    assert result.holds
    assert disparity.summary(result.numbers).splitlines()[0].endswith("there is none.")
    return result.numbers


def test_the_claim_and_its_null_hold(disparity, numbers):
    disparity.check(numbers)
    exact = numbers["l2, R=5"]["exact gap"][0]
    length = math.sqrt(2 + 18 * 0.2**2)
    rare, frequent = (norm.cdf(-length / 2 + s * math.log(5) / length) for s in (1, -1))
    assert exact == pytest.approx(rare - frequent, abs=6e-4)


def test_the_check_can_fail(disparity, numbers):
    for name, place in (("l2, R=1", 0), ("linf, R=5", 2)):
        wrong = json.loads(json.dumps(numbers))
        wrong[name]["gap"][place][0] = 0.5
        with pytest.raises(AssertionError):
            disparity.check(wrong)
    assert np.isclose(numbers["l2, R=1"]["exact gap"], 0).all()


def test_tail_curvature_keeps_its_results(tmp_path):
    curvature = importlib.import_module("tail_curvature")
    sizes = {"hidden": 4, "steps": 3, "step_sizes": (0.1,), "seeds": 1, "iterations": 4}
    result = experiments.run(curvature, curvature.Config(**sizes, probes=2), results=tmp_path)
    assert {path.name for path in result.place.iterdir()} == RESULTS
    assert curvature.summary(result.numbers).startswith("Rare classes end ")
    with np.load(result.place / "record.npz") as record:
        largest = next(record[name] for name in record if name.endswith("/largest"))
        assert largest.shape == (1, 10)
        assert np.all(np.isfinite(largest))
