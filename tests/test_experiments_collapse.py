"""Neural collapse under imbalance, at a small size: closed forms, nulls, and a check that fails."""

import json

import numpy as np
import pytest

from jaxbalance import experiments
from tests.experiment_helpers import assert_refused, kept

pytestmark = pytest.mark.usefixtures("as_users_do")

SMALL = {
    "steps": 700,
    "step_sizes": (0.1,),
    "seeds": 2,
    "merge_decays": (0.1,),
    "merge_at": (0.5, 1.5),
    "image_counts": (30, 30, 25, 25, 20, 20, 15, 15, 10, 10),
    "hidden": 6,
    "image_steps": 3,
    "image_step_sizes": (0.003,),
}


@pytest.fixture(scope="module")
def collapse():
    return experiments.load("neural_collapse_imbalanced")


@pytest.fixture(scope="module")
def result(collapse, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return experiments.run(collapse, collapse.Config(**SMALL), results=folder)


@pytest.fixture(scope="module")
def numbers(collapse, result):
    """Three steps on images prove nothing: the rest is what is checked."""
    return {name: row for name, row in result.numbers.items() if name not in collapse.IMAGES}


def test_it_keeps_its_results(result):
    assert "images" in result.provenance["check"]
    assert all(np.isfinite(values).all() for values in kept(result).values())


def test_claim_and_null_hold_of_free_features(collapse, numbers):
    collapse.check(numbers)


def test_lengths_are_those_of_one_layer(collapse, numbers):
    counts, total = np.array(collapse.Config().counts), sum(collapse.Config().counts)
    for name, decay in (("one layer", 2e-3), ("one layer, strong decay", 3e-2)):
        expected = np.maximum(np.sqrt(counts) - total * decay, 0)
        np.testing.assert_allclose(numbers[name]["rows"], expected, atol=2e-6)


def test_minorities_merge_where_derived(numbers):
    row = numbers["merging, 0.1"]
    assert row["end"] == pytest.approx((1 / 0.1**2 - 5) / 5)
    assert row["ratios"] == pytest.approx([1, 9.5, 28.5])
    assert row["cosine"][0] == pytest.approx([-1 / 9] * 3, abs=1e-5)


def test_the_check_can_fail(collapse, numbers):
    lengths, apart = numbers["one layer"]["rows"], numbers["merging, 0.1"]["apart"]
    unequal = [1.01, *numbers["equal, two layers"]["rows"][1:]]
    for name, key, value in (
        ("one layer", "largest error", 1e-3),
        ("one layer", "rows", lengths[::-1]),
        ("two layers", "to simplex", numbers["two layers"]["to frame"]),
        ("equal, with a bias", "to simplex", numbers["equal, one layer"]["to simplex"]),
        ("equal, two layers", "rows", unequal),
        ("merging, 0.1", "apart", apart[::-1]),
        ("merging, 0.1", "cosine", [[0.5, 0.5, 0.5], *numbers["merging, 0.1"]["cosine"][1:]]),
    ):
        assert_refused(collapse.check, numbers, (name, key), value)


def test_the_summary_says_what_was_found(collapse, result):
    text = collapse.summary(json.loads(json.dumps(result.numbers)))
    headline, _, table = text.partition("\n")
    assert "one at ratios 28 (derived: 19)" in headline
    assert table.count("\n| ") == 2 + len(collapse.FREE) + len(collapse.IMAGES)
