"""Self-paced ensembles at a small size: parts, members and averages are those described."""

import dataclasses

import jax
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from jaxbalance import experiments
from tests.experiment_helpers import assert_refused, doctored, kept

pytestmark = pytest.mark.usefixtures("as_users_do")


@pytest.fixture(scope="module")
def paced():
    return experiments.load("self_paced_ensemble")


@pytest.fixture(scope="module")
def small(paced):
    return paced.Config(
        minority=6,
        validation_minority=3,
        test_minority=6,
        overlaps=(0.001,),
        ratios=(4.0,),
        data_ratio=4.0,
        members=2,
        bins=3,
        hidden=(4,),
        steps=2,
        step_sizes=(0.01, 0.1),
        seeds=2,
    )


@pytest.fixture(scope="module")
def result(paced, small, tmp_path_factory):
    """One member, and a table as large as the checkerboard, so that few programs are compiled."""
    folder, generator = tmp_path_factory.mktemp("results"), np.random.default_rng(0)
    table, labels = generator.normal(size=(75, 2)), np.repeat([5, 3], [60, 15])
    np.savez(folder / "table.npz", X=table, y=labels)
    config = dataclasses.replace(small, members=1, data=(str(folder / "table.npz"),))
    return experiments.run(paced, config, results=folder)


def boards(paced, small):
    return tuple(paced.checkerboard(small, 0.001, 4.0, seed) for seed in range(small.seeds))


def test_every_part_leaves_a_finished_folder(paced, result):
    record = kept(result)
    board = "overlap 0.001, ratio 4"
    assert list(result.numbers["settings"]) == [board, paced.EQUAL, "data table"]
    assert result.numbers["difference of ensembles, equal classes"] == 0
    row = result.numbers["settings"][board]
    assert row["examples"] == result.numbers["settings"]["data table"]["examples"] == [24, 6]
    at = {m: np.argmax(record[f"{board}/{m}: validation"].mean(1)) for m in paced.METHODS}
    tests = {m: record[f"{board}/{m}: test"][at[m]] for m in paced.METHODS}
    lead = tests[paced.PACED] - tests[paced.RANDOM]
    # Two seeds: the 97.5 % point of Student's t with one degree of freedom is 12.706.
    ends = lead.mean() + 12.706 * np.abs(np.diff(lead)[0]) / 2 * np.array([0, -1, 1])
    np.testing.assert_allclose(row["methods"][paced.PACED][paced.LEAD], ends, atol=1e-3)
    lines = paced.summary(result.numbers).splitlines()
    assert sum(line.startswith("| ") for line in lines) == 2 + 3


def test_neighbouring_squares_are_of_different_classes(paced, small):
    sample = paced.checkerboard(small, 1e-8, 4.0, 0)
    assert (sample.train, sample.validation, sample.majority) == (30, 15, 24)
    assert np.bincount(sample.labels[45:]).tolist() == [24, 6]
    places = [np.unique(np.round(column, 2), return_inverse=True)[1] for column in sample.inputs.T]
    assert [len(np.unique(place)) for place in places] == [4, 4]
    np.testing.assert_array_equal((places[0] + places[1]) % 2, sample.labels)
    assert sample.known_labels()[30:].tolist() == [-1] * 45


def test_real_data_are_split_before_the_minority_is_thinned(paced, small):
    rarer = dataclasses.replace(small, data_ratio=60.0)
    one, other = (paced.real(rarer, "digits", seed) for seed in (0, 1))
    assert one.train - one.majority == round(one.majority / 60)
    assert one.labels[: one.train].tolist() == sorted(one.labels[: one.train].tolist())
    test = one.labels[one.train + one.validation :]
    assert test.sum() == pytest.approx(0.4 * 174, abs=1)
    assert len(np.unique(one.inputs, axis=0)) == len(one.inputs)
    assert not np.array_equal(one.inputs, other.inputs)
    with pytest.raises(ValueError, match="nowhere"):
        paced.real(small, "nowhere.npz", 0)


@pytest.mark.parametrize(
    ("bins", "factor", "wanted"),
    [(1, 0.0, None), (3, 0.0, [4, 1, 1]), (3, np.inf, [2, 2, 2])],
    ids=["random", "equal hardness", "equal numbers"],
)
def test_parts_of_the_majority_by_hardness(paced, small, bins, factor, wanted):
    """Bins of 12, 6 and 6 examples of hardness 0.1, 0.4 and 0.8, of which 6 are taken."""
    run = paced.Run(small, boards(paced, small))
    hardness = np.repeat([0.1, 0.4, 0.8], [12, 6, 6]).astype(np.float32)
    tiled = np.tile(hardness, (2, 2, 1))
    rows = paced.parts_by_hardness(run, tiled, bins, factor, jax.random.key(0))
    assert rows.shape == (2, 2, 12)
    for part in rows.reshape(-1, 12):
        np.testing.assert_array_equal(part[6:], np.arange(24, 30))
        assert len(np.unique(part)) == 12
        if wanted is not None:
            taken = np.searchsorted([0.2, 0.6], hardness[part[:6]])
            assert np.bincount(taken, minlength=3).tolist() == wanted
    assert not np.array_equal(np.sort(rows[0, 0]), np.sort(rows[0, 1]))


@pytest.mark.parametrize("method", ["self-paced parts", "random parts", "factor infinite"])
def test_members_see_the_errors_of_all_before_them_and_the_first_is_none(
    paced, small, method, monkeypatch
):
    samples, asked = boards(paced, small), []
    number_of = len(samples[0].labels)
    scores = [np.random.default_rng(i).random((2, 2, number_of)) for i in range(3)]
    draw = paced.parts_by_hardness

    def watched(run, hardness, bins, factor, key):
        asked.append((hardness, bins, float(factor)))
        return draw(run, hardness, bins, factor, key)

    monkeypatch.setattr(paced, "parts_by_hardness", watched)
    monkeypatch.setattr(
        paced.Run, "train", lambda run, chosen, number, weights, steps: scores[number]
    )
    found = paced.ensemble(paced.Run(small, samples), method)
    np.testing.assert_allclose(found, (scores[1] + scores[2]) / 2)
    np.testing.assert_array_equal(asked[0][0], 0)
    np.testing.assert_allclose(asked[1][0], scores[0][..., :24])
    np.testing.assert_allclose(asked[2][0], (scores[0] + scores[1])[..., :24] / 2)
    assert {bins for _, bins, _ in asked} == {1 if method == "random parts" else 3}
    if method == "self-paced parts":
        np.testing.assert_allclose([factor for *_, factor in asked], [0, 1, np.inf], rtol=1e-6)


def test_areas_are_those_of_scikit_learn(paced, small, generator):
    sample = boards(paced, small)[0]
    scores = generator.random(len(sample.labels))
    validation, test = paced._areas(scores, sample)
    for span, area in ((slice(30, 45), validation), (slice(45, None), test)):
        wanted = average_precision_score(sample.labels[span], scores[span])
        assert area == pytest.approx(wanted, abs=1e-6)


def test_the_check_can_fail(paced, result):
    lead = (f"{paced.LEAD}, all boards", paced.PACED)
    good = doctored(result.numbers, lead, [0.02, 0.01, 0.03])
    paced.check(good)
    assert_refused(paced.check, good, lead, [0.02, -0.001, 0.041], "not ahead")
    null = ("difference of ensembles, equal classes",)
    assert_refused(paced.check, good, null, 1e-6, "equal classes")


def test_one_seed_has_no_interval(paced):
    with pytest.raises(ValueError, match="seeds: got 1"):
        paced.parts(paced.Config(seeds=1))
