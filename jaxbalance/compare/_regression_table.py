"""The table of a comparison of regressions, for a terminal and for Markdown."""

import math

from rich.table import Table

from jaxbalance.compare._regression_report import ERROR, RegressionReport
from jaxbalance.compare._table import Column, Unit, draw, page

_DIGITS = 3

REGRESSION_LEGEND = (
    "Test set, in units of the target, mean over seeds; ± is a 95 % interval. balanced MAE: mean "
    "absolute error, every bin of the target counting the same. vs plain: difference in it, paired "
    "by seed, below zero is better, * where it is significant at 5 % after correction for all "
    "methods. many, medium, few: MAE of the bins with more than 100, 20 to 100 and fewer than 20 "
    "training examples. GM: geometric mean of the errors. r: Pearson correlation. Step sizes were "
    "chosen on validation data."
)


def _columns(report: RegressionReport) -> list[Column]:
    unit = Unit(1, _decimals(report))
    metrics = (
        unit.mean("many", "many"),
        unit.mean("medium", "medium"),
        unit.mean("few", "few"),
        unit.mean("MAE", "mae"),
        unit.mean("RMSE", "rmse", narrow=False),
        unit.mean("GM", "geometric_mean", narrow=False),
        Unit(1, _DIGITS).mean("r", "pearson", narrow=False),
    )
    return unit.columns("balanced MAE", metrics)


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
    return draw(_columns(report), report, width)


def regression_markdown(report: RegressionReport) -> str:
    """The report as a Markdown page."""
    data = report.facts["data"]
    return page(
        ERROR,
        report,
        _columns(report),
        legend=REGRESSION_LEGEND,
        pictures={
            "Error by target": "error_by_target.png",
            "Error along training": "learning_curves.png",
        },
        about=f"{data['examples']} examples, targets from {data['lowest']:g} to "
        f"{data['highest']:g} in {data['bins']} bins",
    )
