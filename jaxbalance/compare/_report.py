"""What a comparison found, in numbers, and in words that say no more than the numbers do."""

import datetime
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np

import jaxbalance
from jaxbalance._types import HostArray
from jaxbalance.compare._methods import METHODS, Method
from jaxbalance.compare._plan import Budget
from jaxbalance.compare._regression_methods import RegressionMethod
from jaxbalance.compare._regression_score import RegressionScore
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


AnyScore = TypeVar("AnyScore", Score, RegressionScore)


class Line(NamedTuple):
    """What a table says of one method."""

    method: str
    balanced: Estimate
    """Of the measure, on the test set."""
    difference: Estimate | None
    """``balanced`` minus that of plain training, paired by seed; None for plain itself."""
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


AnyRow = TypeVar("AnyRow", bound=Line)


class Findings(NamedTuple, Generic[AnyRow, AnyScore]):
    """What a comparison found."""

    rows: list[AnyRow]
    """The best on test data first."""
    recommended: str
    """The method that is best on *validation* data; the test set chose nothing."""
    verdict: list[str]
    notes: list[str]
    facts: dict[str, Any]
    """Data, budget, versions: all that is needed to run it again."""
    scores: dict[str, AnyScore]


class Measure(NamedTuple, Generic[AnyRow, AnyScore]):
    """The balanced number that a comparison judges by, and the words for it."""

    name: str
    """Among the ``values`` of a score, and in report.json."""
    higher_is_better: bool
    row: type[AnyRow]
    methods: Mapping[str, Method | RegressionMethod]
    of_examples: Callable[[AnyScore], HostArray]
    """What each test example adds to the number, ``[S, m]``."""
    of_classes: Callable[[AnyScore], dict[str, HostArray]]
    """What each class or bin does, ``[S, K]``, by its name in report.json."""
    variance: Callable[[HostArray, HostArray, int], float]
    """``(of_examples [m], classes [m], K) -> variance`` of the number, from sampling examples."""
    written: Callable[[Estimate], str]
    """A difference, in the unit that ``better`` names."""
    better: str
    """Begins the sentence on methods that are; likewise ``worse``. ``none`` is said of none."""
    none: str
    worse: str


def effect(measure: Measure[Any, Any], row: Line) -> int:
    """1 for a row that is significantly better than plain training, −1 for worse, else 0."""
    if row.difference is None or not row.significant:
        return 0
    return int(np.sign(row.difference.mean)) * (1 if measure.higher_is_better else -1)


def make_rows(
    measure: Measure[AnyRow, AnyScore],
    task: Task,
    budget: Budget,
    scores: Mapping[str, AnyScore],
    seconds: Mapping[str, float],
) -> list[AnyRow]:
    """Turn scores into estimates and paired differences, the best method first."""
    found = {
        name: (score.values[measure.name].astype(np.float64), measure.of_examples(score) * 1.0)
        for name, score in scores.items()
    }
    values, examples = found[BASELINE]
    gained = {name: (v - values, e - examples) for name, (v, e) in found.items()}
    del gained[BASELINE]
    levels, gains = _estimates(measure, task, found), _estimates(measure, task, gained)
    p_values = dict(zip(gains, holm([gain.p_value for gain in gains.values()]), strict=True))
    rows = [
        measure.row(
            method=name,
            balanced=levels[name],
            difference=gains.get(name),
            corrected_p_value=p_values.get(name),
            means={metric: float(np.mean(v)) for metric, v in score.values.items()},
            step_sizes=[budget.step_sizes[i] for i in score.chosen],
            seconds=seconds[name],
        )
        for name, score in scores.items()
    ]
    sign = -1 if measure.higher_is_better else 1
    return sorted(rows, key=lambda row: sign * row.balanced.mean)


def _estimates(
    measure: Measure[Any, Any], task: Task, found: Mapping[str, tuple[HostArray, HostArray]]
) -> dict[str, Estimate]:
    """Of numbers ``[S]``, each with what every test example adds to it ``[S, m]``."""
    if not found:
        return {}
    values, examples = zip(*found.values(), strict=True)
    made = estimates(
        np.stack(values),
        np.array([_example_variance(measure, task, of) for of in examples]),
        redrawn=task.redrawn,
        test_share=TEST_FRACTION if task.redrawn else 0.0,
    )
    return dict(zip(found, made, strict=True))


def _example_variance(measure: Measure[Any, Any], task: Task, examples: HostArray) -> float:
    labels = task.dataset.labels[task.test]
    if not task.redrawn:
        examples, labels = examples.mean(axis=0)[None], labels[:1]
    seeds = zip(examples, labels, strict=True)
    return float(np.mean([measure.variance(e, y, task.num_classes) for e, y in seeds]))


