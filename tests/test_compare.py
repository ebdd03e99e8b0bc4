"""The comparison end to end: on real data, on bad input, interrupted, and read back."""

import json
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest

from jaxbalance import _storage, cli, compare, data
from jaxbalance.compare import _files, _run, _score, _sweep
from jaxbalance.compare._methods import METHODS

pytestmark = pytest.mark.usefixtures("as_users_do")

SMALL = ["--seeds", "2", "--steps", "20", "--step-sizes", "0.01"]
USUAL = {"seeds": 2, "steps": 80, "step_sizes": (0.003, 0.03), "model": "linear"}
PLAIN = _sweep.program(METHODS["plain"].training)
OF_PLAIN = [name for name, one in METHODS.items() if _sweep.program(one.training) == PLAIN]
# One program of every kind; the losses, links and mixtures of the others are tested by themselves.
CHOSEN = [*OF_PLAIN, "focal", "ldam-drw", "imbsam", "smote", "crt"]
OUTPUTS = {"report.md", "report.json", "recall_by_class.png", "learning_curves.png", "model.npz"}


@pytest.fixture(scope="module")
def remembering():
    """In place of ``train_group``: compiles nothing twice in this file."""
    return partial(_sweep.train_group, memory={})


@pytest.fixture(scope="module")
def finished(as_users_do, tmp_path_factory, remembering):
    """One small comparison of methods of all kinds on the embedded data."""
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_run, "train_group", remembering)
        return out, compare.compare(compare.Settings(methods=",".join(CHOSEN), out=out, **USUAL))


@pytest.fixture(scope="module")
def task(as_users_do):
    """The embedded data as that comparison splits them."""
    return _run.make_task(data.digits(), profile="exponential:50", seeds=2)


@pytest.fixture(scope="module")
def troubled(as_users_do, tmp_path_factory):
    """Classes of two and of one example, and a step size that no network survives."""
    inputs = np.random.default_rng(5).normal(size=(73, 2)).astype(np.float32)
    labels = np.repeat([0, 1, 2, 3], [40, 30, 2, 1])
    dataset = data.from_arrays(inputs, labels, class_names=("a", "b", "pair", "single"))
    sizes = {"seeds": 2, "steps": 20, "step_sizes": (0.01, 1e30)}
    settings = compare.Settings(
        data="memory", methods="class-weights", out=tmp_path_factory.mktemp("troubled"), **sizes
    )
    return compare.compare(settings, dataset=dataset)


def run(capsys, *arguments):
    code = cli.main(["compare", *map(str, arguments)])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def table(tmp_path, generator, *, rows=120, rare=12):
    """A binary problem in two columns that is easy to learn."""
    labels = np.array(["no"] * (rows - rare) + ["yes"] * rare)
    x = generator.normal(size=rows) + 2 * (labels == "yes")
    lines = [f"{a:.4f},{'ab'[i % 2]},{y}" for i, (a, y) in enumerate(zip(x, labels, strict=True))]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["x,kind,outcome", *lines]) + "\n")
    return path


def test_one_compilation_per_method_shape(finished, task):
    _, report = finished
    assert set(report.scores) == set(CHOSEN)
    assert report.facts["compiled_programs"] == 6
    assert len(_run.method_groups(METHODS, task)) == 13


