"""Run benchmarks, keep what they print, and write the page of it, so that no number is typed.

python docs/show_benchmarks.py                             # the page alone, from what is kept
python docs/show_benchmarks.py smote samplers              # run these two first
python docs/show_benchmarks.py --torch PYTHON samplers     # beside PyTorch, from its interpreter
"""

import argparse
import ast
import datetime
import inspect
import os
import pathlib
import platform
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / "experiments" / "benchmarks"
RECORDED = FOLDER / "recorded"
PAGE = ROOT / "docs" / "pages" / "benchmarks.md"
# What is run: the program, what it is given, and the option that takes an interpreter of PyTorch.
RUNS = {
    "sweep": ("sweep.py", [], "--torch"),
    "sweep-large": ("sweep.py", ["--large"], None),
    "class_gradients": ("class_gradients.py", [], "--torch"),
    "weightings": ("weightings.py", [], "--torchjd"),
    "losses": ("losses.py", [], None),
    "linear_cross_entropy": ("linear_cross_entropy.py", [], None),
    "convolution_loops": ("convolution_loops.py", [], None),
    "samplers": ("samplers.py", [], "--torch"),
    "smote": ("smote.py", [], None),
    "ranking_metrics": ("ranking_metrics.py", [], None),
}
HEAD = """# What it costs

Every benchmark measures both sides in one process, one right after the other, and reports the
median of the ratios. Absolute times are those of one small machine and say little about yours: run
the program. Other work on the machine shows in the load, one for each processor kept busy.

Everything below was written by `python docs/show_benchmarks.py` from recorded runs.
"""


def record(name: str, torch: str | None) -> None:
    """Run one benchmark and keep what it printed, with what it ran on."""
    program, arguments, option = RUNS[name]
    given = [*arguments, *([option, torch] if option and torch else [])]
    shown = " ".join([program, *arguments, *([option, "PYTHON"] if option and torch else [])])
    load = os.getloadavg()[0]
    done = subprocess.run(
        [sys.executable, str(FOLDER / program), *given],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    facts = f"`python experiments/benchmarks/{shown}`, {_machine()}, load {load:.1f} before."
    (RECORDED / f"{name}.md").write_text(f"{facts}\n\n{_separated(done.stdout).strip()}\n")


def page() -> str:
    """All recorded runs, each below what its program says of itself."""
    parts, told = [HEAD], set()
    for name, (program, _, _) in RUNS.items():
        kept = RECORDED / f"{name}.md"
        if not kept.is_file():
            continue
        if program not in told:
            parts.append(_about(FOLDER / program))
            told.add(program)
        parts.append(kept.read_text().strip() + "\n")
    return "\n".join(parts)


def _about(program: pathlib.Path) -> str:
    """The docstring of a program: its first line is the heading; commands are left out."""
    text = inspect.cleandoc(ast.get_docstring(ast.parse(program.read_text())) or "")
    first, *rest = text.split("\n\n")
    told = [part for part in rest if not part.startswith("    ") and not part.startswith("python ")]
    return "\n\n".join([f"## {first.removesuffix('.')}", *told]) + "\n"


def _separated(printed: str) -> str:
    """Markdown wants an empty line before and after a table."""
    lines: list[str] = []
    for line in printed.splitlines():
        if lines and lines[-1] and line.startswith("|") != lines[-1].startswith("|"):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def _machine() -> str:
    cpu = pathlib.Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = names[0] if names else platform.processor() or platform.machine()
    day = datetime.datetime.now(datetime.UTC).date()
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, {day}"


def main() -> None:
    """Run what is named, then write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has PyTorch")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in RUNS]:
        parser.error(f"NAME: got {unknown[0]}, wanted some of {', '.join(RUNS)}")
    RECORDED.mkdir(exist_ok=True)
    for name in given.names:
        record(name, given.torch)
        PAGE.write_text(page())
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
