"""The tables of a suite, for a terminal, for Markdown and as JSON."""

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from jaxbalance.compare._report import BASELINE, without_nan
from jaxbalance.compare._suite_report import BANDS, METRICS, TITLES, SuiteReport, SuiteRow, Summary
from jaxbalance.compare._suite_statistics import Gains


class _Column(NamedTuple):
    title: str
    cell: Callable[[SuiteRow], str]
    narrow: bool
    """Whether it is shown in a terminal of 80 columns."""


def _points(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:+.1f}"


def _gain(of: Gains) -> str:
    low, middle, high = of.quartiles
    return f"{_points(middle)} [{_points(low)} {_points(high)}]"


def _remedy(cell: Callable[[SuiteRow], str]) -> Callable[[SuiteRow], str]:
    """Nothing for plain, which is what the others are held against."""
    return lambda row: "" if row.method == BASELINE else cell(row)


def _band(name: str) -> Callable[[SuiteRow], str]:
    return lambda row: _points(row.by_band[name].quartiles[1])


_COLUMNS = (
    _Column("method", lambda row: row.method, True),
    _Column("rank", lambda row: f"{row.average_rank:.2f}", True),
    _Column("mean", lambda row: f"{100 * row.mean:.1f}", True),
    _Column("wins–losses", _remedy(lambda row: f"{row.gains.better}–{row.gains.worse}"), True),
    _Column("by itself", _remedy(lambda row: f"{row.single_wins}–{row.single_losses}"), False),
    _Column(
        "median gain", _remedy(lambda row: f"{_gain(row.gains)}{'*' if row.differs else ' '}"), True
    ),
    *(_Column(name, _remedy(_band(name)), False) for _, _, name in BANDS),
)

SUITE_LEGEND = (
    "Means over seeds, in percent, compared with plain on each data set. rank: average over data "
    "sets, 1 is best. wins–losses: data sets on which it is higher or lower than plain; by itself: "
    "on which that one data set alone makes the difference in balanced accuracy significant. "
    "median gain: in points, with quartiles; * where it differs from plain over data sets "
    "(Friedman, then Wilcoxon with Holm's correction for all pairs, 5 %). IR: median gain on data "
    "sets with imbalance ratios in that band."
)


def suite_terminal_table(report: SuiteReport, *, width: int) -> Table:
    """The table by the first metric, for a terminal ``width`` columns wide."""
    columns = [column for column in _COLUMNS if column.narrow or width >= 100]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        left = column.title == "method"
        table.add_column(column.title, justify="left" if left else "right", no_wrap=True)
    for row in report.summaries[METRICS[0]].rows:
        table.add_row(*(column.cell(row) for column in columns))
    return table


def suite_headline(report: SuiteReport) -> str:
    """What was compared on what, in one line."""
    budget = report.facts["budget"]
    failed = f", {len(report.failures)} more failed" if report.failures else ""
    return (
        f"{report.facts['source']}: {len(report.results)} data sets{failed}; "
        f"{len(report.summaries[METRICS[0]].methods)} methods, {budget['seeds']} seed(s), "
        f"{len(budget['step_sizes'])} step size(s)"
    )


def suite_markdown(report: SuiteReport) -> str:
    """The report as a Markdown page."""
    lines = [
        f"# What helps on {len(report.results)} data sets",
        "",
        *(f"- {line}" for line in report.verdict),
        "",
        "![Average ranks](critical_difference.png)",
        "",
        *(line for metric in METRICS for line in _section(report.summaries[metric])),
        SUITE_LEGEND,
        "",
        *(f"- {note}" for note in report.notes),
        "",
        "## The budget, the same for every method and data set",
        "",
        *(f"- {key.replace('_', ' ')}: {value}" for key, value in report.facts["budget"].items()),
        "",
        "## The data sets",
        "",
        _row(["data set", "examples", "columns", "classes", "ratio", "plain", "best method"]),
        _row(["---", *["---:"] * 5, "---"]),
        *_data_rows(report),
        "",
        *_failures(report),
        f"jaxbalance {report.facts['jaxbalance']}, JAX {report.facts['jax']} on "
        f"{report.facts['device']}, {report.facts['created']}, {report.facts['seconds']:.0f} s.",
        "",
    ]
    return "\n".join(lines)


def _section(summary: Summary) -> list[str]:
    bands = {name: summary.rows[0].by_band[name].number for _, _, name in BANDS}
    sizes = ", ".join(f"{number} with {name}" for name, number in bands.items())
    return [
        f"## By {TITLES[summary.metric]}",
        "",
        f"{summary.number} data sets: {sizes}.",
        "",
        _row([column.title for column in _COLUMNS]),
        _row(["---", *["---:"] * (len(_COLUMNS) - 1)]),
        *(_row([column.cell(row) for column in _COLUMNS]) for row in summary.rows),
        "",
    ]


def _data_rows(report: SuiteReport) -> list[str]:
    lines = []
    for result in report.results:
        level = {
            name: sum(values[METRICS[0]]) / len(values[METRICS[0]])
            for name, values in result.values.items()
        }
        best = max(level, key=lambda name: level[name])
        numbers = f"{result.examples}", f"{result.columns}", f"{result.classes}"
        ratio, plain = f"{result.imbalance_ratio:.1f}", f"{100 * level[BASELINE]:.1f}"
        lines.append(_row([result.name, *numbers, ratio, plain, f"{best} {100 * level[best]:.1f}"]))
    return lines


def _failures(report: SuiteReport) -> list[str]:
    if not report.failures:
        return []
    listed = (f"- {name}: {reason}" for name, reason in report.failures.items())
    return ["## Could not be compared on", "", *listed, ""]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def suite_json(report: SuiteReport) -> str:
    """The whole report as JSON; a number that is not defined is null."""
    content = {
        "verdict": report.verdict,
        "notes": report.notes,
        **report.facts,
        "failures": report.failures,
        "summaries": {
            metric: {
                "data_sets": summary.number,
                "friedman_p_value": summary.ranking.p_value,
                "methods": [_row_json(row) for row in summary.rows],
                "pairs": _pairs_json(summary),
                "groups": [[summary.methods[i] for i in one] for one in summary.ranking.groups],
            }
            for metric, summary in report.summaries.items()
        },
        "data_sets": [result._asdict() for result in report.results],
    }
    return json.dumps(without_nan(content), indent=1) + "\n"


def _row_json(row: SuiteRow) -> dict[str, Any]:
    by_band = {name: of._asdict() for name, of in row.by_band.items()}
    return {**row._asdict(), "gains": row.gains._asdict(), "by_band": by_band}


def _pairs_json(summary: Summary) -> dict[str, dict[str, float]]:
    """Corrected p-value of every pair of methods."""
    table = summary.ranking.pair_p_values
    return {
        one: {other: float(table[i, j]) for j, other in enumerate(summary.methods) if j != i}
        for i, one in enumerate(summary.methods)
    }
