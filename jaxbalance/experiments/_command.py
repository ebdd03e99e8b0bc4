"""``jaxbalance experiments``: list them, run one."""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import tyro

from jaxbalance._check import InputError
from jaxbalance.experiments import _find, _run, _settings

_RESULTS = pathlib.Path("results")
_USAGE = (
    "usage: jaxbalance experiments [--results FOLDER]\n"
    "       jaxbalance experiments run NAME [--paper] [--results FOLDER] [--field=value ...]\n"
    "       jaxbalance experiments run NAME --help\n"
)


def command(arguments: Sequence[str]) -> int:
    """Run ``jaxbalance experiments`` and return its exit code.

    Args:
      arguments: what follows ``experiments`` on the command line.

    Returns:
      0, or 1 where a claim did not hold.

    Raises:
      ValueError: a mistake in what was asked.
    """
    if arguments and arguments[0] == "run":
        if len(arguments) < 2 or arguments[1].startswith("-"):
            raise InputError("experiments run: wanted the name of an experiment after run")
        return _run_one(_find.load(arguments[1]), arguments[2:])
    if list(arguments) in (["--help"], ["-h"]):
        print(_USAGE, end="")
        return 0
    listing = tyro.cli(_Listing, args=arguments, prog="jaxbalance experiments")
    _list(listing.results)
    return 0


def main(file: str) -> None:
    """Run an experiment as a script: ``jb.experiments.main(__file__)``.

    Args:
      file: of the experiment.
    """
    try:
        sys.exit(_run_one(_find.load(pathlib.Path(file).stem), sys.argv[1:]))
    except InputError as error:
        print(f"{pathlib.Path(file).name}: {error}", file=sys.stderr)
        sys.exit(2)


@dataclasses.dataclass(frozen=True)
class _Listing:
    """List the experiments: what each claims, how long it took, and what it found last."""

    results: pathlib.Path = _RESULTS
    """Folder of all results."""


def _list(results: pathlib.Path) -> None:
    for name in _find.names():
        print(f"{name}\n  {_find.title(name)}.")
        runs = _run.finished(name, results)
        known = [("Last run", run) for run in runs[:1]]
        known += [("Published run", run) for run in _run.recorded(name)]
        if known:
            which, last = known[0]
            headline = _find.load(name).summary(last.numbers).partition("\n")[0]
            print(f"  {which}, {last.provenance['seconds']:.0f} s: {headline}")
            if not last.holds:
                print(f"  Its claim {last.provenance['check']}")
        else:
            print(f"  Not run yet: jaxbalance experiments run {name}")


def _run_one(experiment: ModuleType, arguments: Sequence[str]) -> int:
    settings = parse(experiment, arguments)
    _settings.check_config(settings.config)
    print(f"{_find.title(experiment.__name__)}.")
    result = _run.run(experiment, settings.config, results=settings.results, listener=_told)
    print(f"\n{experiment.summary(result.numbers)}\n")
    print(f"Claim and null: {result.provenance['check']}.")
    print(f"{result.provenance['seconds']:.0f} s. Numbers, arrays and figure: {result.place}")
    return 0 if result.holds else 1


def _told(part: str, number: int, of: int, seconds: float) -> None:
    print(f"[{number}/{of}] {part}: {seconds:.0f} s", flush=True)


def parse(experiment: ModuleType, arguments: Sequence[str]) -> Any:
    """Fields of the experiment as flags, beside those that every experiment has."""
    base = experiment.PAPER if "--paper" in arguments else experiment.Config()
    flags = dataclasses.make_dataclass(
        "flags",
        [
            ("config", type(base), base),
            ("paper", bool, dataclasses.field(default=False)),
            ("results", pathlib.Path, dataclasses.field(default=_RESULTS)),
        ],
        frozen=True,
    )
    return tyro.cli(
        flags,
        args=arguments,
        prog=f"jaxbalance experiments run {experiment.__name__}",
        description=experiment.__doc__,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
