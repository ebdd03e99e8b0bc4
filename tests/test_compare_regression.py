"""The comparison of regressions end to end: numbers, mistakes, interruptions, and read back."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest
from scipy import stats

from jaxbalance import cli, compare, data
from jaxbalance.compare import (
    _figures,
    _regression_figures,
    _regression_network,
    _regression_report,
    _regression_run,
    _regression_score,
    _regression_sweep,
    _regression_table,
    _regression_task,
    _report,
    _statistics,
)
from tests.regression_helpers import dataset, problem, written

METHODS = compare.REGRESSION_METHODS
PICTURES = {"error_by_target.png", "learning_curves.png"}
pytestmark = pytest.mark.usefixtures("as_users_do")
OUTPUTS = {"report.md", "report.json", "model.npz", *PICTURES}
SMALL = ["--seeds", "2", "--steps", "20", "--step-sizes", "0.01"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The problem as a table, with a column of words."""
    inputs, targets = problem()
    numbers = np.column_stack([inputs, targets])
    lines = [",".join(["ab"[i % 2], *map(str, row)]) for i, row in enumerate(numbers)]
    return written(tmp_path_factory.mktemp("data"), "\n".join(["kind,x,y,z,price", *lines]) + "\n")


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    """One small comparison of all methods from the command line; one step size diverges."""
    out, made, printed = tmp_path_factory.mktemp("report"), [], io.StringIO()
    whole = compare.compare_regression

    def remembered(settings, **others):
        made.append(whole(settings, **others))
        return made[0]

    arguments = ["compare", source, "--target", "price", "--task", "regression", "--out", out]
    sizes = ["--seeds", "2", "--steps", "40", "--step-sizes", "0.01", "1e30", "--batch-size", "16"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(compare, "compare_regression", remembered)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            assert cli.main([*map(str, arguments), *sizes]) == 0
    return out, made[0], printed.getvalue()


def run(capsys, *arguments):
    code = cli.main(["compare", *map(str, arguments), "--task", "regression"])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def table(tmp_path, generator, *, rows=90):
    x = generator.normal(size=rows)
    y = np.exp(x + 0.1 * generator.normal(size=rows))
    lines = [f"{a:.4f},{'ab'[i % 2]},{b:.4f}" for i, (a, b) in enumerate(zip(x, y, strict=True))]
    return written(tmp_path, "\n".join(["x,kind,price", *lines]) + "\n")


def test_everything_is_written_and_one_compilation_serves_each_objective(finished):
    out, report, _ = finished
    assert {path.name for path in out.iterdir()} == OUTPUTS
    text = (out / "report.md").read_text()
    for name in PICTURES:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in text
    programs = {(method.objective, method.smooths_features) for method in METHODS.values()}
    assert report.facts["compiled_programs"] == len(programs) == 6


def test_the_report_agrees_with_the_numbers(finished):
    out, report, _ = finished
    stored = json.loads((out / "report.json").read_text())
    assert set(stored["per_seed"]) == set(METHODS)
    means = [row.balanced_mae.mean for row in report.rows]
    assert means == sorted(means)
    plain = np.array(stored["per_seed"]["plain"]["balanced_mae"])
    text = (out / "report.md").read_text()
    for row in report.rows:
        values = np.array(stored["per_seed"][row.method]["balanced_mae"])
        assert row.balanced_mae.mean == pytest.approx(values.mean(), rel=1e-5)
        if row.difference is not None:
            assert row.difference.mean == pytest.approx((values - plain).mean(), abs=1e-5)
        assert f"| {row.method} | {row.balanced_mae.mean:.3f} ±" in text
        assert f"- **{row.method}**: {METHODS[row.method].summary}" in text
    validation = {
        name: np.mean(score["validation_balanced_mae"])
        for name, score in stored["per_seed"].items()
    }
    assert stored["recommended"] == min(validation, key=validation.get)
    assert all(line in text for line in report.verdict)


def test_curves_end_where_validation_judged(finished):
    """So few validation rows are all on the curve."""
    _, report, _ = finished
    for name, score in report.scores.items():
        assert score.curve.shape == (2, 20, report.facts["data"]["bins"])
        known = np.isfinite(score.curve[:, -1])
        np.testing.assert_array_equal(known, np.isfinite(score.curve[:, 0]))
        ends = [last[seen].mean() for last, seen in zip(score.curve[:, -1], known, strict=True)]
        np.testing.assert_allclose(ends, score.validation, rtol=1e-5, err_msg=name)


def lines(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_what_the_pictures_show(finished, source, monkeypatch):
    """Lines are means over seeds and bins, named with the step sizes that validation chose."""
    _, report, _ = finished
    read = data.load_targets(str(source), target="price")
    task = _regression_task.make_regression_task(read, bins=None, seeds=2)
    first = report.rows[0]
    rows = [row._replace(step_sizes=[0.01, 0.1]) if row is first else row for row in report.rows]
    report = report._replace(rows=rows, recommended=rows[-1].method)
    assert "plain" not in (rows[0].method, rows[-1].method)
    monkeypatch.setattr(_regression_figures, "png", lambda figure: figure)
    bins = np.unique(task.split.dataset.labels[task.split.validation])
    order = bins[np.argsort(-task.split.class_counts[bins], kind="stable")]
    frequent, _, rare = np.array_split(order, 3)
    figure = _regression_figures.error_curves(task, report)
    for axes, members in zip(figure.axes, (bins, frequent, rare), strict=True):
        drawn = lines(axes)
        assert {"plain (0.01)", f"{first.method} (0.01 to 0.1)", f"{rows[-1].method} (0.01)"} <= {
            *drawn
        }
        assert len({line.get_color() for line in drawn.values()}) == len(drawn)
        for name in ("plain", first.method):
            (line,) = (line for label, line in drawn.items() if label.split()[0] == name)
            curve = report.scores[name].curve[:, :, members]
            np.testing.assert_allclose(line.get_ydata(), np.nanmean(curve, axis=(0, 2)))
            np.testing.assert_allclose(line.get_xdata(), np.arange(2, 41, 2))
        ends = [line.get_ydata()[-1] for line in axes.lines]
        assert 0 == axes.get_ylim()[0] < max(ends) < axes.get_ylim()[1] <= 1.6 * max(ends) + 1e-9
    drawn = lines(_regression_figures.error_by_target(task, report).axes[1])
    remedies = [row.method for row in rows if row.method != "plain"]
    assert {*drawn} == {"plain", *remedies[:3], remedies[-1]}
    ours = drawn["plain"].get_ydata()
    tested = np.isfinite(report.scores["plain"].by_bin).any(axis=0)
    np.testing.assert_array_equal(np.isfinite(ours), tested)
    theirs = np.nanmean(report.scores["plain"].by_bin[:, tested], axis=0)
    np.testing.assert_allclose(ours[tested], theirs)


def test_the_numbers_are_those_of_scikit_learn(finished, source):
    """Read the saved model back and measure it from scratch, in units of the target."""
    from sklearn.metrics import mean_absolute_error, root_mean_squared_error

    out, report, _ = finished
    score = report.scores[report.recommended]
    model = compare.load_model(out / "model.npz")
    assert model.method == report.recommended
    read = data.load_targets(str(source), target="price")
    task = _regression_task.make_regression_task(read, bins=None, seeds=2)
    rows = task.split.test[score.seed]
    guess = np.asarray(model.targets(task.split.dataset.inputs[rows]), np.float64)
    target, bins = task.targets[rows], task.split.dataset.labels[rows]
    got = {name: values[score.seed] for name, values in score.values.items()}
    assert got["mae"] == pytest.approx(mean_absolute_error(target, guess), rel=1e-4)
    assert got["rmse"] == pytest.approx(root_mean_squared_error(target, guess), rel=1e-4)
    theirs = [mean_absolute_error(target[bins == b], guess[bins == b]) for b in np.unique(bins)]
    assert got["balanced_mae"] == pytest.approx(np.mean(theirs), rel=1e-4)


def test_remedies_move_errors_to_where_they_should(finished):
    """Balancing lowers the error of few-shot bins and raises that of many; none is plain again."""
    _, report, _ = finished
    means = {row.method: row.means for row in report.rows}
    for name in ("lds", "lds-inverse", "mdi", "balanced-bins", "balanced-mse"):
        assert means[name]["few"] < means["plain"]["few"], name
        assert means[name]["mae"] > means["plain"]["mae"], name
    for name, score in report.scores.items():
        same = np.array_equal(score.absolute, report.scores["plain"].absolute)
        assert same == (name == "plain")
        assert np.all(score.values["pearson"] > 0.3), name


def test_verdict_says_when_nothing_is_significant(finished):
    _, report, _ = finished
    rows = [row._replace(corrected_p_value=row.difference and 0.5) for row in report.rows]
    lines = _regression_report.verdict(rows, "lds")
    assert lines[0] == "No remedy has a significantly lower balanced error than plain training."
    assert "does not tell it from plain" in lines[-1]
    lines = _regression_report.verdict(rows, "plain")
    assert lines[-1] == "Validation prefers plain training: no remedy is needed."
    sure = [row._replace(corrected_p_value=row.difference and 0.01) for row in report.rows]
    lines = _regression_report.verdict(sure, sure[0].method)
    assert lines[0].startswith("Significantly lower balanced error than plain training here")
    assert "every example counting the same, changes by" in lines[-2]
    assert lines[-1].endswith("which the test set confirms.")


def test_units_of_the_target_change_units_alone(finished, generator):
    """Networks see the same numbers, errors scale, and tiny ones are neither rounded nor hidden."""
    inputs, targets = problem(rows=80)
    outcome, first = None, None
    for scale, offset in ((1.0, 0.0), (1e-7, 0.0), (1e3, 1e6)):
        made = data.from_target_arrays(inputs, scale * targets + offset)
        task = _regression_task.make_regression_task(made, bins=5, seeds=1)
        if outcome is None:
            sizes = task.split.validation.shape[1], task.split.test.shape[1]
            guesses = [generator.normal(size=(1, 1, size)).astype(np.float32) for size in sizes]
            outcome = _regression_sweep.RegressionOutcome(*guesses, np.zeros((1, 1, 20, 5)), {})
            first = task, _regression_score.score_regression(task, outcome).values
        np.testing.assert_allclose(task.standardized, first[0].standardized, atol=1e-5)
        values = _regression_score.score_regression(task, outcome).values
        for name in _regression_score.ERRORS:
            np.testing.assert_allclose(values[name], scale * first[1][name], rtol=1e-4)
    report = finished[1]
    rows = [row._replace(balanced=_statistics.Estimate(2.3456e-7, 0, 1)) for row in report.rows]
    tiny = report._replace(rows=rows)
    assert "| 0.000000235 ± 0.000000000 |" in _regression_table.regression_markdown(tiny)
    stored = json.loads(_report.to_json(_regression_report.ERROR, tiny))
    assert stored["methods"][0]["balanced_mae"]["mean"] == 2.3456e-7


def test_what_is_printed_and_a_step_size_that_diverges(finished):
    _, report, printed = finished
    for text in ("20 bins of the target", "balanced MAE", "lds: 2 of 4 runs diverged"):
        assert text in printed
    assert "\x1b[" not in printed
    for row in report.rows:
        assert row.step_sizes == [0.01, 0.01]
        assert np.isfinite(row.balanced_mae.mean)
        assert report.scores[row.method].diverged == 2


def test_real_data_and_an_official_test_set(shared_data, tmp_path, capsys, monkeypatch):
    """Abalone's rings: one bin for each, and weights help where examples are few."""
    monkeypatch.setattr(_figures, "available", lambda: False)
    source, out = shared_data / "abalone", tmp_path / "out"
    methods = ("--methods", "lds", "--target", "rings")
    sizes = ("--seeds", "2", "--steps", "200", "--step-sizes", "0.02", "--model", "linear")
    code, printed, _ = run(capsys, source, *methods, *sizes, "--out", out)
    assert code == 0
    assert "29 bins of the target from 1 to 29" in printed
    assert 'no figures: pip install "jaxbalance[plot]" draws them' in printed
    assert {path.name for path in out.iterdir()} == OUTPUTS - PICTURES
    stored = json.loads((out / "report.json").read_text())
    means = {row["method"]: row["means"] for row in stored["methods"]}
    assert means["lds"]["few"] < 0.85 * means["plain"]["few"]
    read = data.load_targets(str(source), target="rings")
    model = compare.load_model(out / "model.npz")
    guess = np.asarray(model.targets(read.inputs))
    assert stats.pearsonr(guess, read.targets)[0] > 0.6
    fixed = read._replace(test_indices=np.arange(3000, 4177))
    task = _regression_task.make_regression_task(fixed, bins=None, seeds=2)
    assert not task.split.redrawn
    np.testing.assert_array_equal(task.split.test, [np.arange(3000, 4177)] * 2)


def test_an_interrupted_comparison_goes_on_where_it_stopped(tmp_path, monkeypatch, generator):
    """Training is made up, and other numbers at every call: what had finished must be read back."""
    calls = []

    def made_up(task, budget, methods, report):
        calls.append(len(methods))
        shape = len(task.center), len(budget.step_sizes)
        sizes = task.split.validation.shape[1], task.split.test.shape[1]
        guesses = [generator.normal(size=(*shape, size)).astype(np.float32) for size in sizes]
        like = _regression_network.regressor((3,), model="mlp").start(0)
        params = jax.tree.map(lambda leaf: np.broadcast_to(leaf, shape + leaf.shape), like)
        curve = generator.uniform(size=(*shape, 20, task.num_bins))
        report(1.0)
        return [_regression_sweep.RegressionOutcome(*guesses, curve, params) for _ in methods], 1

    heard = []

    def interrupt(what, runs, fraction):
        heard.append((what, fraction))
        if what == "fds":
            raise KeyboardInterrupt

    monkeypatch.setattr(_regression_run, "train_regressions", made_up)
    monkeypatch.setattr(_figures, "available", lambda: False)
    settings = compare.Settings(
        data="memory", task="regression", methods="lds,absolute,fds", seeds=2, steps=20,
        step_sizes=(0.01, 0.02), out=tmp_path,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        compare.compare_regression(settings, dataset=dataset(rows=80), listener=interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"finished-runs"}
    kept = sorted((tmp_path / "finished-runs").iterdir())
    assert len(kept) == 2
    heard.clear()
    with pytest.raises(KeyboardInterrupt):
        compare.compare_regression(settings, dataset=dataset(rows=80), listener=interrupt)
    assert heard[:2] == [
        ("plain, lds (finished before)", 1.0), ("absolute (finished before)", 1.0)
    ]  # fmt: skip
    assert calls == [2, 1, 1, 1]
    one_more = dataset(rows=80)._replace(targets=dataset(rows=80).targets + 1)
    report = compare.compare_regression(settings, dataset=one_more)
    assert calls == [2, 1, 1, 1, 2, 1, 1], "other targets found the runs of these"
    assert {path.name for path in tmp_path.iterdir()} == OUTPUTS - PICTURES
    assert set(report.scores) == {"plain", "lds", "absolute", "fds"}


BAD = [
    (["missing.csv"], "missing.csv"),
    (["digits"], "digits: has classes"),
    (["tfds:mnist"], "has classes"),
    (["--methods", "focal"], "unknown method 'focal'"),
    (["--methods", "ldss"], "did you mean lds"),
    (["--profile", "exponential:50"], "--profile thins classes"),
    (["--bins", "0"], "--bins: got 0"),
    (["--bins", "1"], "nothing to balance"),
    (["--seeds", "0"], "--seeds: got 0"),
    (["--model", "cnn"], "needs images"),
    (["--target", "kind"], "not numbers"),
    (["--target", "prise"], "did you mean price"),
    (["--out", "/proc/nowhere"], "cannot write to '/proc/nowhere'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: str(value)[:40])
def test_mistakes_are_one_line_and_exit_code_two(arguments, message, tmp_path, generator, capsys):
    if arguments[0].startswith("--"):
        arguments = [table(tmp_path, generator), "--target", "price", *arguments]
    if "--out" not in arguments:
        arguments = [*arguments, "--out", tmp_path / "out"]
    code, printed, error = run(capsys, *arguments)
    assert (code, printed) == (2, "")
    assert error.startswith("jaxbalance: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


BAD_TABLES = {
    "text": ("x,y\n1,a\n2,b\n3,c\n", "not numbers"),
    "missing": ("x,y\n1,1.5\n2,\n3,2.5\n", "no value in the target column 'y'"),
    "constant": ("x,y\n1,2.5\n2,2.5\n", "every target is 2.5"),
    "too few": ("x,y\n1,0.5\n2,0.7\n3,1.25\n", "leave no bin of 20 the three examples"),
    "infinite feature": ("x,y\n1,0.5\ninf,0.7\n3,1.25\n", "'x'"),
    "no target": ("x,z\n1,0.5\n2,0.7\n", "say which column to predict"),
}


@pytest.mark.parametrize(("content", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_tables(content, message, tmp_path, capsys):
    path = written(tmp_path, content)
    code, _, error = run(capsys, path, "--out", tmp_path / "out", *SMALL)
    assert code == 2
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_each_task_refuses_what_belongs_to_the_other(tmp_path):
    with pytest.raises(ValueError, match="call compare_regression"):
        compare.compare(compare.Settings(task="regression", out=tmp_path / "out"))
    with pytest.raises(ValueError, match="without --task regression"):
        compare.compare(compare.Settings(bins=4, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_methods_are_listed(capsys):
    assert cli.main(["methods"]) == 0
    printed = capsys.readouterr().out
    for name, method in METHODS.items():
        assert name in printed
        assert method.summary in printed
