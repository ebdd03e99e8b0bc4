"""Experiments that check theory, at a small size: they run, keep their results, and can fail."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from jaxbalance import experiments
from tests.experiment_helpers import assert_refused, kept

pytestmark = pytest.mark.usefixtures("as_users_do")


@pytest.fixture(scope="module")
def disparity():
    return experiments.load("accuracy_disparity")


@pytest.fixture(scope="module")
def numbers(disparity, tmp_path_factory):
    sizes = {"majority": 1000, "steps": 100, "seeds": 2}
    small = disparity.Config(ratios=(1.0, 5.0), step_sizes=(0.1,), **sizes)
    result = experiments.run(disparity, small, results=tmp_path_factory.mktemp("results"))
    kept(result)
    assert result.holds, result.provenance["check"]
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
        assert_refused(disparity.check, numbers, (name, "gap", place, 0), 0.5)
    assert np.isclose(numbers["l2, R=1"]["exact gap"], 0).all()


def test_tail_curvature_keeps_its_results(tmp_path):
    curvature = experiments.load("tail_curvature")
    sizes = {"hidden": 4, "steps": 3, "step_sizes": (0.1,), "seeds": 1, "iterations": 4}
    # At this ratio both kinds have as many examples: what is compiled serves both.
    small = curvature.Config(ratio=4.0, **sizes, probes=2)
    result = experiments.run(curvature, small, results=tmp_path)
    record = kept(result)
    assert curvature.summary(result.numbers).startswith("Rare classes end ")
    every = [values for name, values in record.items() if name.endswith("/largest")]
    assert len(every) == 9
    assert all(values.shape == (1, 10) and np.all(np.isfinite(values)) for values in every)
