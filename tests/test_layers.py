"""The architecture: imports point down, siblings do not know each other, size limits hold."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "jaxbalance"
LAYERS = [
    {"_types", "_check", "_sharding", "_storage"},
    {"counts"},
    {"classgrads", "weightings", "losses", "metrics", "samplers", "augment", "posthoc"},
    {"transforms", "models", "data", "dynamics", "adversarial"},
    {"training"},
    {"compare", "experiments"},
    {"cli"},
]
MAY_KNOW_SIBLINGS = {"_types", "_check", "_sharding", "_storage"}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(part):
    return next(i for i, layer in enumerate(LAYERS) if part in layer)


def imported_parts(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "jaxbalance":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxbalance."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (
                a.name.split(".")[1] for a in node.names if a.name.startswith("jaxbalance.")
            )


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    part = part_of(path)
    for other in imported_parts(path):
        if other != part and part not in MAY_KNOW_SIBLINGS:
            assert level(other) < level(part), f"{part} must not import {other}"


def test_training_does_not_know_the_losses():
    for path in (PACKAGE / "training").glob("*.py"):
        code = [line for line in path.read_text().splitlines() if ">>>" not in line]
        imports = [line for line in code if line.startswith(("from", "import"))]
        assert not any("losses" in line for line in imports)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_readable_and_free_of_suppressions(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for mark in ("type: ignore", "noqa", "pyright:", "pragma:"):
        assert mark not in text


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_importing_loads_nothing_heavy():
    heavy = ["flax", "pandas", "sklearn", "tensorflow_datasets", "matplotlib", "tyro", "rich"]
    code = f"import sys, jaxbalance; print([m for m in {heavy} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_every_module_is_reachable_from_the_package():
    code = "import jaxbalance as jb; print(jb.models.MLP, jb.compare.compare, sorted(dir(jb)))"
    out = run(code)
    for name in (
        "counts",
        "data",
        "losses",
        "metrics",
        "models",
        "posthoc",
        "samplers",
        "training",
    ):
        assert f"'{name}'" in out
