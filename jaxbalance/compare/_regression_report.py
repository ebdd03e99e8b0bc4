"""What a comparison of regressions found, in numbers, and in words that say no more than they."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxbalance._types import HostArray
from jaxbalance.compare._plan import Budget
from jaxbalance.compare._regression_methods import REGRESSION_METHODS
from jaxbalance.compare._regression_score import RegressionScore
from jaxbalance.compare._regression_task import RegressionTask
from jaxbalance.compare._report import BASELINE, provenance, run_notes, without_nan
from jaxbalance.compare._statistics import (
    LEVEL,
    Estimate,
    balanced_variance,
    estimates,
    holm,
)
from jaxbalance.compare._task import TEST_FRACTION


class RegressionRow(NamedTuple):
    """One method's line of the table."""

    method: str
    balanced_mae: Estimate
    """Mean over bins of the target of the mean absolute error, in units of the target."""
    difference: Estimate | None
    """Balanced MAE minus that of plain training, paired by seed: below zero is better. None for
    plain itself."""
    corrected_p_value: float | None
    """Of the difference being zero, corrected for the number of methods."""
    means: dict[str, float]
    """Mean over seeds of every metric; NaN where it is not defined."""
    step_sizes: list[float]
    """The step size validation chose, for each seed."""
    seconds: float
    """Share of the compiled program's time."""

    @property
    def significant(self) -> bool:
        """Whether the difference stands after correction."""
        return self.corrected_p_value is not None and self.corrected_p_value < LEVEL


class RegressionReport(NamedTuple):
    """Everything a comparison of regressions found."""

    rows: list[RegressionRow]
    """Sorted by rising test balanced MAE."""
    recommended: str
    """The method with the lowest *validation* balanced MAE; the test set chose nothing."""
    verdict: list[str]
    notes: list[str]
    facts: dict[str, Any]
    """Data, budget, versions: all that is needed to run it again."""
    scores: dict[str, RegressionScore]


def build_regression_report(
    task: RegressionTask,
    budget: Budget,
    scores: Mapping[str, RegressionScore],
    seconds: Mapping[str, float],
    facts: Mapping[str, Any],
) -> RegressionReport:
    """Turn scores into estimates, paired differences and a verdict."""
    names = list(scores)
    remedies = [name for name in names if name != BASELINE]
    levels = dict(zip(names, _estimates(task, scores, names, None), strict=True))
    gains = _estimates(task, scores, remedies, scores[BASELINE])
    differences = dict(zip(remedies, gains, strict=True))
    p_values = dict(zip(remedies, holm([gain.p_value for gain in gains]), strict=True))
    rows = [
        RegressionRow(
            method=name,
            balanced_mae=levels[name],
            difference=differences.get(name),
            corrected_p_value=p_values.get(name),
            means={metric: float(np.mean(v)) for metric, v in scores[name].values.items()},
            step_sizes=[budget.step_sizes[i] for i in scores[name].chosen],
            seconds=seconds[name],
        )
        for name in names
    ]
    rows.sort(key=lambda row: row.balanced_mae.mean)
    recommended = min(names, key=lambda name: float(np.mean(scores[name].validation)))
    return RegressionReport(
        rows=rows,
        recommended=recommended,
        verdict=verdict(rows, recommended),
        notes=[
            *task.notes,
            *run_notes(scores, len(budget.step_sizes)),
            *step_size_notes(rows, budget.step_sizes),
        ],
        facts={**facts, **provenance()},
        scores=dict(scores),
    )


def _estimates(
    task: RegressionTask,
    scores: Mapping[str, RegressionScore],
    names: list[str],
    baseline: RegressionScore | None,
) -> list[Estimate]:
    """Balanced MAE of the named methods, or how far it is above the baseline's."""
    if not names:
        return []
    values, variances = [], []
    for name in names:
        value, absolute = scores[name].values["balanced_mae"], scores[name].absolute
        if baseline is not None:
            value = value - baseline.values["balanced_mae"]
            absolute = absolute - baseline.absolute
        values.append(value)
        variances.append(_example_variance(task, absolute))
    return estimates(
        np.stack(values),
        np.array(variances),
        redrawn=task.split.redrawn,
        test_share=TEST_FRACTION if task.split.redrawn else 0.0,
    )


