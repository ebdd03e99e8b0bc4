"""The two pictures of a report."""

import importlib.util
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxbalance._types import HostArray
from jaxbalance.compare._methods import METHODS
from jaxbalance.compare._report import BASELINE, Findings, Line, Report
from jaxbalance.compare._task import Task

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_PLAIN = "#222222"
_REST = "#C8C8C8"
_SHOWN = 3
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#ECEFF1",
}


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def recall_by_class(task: Task, report: Report) -> bytes:
    """Test recall of every class, ordered by training count, as PNG."""
    order = np.argsort(-task.class_counts, kind="stable")
    place, sizes = np.arange(task.num_classes), task.class_counts[order]
    recall = {name: 100 * score.recall[:, order] for name, score in report.scores.items()}
    figure, bars, axes = by_group("Who is recognised", report, place, sizes, recall)
    bars.set_yscale("log")
    few = task.num_classes <= 20
    for x, size in zip(place, sizes, strict=True) if few else ():
        bars.annotate(f"{size}", (x, size), ha="center", va="bottom", fontsize=8, color="#52606D")
    bars.margins(y=0.35)
    axes.set_ylim(-4, 104)
    axes.set_ylabel("test recall, %")
    names = [task.dataset.class_names[k] for k in order]
    step = max(1, task.num_classes // 25)
    axes.set_xticks(place[::step], [_short(name) for name in names[::step]])
    if max(len(_short(name)) for name in names) > 4:
        axes.tick_params(axis="x", rotation=45)
    axes.set_xlabel("class, most frequent first")
    axes.legend(frameon=False, loc="lower left", fontsize=9)
    return png(figure)


def learning_curves(task: Task, report: Report) -> bytes:
    """Test recall along training, by thirds of the classes from frequent to rare, as PNG."""
    corrected = [name for name in report.scores if METHODS[name].afterwards]
    figure, panels = along_training(
        report,
        thirds(task.class_counts, "classes"),
        lambda score, members: 100 * score.curve[:, :, members],
        without=corrected,
    )
    panels[0].set_ylim(-4, 104)
    panels[0].set_ylabel("test recall, %")
    return png(figure)


def by_group(
    title: str,
    report: Findings[Any, Any],
    place: HostArray,
    sizes: HostArray,
    values: Mapping[str, HostArray],
    width: float = 0.7,
) -> tuple[Any, Any, Any]:
    """Bars for training examples ``[K]`` above lines of means over seeds of values ``[S, K]``.

    Returns the figure, the axes of the bars and those of the lines.
    """
    figure, (bars, axes) = _figure(2, 1, figsize=(8.0, 5.4), sharex=True, height_ratios=(1, 3.2))
    bars.bar(place, sizes, color="#9AA5B1", width=width)
    bars.set_ylabel("training\nexamples")
    facts = report.facts
    seeds = facts["budget"]["seeds"]
    bars.set_title(f"{title}: {facts['data']['name']}, mean of {seeds} seed(s)", loc="left")
    for style in _styles(report):
        style.draw(axes, place, known_mean(values[style.method], axis=0), marker="o")
    return figure, bars, axes


def along_training(
    report: Findings[Any, Any],
    panels: Sequence[tuple[str, HostArray]],
    curve: Callable[[Any, HostArray], HostArray],
    *,
    without: Collection[str] = (),
    legend: str = "",
    label: Callable[[Line], str] = lambda row: row.method,
    sharey: bool = True,
) -> tuple[Any, Any]:
    """Means of what ``curve(score, members)`` gives ``[S, segments, members]``, side by side.

    ``panels`` are titles with members; ``without`` are methods that only correct another training
    and have no curve; ``legend`` titles what ``label`` says of each method. Returns the figure and
    its axes.
    """
    size = (3.4 * len(panels) + 0.6, 3.8)
    figure, (axes,) = _figure(1, len(panels), figsize=size, sharey=sharey, squeeze=False)
    labels = {row.method: label(row) for row in report.rows}
    for one, (title, members) in zip(axes, panels, strict=True):
        for style in _styles(report, without):
            y = known_mean(curve(report.scores[style.method], members), axis=(0, 2))
            x = np.linspace(0, report.facts["budget"]["steps"], y.size + 1)[1:]
            style.draw(one, x, y, label=labels[style.method])
        one.set_title(title, fontsize=10, loc="left")
        one.set_xlabel("step")
    handles, _ = axes[0].get_legend_handles_labels()
    place: Any = {"loc": "outside lower center", "ncols": 5}
    figure.legend(
        handles=handles, title=legend, frameon=False, fontsize=9, title_fontsize=9, **place
    )
    return figure, axes


class _Style(NamedTuple):
    method: str
    colour: str
    emphasis: bool

    def draw(
        self, axes: Any, x: HostArray, y: HostArray, label: str = "", marker: str = ""
    ) -> None:
        axes.plot(
            x,
            y,
            color=self.colour,
            label=(label or self.method) if self.emphasis else None,
            linewidth=1.8 if self.emphasis else 0.9,
            linestyle="--" if self.method == BASELINE else "-",
            marker=marker if self.emphasis else "",
            markersize=4,
        )


def _styles(report: Findings[Any, Any], without: Collection[str] = ()) -> list[_Style]:
    """Methods to draw, faint ones first: plain, the best few and the recommended stand out.

    A method's colour goes by its place in the table, so that it is the same in both pictures,
    except where two of one picture would share it.
    """
    ranks = {row.method: rank for rank, row in enumerate(report.rows)}
    remedies = [name for name in ranks if name != BASELINE and name not in without]
    chosen = remedies[:_SHOWN]
    if report.recommended in remedies[_SHOWN:]:
        chosen.append(report.recommended)
    colours: dict[str, str] = {}
    for name in chosen:
        first = ranks[name] % len(_COLOURS)
        wheel = _COLOURS[first:] + _COLOURS[:first]
        colours[name] = next(colour for colour in wheel if colour not in colours.values())
    faint = [_Style(name, _REST, False) for name in remedies if name not in chosen]
    bold = [_Style(name, colour, True) for name, colour in colours.items()]
    return [*faint, _Style(BASELINE, _PLAIN, True), *bold]


def known_mean(values: HostArray, *, axis: Any) -> HostArray:
    """Mean over what is known; NaN, which is not drawn, where nothing is."""
    known = np.isfinite(values)
    number = known.sum(axis=axis)
    total = np.where(known, values, 0).sum(axis=axis)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def thirds(class_counts: HostArray, what: str) -> list[tuple[str, HostArray]]:
    """Two classes are shown apart, more in thirds by rank."""
    order = np.argsort(-class_counts, kind="stable")
    names = [f"frequent {what}", f"{what} between", f"rare {what}"]
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
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, **settings)


def png(figure: Any) -> bytes:
    """A figure as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
