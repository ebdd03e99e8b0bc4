"""The command line. Exit codes: 0 done, 2 a mistake in what was asked, 130 interrupted."""

import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tyro
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxbalance import compare, experiments
from jaxbalance._check import InputError
from jaxbalance.compare import _regression_table, _suite_sources, _suite_table, _table
from jaxbalance.compare._run import Listener

_PIPED_WIDTH = 120


@dataclasses.dataclass(frozen=True)
class Methods:
    """List the methods that compare knows."""


@dataclasses.dataclass(frozen=True)
class Experiments:
    """List the reproductions of published claims; `experiments run NAME` runs one of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(given)
    except InputError as error:
        print(f"jaxbalance: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "jaxbalance: interrupted; the same command goes on from what had finished",
            file=sys.stderr,
        )
        return 130


def _run(given: Sequence[str]) -> int:
    # An experiment has flags of its own, so what follows its name is not parsed here.
    if given[:1] == ["experiments"]:
        return experiments.command(given[1:])
    settings = _parsed(given, compare.Settings)
    if isinstance(settings, Methods):
        _list_methods()
    elif isinstance(settings, compare.Settings):
        if _suite_sources.is_suite(settings.data):
            # Parsed again for what is left out: a suite has defaults of its own.
            settings = _parsed(given, compare.SuiteSettings)
        _compare(settings)
    return 0


def _parsed(given: Sequence[str], kind: type[compare.Settings]) -> Any:
    return tyro.extras.subcommand_cli_from_dict(
        {"compare": kind, "methods": Methods, "experiments": Experiments},
        prog="jaxbalance",
        description="Which remedy for class imbalance helps on your data?",
        args=given,
    )


def _list_methods() -> None:
    width = max(map(len, (*compare.METHODS, *compare.REGRESSION_METHODS)))
    for name, method in compare.METHODS.items():
        print(f"{name:{width}}  {method.summary}")
    print("\nWith --task regression:\n")
    for name, regression in compare.REGRESSION_METHODS.items():
        print(f"{name:{width}}  {regression.summary}")


def _compare(settings: compare.Settings) -> None:
    screen = Console()
    console = screen if screen.is_terminal else Console(width=_PIPED_WIDTH)
    if isinstance(settings, compare.SuiteSettings):
        _compare_suite(settings, console)
        return
    if pathlib.Path(settings.data).is_dir():
        console.print(f"{settings.data}: read as one data set", highlight=False, markup=False)
    if settings.task == "regression":
        _compare_regression(settings, console)
        return
    with _listener(console) as listener:
        report = compare.compare(settings, listener=listener)
    facts = report.facts
    headline = (
        f"{facts['data']['name']} ({facts['data']['profile']}): {facts['data']['classes']} "
        f"classes, {facts['data']['train']} training examples, "
        f"{facts['budget']['seeds']} seed(s), {len(facts['budget']['step_sizes'])} step size(s), "
        f"{facts['budget']['steps']} steps, {facts['budget']['model']}; training rows of seed 0: "
        f"{facts['data']['fingerprint']}"
    )
    table = _table.terminal_table(report, width=console.width)
    _show(console, settings, report, headline, table, _table.LEGEND)


def _compare_regression(settings: compare.Settings, console: Console) -> None:
    with _listener(console) as listener:
        report = compare.compare_regression(settings, listener=listener)
    headline = _regression_table.regression_headline(report)
    table = _regression_table.regression_terminal_table(report, width=console.width)
    _show(console, settings, report, headline, table, _regression_table.REGRESSION_LEGEND)


def _compare_suite(settings: compare.SuiteSettings, console: Console) -> None:
    number = len(_suite_sources.find(settings.data))
    console.print(
        f"{settings.data}: read as {number} data sets, compared one after the other",
        highlight=False,
        markup=False,
    )
    with _listener(console, keep=False) as listener:
        report = compare.compare_suite(settings, listener=listener)
    console.print(f"\n{_suite_table.suite_headline(report)}", highlight=False, markup=False)
    table = _suite_table.suite_terminal_table(report, width=console.width)
    console.print(table, highlight=False)
    console.print(Padding(_suite_table.SUITE_LEGEND, (0, 0, 1, 0)), style="dim", highlight=False)
    for line in report.verdict:
        console.print(line, highlight=False, markup=False)
    failed = (f"{name} failed: {reason}" for name, reason in report.failures.items())
    for note in (*report.notes, *failed):
        console.print(f"Note: {note}", highlight=False, markup=False)
    console.print(
        f"\n{report.facts['seconds']:.0f} s. Summary and what each data set gave: {settings.out}",
        highlight=False,
        markup=False,
    )


def _show(
    console: Console,
    settings: compare.Settings,
    report: compare.Report | compare.RegressionReport,
    headline: str,
    table: Table,
    legend: str,
) -> None:
    console.print(f"\n{headline}", highlight=False)
    console.print(table, highlight=False)
    console.print(Padding(legend, (0, 0, 1, 0)), style="dim", highlight=False)
    for line in report.verdict:
        console.print(line, highlight=False)
    for note in report.notes:
        console.print(f"Note: {note}", highlight=False, markup=False)
    console.print(
        f"\n{report.facts['seconds']:.0f} s, {report.facts['compiled_programs']} training programs "
        f"compiled. Report, figures and model: {settings.out}",
        highlight=False,
        markup=False,
    )


@contextmanager
def _listener(console: Console, *, keep: bool = True) -> Iterator[Listener]:
    """Bars on a terminal, the finished ones too if they are to be kept; else a line for each."""
    if not console.is_terminal:
        yield _print_finished
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bars: dict[str, TaskID] = {}

        def show(what: str, runs: int, fraction: float) -> None:
            if what not in bars:
                bars[what] = progress.add_task(f"{_short(what)}: {runs} runs", total=1.0)
            progress.update(bars[what], completed=fraction, visible=keep or fraction < 1)

        waiting = progress.add_task("reading and splitting data", total=None)

        def first(what: str, runs: int, fraction: float) -> None:
            progress.update(waiting, visible=False)
            show(what, runs, fraction)

        yield first


def _print_finished(what: str, runs: int, fraction: float) -> None:
    if fraction == 1.0:
        print(f"{runs} runs: {what}", flush=True)


def _short(what: str) -> str:
    return what if len(what) <= 48 else f"{what[:47]}…"


if __name__ == "__main__":
    sys.exit(main())