def _example_variance(task: RegressionTask, absolute: HostArray) -> float:
    bins = task.split.dataset.labels[task.split.test]
    if not task.split.redrawn:
        return absolute_variance(absolute.mean(axis=0), bins[0], task.num_bins)
    parts = [absolute_variance(a, b, task.num_bins) for a, b in zip(absolute, bins, strict=True)]
    return float(np.mean(parts))


def absolute_variance(absolute: HostArray, bins: HostArray, num_bins: int) -> float:
    """Variance of a balanced mean; a lone example is as uncertain as the others on average."""
    within = [absolute[bins == b].var(ddof=1) for b in range(num_bins) if np.sum(bins == b) > 1]
    lone = float(np.mean(within)) if within else float(absolute.var())
    return balanced_variance(absolute, bins, num_bins, lone_variance=lone)


def step_size_notes(rows: list[RegressionRow], tried: Sequence[float]) -> list[str]:
    """Whose errors a wider grid may still lower."""
    notes = []
    for end, word in ((max(tried), "largest"), (min(tried), "smallest")) if len(tried) > 1 else ():
        names = [row.method for row in rows if 2 * row.step_sizes.count(end) > len(row.step_sizes)]
        if names:
            notes.append(
                f"most seeds chose the {word} step size tried, {end:g}, for {', '.join(names)}: "
                "a wider --step-sizes may change them"
            )
    return notes


def verdict(rows: list[RegressionRow], recommended: str) -> list[str]:
    """What the rows allow to say."""
    better = [row for row in rows if row.significant and _change(row) < 0]
    worse = [row for row in rows if row.significant and _change(row) > 0]
    undecided = [row.method for row in rows if row.difference is not None and not row.significant]
    lines = []
    if better:
        lines.append(
            "Significantly lower balanced error than plain training here, in units of the target: "
            f"{_changes(better)}."
        )
    else:
        lines.append("No remedy has a significantly lower balanced error than plain training.")
    if worse:
        lines.append(f"Significantly higher: {_changes(worse)}.")
    if undecided:
        lines.append(f"Not distinguishable from plain: {', '.join(undecided)}.")
    if better:
        lines.append(_price(better, rows))
    lines.append(_advice(recommended, rows))
    return lines


def _price(better: list[RegressionRow], rows: list[RegressionRow]) -> str:
    """What those that are better pay elsewhere, for a balanced mean hides it."""
    plain = _named(BASELINE, rows).means["mae"]
    costs = ", ".join(
        f"{row.method} {100 * (row.means['mae'] / plain - 1):+.0f} %" for row in better
    )
    return f"Their plain mean absolute error, every example counting the same, changes by: {costs}."


def _advice(recommended: str, rows: list[RegressionRow]) -> str:
    row = _named(recommended, rows)
    if recommended == BASELINE:
        return "Validation prefers plain training: no remedy is needed."
    confirmed = row.significant and _change(row) < 0
    tail = (
        "which the test set confirms"
        if confirmed
        else ("but the test set does not tell it from plain with confidence")
    )
    summary = REGRESSION_METHODS[recommended].summary
    return f"Validation prefers {recommended} ({summary}), {tail}."


def _named(method: str, rows: list[RegressionRow]) -> RegressionRow:
    return next(row for row in rows if row.method == method)


def _change(row: RegressionRow) -> float:
    return 0.0 if row.difference is None else row.difference.mean


def _changes(rows: list[RegressionRow]) -> str:
    return ", ".join(
        f"{row.method} ({row.difference.mean:+.3g} ± {row.difference.half_width:.2g})"
        for row in rows
        if row.difference is not None
    )


def regression_json(report: RegressionReport) -> str:
    """The whole report as JSON; a number that is not defined is null."""
    scores = {
        name: {
            **{metric: values.tolist() for metric, values in score.values.items()},
            "validation_balanced_mae": score.validation.tolist(),
            "mae_per_bin": score.by_bin.tolist(),
            "diverged_runs": score.diverged,
        }
        for name, score in report.scores.items()
    }
    content = {
        "recommended": report.recommended,
        "verdict": report.verdict,
        "notes": report.notes,
        **report.facts,
        "methods": [
            {
                **row._asdict(),
                "balanced_mae": row.balanced_mae._asdict(),
                "difference": row.difference._asdict() if row.difference else None,
                "significant": row.significant,
            }
            for row in report.rows
        ],
        "per_seed": scores,
    }
    return json.dumps(without_nan(content), indent=1) + "\n"
