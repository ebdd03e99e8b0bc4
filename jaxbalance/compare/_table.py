"""The table of a report, for a terminal and for Markdown."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from jaxbalance.compare._report import ACCURACY, Findings, Line, Measure, Report
from jaxbalance.compare._statistics import Estimate


class Column(NamedTuple):
    """Of a table."""

    title: str
    cell: Callable[[Line], str]
    narrow: bool
    """Whether it is shown in a terminal of 80 columns."""


class Unit(NamedTuple):
    """How numbers are written: how much is one, and to how many decimals."""

    scale: float
    decimals: int

    def number(self, value: float, sign: str = "") -> str:
        """A number, a dash where it is not defined; the sign "+" shows that of all."""
        if math.isnan(value):
            return "–"
        return f"{self.scale * value:{sign}.{self.decimals}f}"

    def estimate(self, found: Estimate, sign: str = "") -> str:
        """A number ± half of its interval."""
        return f"{self.number(found.mean, sign)} ± {self.number(found.half_width)}"

    def mean(self, title: str, metric: str, narrow: bool = True) -> Column:
        """The column of a metric."""
        return Column(title, lambda row: self.number(row.means[metric]), narrow)

    def columns(self, title: str, metrics: Iterable[Column]) -> list[Column]:
        """All columns of a table, that of the measure under ``title``."""

        def difference(row: Line) -> str:
            if row.difference is None:
                return ""
            return self.estimate(row.difference, "+") + ("*" if row.significant else "")

        return [
            Column("method", lambda row: row.method, True),
            Column(title, lambda row: self.estimate(row.balanced), True),
            Column("vs plain", difference, True),
            *metrics,
            Column("s", lambda row: f"{row.seconds:.1f}", False),
        ]


_PERCENT = Unit(100, 1)
_METRICS = (
    _PERCENT.mean("macro F1", "macro_f1"),
    _PERCENT.mean("F1", "rare_f1"),
    _PERCENT.mean("F1 cal.", "rare_f1_calibrated", narrow=False),
    _PERCENT.mean("worst", "worst_class_recall"),
    _PERCENT.mean("G-mean", "geometric_mean"),
    _PERCENT.mean("G cal.", "geometric_mean_calibrated", narrow=False),
    _PERCENT.mean("AUROC", "auroc", narrow=False),
    _PERCENT.mean("AP", "average_precision", narrow=False),
    _PERCENT.mean("ECE", "expected_calibration_error", narrow=False),
    _PERCENT.mean("acc.", "accuracy", narrow=False),
)
_OF_TWO_CLASSES = ("F1", "F1 cal.", "G cal.")
_OF_MORE_CLASSES = ("macro F1",)

LEGEND = (
    "Test set, in percent, mean over seeds; ± is a 95 % interval. vs plain: difference in balanced "
    "accuracy, paired by seed, * where it is significant at 5 % after correction for all methods. "
    "worst: recall of the worst class. Step sizes were chosen on validation data."
)

_LEGEND_OF_TWO = (
    "F1 and AP: of the rarer class. F1 cal., G cal.: F1 and G-mean, each at the threshold that "
    "makes it best on validation data."
)


def _columns(report: Report) -> list[Column]:
    hidden = _OF_MORE_CLASSES if _has_two_classes(report) else _OF_TWO_CLASSES
    metrics = (column for column in _METRICS if column.title not in hidden)
    return _PERCENT.columns("balanced acc.", metrics)


def _has_two_classes(report: Report) -> bool:
    return bool(report.facts["data"]["classes"] == 2)


def terminal_table(report: Report, *, width: int) -> Table:
    """The table for a terminal ``width`` columns wide; the least needed columns go first."""
    table = draw(_columns(report), report, width)
    if _has_two_classes(report):
        table.caption, table.caption_justify = _LEGEND_OF_TWO, "left"
    return table


def draw(columns: Sequence[Column], report: Findings[Any, Any], width: int) -> Table:
    """A table for a terminal ``width`` columns wide."""
    shown = [column for column in columns if column.narrow or width >= 100]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in shown:
        left = column.title == "method"
        table.add_column(column.title, justify="left" if left else "right", no_wrap=True)
    for row in report.rows:
        style: Any = "bold" if row.method == report.recommended else None
        table.add_row(*(column.cell(row) for column in shown), style=style)
    return table


def markdown(report: Report) -> str:
    """The report as a Markdown page."""
    facts = report.facts["data"]
    return page(
        ACCURACY,
        report,
        _columns(report),
        legend=f"{LEGEND} {_LEGEND_OF_TWO}" if _has_two_classes(report) else LEGEND,
        pictures={
            "Recall of each class": "recall_by_class.png",
            "Recall along training": "learning_curves.png",
        },
        about=f"{facts['examples']} examples, {facts['classes']} classes",
    )


def page(
    measure: Measure[Any, Any],
    report: Findings[Any, Any],
    columns: Sequence[Column],
    *,
    legend: str,
    pictures: Mapping[str, str],
    about: str,
) -> str:
    """A report as a Markdown page, with files of pictures by their titles."""
    facts = report.facts
    lines = [
        f"# What helps on {facts['data']['name']}",
        "",
        *(f"- {line}" for line in report.verdict),
        "",
        _line([column.title for column in columns]),
        _line(["---", *["---:"] * (len(columns) - 1)]),
        *(_line([column.cell(row) for column in columns]) for row in report.rows),
        "",
        legend,
        "",
        *(line for title, file in pictures.items() for line in (f"![{title}]({file})", "")),
        "## The data",
        "",
        f"{about}; training counts {facts['data']['training_counts']}; training rows of the first "
        f"seed: `{facts['data']['fingerprint']}`.",
        "",
        *(f"- {note}" for note in report.notes),
        "",
        "## The budget, the same for every method",
        "",
        *(f"- {key.replace('_', ' ')}: {value}" for key, value in facts["budget"].items()),
        "",
        "## The methods",
        "",
        *(f"- **{row.method}**: {measure.methods[row.method].summary}" for row in report.rows),
        "",
        f"jaxbalance {facts['jaxbalance']}, JAX {facts['jax']} on {facts['device']}, "
        f"{facts['created']}, {facts['seconds']:.0f} s, "
        f"{facts['compiled_programs']} training programs compiled.",
        "",
    ]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
