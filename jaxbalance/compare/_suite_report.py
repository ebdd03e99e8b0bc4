"""What a suite found: ranks, wins and gains, and in words that say no more than the numbers do."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxbalance._types import HostArray
from jaxbalance.compare._report import BASELINE
from jaxbalance.compare._statistics import LEVEL
from jaxbalance.compare._suite_statistics import Gains, Ranking, gains, rank

METRICS = ("balanced_accuracy", "average_precision", "auroc")
"""What methods are ranked by; the first is that of the table and the picture."""
TITLES = {"balanced_accuracy": "balanced accuracy", "average_precision": "AP", "auroc": "AUROC"}
BANDS = ((0.0, 10.0, "IR < 10"), (10.0, 40.0, "IR 10–40"), (40.0, float("inf"), "IR ≥ 40"))
"""Of the imbalance ratio: from, below, name."""


class SetResult(NamedTuple):
    """All methods on one data set."""

    name: str
    examples: int
    columns: int
    """Numbers in one example."""
    classes: int
    imbalance_ratio: float
    """Largest over smallest class, of all examples."""
    values: dict[str, dict[str, list[float]]]
    """One number per seed, by method and metric."""
    significant: dict[str, int]
    """By remedy: 1 or −1 where it is significantly better or worse than plain on these data alone,
    by balanced accuracy, corrected for all remedies; else 0."""
    notes: list[str]
    seconds: float


class SuiteRow(NamedTuple):
    """One method's line of the table."""

    method: str
    average_rank: float
    mean: float
    """Of the metric, over data sets."""
    gains: Gains
    """Over plain, on all data sets."""
    by_band: dict[str, Gains]
    """The same by imbalance ratio."""
    p_value: float
    """Of being like plain, over data sets, corrected for all pairs of methods."""
    differs: bool
    """Whether it differs from plain."""
    single_wins: int
    """Data sets on which it is significantly better than plain by itself, by balanced accuracy."""
    single_losses: int
    """Data sets on which it is significantly worse."""


class Summary(NamedTuple):
    """All methods on all data sets by one metric."""

    metric: str
    methods: list[str]
    """As the ranking has them."""
    ranking: Ranking
    rows: list[SuiteRow]
    """Sorted by average rank."""
    number: int
    """Data sets where every method has the metric."""


class SuiteReport(NamedTuple):
    """Everything a suite found."""

    summaries: dict[str, Summary]
    """By metric."""
    verdict: list[str]
    notes: list[str]
    results: list[SetResult]
    failures: dict[str, str]
    """The reason, by data set."""
    facts: dict[str, Any]


def build_suite_report(
    methods: Sequence[str],
    results: Sequence[SetResult],
    failures: Mapping[str, str],
    facts: Mapping[str, Any],
) -> SuiteReport:
    """Sum up what the data sets gave."""
    summaries = {metric: _summary(metric, methods, results) for metric in METRICS}
    return SuiteReport(
        summaries=summaries,
        verdict=_verdict(summaries),
        notes=_notes(summaries, results, failures),
        results=list(results),
        failures=dict(failures),
        facts=dict(facts),
    )


def _summary(metric: str, methods: Sequence[str], results: Sequence[SetResult]) -> Summary:
    # What differs after five digits is rounding: without it, ties would be ranked.
    every = np.array([[np.mean(r.values[m][metric]) for m in methods] for r in results]).round(5)
    known = np.isfinite(every).all(axis=1)
    table = every[known]
    chosen = [result for result, good in zip(results, known, strict=True) if good]
    ranking = rank(table) if chosen else _no_ranking(len(methods))
    rows = [_method_row(i, methods, table, ranking, chosen) for i in range(len(methods))]
    rows.sort(key=lambda row: row.average_rank)
    return Summary(metric, list(methods), ranking, rows, len(chosen))


