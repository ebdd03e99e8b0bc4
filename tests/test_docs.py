"""The code in the README and the docs runs, and the commands they show exist."""

import importlib
import inspect
import pathlib
import re
import shlex

import jax
import pytest
import tyro

from jaxbalance import compare, experiments
from jaxbalance.experiments import _command

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [body for kind, body in BLOCK.findall(page.read_text()) if kind == language]


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name)
def test_python_blocks_run_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for i, body in enumerate(blocks(page, "python")):
            exec(compile(body, f"{name(page)} block {i}", "exec"), namespace)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "bash")], ids=name)
def test_commands_are_ones_the_program_understands(page):
    makefile = (ROOT / "Makefile").read_text()
    for body in blocks(page, "bash"):
        for line in body.splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["jaxbalance", "compare"]:
                assert tyro.cli(compare.Settings, args=words[2:])
            elif words[:3] == ["jaxbalance", "experiments", "run"]:
                assert _command.parse(experiments.load(words[3]), words[4:])
            elif words[:1] == ["make"]:
                assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line


REFERENCE = sorted((ROOT / "docs" / "pages" / "api").glob("*.md"))


@pytest.mark.parametrize("page", REFERENCE, ids=name)
def test_the_reference_lists_every_public_name(page):
    module = importlib.import_module(f"jaxbalance.{page.stem}")
    listed = re.findall(r"^        - (\w+)$", page.read_text(), re.MULTILINE)
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    imported = {"Callable", "NamedTuple", "Array", "ArrayLike", "Scalar"}
    assert set(listed) == public - imported
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_inside_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target
