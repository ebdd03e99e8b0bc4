"""The critical-difference picture: average ranks on a line, bars join what does not differ."""

import io
from typing import Any

import numpy as np

from jaxbalance.compare._report import BASELINE
from jaxbalance.compare._suite_report import METRICS, TITLES, SuiteReport, Summary

_LINE = "#52606D"
_BAR = "#D55E00"
_PLAIN = "#0072B2"
_AXIS = "#222222"
_APART = 0.45
_SIDE = 0.35


def critical_difference(report: SuiteReport) -> bytes:
    """Average ranks by the first metric, best at the left, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    summary = report.summaries[METRICS[0]]
    depth = _names_from(summary) + (len(summary.rows) + 1) // 2
    figure = Figure(figsize=(9.0, 1.2 + 0.24 * depth), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    low = float(np.floor(summary.ranking.average_ranks.min()))
    high = max(float(np.ceil(summary.ranking.average_ranks.max())), low + 1)
    _draw_axis(axes, low, high)
    _draw_names(axes, summary, low, high)
    _draw_bars(axes, summary, 0.004 * (high - low))
    room = _SIDE * (high - low)
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(depth - 0.2, -1.6)
    axes.axis("off")
    axes.set_title(
        f"Average rank by {TITLES[summary.metric]} on {summary.number} data sets; "
        "a bar joins methods of which no two differ",
        fontsize=10,
        loc="left",
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _names_from(summary: Summary) -> float:
    """How far down names begin: below the bars."""
    return _APART * len(summary.ranking.groups) + 0.6


def _draw_axis(axes: Any, low: float, high: float) -> None:
    axes.plot([low, high], [0, 0], color=_AXIS, linewidth=1.2)
    for tick in np.arange(low, high + 0.5):
        axes.plot([tick, tick], [0, -0.3], color=_AXIS, linewidth=1.0)
        axes.text(tick, -0.45, f"{tick:.0f}", ha="center", va="bottom", fontsize=9)


def _draw_names(axes: Any, summary: Summary, low: float, high: float) -> None:
    """The better half at the left and the others at the right, each as far down as lines allow."""
    number = len(summary.rows)
    for place, row in enumerate(summary.rows):
        left = place < (number + 1) // 2
        depth = _names_from(summary) + (place if left else number - 1 - place)
        side = low if left else high
        colour = _PLAIN if row.method == BASELINE else _LINE
        rank = row.average_rank
        axes.plot([rank, rank, side], [0, depth, depth], color=colour, linewidth=0.9)
        label = f"{row.method}  {rank:.2f}" if left else f"{rank:.2f}  {row.method}"
        where = "right" if left else "left"
        axes.text(side, depth, f" {label} ", ha=where, va="center", fontsize=9, color=colour)


def _draw_bars(axes: Any, summary: Summary, margin: float) -> None:
    for number, group in enumerate(summary.ranking.groups):
        ranks = summary.ranking.average_ranks[list(group)]
        height = 0.5 + _APART * number
        ends = [ranks.min() - margin, ranks.max() + margin]
        axes.plot(ends, [height, height], color=_BAR, linewidth=3)
