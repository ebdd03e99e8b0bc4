"""The table of a comparison of regressions, for a terminal and for Markdown."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from jaxbalance.compare._regression_methods import REGRESSION_METHODS
from jaxbalance.compare._regression_report import RegressionReport, RegressionRow
from jaxbalance.compare._table import markdown_row

_DIGITS = 3


class _Column(NamedTuple):
    title: str
    cell: Callable[[RegressionRow, int], str]
    narrow: bool
    """Whether it is shown in a terminal of 80 columns."""


def _number(value: float, decimals: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{decimals}f}"


def _mean(metric: str) -> Callable[[RegressionRow, int], str]:
    return lambda row, decimals: _number(row.means[metric], decimals)


def _level(row: RegressionRow, decimals: int) -> str:
    estimate = row.balanced_mae
    return f"{estimate.mean:.{decimals}f} ± {estimate.half_width:.{decimals}f}"


def _difference(row: RegressionRow, decimals: int) -> str:
    if row.difference is None:
        return ""
    mark = "*" if row.significant else ""
    return f"{row.difference.mean:+.{decimals}f} ± {row.difference.half_width:.{decimals}f}{mark}"


_COLUMNS = (
    _Column("method", lambda row, decimals: row.method, True),
    _Column("balanced MAE", _level, True),
    _Column("vs plain", _difference, True),
    _Column("many", _mean("many"), True),
    _Column("medium", _mean("medium"), True),
    _Column("few", _mean("few"), True),
    _Column("MAE", _mean("mae"), True),
    _Column("RMSE", _mean("rmse"), False),
    _Column("GM", _mean("geometric_mean"), False),
    _Column("r", lambda row, decimals: _number(row.means["pearson"], 3), False),
    _Column("s", lambda row, decimals: f"{row.seconds:.1f}", False),
)

REGRESSION_LEGEND = (
    "Test set, in units of the target, mean over seeds; ± is a 95 % interval. balanced MAE: mean "
    "absolute error, every bin of the target counting the same. vs plain: difference in it, paired "
    "by seed, below zero is better, * where it is significant at 5 % after correction for all "
    "methods. many, medium, few: MAE of the bins with more than 100, 20 to 100 and fewer than 20 "
    "training examples. GM: geometric mean of the errors. r: Pearson correlation. Step sizes were "
    "chosen on validation data."
)


def _decimals(report: RegressionReport) -> int:
    """As many as show three digits of the lowest balanced error, none for large ones."""
    lowest = report.rows[0].balanced_mae.mean
    if not lowest > 0:
        return _DIGITS
    return min(max(_DIGITS - 1 - math.floor(math.log10(lowest)), 0), 12)


def regression_headline(report: RegressionReport) -> str:
    """One line about the data and the budget."""
    data, budget = report.facts["data"], report.facts["budget"]
    return (
        f"{data['name']}: {data['bins']} bins of the target from {data['lowest']:g} to "
        f"{data['highest']:g}, {data['train']} training examples, {budget['seeds']} seed(s), "
        f"{len(budget['step_sizes'])} step size(s), {budget['steps']} steps, {budget['model']}; "
        f"training rows of seed 0: {data['fingerprint']}"
    )


def regression_terminal_table(report: RegressionReport, *, width: int) -> Table:
    """The table for a terminal ``width`` columns wide; the least needed columns go first."""
    columns = [column for column in _COLUMNS if column.narrow or width >= 100]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        left = column.title == "method"
        table.add_column(column.title, justify="left" if left else "right", no_wrap=True)
    decimals = _decimals(report)
    for row in report.rows:
        style: Any = "bold" if row.method == report.recommended else None
        table.add_row(*(column.cell(row, decimals) for column in columns), style=style)
    return table


def regression_markdown(report: RegressionReport) -> str:
    """The report as a Markdown page."""
    facts, decimals = report.facts, _decimals(report)
    data = facts["data"]
    lines = [
        f"# What helps on {data['name']}",
        "",
        *(f"- {line}" for line in report.verdict),
        "",
        markdown_row([column.title for column in _COLUMNS]),
        markdown_row(["---", *["---:"] * (len(_COLUMNS) - 1)]),
        *(markdown_row([column.cell(row, decimals) for column in _COLUMNS]) for row in report.rows),
        "",
        REGRESSION_LEGEND,
        "",
        "![Error by target](error_by_target.png)",
        "",
        "## The data",
        "",
        f"{data['examples']} examples, targets from {data['lowest']:g} to {data['highest']:g} in "
        f"{data['bins']} bins; training counts {data['training_counts']}; training rows of the "
        f"first seed: `{data['fingerprint']}`.",
        "",
        *(f"- {note}" for note in report.notes),
        "",
        "## The budget, the same for every method",
        "",
        *(f"- {key.replace('_', ' ')}: {value}" for key, value in facts["budget"].items()),
        "",
        "## The methods",
        "",
        *(f"- **{row.method}**: {REGRESSION_METHODS[row.method].summary}" for row in report.rows),
        "",
        f"jaxbalance {facts['jaxbalance']}, JAX {facts['jax']} on {facts['device']}, "
        f"{facts['created']}, {facts['seconds']:.0f} s, "
        f"{facts['compiled_programs']} training programs compiled.",
        "",
    ]
    return "\n".join(lines)
