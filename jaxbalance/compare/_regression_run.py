"""The whole comparison of regressions, from a source of data to a folder of results."""

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import jaxbalance
from jaxbalance import _storage, data
from jaxbalance._check import InputError
from jaxbalance.compare import _figures, _files, _regression_files
from jaxbalance.compare._plan import Budget
from jaxbalance.compare._regression_figures import error_by_target
from jaxbalance.compare._regression_methods import REGRESSION_METHODS, RegressionMethod
from jaxbalance.compare._regression_model import save_regression
from jaxbalance.compare._regression_report import (
    RegressionReport,
    build_regression_report,
    regression_json,
)
from jaxbalance.compare._regression_score import RegressionScore, score_regression
from jaxbalance.compare._regression_sweep import (
    RegressionOutcome,
    program,
    regressor,
    train_regressions,
)
from jaxbalance.compare._regression_table import regression_markdown
from jaxbalance.compare._regression_task import RegressionTask, make_regression_task
from jaxbalance.compare._run import (
    Listener,
    Settings,
    check_numbers,
    choose_methods,
    make_budget,
)


def compare_regression(
    settings: Settings,
    *,
    dataset: data.TargetDataset | None = None,
    listener: Listener = lambda what, runs, fraction: None,
) -> RegressionReport:
    """Run a comparison of regressions and write its results.

    Runs that finished before an interruption are found again in the output folder and not repeated.

    Args:
      settings: what the command line offers; ``profile`` does not apply.
      dataset: used in place of reading ``settings.data``.
      listener: told of progress.

    Returns:
      The :class:`RegressionReport`, whose files are in ``settings.out``.

    Raises:
      ValueError: a mistake in the settings or the data, in one line.
    """
    begun = time.perf_counter()
    methods = choose_methods(settings.methods, REGRESSION_METHODS)
    check_numbers(settings)
    if settings.profile is not None:
        raise InputError("--profile thins classes; with --task regression leave it out")
    dataset = dataset or data.load_targets(settings.data, target=settings.target)
    task = make_regression_task(dataset, bins=settings.bins, seeds=settings.seeds)
    if np.count_nonzero(task.split.class_counts) < 2:
        raise InputError(
            f"{dataset.name}: all training targets lie in one of {task.num_bins} bins, so there is "
            "nothing to balance; give more --bins"
        )
    budget = make_budget(settings, task.split)
    _storage.prepare_folder(settings.out, option="--out")
    scores: dict[str, RegressionScore] = {}
    seconds: dict[str, float] = {}
    compilations = 0
    for group in _groups(methods):
        outcomes, spent, compiled = _train(settings.out, task, budget, group, listener)
        compilations += compiled
        for name, outcome in zip(group, outcomes, strict=True):
            scores[name], seconds[name] = score_regression(task, outcome), spent
    ordered = {name: scores[name] for name in methods}
    facts = {
        **_facts(settings, task, budget),
        "compiled_programs": compilations,
        "seconds": time.perf_counter() - begun,
    }
    report = build_regression_report(task, budget, ordered, seconds, facts)
    _write(settings.out, task, budget, report)
    return report


def _groups(methods: Mapping[str, RegressionMethod]) -> list[list[str]]:
    """Names of methods that one compiled program serves."""
    groups: dict[Any, list[str]] = {}
    for name, method in methods.items():
        groups.setdefault(program(method), []).append(name)
    return list(groups.values())


def _train(
    out: pathlib.Path,
    task: RegressionTask,
    budget: Budget,
    group: Sequence[str],
    listener: Listener,
) -> tuple[list[RegressionOutcome], float, int]:
    """Outcomes of a group, seconds per method, and how many programs were compiled for it."""
    label, runs = ", ".join(group), len(group) * len(task.center) * len(budget.step_sizes)
    digest = _regression_files.digest(task, budget, group, jaxbalance.__version__)
    kept = out / "finished-runs" / f"{digest}.npz"
    like = regressor(task.split.inputs.shape[1:], model=budget.model).start(0)
    found = _regression_files.load_regressions(kept, like, len(group))
    if found is not None:
        listener(f"{label} (finished before)", runs, 1.0)
        return found, 0.0, 0
    begun = time.perf_counter()
    methods = [REGRESSION_METHODS[name] for name in group]
    outcomes, compiled = train_regressions(
        task, budget, methods, lambda fraction: listener(label, runs, fraction)
    )
    kept.parent.mkdir(exist_ok=True)
    _files.save_outcomes(kept, outcomes)
    return outcomes, (time.perf_counter() - begun) / len(group), compiled


def _facts(settings: Settings, task: RegressionTask, budget: Budget) -> dict[str, Any]:
    split = task.split
    return {
        "data": {
            "name": split.dataset.name,
            "source": settings.data,
            "target": settings.target,
            "examples": len(task.targets),
            "bins": task.num_bins,
            "edges": task.edges.tolist(),
            "lowest": float(task.targets.min()),
            "highest": float(task.targets.max()),
            "training_counts": split.class_counts.tolist(),
            "train": split.train.shape[1],
            "validation": split.validation.shape[1],
            "test": split.test.shape[1],
            "test_redrawn_per_seed": split.redrawn,
            "fingerprint": split.fingerprint,
        },
        "budget": {
            "seeds": settings.seeds,
            "steps": budget.steps,
            "batch_size": budget.batch_size,
            "step_sizes": list(budget.step_sizes),
            "model": budget.model,
            "optimiser": "adam, cosine decay to zero",
        },
    }


def _write(
    out: pathlib.Path, task: RegressionTask, budget: Budget, report: RegressionReport
) -> None:
    if _figures.available():
        _storage.write_atomically(out / "error_by_target.png", error_by_target(task, report))
    else:
        report.notes.append('no figure: pip install "jaxbalance[plot]" draws it')
    best = report.scores[report.recommended]
    save_regression(out / "model.npz", task, budget, report.recommended, best)
    _storage.write_atomically(out / "report.md", regression_markdown(report).encode())
    _storage.write_atomically(out / "report.json", regression_json(report).encode())
    for kept in (out / "finished-runs").glob("*.npz"):
        kept.unlink()
    (out / "finished-runs").rmdir()