def test_everything_is_written_and_nothing_else(finished):
    out, _ = finished
    assert {path.name for path in out.iterdir()} == OUTPUTS
    for name in ("recall_by_class.png", "learning_curves.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_the_report_agrees_with_the_numbers(finished):
    out, report = finished
    stored = json.loads((out / "report.json").read_text())
    assert [m["method"] for m in stored["methods"]] == [row.method for row in report.rows]
    means = [row.balanced_accuracy.mean for row in report.rows]
    assert means == sorted(means, reverse=True)
    assert set(stored["per_seed"]) == set(CHOSEN)
    plain = np.array(stored["per_seed"]["plain"]["balanced_accuracy"])
    text = (out / "report.md").read_text()
    for row in report.rows:
        assert f"| {row.method} |" in text
        values = np.array(stored["per_seed"][row.method]["balanced_accuracy"])
        assert row.balanced_accuracy.mean == pytest.approx(values.mean(), abs=1e-5)
        if row.difference is not None:
            assert row.difference.mean == pytest.approx((values - plain).mean(), abs=1e-5)
    validation = {
        name: np.mean(s["validation_balanced_accuracy"]) for name, s in stored["per_seed"].items()
    }
    assert stored["recommended"] == max(validation, key=validation.get)


def test_the_numbers_are_those_of_scikit_learn(finished, task):
    """Read the saved model back and measure it from scratch."""
    from sklearn.metrics import balanced_accuracy_score

    out, report = finished
    score = report.scores[report.recommended]
    model = compare.load_model(out / "model.npz")
    rows = task.test[score.seed]
    predictions = np.argmax(model.logits(task.dataset.inputs[rows]), axis=-1)
    theirs = balanced_accuracy_score(task.dataset.labels[rows], predictions)
    assert score.values["balanced_accuracy"][score.seed] == pytest.approx(theirs, abs=1e-5)
    assert model.class_names == task.dataset.class_names


def test_remedies_differ_from_plain_and_learn(finished):
    """Each method reaches well above chance, and none is plain training under another name."""
    _, report = finished
    rows = {row.method: row for row in report.rows}
    for row in rows.values():
        assert row.balanced_accuracy.mean > 0.3
        if row.difference is not None:
            same = np.array_equal(report.scores[row.method].recall, report.scores["plain"].recall)
            assert not same, row.method


def test_splits_do_not_leak_and_keep_their_sizes(task):
    for train, validation, test in zip(task.train, task.validation, task.test, strict=True):
        assert not set(train) & set(validation)
        assert not (set(train) | set(validation)) & set(test)
        counts = np.bincount(task.dataset.labels[train], minlength=10)
        np.testing.assert_array_equal(counts, task.class_counts)
        assert counts[0] / counts[-1] >= 35
    assert len({data.fingerprint(rows) for rows in task.train}) == 2
    index = jax.tree.map(np.asarray, task.class_index)
    for k in range(10):
        for seed in range(2):
            first, number = index.starts[seed, k], index.class_counts[seed, k]
            members = index.members[seed, first : first + number]
            assert set(members.tolist()) == {
                i for i in task.train[seed].tolist() if task.dataset.labels[i] == k
            }


def test_an_official_test_set_is_used_as_it_is(generator):
    inputs = generator.normal(size=(90, 3)).astype(np.float32)
    labels = np.arange(90) % 3
    dataset = data.from_arrays(inputs, labels, test_indices=np.arange(60, 90))
    task = _run.make_task(dataset, profile="natural", seeds=2)
    assert not task.redrawn
    np.testing.assert_array_equal(task.test, np.tile(np.arange(60, 90), (2, 1)))


def test_a_csv_from_the_command_line(tmp_path, generator, capsys):
    path, out = table(tmp_path, generator), tmp_path / "out"
    chosen = ("--target", "outcome", "--methods", "class-weights,calibrated", "--model", "linear")
    code, printed, error = run(capsys, path, *chosen, "--out", out, *SMALL)
    assert (code, error) == (0, "")
    assert {path.name for path in out.iterdir()} == OUTPUTS
    for name in ("plain", "class-weights", "calibrated", "F1 cal.", "G cal.", "rarer class"):
        assert name in printed
    assert "\x1b[" not in printed
    model = compare.load_model(out / "model.npz")
    assert model.class_names == ("no", "yes")


def test_images_and_a_convolutional_network(tmp_path, generator, capsys):
    images = generator.normal(size=(60, 16, 16)).astype(np.float32)
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    np.savez(tmp_path / "images.npz", X=images, y=labels)
    source, out = tmp_path / "images.npz", tmp_path / "out"
    code, printed, _ = run(capsys, source, "--methods", "class-weights", "--out", out, *SMALL)
    assert (code, "cnn" in printed) == (0, True)


def test_real_binary_data(shared_data, tmp_path, capsys):
    """Mammography: AUROC and average precision of plain training are those of scikit-learn."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    out = tmp_path / "out"
    source = shared_data / "mammography" / "mammography.npz"
    sizes = ("--seeds", "2", "--steps", "100", "--step-sizes", "0.01", "0.03", "--model", "linear")
    code, _, _ = run(capsys, source, "--methods", "class-weights", *sizes, "--out", out)
    assert code == 0
    stored = json.loads((out / "report.json").read_text())
    model = compare.load_model(out / "model.npz")
    task = _run.make_task(data.load(str(source)), profile="natural", seeds=2)
    per_seed = stored["per_seed"][stored["recommended"]]
    seed = int(np.argmax(per_seed["validation_balanced_accuracy"]))
    rows = task.test[seed]
    logits = np.asarray(model.logits(task.dataset.inputs[rows]), np.float64)
    scores = logits[:, 1] - logits[:, 0]
    truth = task.dataset.labels[rows]
    assert per_seed["auroc"][seed] == pytest.approx(roc_auc_score(truth, scores), abs=1e-5)
    precision = average_precision_score(truth, scores)
    assert per_seed["average_precision"][seed] == pytest.approx(precision, abs=1e-4)
    gains = {m["method"]: m["difference"] for m in stored["methods"]}
    assert gains["class-weights"]["mean"] > 0.02


def test_an_interrupted_comparison_goes_on_where_it_stopped(
    finished, remembering, tmp_path, monkeypatch
):
    """Of the methods that plain's program serves, and one more; the numbers are those of all."""
    _, undisturbed = finished
    monkeypatch.setattr(_run, "train_group", remembering)
    settings = compare.Settings(methods=",".join([*OF_PLAIN, "focal"]), out=tmp_path, **USUAL)
    heard = []

    def interrupt(what, runs, fraction):
        heard.append((what, fraction))
        if what == "focal" and fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare.compare(settings, listener=interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"finished-runs"}
    heard.clear()
    report = compare.compare(settings, listener=lambda *news: heard.append(news[0::2]))
    assert heard[0][0].startswith("plain, class-weights, ")
    assert heard[0][0].endswith("gaussian-head (finished before)")
    assert {what for what, _ in heard[1:]} == {"focal"}
    assert heard[0][1] == heard[-1][1] == 1.0
    assert set(report.scores) == {*OF_PLAIN, "focal"}
    for name, score in report.scores.items():
        np.testing.assert_array_equal(score.recall, undisturbed.scores[name].recall)
        for metric, values in score.values.items():
            np.testing.assert_array_equal(values, undisturbed.scores[name].values[metric])
    assert {path.name for path in tmp_path.iterdir()} == OUTPUTS


def test_a_damaged_finished_group_is_trained_again(tmp_path):
    path = tmp_path / "kept.npz"
    path.write_bytes(b"PK\x03\x04 not a zip file")
    assert _files.load_outcomes(path, {"w": 0}, 1) is None
    outcome = _sweep.Outcome(*(np.zeros(2) for _ in range(3)), {"w": np.ones(3)})
    _files.save_outcomes(path, [outcome])
    assert _files.load_outcomes(path, {"w": 0}, 2) is None
    (back,) = _files.load_outcomes(path, {"w": 0}, 1)
    np.testing.assert_array_equal(back.params["w"], np.ones(3))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"kept\.npz' is damaged"):
        compare.load_model(path)
    assert _files.load_outcomes(path, {"w": 0}, 1) is None


