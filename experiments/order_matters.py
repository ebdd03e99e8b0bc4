"""Small tasks last: pre-training on the large task first, against any fixed mixture of both.

Claim: where one task is large, the other small and both alike, training on the large one first and
on a mixture afterwards reaches pairs of losses (large task, small task) that no fixed mixture
reaches; starting the optimiser and its schedule anew does not explain it, and the small task's
*training* loss is higher, so that it works as a regulariser (Choi et al. 2023, arXiv:2312.06134).
Where both tasks are large, the null run, there is nothing to gain. Raising the share of small
domains for the last 10 to 20 % of steps only (Blakeney et al. 2024, arXiv:2406.03476) is run
beside them: the same without the restart, and with a few small-task examples from the start.

Every method has the same steps, mixtures and step sizes. Mixture, step size and checkpoint (early
stopping) are chosen on one half of the held-out examples, for a given limit on the large task's
loss, and both losses are those of the other half. The tasks share a teacher, beside which each has
its own. The effect is modest, and at tight limits not one of every seed: the mean is asserted, at
the widest limit. For less similar tasks (measured) pre-training on one does not help the other
here, and which of pre-training and late upsampling is better differs from limit to limit. These
tasks were picked from several: on sharper ones (``--sharpness=4``), which so few steps do not
finish, we saw no consistent gain, neither so nor with step sizes chosen by the training loss. The
published runs are translation models, and the larger size here (``--paper``) is not.

    python experiments/order_matters.py
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import _domains
import numpy as np
from _domains import Policy, spread

import jaxbalance as jb


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run depends on."""

    large: int = 8000
    small: int = 60
    test_examples: int = 1000
    dimension: int = 10
    classes: int = 4
    alike: float = 0.3
    unlike: float = 0.7
    sharpness: float = 2.0
    hidden: int = 64
    steps: int = 2500
    batch_size: int = 64
    rates: tuple[jb.experiments.Share, ...] = (0.02, 0.05, 0.12, 0.25, 0.5)
    step_sizes: tuple[jb.experiments.Positive, ...] = (0.002, 0.006, 0.02)
    tolerances: tuple[float, ...] = (0.02, 0.05, 0.1)
    records: int = 25
    seeds: int = 4


# The published tasks are languages with up to millions of sentences; this is only larger.
PAPER = Config(large=200_000, small=600, hidden=512, steps=50_000, batch_size=256, seeds=5)

METHODS = ("static", "restart", "pre-training", "late, last 20 %", "late, last 10 %")
SETTINGS = ("alike", "both large", "less alike")


@dataclasses.dataclass(frozen=True)
class Setting(Config):
    """A pair of tasks, the large one first."""

    sizes: tuple[int, ...] = ()
    own_teacher: float = 0.0


def setting(config: Config, name: str) -> Setting:
    """One of those that are compared."""
    second = config.large if name == "both large" else config.small
    own = config.unlike if name == "less alike" else config.alike
    known = dataclasses.asdict(config)
    return Setting(**known, sizes=(config.large, second), own_teacher=own)


def policy(one: Setting, method: str, rate: float, size: float) -> Policy:
    """What a method draws; ``rate`` is the share of the second task, where it has its share."""
    proportional = one.sizes[1] / sum(one.sizes)
    before = {"pre-training": 0.0, "static": rate, "restart": rate}.get(method, proportional)
    last = 0.1 if method.endswith("10 %") else 0.2
    switch = one.steps if method == "static" else round((1 - last) * one.steps)
    draw = np.array([[1 - share, share] for share in (before, rate)], np.float32)
    again = np.bool_(method in ("pre-training", "restart"))
    return Policy(draw, np.ones_like(draw), np.int32(switch), again, np.float32(size))


