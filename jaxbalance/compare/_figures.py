"""The two pictures of a report."""

import importlib.util
import io
from typing import Any

import numpy as np

from jaxbalance._types import HostArray
from jaxbalance.compare._methods import METHODS
from jaxbalance.compare._report import BASELINE, Report
from jaxbalance.compare._task import Task

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_PLAIN = "#222222"
_REST = "#C8C8C8"
_SHOWN = 3


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def recall_by_class(task: Task, report: Report) -> bytes:
    """Test recall of every class, ordered by training count, as PNG."""
    order = np.argsort(-task.class_counts, kind="stable")
    figure, (bars, axes) = _figure(2, 1, figsize=(8.0, 5.4), sharex=True, height_ratios=(1, 3.2))
    place = np.arange(task.num_classes)
    bars.bar(place, task.class_counts[order], color="#9AA5B1", width=0.7)
    bars.set_yscale("log")
    bars.set_ylabel("training\nexamples")
    few = task.num_classes <= 20
    for x, size in zip(place, task.class_counts[order], strict=True) if few else ():
        bars.annotate(f"{size}", (x, size), ha="center", va="bottom", fontsize=8, color="#52606D")
    bars.margins(y=0.35)
    for name, colour, emphasis in _styles(report):
        recall = 100 * _known_mean(report.scores[name].recall, axis=0)[order]
        _line(axes, place, recall, name, colour, emphasis, marker="o")
    axes.set_ylim(-4, 104)
    axes.set_ylabel("test recall, %")
    names = [task.dataset.class_names[k] for k in order]
    step = max(1, task.num_classes // 25)
    axes.set_xticks(place[::step], [_short(name) for name in names[::step]])
    if max(len(_short(name)) for name in names) > 4:
        axes.tick_params(axis="x", rotation=45)
    axes.set_xlabel("class, most frequent first")
    axes.legend(frameon=False, loc="lower left", fontsize=9)
    bars.set_title(
        f"Who is recognised: {report.facts['data']['name']}, mean of {len(task.train)} seed(s)",
        loc="left",
    )
    return _png(figure)


def learning_curves(task: Task, report: Report) -> bytes:
    """Test recall along training, by thirds of the classes from frequent to rare, as PNG."""
    groups = _thirds(task.class_counts)
    figure, panels = _figure(
        1, len(groups), figsize=(3.4 * len(groups) + 0.6, 3.8), sharey=True, squeeze=False
    )
    steps = report.facts["budget"]["steps"]
    for axes, (title, members) in zip(panels[0], groups, strict=True):
        for name, colour, emphasis in _styles(report, trained=True):
            curve = 100 * _known_mean(report.scores[name].curve[:, :, members], axis=(0, 2))
            x = np.linspace(0, steps, curve.size + 1)[1:]
            _line(axes, x, curve, name, colour, emphasis)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("step")
        axes.set_ylim(-4, 104)
    panels[0][0].set_ylabel("test recall, %")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=5, fontsize=9)
    return _png(figure)


def _styles(report: Report, *, trained: bool = False) -> list[tuple[str, str, bool]]:
    """Methods to draw, faint ones first: plain, the best few and the recommended stand out.

    ``trained`` leaves out methods that only correct another training, which have no curve. A
    method's colour goes by its place in the table, so that it is the same in both pictures.
    """
    ranks = {row.method: rank for rank, row in enumerate(report.rows)}
    remedies = [
        row.method
        for row in report.rows
        if row.method != BASELINE and not (trained and METHODS[row.method].afterwards)
    ]
    chosen = remedies[:_SHOWN]
    if report.recommended in remedies[_SHOWN:]:
        chosen.append(report.recommended)
    faint = [(name, _REST, False) for name in remedies if name not in chosen]
    bold = [(name, _COLOURS[ranks[name] % len(_COLOURS)], True) for name in chosen]
    return [*faint, (BASELINE, _PLAIN, True), *bold]


def _line(
    axes: Any, x: HostArray, y: HostArray, name: str, colour: str, emphasis: bool, marker: str = ""
) -> None:
    axes.plot(
        x,
        y,
        color=colour,
        label=name if emphasis else None,
        linewidth=1.8 if emphasis else 0.9,
        linestyle="--" if name == BASELINE else "-",
        marker=marker if emphasis else "",
        markersize=4,
    )


def _known_mean(recall: HostArray, *, axis: Any) -> HostArray:
    """Mean over the classes that the test set has; NaN, which is not drawn, where it has none."""
    known = np.isfinite(recall)
    number = known.sum(axis=axis)
    total = np.where(known, recall, 0).sum(axis=axis)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _thirds(class_counts: HostArray) -> list[tuple[str, HostArray]]:
    """Two classes are shown apart, more in thirds by rank."""
    order = np.argsort(-class_counts, kind="stable")
    names = ["frequent classes", "classes between", "rare classes"]
    if len(order) < 3:
        del names[1]
    parts = np.array_split(order, len(names))
    return [
        (f"{name}\n{_range(class_counts[part])} training examples", part)
        for name, part in zip(names, parts, strict=True)
    ]


def _range(sizes: HostArray) -> str:
    low, high = int(sizes.min()), int(sizes.max())
    return f"{high}" if low == high else f"{high} to {low}"


def _short(name: str) -> str:
    return name if len(name) <= 12 else f"{name[:11]}…"


def _figure(rows: int, columns: int, **settings: Any) -> tuple[Any, Any]:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = settings.pop("figsize")
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, **settings)


STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#ECEFF1",
}


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