def test_ctrl_c_ends_with_130(tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(_run, "train_group", interrupted)
    code, _, error = run(capsys, "--out", tmp_path / "out", *SMALL)
    assert code == 130
    assert error.count("\n") == 1
    assert "the same command goes on" in error


def test_files_are_whole_or_absent(tmp_path, monkeypatch):
    target = tmp_path / "report.json"
    target.write_text("before")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(_storage.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        _storage.write_atomically(target, b"after")
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_diverged_runs_are_named_and_not_chosen(troubled):
    assert any("diverged" in note for note in troubled.notes)
    for row in troubled.rows:
        assert row.step_sizes == [0.01, 0.01]
        assert np.isfinite(row.balanced_accuracy.mean)


def test_rare_classes_are_named(troubled):
    notes = " ".join(troubled.notes)
    assert "class 'single' (1): too rare for the test set: trained on" in notes
    assert "class 'pair' (2): fewer than 5 test examples" in notes
    assert "class 'pair' (2): no validation example" in notes
    for score in troubled.scores.values():
        for recall in (score.recall, score.curve):
            assert np.isnan(recall[..., 3]).all()
            assert np.isfinite(recall[..., :3]).all()


def test_cross_fitted_validation_does_not_reward_fitting_noise(generator):
    """Biases fitted to logits without information score about chance, not better."""
    logits = jax.numpy.asarray(generator.normal(size=(400, 4)), jax.numpy.float32)
    labels = jax.numpy.asarray(generator.integers(0, 4, size=400))
    folds = jax.numpy.asarray(_score._folds(np.asarray(labels)))
    judge = jax.jit(partial(_score._validation_score, METHODS["calibrated"].correction))
    accuracy, _ = judge(jax.numpy.ones(4), logits, None, labels, folds)
    # Standard error 2.2 points: above 0.35 once in about 400,000 seeds.
    assert float(accuracy) < 0.35


BAD = [
    (["missing.csv"], "missing.csv"),
    (["tfds:mnistt"], "mnist"),
    (["--methods", "focall"], "did you mean focal"),
    (["--methods", "xyz"], "unknown method 'xyz'"),
    (["--profile", "exponentail:50"], "unknown profile"),
    (["--profile", "exponential:abc"], "profile 'exponential:abc'"),
    (["--profile", "exponential:0.5"], "ratio: got 0.5"),
    (["--profile", "exponential:100000"], "smaller ratio"),
    (["--seeds", "0"], "--seeds: got 0"),
    (["--steps", "-5"], "--steps: got -5"),
    (["--step-sizes", "-1"], "--step-sizes"),
    (["--out", "/proc/nowhere"], "cannot write to '/proc/nowhere'"),
    (["--target", "y"], "target"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: str(value)[:40])
def test_mistakes_are_one_line_and_exit_code_two(arguments, message, tmp_path, capsys):
    if "--out" not in arguments:
        arguments = [*arguments, "--out", str(tmp_path / "out")]
    code, printed, error = run(capsys, *arguments)
    assert code == 2
    assert error.startswith("jaxbalance: ")
    assert error.count("\n") == 1
    assert message in error
    assert printed == ""
    assert not (tmp_path / "out").exists()


BAD_TABLES = {
    "too few examples": ("x,y\n1,a\n2,b\n3,a\n4,b\n", "too few"),
    "one class": ("x,y\n1,a\n2,a\n", "class"),
    "missing labels": ("x,y\n1,a\n2,\n3,b\n", "missing"),
    "infinite feature": ("x,y\n1,a\ninf,b\n3,b\n", "'x'"),
    "regression target": ("x,y\n1,0.5\n2,0.7\n3,1.25\n", "regression target"),
    "empty file": ("", "empty"),
}


@pytest.mark.parametrize(("content", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_tables(content, message, tmp_path, capsys):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    code, _, error = run(capsys, path, "--target", "y", "--out", tmp_path / "out", *SMALL)
    assert code == 2
    assert error.count("\n") == 1
    assert message in error


def test_an_unknown_column_is_answered_with_close_ones(tmp_path, generator, capsys):
    path, out = table(tmp_path, generator), tmp_path / "out"
    code, _, error = run(capsys, path, "--target", "outcom", "--out", out)
    assert (code, "outcome" in error) == (2, True)


def test_methods_and_help_are_listed(capsys):
    assert cli.main(["methods"]) == 0
    printed = capsys.readouterr().out
    for name, method in METHODS.items():
        assert name in printed
        assert method.summary in printed
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", "--help"])
    assert ended.value.code == 0
    assert "--profile" in capsys.readouterr().out


def test_an_unknown_flag_exits_with_two(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", "--sedes", "3"])
    assert ended.value.code == 2
    assert "--seeds" in capsys.readouterr().err


def test_the_installed_command_runs_as_a_program(tmp_path):
    code = "import sys; from jaxbalance.cli import main; sys.exit(main(sys.argv[1:]))"
    ended = subprocess.run(
        [sys.executable, "-c", code, "compare", "nothing.npz", "--out", str(tmp_path / "o")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
