"""What a comparison of regressions found, in numbers, and in words that say no more than they."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxbalance._types import HostArray
from jaxbalance.compare._plan import Budget
from jaxbalance.compare._regression_methods import REGRESSION_METHODS
from jaxbalance.compare._regression_score import RegressionScore
from jaxbalance.compare._regression_task import RegressionTask
from jaxbalance.compare._report import (
    BASELINE,
    Findings,
    Line,
    Measure,
    advice,
    differing,
    effect,
    make_rows,
    provenance,
    recommend,
    run_notes,
)
from jaxbalance.compare._statistics import Estimate, balanced_variance


class RegressionRow(Line):
    """One method's line of the table of a regression; a difference below zero is better."""

    @property
    def balanced_mae(self) -> Estimate:
        """Mean over bins of the target of the mean absolute error, in units of the target."""
        return self.balanced


class RegressionReport(Findings[RegressionRow, RegressionScore]):
    """Everything a comparison of regressions found.

    ``rows`` rise in test balanced MAE. ``recommended`` is the method with the lowest *validation*
    balanced MAE; the test set chose nothing. ``verdict`` and ``notes`` are sentences, ``facts`` all
    that is needed to run it again, ``scores`` what every method got.
    """


def absolute_variance(absolute: HostArray, bins: HostArray, num_bins: int) -> float:
    """Variance of a balanced mean; a lone example is as uncertain as the others on average."""
    within = [absolute[bins == b].var(ddof=1) for b in range(num_bins) if np.sum(bins == b) > 1]
    lone = float(np.mean(within)) if within else float(absolute.var())
    return balanced_variance(absolute, bins, num_bins, lone_variance=lone)


ERROR = Measure[RegressionRow, RegressionScore](
    name="balanced_mae",
    higher_is_better=False,
    row=RegressionRow,
    methods=REGRESSION_METHODS,
    of_examples=lambda score: score.absolute,
    of_classes=lambda score: {"mae_per_bin": score.by_bin},
    variance=absolute_variance,
    written=lambda change: f"{change.mean:+.3g} ± {change.half_width:.2g}",
    better="Significantly lower balanced error than plain training here, in units of the target",
    none="No remedy has a significantly lower balanced error than plain training.",
    worse="Significantly higher",
)


def build_regression_report(
    task: RegressionTask,
    budget: Budget,
    scores: Mapping[str, RegressionScore],
    seconds: Mapping[str, float],
    facts: Mapping[str, Any],
) -> RegressionReport:
    """Turn scores into estimates, paired differences and a verdict."""
    rows = make_rows(ERROR, task.split, budget, scores, seconds)
    recommended = recommend(ERROR, scores)
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


def step_size_notes(rows: Sequence[Line], tried: Sequence[float]) -> list[str]:
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


def verdict(rows: Sequence[Line], recommended: str) -> list[str]:
    """What the rows allow to say."""
    return [*differing(ERROR, rows), *_price(rows), advice(ERROR, rows, recommended)]


def _price(rows: Sequence[Line]) -> list[str]:
    """What those that are better pay elsewhere, for a balanced mean hides it."""
    maes = {row.method: row.means["mae"] for row in rows}
    costs = ", ".join(
        f"{row.method} {100 * (maes[row.method] / maes[BASELINE] - 1):+.0f} %"
        for row in rows
        if effect(ERROR, row) > 0
    )
    what = "Their plain mean absolute error, every example counting the same, changes by"
    return [f"{what}: {costs}."] if costs else []
