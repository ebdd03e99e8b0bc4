"""Gradient descent first makes the rare class worse, and steps of equal length per class do not.

Claim: under gradient descent (GD) the minority's loss rises at first, higher and longer the larger
the imbalance; descent along the normalised class gradients (PCNGD) has no such drop. On
mini-batches (PCNSGD) the few examples of the minority give a noisy direction, and the drop is back
where the classes oppose each other; as many examples of both (+O), or steps divided by the
projection on the full gradient (+R), take it away (Francazi, Baity-Jesi and Lucchi 2023,
arXiv:2207.00391). Null runs: balanced classes, and imbalances below the threshold.

Two problems are solved in closed form and integrated beside it: logistic regression from zero, and
two points. A network on two Gaussians shows the rest, on all examples and on mini-batches: the
larger the offset that both means share, the more the classes oppose each other. Then images of ten
classes merged into two, with a small network (convolutional from 16 x 16 pixels on). Every method
has as many step sizes; its best has the lowest final training loss of its worst run. The drop is a
matter of small steps, since large ones overshoot with any method: it is asserted of the third of
the sizes. Measured and not asserted: which method is best, and mini-batches of images. Where
classes overlap the minority stays worse: the drop passes only if they can be told apart.

    python experiments/minority_initial_drop.py
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import _initial_drop as classes
import jax
import jax.numpy as jnp
import numpy as np
from _initial_drop_exact import TWO_POINTS, logistic, two_points

import jaxbalance as jb


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run depends on."""

    dimension: int = 40
    hidden: int = 32
    distance: jb.experiments.Positive = 4.0
    examples: int = 427
    ratios: tuple[int, ...] = (1, 10, 60)
    full_steps: int = 80
    offsets: tuple[float, ...] = (2.0, 4.0)
    batch_examples: int = 6100
    batch_size: int = 62
    batch_steps: int = 40
    sizes: tuple[jb.experiments.Positive, ...] = (0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    lengths: tuple[jb.experiments.Positive, ...] = (0.002, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    seeds: int = 3
    data: str = "digits"
    majority: tuple[str, ...] = ("0", "1", "2", "3", "4")
    minority: tuple[str, ...] = ("5", "6", "7", "8", "9")
    image_ratio: int = 20
    image_examples: int = 420
    image_batch: int = 22
    image_sizes: tuple[jb.experiments.Positive, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    image_steps: int = 40


PAPER = Config(examples=2440, ratios=(1, 10, 30, 60, 120), full_steps=300, batch_steps=300, seeds=5)

METHODS = ("SGD", "PCNSGD", "SGD+O", "PCNSGD+O", "PCNSGD+R")
# The place of a small step size among those tried, as the docstring says.
SMALL = 2
DELAY = "steps until recall stays at 0.5"
CURES = METHODS[2:]
COLOURS = {
    "GD": "#222222",
    "PCNGD": "#009E73",
    "SGD": "#777777",
    "PCNSGD": "#D55E00",
    "SGD+O": "#56B4E9",
    "PCNSGD+O": "#0072B2",
    "PCNSGD+R": "#CC79A7",
}


def train(
    config: Config, apply: Any, method: str, problems: Any, steps: int, factors: tuple[float, ...]
) -> dict[str, Any]:
    """All step sizes on all problems: lengths for normalised steps, else factors of gradients."""
    grid = np.array(config.lengths if method.startswith("PCN") else factors)
    marks = sorted({*range(min(20, steps)), *range(0, steps, 5)})
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *problems)
    how = {"steps": steps, "record_at": marks, "batched": jax.default_backend() != "cpu"}
    # Over-sampled batches are other rows of the same program.
    motion = classes.motion(apply, method.removesuffix("+O"))
    result = jb.dynamics.sweep(*motion, jnp.asarray(grid), stacked, **how)
    choice = jb.dynamics.choose_step_size(result)
    return {
        "steps": result.steps,
        "grid": grid,
        "scores": choice.scores,
        "diverged": choice.diverged,
        "chosen": choice.position,
        **result.record,
    }


def all_examples(config: Config, method: str) -> dict[str, Any]:
    """Two Gaussians at every ratio: one step size for all, so that the steps are one clock."""
    with jax.enable_x64(True):
        problems = [
            classes.gaussians(
                config, classes.sizes(config.examples, ratio), config.offsets[0], seed
            )
            for ratio in config.ratios
            for seed in range(config.seeds)
        ]
        result = train(config, classes.network, method, problems, config.full_steps, config.sizes)
        shape = (-1, len(config.ratios), config.seeds, len(result["steps"]), 2)
        split = {key: result[key].reshape(shape) for key in ("loss", "recall")}
        return result | split | {"ratios": np.array(config.ratios)}


def mini_batches(config: Config, method: str, offset: float) -> dict[str, Any]:
    """Two Gaussians at the largest ratio."""
    with jax.enable_x64(True):
        counts = classes.sizes(config.batch_examples, max(config.ratios))
        batch = classes.batch_sizes(method, config.batch_size, max(config.ratios))
        problems = [
            classes.gaussians(config, counts, offset, seed)._replace(
                rows=classes.batches(key, counts, batch, config.batch_steps)
            )
            for seed, key in enumerate(jax.random.split(jax.random.key(0), config.seeds))
        ]
        return train(config, classes.network, method, problems, config.batch_steps, config.sizes)


def on_images(config: Config, method: str, ratio: int) -> dict[str, Any]:
    """Images of two groups of classes."""
    with jax.enable_x64(True):
        counts, steps = classes.sizes(config.image_examples, ratio), config.image_steps
        batch = classes.batch_sizes(method, config.image_batch, ratio)
        dataset, groups = jb.data.load(config.data), (config.majority, config.minority)
        problems = [
            classes.images(
                dataset, groups, counts, seed, classes.batches(key, counts, batch, steps)
            )
            for seed, key in enumerate(jax.random.split(jax.random.key(0), config.seeds))
        ]
        apply = classes.image_model(problems[0].inputs.shape[1:], 0).apply
        return train(config, apply, method, problems, steps, config.image_sizes)


def noise(config: Config, offset: float) -> dict[str, Any]:
    """What is left of unit gradients on mini-batches, at the start, ``[seeds, samplings, 2]`` each.

    Samplings: in proportion, and as many of both.
    """
    with jax.enable_x64(True):
        ratio, found = max(config.ratios), []
        loss = jb.training.example_loss(classes.network, jb.losses.weighted_cross_entropy)
        counts = classes.sizes(config.batch_examples, ratio)
        for seed in range(config.seeds):
            problem = classes.gaussians(config, counts, offset, seed)
            for method in ("PCNSGD", "PCNSGD+O"):
                batch = classes.batch_sizes(method, config.batch_size, ratio)
                rows = classes.batches(jax.random.key(seed), counts, batch, 100)
                found.append(classes.projections(loss, *problem[:3], rows, jnp.array(batch)))
        shaped = np.array(found).reshape(config.seeds, 2, 3, 2).transpose(2, 0, 1, 3)
        return dict(zip(("formula", "drawn", "progress"), shaped, strict=True))


def parts(config: Config) -> dict[str, Callable[[], dict[str, Any]]]:
    """Closed forms; all examples; mini-batches at every offset; images, and balanced ones."""
    later, work = functools.partial, {"logistic": logistic, "two points": two_points}
    for method in ("GD", "PCNGD"):
        work[f"all examples/{method}"] = later(all_examples, config, method)
    for offset in config.offsets:
        work[f"offset {offset:g}/noise"] = later(noise, config, offset)
        for method in METHODS:
            work[f"offset {offset:g}/{method}"] = later(mini_batches, config, method, offset)
    for method in ("GD", "PCNGD", *METHODS):
        work[f"images/{method}"] = later(on_images, config, method, config.image_ratio)
    return work | {"balanced images/GD": later(on_images, config, "GD", 1)}


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """Mean, lowest and highest of the seeds, for every setting and method."""
    (known, found), overlap = record["logistic/thresholds"].T, record["logistic/overlap"][:, 1]
    numbers: dict[str, Any] = {
        "logistic": {
            "thresholds": [float(x) if np.isfinite(x) else None for x in known],
            "error of 1 / threshold": float(np.abs(1 / found - 1 / known).max()),
            "rises below and above": record["logistic/rises"].tolist(),
            "overlap": [float(x) for x in (overlap[0], overlap.max(), overlap[-1])],
        },
        "two points": {
            "half distance and ratio": [list(pair) for pair in TWO_POINTS],
            "time of the top": record["two points/times"].tolist(),
            "loss": record["two points/losses"].tolist(),
            "normalized error": float(record["two points/normalized error"]),
        },
    }
    for name in (key.removesuffix("/scores") for key in record if key.endswith("/scores")):
        start = f"{name}/"
        mine = {key.removeprefix(start): record[key] for key in record if key.startswith(start)}
        if mine["loss"].ndim == 4:
            numbers[name] = _row(mine)
            continue
        for i, ratio in enumerate(mine["ratios"]):
            one = mine | {"loss": mine["loss"][:, i], "recall": mine["recall"][:, i]}
            numbers[name.replace("/", f" {ratio}:1/")] = _row(one)
    for name in (key.removesuffix("/progress") for key in record if key.endswith("/progress")):
        what = {key: record[f"{name}/{key}"][..., 1] for key in ("formula", "drawn", "progress")}
        for i, method in enumerate(("PCNSGD", "PCNSGD+O")):
            row = numbers[f"{name.removesuffix('/noise')}/{method}"]
            row |= {
                f"minority, {key}": jb.experiments.mean_and_range(x[:, i])
                for key, x in what.items()
            }
    return numbers


def _row(run: dict[str, np.ndarray]) -> dict[str, Any]:
    """What happens to the minority at a small step size, and the choice of the best."""
    minority, chosen = run["loss"][..., 1], int(run["chosen"])
    peaks = minority.max(axis=-1) / minority[..., 0]
    # The place of the last record that is below, counted from 1: the one from which on none is.
    below = run["recall"][SMALL, ..., 1] < 0.5
    learnt = [int(np.flatnonzero(np.append(True, row)).max()) for row in below]
    return {
        "small step size": float(run["grid"][SMALL]),
        "highest / first loss": jb.experiments.mean_and_range(peaks[SMALL]),
        "share of first ten steps that raise it": jb.experiments.mean_and_range(
            (np.diff(minority[SMALL, :, :11]) > 0).mean(axis=-1)
        ),
        DELAY: [int(run["steps"][n]) if n < len(run["steps"]) else None for n in learnt],
        "best step size": float(run["grid"][chosen]),
        "best is at the edge": chosen in (0, len(run["grid"]) - 1),
        "highest / first loss at the best": jb.experiments.mean_and_range(peaks[chosen]),
        "last loss at the best": jb.experiments.mean_and_range(minority[chosen, :, -1]),
        "scores": [round(float(score), 4) for score in run["scores"]],
        "diverged": run["diverged"].tolist(),
    }


def check(numbers: dict[str, Any]) -> None:
    """Assert closed forms, the drop, its return with noise, its cures, and the null runs."""
    _check_closed_forms(numbers)
    peak = "highest / first loss"
    plain, normalized = (
        [row for name, row in numbers.items() if name.startswith("all") and name.endswith(f"/{m}")]
        for m in ("GD", "PCNGD")
    )
    mean, lowest, highest = np.array([row[peak] for row in plain]).T
    assert highest[0] < 1.01, "balanced classes, and yet a drop"
    assert min(mean[1:].min(), lowest[-1]) > 1.05, "gradient descent has no drop"
    assert np.all(np.diff(mean) > 0), "the drop does not grow with the ratio"
    delays = [np.median([np.inf if s is None else s for s in row[DELAY]]) for row in plain]
    assert np.all(np.diff(delays) > 0), "the delay does not grow with the ratio"
    assert max(row[peak][2] for row in normalized) < 1.001, "PCNGD has a drop"
    back = [row["minority, progress"][2] < 0 for row in _of(numbers, "offset", "PCNSGD")]
    assert True in back, "no setting is noisy enough"
    for noisy, row in zip(back, _of(numbers, "offset", "PCNSGD"), strict=True):
        assert not noisy or row[peak][1] > 1.3, "noise does not bring the drop back"
        assert noisy or row["minority, progress"][1] < 0 or row[peak][2] < 1.05
    assert min(row[peak][1] for row in _of(numbers, "offset", "SGD")) > 1.1
    cured = [row for m in CURES for row in _of(numbers, "offset", m)]
    assert max(row[peak][2] for row in cured) < 1.1, "+O or +R does not cure it"
    assert numbers["images/GD"][peak][1] > 1.5 > 1.1 > numbers["balanced images/GD"][peak][2]
    assert numbers["images/PCNGD"][peak][2] < 1.05, "PCNGD has a drop on images"


def _of(numbers: dict[str, Any], setting: str, method: str) -> list[dict[str, Any]]:
    """Rows of a method, in all settings of a kind."""
    return [
        row
        for name, row in numbers.items()
        if name.startswith(setting) and name.endswith(f"/{method}")
    ]


def _check_closed_forms(numbers: dict[str, Any]) -> None:
    known, two = numbers["logistic"], numbers["two points"]
    assert known["error of 1 / threshold"] < 1e-9
    for threshold, rises in zip(known["thresholds"], known["rises below and above"], strict=True):
        assert rises == [False, threshold is not None], "the threshold is not where it should be"
    first, highest, last = known["overlap"]
    assert last > 3 * first
    assert last > 0.99 * highest, "where classes overlap, the minority does not recover"
    assert two["normalized error"] < 1e-9
    for (_, ratio), pair in zip(two["half distance and ratio"], two["loss"], strict=True):
        assert abs(pair[0] / pair[1] - 1) < (0.002 if ratio > 1e4 else 0.05)


def summary(numbers: dict[str, Any]) -> str:
    """The drop at the small step size, and the last loss at the best one."""
    peak, rows = "highest / first loss", [name for name in numbers if "/" in name]
    worst = max(row[peak][0] for row in _of(numbers, "all", "GD"))
    normalized = max(row[peak][2] for row in _of(numbers, "all", "PCNGD"))
    noisy = max(row[peak][0] for row in _of(numbers, "offset", "PCNSGD"))
    cured = max(row[peak][2] for m in CURES for row in _of(numbers, "offset", m))
    lines = [
        f"Gradient descent first multiplies the minority's loss by up to {worst:.2f}, PCNGD by "
        f"{normalized:.2f}; noise brings the drop back (PCNSGD: {noisy:.2f}), and equal batches or "
        f"rescaled steps take it away ({cured:.2f}).",
        "",
        "| setting / method | step size | highest / first loss | share of first ten steps that "
        "raise it | steps until recall stays at 0.5 | best step size | last loss there |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in rows:
        row = numbers[name]
        delays = ", ".join("never" if x is None else str(x) for x in row[DELAY])
        best = f"{row['best step size']:g}" + (" (edge)" if row["best is at the edge"] else "")
        lines.append(
            f"| {name} | {row['small step size']:g} | {_text(row[peak])} | "
            f"{row['share of first ten steps that raise it'][0]:.2f} | {delays} | {best} | "
            f"{_text(row['last loss at the best'])} |"
        )
    return "\n".join([*lines, "", *_exact(numbers)])


def _text(values: list[float]) -> str:
    return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


def _exact(numbers: dict[str, Any]) -> list[str]:
    """What the table leaves out: noise, and the problems that are known exactly."""
    lines = ["Of the minority's training loss: mean of the seeds (lowest to highest).", ""]
    for name, row in numbers.items():
        if "minority, progress" in row:
            drawn, formula = row["minority, drawn"][0], row["minority, formula"][0]
            lines.append(
                f"- {name}: {drawn:.2f} of a unit step is along the minority's gradient "
                f"({formula:.2f} by the formula), expected progress "
                f"{row['minority, progress'][0]:.2f}"
            )
    two, known = numbers["two points"], numbers["logistic"]
    tops = zip(two["half distance and ratio"], two["time of the top"], two["loss"], strict=True)
    for (half, ratio), times, losses in tops:
        lines.append(
            f"- two points, {ratio:g}:1, half distance {half:g}: loss at the top {losses[1]:.3f} "
            f"at time {times[1]:.1f} (leading terms {losses[0]:.3f} and {times[0]:.1f})"
        )
    first, _, last = known["overlap"]
    return [
        *lines,
        f"- overlapping classes: the minority's loss goes from {first:.2f} to {last:.2f}",
    ]


def plot(record: dict[str, np.ndarray]) -> Any:
    """The minority's loss on all examples, mini-batches and images; its top by step size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    axes = figure.subplots(1, 4)
    noisy = [name for name in record if name.startswith("offset") and name.endswith("PCNSGD/loss")]
    noisy = noisy[-1].removesuffix("/PCNSGD/loss")
    _draw_ratios(axes[0], record)
    for axis, setting in ((axes[1], noisy), (axes[2], "images")):
        for method, colour in COLOURS.items():
            if f"{setting}/{method}/loss" in record:
                _draw(axis, record, f"{setting}/{method}", colour)
    for method, colour in COLOURS.items():
        if f"{noisy}/{method}/loss" in record:
            minority = record[f"{noisy}/{method}/loss"][..., 1]
            tops = (minority.max(axis=-1) / minority[..., 0]).mean(axis=1)
            grid = record[f"{noisy}/{method}/grid"]
            axes[3].plot(grid / grid[SMALL], tops, color=colour, marker=".")
    axes[0].set(title="all examples", ylabel="minority loss / first", xlabel="step", yscale="log")
    axes[1].set(title=f"mini-batches, {noisy}", xlabel="step", yscale="log")
    axes[2].set(title="images", xlabel="step", ylim=(0, None))
    axes[3].set(title=f"mini-batches, {noisy}", ylabel="highest / first minority loss")
    axes[3].set(xlabel="step size / the one drawn", xscale="log", yscale="log", ylim=(0.9, 30))
    lines = [axes[3].plot([], [], color=colour, label=m)[0] for m, colour in COLOURS.items()]
    figure.legend(handles=lines, ncols=len(lines), loc="outside lower center", frameon=False)
    return figure


def _draw_ratios(axis: Any, record: dict[str, np.ndarray]) -> None:
    ratios = record["all examples/GD/ratios"]
    for method in ("GD", "PCNGD"):
        loss, steps = record[f"all examples/{method}/loss"], record[f"all examples/{method}/steps"]
        minority = loss[SMALL, ..., 1] / loss[SMALL, ..., :1, 1]
        for i, ratio in enumerate(ratios):
            shade = {"color": COLOURS[method], "alpha": (i + 1) / len(ratios)}
            axis.plot(steps, minority[i].mean(axis=0), **shade)
            if method == "GD":
                axis.annotate(f"{ratio}:1", (steps[-1], minority[i, :, -1].mean()), fontsize=8)


def _draw(axis: Any, record: dict[str, np.ndarray], name: str, colour: str) -> None:
    """Mean of the seeds, and all between the lowest and the highest."""
    minority, steps = record[f"{name}/loss"][SMALL, ..., 1], record[f"{name}/steps"]
    minority = minority / minority[:, :1]
    axis.plot(steps, minority.mean(axis=0), color=colour)
    axis.fill_between(steps, minority.min(axis=0), minority.max(axis=0), color=colour, alpha=0.15)


if __name__ == "__main__":
    jb.experiments.main(__file__)