def _method_row(
    i: int,
    methods: Sequence[str],
    table: HostArray,
    ranking: Ranking,
    results: Sequence[SetResult],
) -> SuiteRow:
    plain, name = list(methods).index(BASELINE), methods[i]
    ratios = np.array([result.imbalance_ratio for result in results])
    gained = table[:, i] - table[:, plain]
    return SuiteRow(
        method=name,
        average_rank=float(ranking.average_ranks[i]),
        mean=float(table[:, i].mean()) if len(table) else float("nan"),
        gains=gains(gained),
        by_band={band: gains(gained[(ratios >= a) & (ratios < b)]) for a, b, band in BANDS},
        p_value=float(ranking.pair_p_values[i, plain]),
        differs=ranking.differ(i, plain),
        single_wins=sum(result.significant.get(name, 0) > 0 for result in results),
        single_losses=sum(result.significant.get(name, 0) < 0 for result in results),
    )


def _no_ranking(methods: int) -> Ranking:
    return Ranking(np.full(methods, np.nan), 1.0, np.ones((methods, methods)), [])


def _verdict(summaries: Mapping[str, Summary]) -> list[str]:
    main = summaries[METRICS[0]]
    lines = [_alike(main), *_against_plain(main), _leaders(main), *_by_itself(main)]
    return [*lines, *(_in_short(summaries[metric]) for metric in METRICS[1:])]


def _in_short(summary: Summary) -> str:
    name = TITLES[summary.metric]
    differing = [row for row in summary.rows if row.differs]
    better = [row for row in differing if _rank_gain(summary, row) > 0]
    worse = [row for row in differing if _rank_gain(summary, row) < 0]
    start = (
        f"above plain: {_listed(better)}" if better else "no remedy is significantly above plain"
    )
    return f"By {name}, {start}{f'; below: {_listed(worse)}' if worse else ''}."


def _alike(summary: Summary) -> str:
    p_value = summary.ranking.p_value
    if p_value < LEVEL:
        return f"On {summary.number} data sets the methods differ (Friedman, p {_p(p_value)})."
    return f"On {summary.number} data sets no difference between methods is certain."


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _against_plain(summary: Summary) -> list[str]:
    name = TITLES[summary.metric]
    remedies = [row for row in summary.rows if row.method != BASELINE]
    better = [row for row in remedies if row.differs and _rank_gain(summary, row) > 0]
    worse = [row for row in remedies if row.differs and _rank_gain(summary, row) < 0]
    rest = [row.method for row in remedies if not row.differs]
    lines = []
    if better:
        lines.append(
            f"Significantly above plain training in {name} (median gain in points; on how many "
            f"data sets higher): {_listed(better)}."
        )
    if worse:
        lines.append(f"Significantly below: {_listed(worse)}.")
    if rest:
        lines.append(f"Not distinguishable from plain: {', '.join(rest)}.")
    return lines


def _rank_gain(summary: Summary, row: SuiteRow) -> float:
    """By how much it ranks above plain."""
    plain = next(one for one in summary.rows if one.method == BASELINE)
    return plain.average_rank - row.average_rank


def _listed(rows: Sequence[SuiteRow]) -> str:
    return ", ".join(
        f"{row.method} ({100 * row.gains.quartiles[1]:+.1f}; {row.gains.better} of "
        f"{row.gains.number})"
        for row in rows
    )


def _leaders(summary: Summary) -> str:
    first = summary.rows[0]
    place = summary.methods.index(first.method)
    alike = [
        row.method
        for row in summary.rows[1:]
        if not summary.ranking.differ(summary.methods.index(row.method), place)
    ]
    start = f"The best average rank is that of {first.method} ({first.average_rank:.1f})"
    return f"{start}, not distinguishable from {', '.join(alike)}." if alike else f"{start}."


def _by_itself(summary: Summary) -> list[str]:
    most = max(summary.rows, key=lambda row: row.single_wins)
    if not most.single_wins:
        return ["On no single data set is a remedy significantly better than plain by itself."]
    return [
        f"A single data set proves less: {most.method}, the most often significant by itself, is "
        f"so on {most.single_wins} of {summary.number}."
    ]


def _notes(
    summaries: Mapping[str, Summary], results: Sequence[SetResult], failures: Mapping[str, str]
) -> list[str]:
    notes = [
        "The tests take data sets for independent; where several are made of one (other classes of "
        "the same examples), they are surer than they should be."
    ]
    for metric, summary in summaries.items():
        if summary.number < len(results):
            missing = len(results) - summary.number
            notes.append(f"{TITLES[metric]}: not defined on {missing} data sets, left out there.")
    if failures:
        notes.append(f"{len(failures)} could not be compared on; their reasons are listed.")
    return notes
