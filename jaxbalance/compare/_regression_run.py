"""The whole comparison of regressions, from a source of data to a folder of results."""

import pathlib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from jaxbalance import _storage, data
from jaxbalance._check import InputError
from jaxbalance.compare._plan import Budget
from jaxbalance.compare._regression_figures import error_by_target, error_curves
from jaxbalance.compare._regression_methods import REGRESSION_METHODS, RegressionMethod
from jaxbalance.compare._regression_model import save_regression
from jaxbalance.compare._regression_network import regressor
from jaxbalance.compare._regression_report import (
    ERROR,
    RegressionReport,
    build_regression_report,
)
from jaxbalance.compare._regression_score import RegressionScore, score_regression
from jaxbalance.compare._regression_sweep import (
    RegressionOutcome,
    program,
    train_regressions,
)
from jaxbalance.compare._regression_table import regression_markdown
from jaxbalance.compare._regression_task import RegressionTask, make_regression_task
from jaxbalance.compare._run import (
    Group,
    Listener,
    Settings,
    check_numbers,
    choose_methods,
    describe,
    make_budget,
    run_groups,
    write,
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
    groups = (_group(task, budget, names) for names in _groups(methods))
    scores, seconds, compilations = run_groups(
        settings, task.split, budget, groups, listener, (task.targets, task.edges)
    )
    facts = {
        **describe(settings, task.split, budget, _about(settings, task)),
        "compiled_programs": compilations,
        "seconds": time.perf_counter() - begun,
    }
    report = build_regression_report(
        task, budget, {name: scores[name] for name in methods}, seconds, facts
    )
    _write(settings.out, task, budget, report)
    return report


def _groups(methods: Mapping[str, RegressionMethod]) -> list[list[str]]:
    """Names of methods that one compiled program serves."""
    groups: dict[Any, list[str]] = {}
    for name, method in methods.items():
        groups.setdefault(program(method), []).append(name)
    return list(groups.values())


def _group(task: RegressionTask, budget: Budget, names: list[str]) -> Group[RegressionScore]:
    def judge(outcomes: Sequence[RegressionOutcome]) -> dict[str, RegressionScore]:
        scores = (score_regression(task, outcome) for outcome in outcomes)
        return dict(zip(names, scores, strict=True))

    return Group(
        names=names,
        trainings=len(names),
        outcome=RegressionOutcome,
        params=regressor(task.split.inputs.shape[1:], model=budget.model).start(0),
        train=partial(train_regressions, task, budget, [REGRESSION_METHODS[n] for n in names]),
        judge=judge,
    )


def _about(settings: Settings, task: RegressionTask) -> dict[str, Any]:
    return {
        "target": settings.target,
        "examples": len(task.targets),
        "bins": task.num_bins,
        "edges": task.edges.tolist(),
        "lowest": float(task.targets.min()),
        "highest": float(task.targets.max()),
    }


def _write(
    out: pathlib.Path, task: RegressionTask, budget: Budget, report: RegressionReport
) -> None:
    best = report.scores[report.recommended]
    save_regression(out / "model.npz", task, budget, report.recommended, best)
    pictures = {
        "error_by_target.png": partial(error_by_target, task),
        "learning_curves.png": partial(error_curves, task),
    }
    write(out, report, ERROR, pictures, regression_markdown)
