"""The table of a report, for a terminal and for Markdown."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from jaxbalance.compare._methods import METHODS
from jaxbalance.compare._report import Report, Row


class _Column(NamedTuple):
    title: str
    cell: Callable[[Row], str]
    narrow: bool
    """Whether it is shown in a terminal of 80 columns."""
    classes: Callable[[bool], bool] = lambda two: True
    """Of whether there are two classes: whether it is shown at all."""


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _mean(metric: str) -> Callable[[Row], str]:
    return lambda row: _percent(row.means[metric])


def _difference(row: Row) -> str:
    if row.difference is None:
        return ""
    mark = "*" if row.significant else ""
    return f"{100 * row.difference.mean:+.1f} ± {100 * row.difference.half_width:.1f}{mark}"


_COLUMNS = (
    _Column("method", lambda row: row.method, True),
    _Column(
        "balanced acc.",
        lambda row: (
            f"{100 * row.balanced_accuracy.mean:.1f} ± {100 * row.balanced_accuracy.half_width:.1f}"
        ),
        True,
    ),
    _Column("vs plain", _difference, True),
    _Column("macro F1", _mean("macro_f1"), True, lambda two: not two),
    _Column("F1", _mean("rare_f1"), True, lambda two: two),
    _Column("F1 cal.", _mean("rare_f1_calibrated"), False, lambda two: two),
    _Column("worst", _mean("worst_class_recall"), True),
    _Column("G-mean", _mean("geometric_mean"), True),
    _Column("G cal.", _mean("geometric_mean_calibrated"), False, lambda two: two),
    _Column("AUROC", _mean("auroc"), False),
    _Column("AP", _mean("average_precision"), False),
    _Column("ECE", _mean("expected_calibration_error"), False),
    _Column("acc.", _mean("accuracy"), False),
    _Column("s", lambda row: f"{row.seconds:.1f}", False),
)

LEGEND = (
    "Test set, in percent, mean over seeds; ± is a 95 % interval. vs plain: difference in balanced "
    "accuracy, paired by seed, * where it is significant at 5 % after correction for all methods. "
    "worst: recall of the worst class. Step sizes were chosen on validation data."
)

_LEGEND_OF_TWO = (
    "F1 and AP: of the rarer class. F1 cal., G cal.: F1 and G-mean, each at the threshold that "
    "makes it best on validation data."
)


def _columns(report: Report) -> list[_Column]:
    return [column for column in _COLUMNS if column.classes(_has_two_classes(report))]


def _has_two_classes(report: Report) -> bool:
    return report.facts["data"]["classes"] == 2


def terminal_table(report: Report, *, width: int) -> Table:
    """The table for a terminal ``width`` columns wide; the least needed columns go first."""
    columns = [column for column in _columns(report) if column.narrow or width >= 100]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    if _has_two_classes(report):
        table.caption, table.caption_justify = _LEGEND_OF_TWO, "left"
    for column in columns:
        left = column.title == "method"
        table.add_column(column.title, justify="left" if left else "right", no_wrap=True)
    for row in report.rows:
        style: Any = "bold" if row.method == report.recommended else None
        table.add_row(*(column.cell(row) for column in columns), style=style)
    return table


def markdown(report: Report) -> str:
    """The report as a Markdown page."""
    facts, columns = report.facts, _columns(report)
    legend = f"{LEGEND} {_LEGEND_OF_TWO}" if _has_two_classes(report) else LEGEND
    lines = [
        f"# What helps on {facts['data']['name']}",
        "",
        *(f"- {line}" for line in report.verdict),
        "",
        markdown_row([column.title for column in columns]),
        markdown_row(["---", *["---:"] * (len(columns) - 1)]),
        *(markdown_row([column.cell(row) for column in columns]) for row in report.rows),
        "",
        legend,
        "",
        "![Recall of each class](recall_by_class.png)",
        "",
        "![Recall along training](learning_curves.png)",
        "",
        "## The data",
        "",
        f"{facts['data']['examples']} examples, {facts['data']['classes']} classes; training "
        f"counts {facts['data']['training_counts']}; training rows of the first seed: "
        f"`{facts['data']['fingerprint']}`.",
        "",
        *(f"- {note}" for note in report.notes),
        "",
        "## The budget, the same for every method",
        "",
        *(f"- {key.replace('_', ' ')}: {value}" for key, value in facts["budget"].items()),
        "",
        "## The methods",
        "",
        *(f"- **{row.method}**: {METHODS[row.method].summary}" for row in report.rows),
        "",
        f"jaxbalance {facts['jaxbalance']}, JAX {facts['jax']} on {facts['device']}, "
        f"{facts['created']}, {facts['seconds']:.0f} s, "
        f"{facts['compiled_programs']} training programs compiled.",
        "",
    ]
    return "\n".join(lines)


def markdown_row(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
