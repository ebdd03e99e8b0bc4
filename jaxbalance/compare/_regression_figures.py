"""The two pictures of a comparison of regressions."""

import numpy as np

from jaxbalance.compare._figures import along_training, by_group, png, thirds
from jaxbalance.compare._regression_report import RegressionReport
from jaxbalance.compare._regression_task import RegressionTask
from jaxbalance.compare._report import Line


def error_by_target(task: RegressionTask, report: RegressionReport) -> bytes:
    """Training examples and test error of every bin of the target, as PNG."""
    place, width = (task.edges[1:] + task.edges[:-1]) / 2, task.edges[1] - task.edges[0]
    figure, bars, axes = by_group(
        "Who is predicted well",
        report,
        place,
        task.split.class_counts,
        {name: score.by_bin for name, score in report.scores.items()},
        width=0.85 * width,
    )
    bars.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("test mean absolute error")
    axes.set_xlabel("target")
    axes.legend(frameon=False, fontsize=9)
    return png(figure)


def error_curves(task: RegressionTask, report: RegressionReport) -> bytes:
    """Validation error along training, of all bins, of frequent and of rare ones, as PNG."""
    bins = np.unique(task.split.dataset.labels[task.split.validation])
    apart = thirds(task.split.class_counts[bins], "bins") if len(bins) > 1 else []
    everything = "all bins, each counting the same:\nthis is what validation chooses by"
    figure, panels = along_training(
        report,
        [(everything, bins), *((title, bins[part]) for title, part in (apart[:1] + apart[-1:]))],
        lambda score, bins: score.curve[:, :, bins],
        legend="method (step sizes that validation chose)",
        label=_with_step_sizes,
        sharey=False,
    )
    for axes in panels:
        # First steps may be far off, and would leave no room for the others.
        ends = [line.get_ydata()[-1] for line in axes.lines if np.isfinite(line.get_ydata()[-1])]
        axes.set_ylim(0, min(axes.get_ylim()[1], 1.6 * max(ends, default=np.inf)))
    panels[0].set_ylabel("validation mean absolute error")
    return png(figure)


def _with_step_sizes(row: Line) -> str:
    low, high = min(row.step_sizes), max(row.step_sizes)
    return f"{row.method} ({low:g})" if low == high else f"{row.method} ({low:g} to {high:g})"
