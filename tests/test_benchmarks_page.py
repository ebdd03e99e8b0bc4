"""The published costs: the page says what the recorded runs printed, and every program can run."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "show_benchmarks", ROOT / "docs" / "show_benchmarks.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_recorded_runs(script):
    assert script.PAGE.read_text() == script.page()
    names = {path.stem for path in script.RECORDED.glob("*.md")}
    assert names
    assert names <= set(script.RUNS)


def test_every_program_is_there(script):
    programs = {program for program, _, _ in script.RUNS.values()}
    assert all((script.FOLDER / program).is_file() for program in programs)
    peers = {"class_gradients_torch.py", "sweep_torch.py"}
    assert {path.name for path in script.FOLDER.glob("*.py")} == programs | peers


def test_what_is_recorded(script, tmp_path, monkeypatch):
    program = tmp_path / "told.py"
    program.write_text(
        '"""What it costs.\n\n    python told.py\n\nOne line."""\n'
        "import sys\nprint('before')\nprint('| a |\\n| --- |\\n| 1 |')\nprint(sys.argv[1:])\n"
    )
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    monkeypatch.setattr(script, "RECORDED", tmp_path)
    monkeypatch.setattr(script, "RUNS", {"told": ("told.py", ["--large"], "--torch")})
    script.record("told", "some-python")
    kept = (tmp_path / "told.md").read_text()
    assert "told.py --large --torch PYTHON`" in kept.splitlines()[0]
    assert "\n\nbefore\n\n| a |\n| --- |\n| 1 |\n\n['--large', '--torch', 'some-python']\n" in kept
    shown = script.page()
    assert "## What it costs\n\nOne line.\n" in shown
    assert "python told.py\n" not in shown
