"""Put what the experiments found into the repository, so that no number there is typed.

jaxbalance experiments run NAME && python docs/show_experiments.py results
"""

import inspect
import json
import pathlib
import shutil
import sys
from collections.abc import Sequence
from types import ModuleType

from jaxbalance import experiments

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECORDED = ROOT / "experiments" / "recorded"
IMAGES = ROOT / "docs" / "pages" / "images" / "experiments"
HEAD = """# Experiments

Each file here checks one claim of the literature, and a null run beside it, in a minute or two on
two cores. `jaxbalance experiments` lists them with what they found last, `jaxbalance experiments
run NAME [--field=value]` runs one, `--paper` at the published size, `--help` shows its fields.
Results go to `results/NAME/DIGEST`: settings, numbers, arrays, figure, and where and when they were
made. An interrupted run goes on after its last finished part. A claim that does not hold is
reported like any other result, with exit code 1.

Everything below was written by `python docs/show_experiments.py results` from recorded runs.
"""


def record(name: str, results: pathlib.Path) -> None:
    """Keep the last run on every data set, beside those that were kept before."""
    kept = {_data(run.config): run._asdict() for run in experiments.recorded(name)}
    for run in reversed(experiments.finished(name, results)):
        config = run.config | ({"data": _data(run.config)} if "data" in run.config else {})
        kept[_data(config)] = run._asdict() | {"config": config}
        figure = run.place / "figure.png"
        if figure.is_file():
            shutil.copy(figure, IMAGES / _image(name, config))
    if kept:
        content = [{key: run[key] for key in run if key != "place"} for run in kept.values()]
        (RECORDED / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def page(images: str) -> str:
    """All recorded runs as Markdown.

    Args:
      images: where the figures are, seen from the page.
    """
    rows, sections = [], []
    for name in experiments.names():
        runs = experiments.recorded(name)
        if runs:
            module, title = experiments.load(name), experiments.title(name)
            headlines = [module.summary(run.numbers).partition("\n")[0] for run in runs]
            rows.append(f"| [{name}](#{name}) | {title} | {_seconds(runs)} | {headlines[0]} |")
            sections += [f"## {name}\n\n{title}.\n\n{_claim(module)}\n"]
            sections += [_section(name, run, images) for run in runs]
    table = [
        "| experiment | about | processor time, s | found |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
    ]
    return "\n".join([HEAD, *table, *sections])


def _claim(module: ModuleType) -> str:
    """The docstring without its first line and the command at its end."""
    paragraphs = (inspect.getdoc(module) or "").split("\n\n")[1:]
    return "\n\n".join(part for part in paragraphs if not part.startswith("    "))


def _section(name: str, run: experiments.Result, images: str) -> str:
    where = run.provenance
    data = f" --data={run.config['data']}" if "data" in run.config else ""
    figure = _image(name, run.config)
    shown = f"\n![{name}]({images}/{figure})\n" if (IMAGES / figure).is_file() else ""
    return (
        f"`jaxbalance experiments run {name}{data}`: {where['cpu_seconds']:.0f} s of processor "
        f"time ({where['cores']} cores, {where['device']}, JAX {where['jax']}); "
        f"claim and null: {where['check']}.\n\n"
        f"{experiments.load(name).summary(run.numbers)}\n{shown}"
    )


def _seconds(runs: Sequence[experiments.Result]) -> str:
    return ", ".join(f"{run.provenance['cpu_seconds']:.0f}" for run in runs)


def _data(config: dict[str, object]) -> str:
    """Name of the data, without the folders it happened to lie in."""
    given = config.get("data", "")
    paths = given if isinstance(given, list | tuple) else [given]
    return "-".join(pathlib.Path(str(path)).name for path in paths)


def _image(name: str, config: dict[str, object]) -> str:
    return f"{name}-{_data(config)}.png" if "data" in config else f"{name}.png"


def main(results: pathlib.Path) -> None:
    """Record the runs, and write both pages."""
    for folder in (RECORDED, IMAGES):
        folder.mkdir(parents=True, exist_ok=True)
    for name in experiments.names():
        record(name, results)
    (ROOT / "experiments" / "README.md").write_text(page("../docs/pages/images/experiments"))
    (ROOT / "docs" / "pages" / "experiments.md").write_text(page("images/experiments"))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
