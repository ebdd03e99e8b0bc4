"""Every public name is documented in full, with an example, and typed."""

import importlib
import inspect
import pathlib
import re

import pytest

PACKAGES = [
    "counts",
    "losses",
    "classgrads",
    "weightings",
    "transforms",
    "samplers",
    "augment",
    "adversarial",
    "metrics",
    "posthoc",
    "models",
    "training",
    "data",
    "dynamics",
]


def public(package):
    module = importlib.import_module(f"jaxbalance.{package}")
    own = f"jaxbalance.{package}"
    for name, value in vars(module).items():
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(own):
            yield name, value


NAMES = [(package, name, value) for package in PACKAGES for name, value in public(package)]
FUNCTIONS = [item for item in NAMES if inspect.isfunction(item[2])]


def ids(items):
    return [f"{package}.{name}" for package, name, _ in items]


@pytest.mark.parametrize(("package", "name", "value"), NAMES, ids=ids(NAMES))
def test_has_a_docstring(package, name, value):
    assert inspect.getdoc(value)


@pytest.mark.parametrize(("package", "name", "value"), FUNCTIONS, ids=ids(FUNCTIONS))
def test_functions_document_arguments_result_and_an_example(package, name, value):
    text = inspect.getdoc(value)
    assert text.splitlines()[0].endswith(".")
    assert ">>>" in text, "no example"
    parameters = list(inspect.signature(value).parameters)
    if parameters and len(parameters) > 1:
        assert "Args:" in text
        for parameter in parameters:
            assert re.search(rf"\b{parameter}\b", text), f"{parameter} is not described"
        assert "Returns:" in text


@pytest.mark.parametrize(("package", "name", "value"), FUNCTIONS, ids=ids(FUNCTIONS))
def test_signatures_are_annotated(package, name, value):
    signature = inspect.signature(value)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty


TESTS = "\n".join(
    path.read_text()
    for path in pathlib.Path(__file__).parent.glob("test_*.py")
    if path.name != pathlib.Path(__file__).name
)


@pytest.mark.parametrize(("package", "name", "value"), FUNCTIONS, ids=ids(FUNCTIONS))
def test_is_exercised_by_a_test(package, name, value):
    assert re.search(rf"\b{name}\b", TESTS)


@pytest.mark.parametrize("package", ["losses", "metrics", "posthoc"])
def test_what_one_tunes_is_keyword_only(package):
    for name, value in public(package):
        if inspect.isfunction(value):
            for parameter in inspect.signature(value).parameters.values():
                if parameter.default is not inspect.Parameter.empty:
                    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, (name, parameter)
