"""Where the experiments are."""

import ast
import difflib
import importlib
import pathlib
import sys
from types import ModuleType

from jaxbalance._check import InputError

_PACKAGE = pathlib.Path(__file__).resolve().parent


def folder() -> pathlib.Path:
    """The folder of experiments: carried by an installed package, or that of a checkout.

    Raises:
      ValueError: there is none.
    """
    for place in (_PACKAGE / "published", _PACKAGE.parents[1] / "experiments"):
        if place.is_dir():
            return place
    raise InputError("this installation carries no experiments; they are in the source repository")


def names() -> list[str]:
    """Names of all experiments, in alphabetical order."""
    return sorted(path.stem for path in folder().glob("[!_]*.py"))


def title(name: str) -> str:
    """What an experiment is about, without importing it.

    Args:
      name: of the experiment.
    """
    text = (folder() / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0].removesuffix(".")


def load(name: str) -> ModuleType:
    """Import an experiment.

    Args:
      name: of the experiment.

    Raises:
      ValueError: no experiment has that name; the message says which are close.
    """
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or known
        raise InputError(f"experiment: got {name!r}, wanted one such as {', '.join(close)}")
    # Experiments share helper files that lie beside them.
    if str(folder()) not in sys.path:
        sys.path.append(str(folder()))
    return importlib.import_module(name)
