"""The published numbers: pages say what the recorded runs say, and every experiment has one."""

import importlib.util
import pathlib

import pytest

from jaxbalance import experiments

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script():
    path = ROOT / "docs" / "show_experiments.py"
    spec = importlib.util.spec_from_file_location("show_experiments", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_has_a_recorded_run(name):
    runs = experiments.recorded(name)
    assert runs
    for run in runs:
        assert run.provenance["check"]
        assert "/" not in str(run.config.get("data", ""))


@pytest.mark.parametrize(
    ("page", "images"),
    [
        ("experiments/README.md", "../docs/pages/images/experiments"),
        ("docs/pages/experiments.md", "images/experiments"),
    ],
)
def test_pages_are_those_of_the_recorded_runs(script, page, images):
    assert (ROOT / page).read_text() == script.page(images)


def test_a_run_is_recorded_without_the_folders_of_its_data(script, tmp_path, monkeypatch):
    place = tmp_path / "results" / "auroc_vs_auprc" / "0123"
    place.mkdir(parents=True)
    (place / "figure.png").write_bytes(b"")
    run = experiments.Result(place, {"data": "/some/where/digits"}, {"a": 1}, {"check": "holds"})
    monkeypatch.setattr(script.experiments, "finished", lambda name, results: [run])
    monkeypatch.setattr(script.experiments, "recorded", lambda name: [])
    monkeypatch.setattr(script, "RECORDED", tmp_path)
    monkeypatch.setattr(script, "IMAGES", tmp_path)
    script.record("auroc_vs_auprc", tmp_path / "results")
    assert "/some" not in (tmp_path / "auroc_vs_auprc.json").read_text()
    assert (tmp_path / "auroc_vs_auprc-digits.png").is_file()
