"""A folder of data sets: reading, resuming, ranks, tests and words."""

import importlib.util
import itertools
import json
import pathlib
import re

import numpy as np
import pytest
from scipy import stats

from jaxbalance import cli, compare
from jaxbalance.compare import (
    _suite_report,
    _suite_run,
    _suite_sources,
    _suite_statistics,
    _suite_table,
)
from tests.data_helpers import two_classes

pytestmark = pytest.mark.usefixtures("as_users_do")

SMALL = ["--seeds", "2", "--steps", "20", "--step-sizes", "0.01", "--methods", "post-hoc"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two good sets in one archive, a good table, and two that nothing can be learned from."""
    path, generator = tmp_path_factory.mktemp("sets"), np.random.default_rng(11)
    first, labels = two_classes(generator)
    second, others = two_classes(generator, rows=120, columns=5)
    second[::7, 1] = np.nan
    arrays = {"X__one": first, "y__one": labels, "X__two": second, "y__two": others}
    np.savez(path / "many.npz", names=np.array(["one", "two"]), **arrays)
    lines = [f"{row[0]:.3f},{'ab'[i % 2]},{labels[i]}" for i, row in enumerate(first)]
    (path / "table.csv").write_text("\n".join(["x,kind,class", *lines]) + "\n")
    (path / "lonely.csv").write_text("x,class\n1,0\n2,0\n")
    (path / "damaged.npz").write_bytes(b"PK\x03\x04 not a zip file")
    (path / "LICENSE").write_text("text")
    return path


@pytest.fixture(scope="module")
def finished(as_users_do, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    return out, compare.compare_suite(settings(folder, out))


def settings(folder, out, **changes):
    usual = {"methods": "post-hoc", "seeds": 2, "steps": 20, "step_sizes": (0.01,)}
    return compare.SuiteSettings(data=str(folder), out=out, **{**usual, **changes})


def test_a_folder_from_the_command_line(folder, finished, capsys):
    """Again, with everything finished before."""
    out, _ = finished
    assert cli.main(["compare", str(folder), "--out", str(out), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert f"{folder}: read as 5 data sets, compared one after the other" in printed
    assert "lonely failed" in printed
    assert "damaged failed" in printed
    names = {path.name for path in out.iterdir()}
    assert names == {"suite.md", "suite.json", "critical_difference.png", "data-sets"}
    assert (out / "critical_difference.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((out / "suite.json").read_text())
    assert [one["name"] for one in stored["data_sets"]] == ["one", "table", "two"]
    assert set(stored["failures"]) == {"lonely", "damaged"}
    assert "at least two" in stored["failures"]["lonely"]
    assert set(stored["summaries"]) == {"balanced_accuracy", "average_precision", "auroc"}
    check_table(stored)
    text = (out / "suite.md").read_text()
    for word in ("| post-hoc |", "| two | 120 | 5 | 2 | 7.0 |", "- lonely: "):
        assert word in text


def check_table(stored):
    for metric, summary in stored["summaries"].items():
        means = {
            name: [np.mean(one["values"][name][metric]) for one in stored["data_sets"]]
            for name in ("plain", "post-hoc")
        }
        difference = np.subtract(*(np.round(means[name], 5) for name in ("post-hoc", "plain")))
        rows = {row["method"]: row for row in summary["methods"]}
        gains = rows["post-hoc"]["gains"]
        assert gains["better"] == (difference > 1e-6).sum()
        assert gains["worse"] == (difference < -1e-6).sum()
        assert gains["quartiles"][1] == pytest.approx(np.median(difference), abs=2e-6)
        assert rows["plain"]["average_rank"] + rows["post-hoc"]["average_rank"] == 3


def test_the_readme_says_what_the_suite_found(finished, tmp_path):
    """The summary and the picture as they are, and of the README the marked paragraph alone."""
    path = pathlib.Path(__file__).resolve().parents[1] / "docs" / "show_suite.py"
    spec = importlib.util.spec_from_file_location("show_suite", path)
    show = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(show)
    (tmp_path / "docs" / "pages" / "images").mkdir(parents=True)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- suite: by -->\nold\n<!-- end of suite -->\nafter\n")
    for _ in range(2):
        show.main(finished[0], tmp_path)
        text = readme.read_text()
        assert re.fullmatch(
            r"before\n<!-- suite: by -->\n\nWhat helps[^<]*\n\n<!-- end of suite -->\nafter\n", text
        )
        assert "On [3 public two-class tables]" in text
        assert "none of 1 remedies" in " ".join(text.split())
    page = (tmp_path / "docs" / "pages" / "compare-suite.md").read_text()
    assert "\n### By balanced accuracy\n" in page
    assert (tmp_path / "docs" / "pages" / "images" / "critical_difference.png").exists()
    rows = made_up(np.random.default_rng(0), {"good": 0.05, "same": 0.0, "bad": -0.05})
    stored = json.loads(_suite_table.suite_json(rows._replace(facts={})))
    said = " ".join(show.in_short(stored).split())
    assert re.search(
        r"1 of 3 remedies .* by ([45]\.\d) to \1 points in the median; .* good\.", said
    )
    assert "In average precision 1 are. Taken alone, no more than 3 of the 40 tables" in said


def test_an_interrupted_suite_goes_on_and_gives_the_same(folder, finished, tmp_path, monkeypatch):
    _, undisturbed = finished
    heard = []

    def interrupt(what, runs, fraction):
        heard.append(what)
        if what == "two":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare.compare_suite(settings(folder, tmp_path / "b"), listener=interrupt)
    assert not (tmp_path / "b" / "suite.md").exists()
    heard.clear()
    report = compare.compare_suite(
        settings(folder, tmp_path / "b"), listener=lambda *news: heard.append(news[0])
    )
    assert heard[:2] == ["one (finished before)", "table (finished before)"]
    assert set(heard[2:]) == {"two"}
    for ours, theirs in zip(report.results, undisturbed.results, strict=True):
        assert ours._replace(seconds=0.0) == theirs._replace(seconds=0.0)
    assert report.verdict == undisturbed.verdict
    monkeypatch.setattr(_suite_run, "train_group", None)
    compare.compare_suite(settings(folder, tmp_path / "b"))
    # Other settings are other numbers, for which it would have to train.
    with pytest.raises(TypeError):
        compare.compare_suite(settings(folder, tmp_path / "b", steps=40))


def slow_rank(table):
    """Mean over data sets of one plus the number of better methods, ties counting half."""
    ranks = []
    for row in table:
        better = [sum(b > a for b in row) for a in row]
        equal = [sum(b == a for b in row) for a in row]
        ranks.append([1 + b + (e - 1) / 2 for b, e in zip(better, equal, strict=True)])
    return np.array(ranks)


def test_ranks_and_tests_by_hand(generator):
    table = generator.normal(size=(25, 5)) + np.array([0, 0, 0.7, 1.6, 1.8])
    table[::5, 1] = table[::5, 0]
    found = _suite_statistics.rank(table)
    ranks = slow_rank(table)
    np.testing.assert_allclose(found.average_ranks, ranks.mean(axis=0))
    number, methods = table.shape
    ties = sum(np.sum(np.unique(row, return_counts=True)[1] ** 3) - methods for row in ranks)
    squares = np.sum((ranks.sum(axis=0) - number * (methods + 1) / 2) ** 2)
    whole = 12 * squares / (number * methods * (methods + 1))
    chi = whole / (1 - ties / (number * methods * (methods**2 - 1)))
    value = (number - 1) * chi / (number * (methods - 1) - chi)
    expected = stats.f.sf(value, methods - 1, (methods - 1) * (number - 1))
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    raw = {
        (i, j): stats.wilcoxon(table[:, i], table[:, j], zero_method="zsplit").pvalue
        for i, j in itertools.combinations(range(5), 2)
    }
    worst = 0.0
    for place, pair in enumerate(sorted(raw, key=raw.get)):
        worst = max(worst, min(1.0, raw[pair] * (len(raw) - place)))
        assert found.pair_p_values[pair] == found.pair_p_values[pair[::-1]] == pytest.approx(worst)


def test_groups_are_the_longest_without_a_difference(generator):
    for _ in range(20):
        average = generator.permutation(7).astype(float)
        differ = np.triu(generator.random((7, 7)) < 0.25, 1)
        differ |= differ.T
        order = np.argsort(average)
        runs = [
            set(order[a:b].tolist())
            for a, b in itertools.combinations(range(8), 2)
            if b - a > 1 and not differ[np.ix_(order[a:b], order[a:b])].any()
        ]
        longest = {frozenset(run) for run in runs if not any(run < other for other in runs)}
        groups = _suite_statistics._groups(average, differ)
        assert {frozenset(group) for group in groups} == longest
        assert len(groups) == len(longest)


@pytest.mark.parametrize("shape", [(1, 4), (6, 1), (6, 2), (6, 4)])
def test_nothing_to_tell_apart_is_no_error(shape):
    found = _suite_statistics.rank(np.full(shape, 0.5))
    assert found.p_value == 1
    assert (found.pair_p_values == 1).all()
    np.testing.assert_allclose(found.average_ranks, (shape[1] + 1) / 2)


def test_useless_remedies_are_seldom_called_different(generator):
    """100 suites of 15 data sets and 4 equal methods."""
    wrong = 0
    for _ in range(100):
        found = _suite_statistics.rank(generator.normal(size=(15, 4)))
        wrong += found.p_value < 0.05 and bool((found.pair_p_values < 0.05).any())
    # At a true rate of 5 %, more than 16 of 100 once in about 100,000 seeds.
    assert wrong <= 16


def made_up(generator, gains, *, number=40, missing=()):
    """Results of suites whose remedies gain what ``gains`` says."""
    results = []
    for i in range(number):
        base = generator.uniform(0.6, 0.7, size=3)
        values = {
            name: {
                m: list(base + gain + generator.normal(0, 0.01, 3)) for m in _suite_report.METRICS
            }
            for name, gain in {"plain": 0.0, **gains}.items()
        }
        if i in missing:
            values["plain"]["average_precision"] = [float("nan")] * 3
        signs = {name: int(i < 3 and gain > 0) for name, gain in gains.items()}
        sizes = {"examples": 10, "columns": 2, "classes": 2, "imbalance_ratio": [5, 20, 90][i % 3]}
        results.append(
            _suite_report.SetResult(
                name=f"s{i}", **sizes, values=values, significant=signs, notes=[], seconds=1.0
            )
        )
    return _suite_report.build_suite_report(["plain", *gains], results, {}, {})


def test_the_verdict_says_what_the_numbers_say(generator):
    report = made_up(generator, {"good": 0.05, "same": 0.0, "bad": -0.05}, missing=(4, 5))
    summary = report.summaries["balanced_accuracy"]
    assert summary.rows[0].method == "good"
    good = next(row for row in summary.rows if row.method == "good")
    assert [good.by_band[name].number for _, _, name in _suite_report.BANDS] == [14, 13, 13]
    assert (good.single_wins, good.single_losses) == (3, 0)
    text = " ".join(report.verdict)
    assert re.search(
        r"above plain training in balanced accuracy .*: good \(\+[45]\.\d; 40 of 40\)", text
    )
    assert re.search(r"Significantly below: bad \(-[45]\.\d; 0 of 40\)", text)
    assert "Not distinguishable from plain: same." in text
    assert re.search(r"By AUROC, above plain: good [^;]*; \d+ of \d+\); below: bad", text)
    assert "good, the most often significant by itself, is so on 3 of 40" in text
    assert report.summaries["average_precision"].number == 38
    assert any("AP: not defined on 2 data sets" in note for note in report.notes)


def test_no_difference_is_called_none(generator):
    report = made_up(generator, {"same": 0.0, "alike": 0.0}, number=12)
    text = " ".join(report.verdict)
    assert "no difference between methods is certain" in text
    assert "above plain training" not in text


def test_what_a_folder_is(folder, tmp_path):
    assert _suite_sources.is_suite(str(folder))
    assert _suite_sources.is_suite(str(folder / "many.npz"))
    assert not _suite_sources.is_suite(str(folder / "table.csv"))
    assert not _suite_sources.is_suite("digits")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert not _suite_sources.is_suite(str(empty))
    own = tmp_path / "yeast"
    own.mkdir()
    np.savez(own / "yeast.npz", X=np.eye(4), y=np.arange(4) % 2)
    (own / "yeast.csv").write_text("x,class\n1,0\n2,1\n")
    assert not _suite_sources.is_suite(str(own))
    assert [one.name for one in _suite_sources.find(str(tmp_path))] == ["yeast"]
    images = tmp_path / "images"
    images.mkdir()
    (images / "train-images-idx3-ubyte.gz").write_bytes(b"")
    (images / "extra.csv").write_text("x\n1\n")
    assert not _suite_sources.is_suite(str(images))


def test_codes_become_levels(tmp_path):
    path = tmp_path / "coded.npz"
    inputs = np.array([[0.0, 5.0], [2.0, 6.0], [np.nan, 7.0], [0.0, 8.0]])
    coded = np.array([True, False])
    np.savez(path, X__a=inputs, y__a=np.array([0, 1, 0, 1]), cat__a=coded, X__b=inputs)
    first, second = _suite_sources.find(str(path))
    dataset = first.read(None)
    assert dataset.feature_names == ("x0=0", "x0=2", "x0=missing", "x1")
    np.testing.assert_array_equal(dataset.inputs[:, :3].argmax(axis=1), [0, 1, 2, 0])
    with pytest.raises(ValueError, match="X__b but no y__b"):
        second.read(None)
    with pytest.raises(ValueError, match="leave out the target 'z'"):
        first.read("z")
    np.savez(path, X__a=inputs, y__a=np.arange(4) % 2, cat__a=np.ones(3, bool))
    with pytest.raises(ValueError, match=r"cat__a has shape \(3,\)"):
        _suite_sources.find(str(path))[0].read(None)


def test_a_damaged_member_and_names_that_are_alike(tmp_path):
    inputs, labels = np.zeros((50, 2)), np.arange(50) % 2
    np.savez(tmp_path / "a.npz", X__b=inputs, y__b=labels)
    (tmp_path / "b.csv").write_text("x,class\n1,0\n2,1\n")
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[300:310] = bytes(range(10))
    (tmp_path / "a.npz").write_bytes(bytes(content))
    first, second = _suite_sources.find(str(tmp_path))
    assert (first.name, second.name) == ("b of a.npz", "b of b.csv")
    assert second.read(None).class_names == ("0", "1")
    with pytest.raises(ValueError, match=r"a\.npz: is damaged"):
        first.read(None)


def test_the_real_archive_is_read_as_its_index_says(shared_data):
    path = shared_data / "keel" / "keel_imbalanced.npz"
    lines = (shared_data / "keel" / "INDEX.tsv").read_text().splitlines()[1:]
    index = {line.split("\t")[0]: list(map(int, line.split("\t")[1:7])) for line in lines}
    sources = {source.name: source for source in _suite_sources.find(str(path))}
    assert set(sources) == set(index)
    for name in ("abalone9_18", "cleveland_0_vs_4", "car_good", "pima"):
        dataset = sources[name].read(None)
        number, columns, coded, missing, *sizes = index[name]
        assert np.bincount(dataset.labels).tolist() == sizes
        assert len(dataset.inputs) == number
        assert len({text.split("=")[0] for text in dataset.feature_names}) == columns
        assert np.isnan(dataset.inputs).sum() == missing
        assert any("=" in text for text in dataset.feature_names) == (coded > 0)


BAD = [
    (["--task", "regression"], "one data set at a time"),
    (["--methods", "plain"], "got plain alone"),
    (["--methods", "focall"], "did you mean focal"),
    (["--seeds", "0"], "--seeds: got 0"),
    (["--target", "nothing"], "no data set could be compared on: damaged: "),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: str(value)[:30])
def test_mistakes_are_one_line_and_exit_code_two(arguments, message, folder, tmp_path, capsys):
    given = ["compare", str(folder), "--out", str(tmp_path / "out"), *arguments]
    assert cli.main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxbalance: ")
    assert error.count("\n") == 1
    assert message in error