def recommend(measure: Measure[AnyRow, AnyScore], scores: Mapping[str, AnyScore]) -> str:
    """The method that validation prefers."""
    best = max if measure.higher_is_better else min
    return best(scores, key=lambda name: float(np.mean(scores[name].validation)))


def differing(measure: Measure[Any, Any], rows: Sequence[Line]) -> list[str]:
    """Which remedies differ from plain training, in sentences."""
    better = [row for row in rows if effect(measure, row) > 0]
    worse = [row for row in rows if effect(measure, row) < 0]
    undecided = [row.method for row in rows if row.difference is not None and not row.significant]
    lines = [f"{measure.better}: {_written(measure, better)}." if better else measure.none]
    if worse:
        lines.append(f"{measure.worse}: {_written(measure, worse)}.")
    if undecided:
        lines.append(f"Not distinguishable from plain: {', '.join(undecided)}.")
    return lines


def _written(measure: Measure[Any, Any], rows: Sequence[Line]) -> str:
    differences = {row.method: row.difference for row in rows if row.difference is not None}
    return ", ".join(f"{name} ({measure.written(of)})" for name, of in differences.items())


def advice(measure: Measure[Any, Any], rows: Sequence[Line], recommended: str) -> str:
    """What validation prefers, and whether the test set confirms it."""
    if recommended == BASELINE:
        return "Validation prefers plain training: no remedy is needed."
    row = next(row for row in rows if row.method == recommended)
    tail = (
        "which the test set confirms"
        if effect(measure, row) > 0
        else "but the test set does not tell it from plain with confidence"
    )
    return f"Validation prefers {recommended} ({measure.methods[recommended].summary}), {tail}."


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


def to_json(measure: Measure[AnyRow, AnyScore], report: Findings[AnyRow, AnyScore]) -> str:
    """The whole report as JSON; a number that is not defined is null."""
    scores = {
        name: {
            **{metric: values.tolist() for metric, values in score.values.items()},
            f"validation_{measure.name}": score.validation.tolist(),
            **{each: values.tolist() for each, values in measure.of_classes(score).items()},
            "diverged_runs": score.diverged,
        }
        for name, score in report.scores.items()
    }
    content = {
        "recommended": report.recommended,
        "verdict": report.verdict,
        "notes": report.notes,
        **report.facts,
        "methods": [_row_json(measure, row) for row in report.rows],
        "per_seed": scores,
    }
    return json.dumps(without_nan(content), indent=1) + "\n"


def _row_json(measure: Measure[Any, Any], row: Line) -> dict[str, Any]:
    return {
        "method": row.method,
        measure.name: row.balanced._asdict(),
        "difference": row.difference._asdict() if row.difference else None,
        "corrected_p_value": row.corrected_p_value,
        "means": row.means,
        "step_sizes": row.step_sizes,
        "seconds": row.seconds,
        "significant": row.significant,
    }


def without_nan(value: Any) -> Any:
    """A report as JSON can have it: numbers of seven digits, null for what is not finite."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.7g}") if np.isfinite(value) else None
    return value


class Row(Line):
    """One method's line of the table of a classification."""

    @property
    def balanced_accuracy(self) -> Estimate:
        """On the test set."""
        return self.balanced


class Report(Findings[Row, Score]):
    """Everything a comparison found.

    ``rows`` fall in test balanced accuracy. ``recommended`` is the method with the highest
    *validation* balanced accuracy; the test set chose nothing. ``verdict`` and ``notes`` are
    sentences, ``facts`` all that is needed to run it again, ``scores`` what every method got.
    """


ACCURACY = Measure[Row, Score](
    name="balanced_accuracy",
    higher_is_better=True,
    row=Row,
    methods=METHODS,
    of_examples=lambda score: score.right,
    of_classes=lambda score: {"recall_per_class": score.recall},
    variance=balanced_variance,
    written=lambda gain: f"{100 * gain.mean:+.1f} ± {100 * gain.half_width:.1f}",
    better="Significantly better than plain training here, in points of balanced accuracy",
    none="No remedy is significantly better than plain training on these data.",
    worse="Significantly worse",
)


def build_report(
    task: Task,
    budget: Budget,
    scores: Mapping[str, Score],
    seconds: Mapping[str, float],
    facts: Mapping[str, Any],
) -> Report:
    """Turn scores into estimates, paired differences and a verdict."""
    rows = make_rows(ACCURACY, task, budget, scores, seconds)
    recommended = recommend(ACCURACY, scores)
    return Report(
        rows=rows,
        recommended=recommended,
        verdict=[*differing(ACCURACY, rows), advice(ACCURACY, rows, recommended)],
        notes=[*task.notes, *run_notes(scores, len(budget.step_sizes))],
        facts={**facts, **provenance()},
        scores=dict(scores),
    )
