"""What a comparison found, in numbers, and in words that say no more than the numbers do."""

import datetime
import json
import platform
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxbalance
from jaxbalance._types import HostArray
from jaxbalance.compare._methods import METHODS
from jaxbalance.compare._plan import Budget
from jaxbalance.compare._score import Score
from jaxbalance.compare._statistics import (
    LEVEL,
    Estimate,
    balanced_variance,
    estimates,
    holm,
)
from jaxbalance.compare._task import TEST_FRACTION, Task

BASELINE = "plain"


class Row(NamedTuple):
    """One method's line of the table."""

    method: str
    balanced_accuracy: Estimate
    difference: Estimate | None
    """Balanced accuracy minus that of plain training, paired by seed; None for plain itself."""
    corrected_p_value: float | None
    """Of the difference being zero, corrected for the number of methods."""
    means: dict[str, float]
    """Mean over seeds of every metric the problem has; NaN where it is not defined."""
    step_sizes: list[float]
    """The step size validation chose, for each seed."""
    seconds: float
    """Share of the compiled program's time."""

    @property
    def significant(self) -> bool:
        """Whether the difference stands after correction."""
        return self.corrected_p_value is not None and self.corrected_p_value < LEVEL


class Report(NamedTuple):
    """Everything a comparison found."""

    rows: list[Row]
    """Sorted by falling test balanced accuracy."""
    recommended: str
    """The method with the highest *validation* balanced accuracy; the test set chose nothing."""
    verdict: list[str]
    notes: list[str]
    facts: dict[str, Any]
    """Data, budget, versions: all that is needed to run it again."""
    scores: dict[str, Score]


def build_report(
    task: Task,
    budget: Budget,
    scores: Mapping[str, Score],
    seconds: Mapping[str, float],
    facts: Mapping[str, Any],
) -> Report:
    """Turn scores into estimates, paired differences and a verdict."""
    names = list(scores)
    remedies = [name for name in names if name != BASELINE]
    levels = dict(zip(names, _estimates(task, scores, names, None), strict=True))
    gains = _estimates(task, scores, remedies, scores[BASELINE])
    differences = dict(zip(remedies, gains, strict=True))
    p_values = dict(zip(remedies, holm([gain.p_value for gain in gains]), strict=True))
    rows = [
        Row(
            method=name,
            balanced_accuracy=levels[name],
            difference=differences.get(name),
            corrected_p_value=p_values.get(name),
            means={metric: float(np.mean(v)) for metric, v in scores[name].values.items()},
            step_sizes=[budget.step_sizes[i] for i in scores[name].chosen],
            seconds=seconds[name],
        )
        for name in names
    ]
    rows.sort(key=lambda row: -row.balanced_accuracy.mean)
    recommended = max(names, key=lambda name: float(np.mean(scores[name].validation)))
    return Report(
        rows=rows,
        recommended=recommended,
        verdict=_verdict(rows, recommended),
        notes=[*task.notes, *run_notes(scores, len(budget.step_sizes))],
        facts={**facts, **provenance()},
        scores=dict(scores),
    )


def _estimates(
    task: Task, scores: Mapping[str, Score], names: list[str], baseline: Score | None
) -> list[Estimate]:
    """Balanced accuracy of the named methods, or what each gains over the baseline."""
    if not names:
        return []
    values, variances = [], []
    for name in names:
        value = scores[name].values["balanced_accuracy"].astype(np.float64)
        right = scores[name].right.astype(np.float64)
        if baseline is not None:
            value = value - baseline.values["balanced_accuracy"]
            right = right - baseline.right
        values.append(value)
        variances.append(_example_variance(task, right))
    return estimates(
        np.stack(values),
        np.array(variances),
        redrawn=task.redrawn,
        test_share=TEST_FRACTION if task.redrawn else 0.0,
    )


def _example_variance(task: Task, right: HostArray) -> float:
    labels = task.dataset.labels[task.test]
    if not task.redrawn:
        return balanced_variance(right.mean(axis=0), labels[0], task.num_classes)
    parts = [balanced_variance(r, y, task.num_classes) for r, y in zip(right, labels, strict=True)]
    return float(np.mean(parts))


def _verdict(rows: list[Row], recommended: str) -> list[str]:
    better = [row for row in rows if row.significant and _gain(row) > 0]
    worse = [row for row in rows if row.significant and _gain(row) < 0]
    undecided = [row.method for row in rows if row.difference is not None and not row.significant]
    lines = []
    if better:
        lines.append(
            "Significantly better than plain training here, in points of balanced accuracy: "
            f"{_gains(better)}."
        )
    else:
        lines.append("No remedy is significantly better than plain training on these data.")
    if worse:
        lines.append(f"Significantly worse: {_gains(worse)}.")
    if undecided:
        lines.append(f"Not distinguishable from plain: {', '.join(undecided)}.")
    lines.append(_advice(recommended, rows))
    return lines


def _advice(recommended: str, rows: list[Row]) -> str:
    row = next(row for row in rows if row.method == recommended)
    if recommended == BASELINE:
        return "Validation prefers plain training: no remedy is needed."
    tail = (
        "which the test set confirms"
        if row.significant and _gain(row) > 0
        else ("but the test set does not tell it from plain with confidence")
    )
    return f"Validation prefers {recommended} ({METHODS[recommended].summary}), {tail}."


def _gain(row: Row) -> float:
    return 0.0 if row.difference is None else row.difference.mean


def _gains(rows: list[Row]) -> str:
    return ", ".join(
        f"{row.method} ({100 * row.difference.mean:+.1f} ± {100 * row.difference.half_width:.1f})"
        for row in rows
        if row.difference is not None
    )


def run_notes(scores: Mapping[str, Any], rates: int) -> list[str]:
    """Which methods had runs that diverged."""
    return [
        f"{name}: {score.diverged} of {rates * len(score.chosen)} runs diverged; such a run is "
        "chosen only if every step size of its seed diverged"
        for name, score in scores.items()
        if score.diverged
    ]


def provenance() -> dict[str, Any]:
    """When, with what and on what a report was made."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "jaxbalance": jaxbalance.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
    }


def to_json(report: Report) -> str:
    """The whole report as JSON; a number that is not defined is null."""
    scores = {
        name: {
            **{metric: values.tolist() for metric, values in score.values.items()},
            "validation_balanced_accuracy": score.validation.tolist(),
            "recall_per_class": score.recall.tolist(),
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
                "balanced_accuracy": row.balanced_accuracy._asdict(),
                "difference": row.difference._asdict() if row.difference else None,
                "significant": row.significant,
            }
            for row in report.rows
        ],
        "per_seed": scores,
    }
    return json.dumps(without_nan(content), indent=1) + "\n"


def without_nan(value: Any) -> Any:
    """A report as JSON can have it: numbers of seven digits, null for what is not finite."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.7g}") if np.isfinite(value) else None
    return value
