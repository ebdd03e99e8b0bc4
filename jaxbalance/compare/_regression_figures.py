"""The picture of a comparison of regressions: who is predicted well, and how many they are."""

import io
from typing import Any

import numpy as np

from jaxbalance._types import HostArray
from jaxbalance.compare._figures import STYLE
from jaxbalance.compare._regression_report import RegressionReport
from jaxbalance.compare._regression_task import RegressionTask
from jaxbalance.compare._report import BASELINE

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_PLAIN = "#222222"
_REST = "#C8C8C8"
_SHOWN = 3


def error_by_target(task: RegressionTask, report: RegressionReport) -> bytes:
    """Training examples and test error of every bin of the target, as PNG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(8.0, 5.4), layout="constrained")
        FigureCanvasAgg(figure)
        bars, axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.6))
        _draw(task, report, bars, axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _draw(task: RegressionTask, report: RegressionReport, bars: Any, axes: Any) -> None:
    place, width = (task.edges[1:] + task.edges[:-1]) / 2, task.edges[1] - task.edges[0]
    bars.bar(place, task.split.class_counts, color="#9AA5B1", width=0.85 * width)
    bars.set_yscale("symlog", linthresh=1)
    bars.set_ylabel("training\nexamples")
    seeds = len(task.center)
    bars.set_title(
        f"Who is predicted well: {report.facts['data']['name']}, mean of {seeds} seed(s)",
        loc="left",
    )
    for name, colour, emphasis in _styles(report):
        axes.plot(
            place,
            _known_mean(report.scores[name].by_bin),
            color=colour,
            label=name if emphasis else None,
            linewidth=1.8 if emphasis else 0.9,
            linestyle="--" if name == BASELINE else "-",
            marker="o" if emphasis else "",
            markersize=4,
        )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("test mean absolute error")
    axes.set_xlabel("target")
    axes.legend(frameon=False, fontsize=9)


def _styles(report: RegressionReport) -> list[tuple[str, str, bool]]:
    """Methods to draw, faint ones first: plain, the best few and the recommended stand out."""
    remedies = [row.method for row in report.rows if row.method != BASELINE]
    chosen = remedies[:_SHOWN]
    if report.recommended in remedies[_SHOWN:]:
        chosen.append(report.recommended)
    faint = [(name, _REST, False) for name in remedies if name not in chosen]
    bold = [(name, colour, True) for name, colour in zip(chosen, _COLOURS, strict=False)]
    return [*faint, (BASELINE, _PLAIN, True), *bold]


def _known_mean(errors: HostArray) -> HostArray:
    """Mean over the seeds whose test set has the bin; NaN, which is not drawn, where none has."""
    known = np.isfinite(errors)
    number = known.sum(axis=0)
    total = np.where(known, errors, 0).sum(axis=0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)