def front(config: Config, name: str, method: str) -> dict[str, np.ndarray]:
    """Losses of every share and step size, ``[shares, sizes, seeds, records, tasks]``."""
    one, shape = setting(config, name), (len(config.rates), len(config.step_sizes))
    every = [policy(one, method, rate, size) for rate in config.rates for size in config.step_sizes]
    result = _domains.run(one, every, config.steps, adaptive=True)
    losses = {what: np.asarray(values) for what, values in result.record.items()}
    return {what: values.reshape(*shape, *values.shape[1:]) for what, values in losses.items()} | {
        "diverged": np.asarray(result.diverged).reshape(*shape, -1),
        "steps": np.asarray(result.steps),
        "rates": np.array(config.rates),
        "sizes": np.array(config.step_sizes),
        "tolerances": np.array(config.tolerances),
    }


def parts(config: Config) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """Every method on tasks that are alike; without late upsampling on the others."""
    return {
        f"{name}/{method}": functools.partial(front, config, name, method)
        for name in SETTINGS
        for method in (METHODS if name == "alike" else METHODS[:3])
    }


def chosen(record: dict[str, np.ndarray], part: str, limits: np.ndarray) -> dict[str, np.ndarray]:
    """Per seed, the run and checkpoint best for the second task within a limit for the first.

    Chosen on validation losses, without diverged runs; where none is within the limit, the best
    for the first task.
    """
    bad = record[f"{part}/diverged"][..., None, None]
    validation = np.where(bad, np.inf, record[f"{part}/validation"])
    every = np.moveaxis(validation, 2, 0)
    points = every.reshape(len(every), -1, 2)
    allowed = points[..., 0] <= limits[:, None]
    best = np.where(allowed, points[..., 1], np.inf).argmin(axis=1)
    best = np.where(allowed.any(axis=1), best, points[..., 0].argmin(axis=1))
    test = np.moveaxis(record[f"{part}/test"], 2, 0).reshape(points.shape)
    rate, size, mark = np.unravel_index(best, every.shape[1:4])
    return {
        "test": test[np.arange(len(test)), best],
        "rate": record[f"{part}/rates"][rate],
        "size": record[f"{part}/sizes"][size],
        "step": record[f"{part}/steps"][mark],
    }


def setting_numbers(record: dict[str, np.ndarray], name: str) -> dict[str, Any]:
    """What each method reaches within each limit, and how far below static mixing that is."""
    methods = [method for method in METHODS if f"{name}/{method}/test" in record]
    lowest = record[f"{name}/static/validation"][..., 0].min(axis=(0, 1, 3))
    numbers: dict[str, Any] = {}
    for tolerance in record[f"{name}/static/tolerances"]:
        points = {m: chosen(record, f"{name}/{m}", (1 + tolerance) * lowest) for m in methods}
        static = points["static"]["test"]
        numbers[f"{tolerance:.0%}"] = {
            method: {
                "large": spread(point["test"][:, 0]),
                "small": spread(point["test"][:, 1]),
                "small, below static": spread((static - point["test"])[:, 1]),
                "shares": point["rate"].tolist(),
                "step sizes": point["size"].tolist(),
                "steps": point["step"].tolist(),
            }
            for method, point in points.items()
        }
    return numbers


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """Fronts of every setting, and the final training loss of the small task at equal settings."""
    part = "alike/static"
    ends = {method: record[f"alike/{method}/train"][..., -1, 1] for method in METHODS}
    above = {method: (end - ends["static"]).mean(axis=(0, 1)) for method, end in ends.items()}
    return {
        "shares": record[f"{part}/rates"].tolist(),
        "step sizes": record[f"{part}/sizes"].tolist(),
        "diverged runs": int(sum(v.sum() for k, v in record.items() if k.endswith("/diverged"))),
        "fronts": {name: setting_numbers(record, name) for name in SETTINGS},
        "small, training loss above static": {m: spread(values) for m, values in above.items()},
    }


def gain(numbers: dict[str, Any], name: str, method: str) -> list[float]:
    """How far below static mixing the small task's loss ends, at the widest limit."""
    return list(list(numbers["fronts"][name].values())[-1][method]["small, below static"])


