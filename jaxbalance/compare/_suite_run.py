"""The same comparison on every data set of a folder."""

import dataclasses
import hashlib
import json
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import tyro

import jaxbalance
from jaxbalance import _storage, data
from jaxbalance._check import InputError
from jaxbalance.compare import _figures
from jaxbalance.compare._methods import METHODS, Method
from jaxbalance.compare._plan import Budget
from jaxbalance.compare._report import BASELINE, build_report, provenance, without_nan
from jaxbalance.compare._run import (
    Listener,
    Settings,
    check_numbers,
    choose_methods,
    make_budget,
    method_groups,
    wanted_of,
)
from jaxbalance.compare._score import Score, score
from jaxbalance.compare._suite_figure import critical_difference
from jaxbalance.compare._suite_padding import padded
from jaxbalance.compare._suite_report import SetResult, SuiteReport, build_suite_report
from jaxbalance.compare._suite_sources import Source, find
from jaxbalance.compare._suite_table import suite_json, suite_markdown
from jaxbalance.compare._sweep import Memory, train_group
from jaxbalance.compare._task import Task, make_task
from jaxbalance.data import _wording


@dataclasses.dataclass(frozen=True)
class SuiteSettings(Settings):
    """:class:`Settings` with the smaller budget of a suite."""

    seeds: int = 3
    steps: int | None = 300
    step_sizes: tuple[float, ...] = (0.003, 0.01)
    batch_size: int | None = 64
    out: Annotated[pathlib.Path, tyro.conf.arg(metavar="FOLDER")] = pathlib.Path("jaxbalance-suite")


def compare_suite(
    settings: SuiteSettings, *, listener: Listener = lambda what, runs, fraction: None
) -> SuiteReport:
    """Run the same comparison on every data set of a folder, and sum up.

    What each data set gave is kept in the output folder, so that the same call goes on after an
    interruption, and with data sets that were added, without repeating anything. A data set that
    cannot be compared on is named with its reason and stops nothing.

    Args:
      settings: as for :func:`compare`; ``data`` is a folder of files that are each a data set, or
        an .npz of many as ``X__NAME``, ``y__NAME`` and, where columns are codes, ``cat__NAME``.
      listener: told of progress.

    Returns:
      The :class:`SuiteReport`, whose files are in ``settings.out``.

    Raises:
      ValueError: a mistake in the settings, or no data set could be compared on, in one line.

    Example::

        report = jaxbalance.compare.compare_suite(SuiteSettings("folder"))
    """
    begun = time.perf_counter()
    if settings.task != "classification" or settings.bins is not None:
        raise InputError("--task and --bins: regression is for one data set at a time")
    methods = _methods(settings)
    check_numbers(settings)
    sources = find(settings.data)
    _storage.prepare_folder(settings.out, option="--out")
    memory: Memory = {}
    results: list[SetResult] = []
    failures: dict[str, str] = {}
    for source in sources:
        try:
            results.append(_one(settings, source, methods, memory, listener))
        except (ValueError, OSError) as error:
            failures[source.name] = _wording.reason(error)
    if not results:
        raise InputError(f"{settings.data}: no data set could be compared on: {_first(failures)}")
    facts = {**_facts(settings), **provenance(), "seconds": time.perf_counter() - begun}
    report = build_suite_report(list(methods), results, failures, facts)
    _write(settings.out, report)
    return report


def _methods(settings: Settings) -> dict[str, Method]:
    methods = choose_methods(settings.methods, METHODS)
    if len(methods) < 2:
        raise InputError(f"--methods: got {BASELINE} alone, wanted something to rank against it")
    return methods


def _first(failures: Mapping[str, str]) -> str:
    return next((f"{name}: {reason}" for name, reason in failures.items()), "there is none")


