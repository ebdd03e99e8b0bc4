"""The command line. Exit codes: 0 done, 2 a mistake in what was asked, 130 interrupted."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import tyro
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from jaxbalance import compare, experiments
from jaxbalance._check import InputError
from jaxbalance.compare import _table
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
    settings = tyro.extras.subcommand_cli_from_dict(
        {"compare": compare.Settings, "methods": Methods, "experiments": Experiments},
        prog="jaxbalance",
        description="Which remedy for class imbalance helps on your data?",
        args=given,
    )
    if isinstance(settings, Methods):
        _list_methods()
    elif isinstance(settings, compare.Settings):
        _compare(settings)
    return 0


def _list_methods() -> None:
    width = max(map(len, compare.METHODS))
    for name, method in compare.METHODS.items():
        print(f"{name:{width}}  {method.summary}")


def _compare(settings: compare.Settings) -> None:
    screen = Console()
    console = screen if screen.is_terminal else Console(width=_PIPED_WIDTH)
    with _listener(console) as listener:
        report = compare.compare(settings, listener=listener)
    facts = report.facts
    console.print(
        f"\n{facts['data']['name']} ({facts['data']['profile']}): {facts['data']['classes']} "
        f"classes, {facts['data']['train']} training examples, "
        f"{facts['budget']['seeds']} seed(s), {len(facts['budget']['step_sizes'])} step size(s), "
        f"{facts['budget']['steps']} steps, {facts['budget']['model']}; training rows of seed 0: "
        f"{facts['data']['fingerprint']}",
        highlight=False,
    )
    console.print(_table.terminal_table(report, width=console.width), highlight=False)
    console.print(Padding(_table.LEGEND, (0, 0, 1, 0)), style="dim", highlight=False)
    for line in report.verdict:
        console.print(line, highlight=False)
    for note in report.notes:
        console.print(f"Note: {note}", highlight=False, markup=False)
    console.print(
        f"\n{facts['seconds']:.0f} s, {facts['compiled_programs']} training programs compiled. "
        f"Report, figures and model: {settings.out}",
        highlight=False,
        markup=False,
    )


@contextmanager
def _listener(console: Console) -> Iterator[Listener]:
    """Bars on a terminal; a line for every finished group elsewhere."""
    if not console.is_terminal:
        yield _print_finished
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bars: dict[str, TaskID] = {}

        def show(what: str, runs: int, fraction: float) -> None:
            if what not in bars:
                bars[what] = progress.add_task(f"{_short(what)}: {runs} runs", total=1.0)
            progress.update(bars[what], completed=fraction)

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