def check(numbers: dict[str, Any]) -> None:
    """Assert a gain where tasks are alike and one is small, not of a restart, and the null."""
    ahead, restart = (gain(numbers, "alike", method) for method in ("pre-training", "restart"))
    assert ahead[0] > 0.005, "pre-training reaches nothing that a fixed mixture does not"
    assert ahead[0] > restart[0] + 0.005, "the restart explains it"
    assert gain(numbers, "both large", "pre-training")[0] < 0.005, "a gain with both tasks large"
    above = numbers["small, training loss above static"]["pre-training"]
    assert above[1] > 0, "the small task's training loss is no higher"


def summary(numbers: dict[str, Any]) -> str:
    """Both losses at each limit."""
    ahead, restart = (gain(numbers, "alike", method) for method in ("pre-training", "restart"))
    late = gain(numbers, "alike", METHODS[3])
    large, unlike = (gain(numbers, name, "pre-training") for name in SETTINGS[1:])
    limit = list(numbers["fronts"]["alike"])[-1]
    lines = [
        f"Where tasks are alike, pre-training ends {ahead[0]:.3f} below the best fixed mixture in "
        f"the small task's test loss ({ahead[1]:.3f} to {ahead[2]:.3f} by seed), a restart alone "
        f"{restart[0]:.3f} and late upsampling {late[0]:.3f}; with both tasks large "
        f"{large[0]:.3f}, with less similar tasks {unlike[0]:.3f}.",
        "",
        f"That is within {limit} of the large task's best loss. Test losses, large / small task "
        "(mean, lowest and highest of how far the small one is below static mixing):",
        "",
        "| tasks | limit | method | large / small | below static |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, limits in numbers["fronts"].items():
        for limit, methods in limits.items():
            for method, row in methods.items():
                mean, low, high = row["small, below static"]
                losses = f"{row['large'][0]:.3f} / {row['small'][0]:.3f}"
                below = f"{mean:.3f} ({low:.3f} to {high:.3f})"
                lines.append(f"| {name} | {limit} | {method} | {losses} | {below} |")
    return "\n".join(lines)


def plot(record: dict[str, np.ndarray]) -> Any:
    """Fronts of every setting over the limit for the large task, and gains of all seeds."""
    from matplotlib.figure import Figure

    shades = ("#222222", "#777777", "#D55E00", "#0072B2", "#56B4E9")
    colours = dict(zip(METHODS, shades, strict=True))
    figure = Figure(figsize=(14, 4.4), layout="constrained")
    axes = figure.subplots(1, 4)
    fine = np.linspace(0, 0.15, 31)
    for axis, name in zip(axes, SETTINGS, strict=False):
        lowest = record[f"{name}/static/validation"][..., 0].min(axis=(0, 1, 3))
        curves = {}
        for method in (method for method in METHODS if f"{name}/{method}/test" in record):
            points = (chosen(record, f"{name}/{method}", (1 + x) * lowest) for x in fine)
            curves[method] = small = np.stack([point["test"][:, 1] for point in points])
            axis.plot(100 * fine, small.mean(axis=1), color=colours[method], label=method)
        axis.set(title=f"tasks {name}" if name != "both large" else "tasks alike, both large")
        axis.set(xlabel="allowed loss of the large task [%]")
        if name == "alike":
            for method in METHODS[1:4]:
                below, colour = curves["static"] - curves[method], colours[method]
                axes[3].plot(100 * fine, below.mean(axis=1), color=colour)
                axes[3].fill_between(
                    100 * fine, below.min(axis=1), below.max(axis=1), color=colour, alpha=0.12
                )
    axes[0].set(ylabel="small task: test loss, mean of seeds")
    axes[1].set(ylabel="second task: test loss")
    axes[3].axhline(0, color="black", linewidth=0.8)
    axes[3].set(title="tasks alike, lowest to highest seed", ylabel="test loss below static mixing")
    axes[3].set(xlabel="allowed loss of the large task [%]")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, ncols=len(METHODS), loc="outside lower center")
    return figure


if __name__ == "__main__":
    jb.experiments.main(__file__)