def _one(
    settings: Settings,
    source: Source,
    methods: Mapping[str, Method],
    memory: Memory,
    listener: Listener,
) -> SetResult:
    dataset = source.read(settings.target)._replace(name=source.name)
    task = make_task(dataset, profile=settings.profile or "natural", seeds=settings.seeds)
    budget = make_budget(settings, task)
    digest = _digest(dataset, budget, [*methods, settings.profile, settings.seeds])
    name = re.sub(r"[^\w.-]", "_", source.name)
    kept = settings.out / "data-sets" / f"{name}-{digest}.json"
    runs = settings.seeds * len(budget.step_sizes)
    found = _load(kept)
    if found is not None:
        listener(f"{source.name} (finished before)", 0, 1.0)
        return found
    begun = time.perf_counter()
    ready = padded(task, columns=budget.model == "mlp")
    scores = _scores(ready, budget, methods, memory, source.name, runs, listener)
    result = _result(task, ready, budget, scores, time.perf_counter() - begun)
    kept.parent.mkdir(exist_ok=True)
    content = json.dumps(without_nan(result._asdict()), indent=1) + "\n"
    _storage.write_atomically(kept, content.encode())
    # As read back, so that an interruption changes no digit.
    return _parse(content)


def _scores(
    task: Task,
    budget: Budget,
    methods: Mapping[str, Method],
    memory: Memory,
    name: str,
    runs: int,
    listener: Listener,
) -> dict[str, Score]:
    groups = method_groups(methods, task)
    total = sum(len({training for training, _ in group}) for group in groups)
    scores: dict[str, Score] = {}
    for number, group in enumerate(groups):

        def report(fraction: float, done: int = number) -> None:
            listener(name, total * runs, (done + fraction) / len(groups))

        outcomes, _ = train_group(task, budget, group, report, memory)
        for method_name, method in methods.items():
            if (wanted := wanted_of(method)) in group:
                scores[method_name] = score(task, method, outcomes[group.index(wanted)])
    return {method: scores[method] for method in methods}


def _result(
    task: Task, ready: Task, budget: Budget, scores: Mapping[str, Score], seconds: float
) -> SetResult:
    report = build_report(ready, budget, scores, dict.fromkeys(scores, 0.0), {})
    sizes = np.bincount(task.dataset.labels)
    signs = {
        row.method: int(np.sign(row.difference.mean)) if row.significant else 0
        for row in report.rows
        if row.difference is not None
    }
    return SetResult(
        name=task.dataset.name,
        examples=len(task.dataset.labels),
        columns=int(np.prod(task.shape)),
        classes=task.num_classes,
        imbalance_ratio=float(sizes.max() / sizes.min()),
        values={
            name: {metric: values.tolist() for metric, values in one.values.items()}
            for name, one in scores.items()
        },
        significant=signs,
        notes=list(report.notes),
        seconds=seconds,
    )


def _digest(dataset: data.Dataset, budget: Budget, others: list[Any]) -> str:
    """Equal digest, equal numbers."""
    settings = (tuple(budget), others, dataset.name, jaxbalance.__version__)
    content = hashlib.sha256(repr(settings).encode())
    tests = dataset.test_indices
    for array in (dataset.inputs, dataset.labels, np.zeros(0) if tests is None else tests):
        content.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:16]


def _load(path: pathlib.Path) -> SetResult | None:
    try:
        return _parse(path.read_text())
    except (OSError, ValueError, TypeError):
        return None


def _parse(text: str) -> SetResult:
    """A result from its file; what was not finite is NaN."""
    fields = json.loads(text)
    for one in fields["values"].values():
        for metric, values in one.items():
            one[metric] = [float("nan") if value is None else value for value in values]
    return SetResult(**fields)


def _facts(settings: Settings) -> dict[str, Any]:
    return {
        "source": settings.data,
        "budget": {
            "seeds": settings.seeds,
            "steps": settings.steps,
            "batch_size": settings.batch_size,
            "step_sizes": list(settings.step_sizes),
            "model": settings.model,
            "profile": settings.profile or "natural",
            "optimiser": "adam, cosine decay to zero",
        },
    }


def _write(out: pathlib.Path, report: SuiteReport) -> None:
    if _figures.available():
        _storage.write_atomically(out / "critical_difference.png", critical_difference(report))
    else:
        report.notes.append('no figure: pip install "jaxbalance[plot]" draws it')
    _storage.write_atomically(out / "suite.md", suite_markdown(report).encode())
    _storage.write_atomically(out / "suite.json", suite_json(report).encode())
