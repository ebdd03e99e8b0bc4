"""Gradient descent is slow on rare classes where sign descent and Adam are not: a linear problem.

Claim: where every level has classes of half the frequency, and twice as many, gradient descent fits
them in order of frequency and hardly the rare ones; sign descent and Adam fit those no later than
the rest, and signs keep most of Adam's gain (Kunstner et al. 2024, arXiv:2402.19449). Inputs are
uniform on [0, 1] and know nothing of the labels; every step takes all examples. The null run has
the same inputs without their mean, and no bias: gradient descent fits all classes alike, and soon,
with any step size from some on. So it takes imbalance and a direction that all inputs share.

Beside it: flows in closed form against discrete steps on one-hot inputs, where a step size of free
choice hides the gap; the published rate exp(-K t) of sign descent is not that of its flow, which is
exp(-2 t). And a class's Hessian and frequency: not correlated at the start, correlated along Adam's
path, and the other way round at the opposite weights. For gradients the published statement does
not reproduce here: they correlate with frequency from the start, and do so at the opposite weights.

Measured and not asserted: weights 1/pi (1/sqrt(pi) must beat none), and normalisation, of which it
is published that it does not do what signs do; with momentum it does part of it here. In many more
steps gradient descent catches up if levels are so few. Every seed has its own inputs and start.

    python experiments/heavy_tailed_linear.py [--levels=8 --steps=100]
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxbalance as jb


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run depends on. A method's step sizes are half powers of ten around its middle one."""

    levels: int = 7
    steps: int = 50
    seeds: int = 3
    step_sizes: int = 5
    gd: jb.experiments.Positive = 0.1
    gd_momentum: jb.experiments.Positive = 0.03
    normalised: jb.experiments.Positive = 0.1
    normalised_momentum: jb.experiments.Positive = 0.3
    sign: jb.experiments.Positive = 1e-3
    sign_momentum: jb.experiments.Positive = 3e-4
    adam: jb.experiments.Positive = 0.01
    gd_root: jb.experiments.Positive = 0.3
    gd_inverse: jb.experiments.Positive = 1.0
    centred_gd: jb.experiments.Positive = 10.0
    centred_adam: jb.experiments.Positive = 0.1
    path_step_size: jb.experiments.Positive = 1e-3
    flow_classes: int = 20


# The published problem and, where they are known, its best step sizes.
PAPER = Config(
    levels=11,
    steps=1000,
    gd=0.003,
    gd_momentum=0.001,
    normalised_momentum=0.03,
    sign=1e-5,
    sign_momentum=1e-5,
    adam=3e-4,
    path_step_size=3e-4,
)


class Method(NamedTuple):
    """What is compared; classes are weighted by their frequency to minus ``power``."""

    label: str
    colour: str
    optimizer: Callable[[Any], optax.GradientTransformation]
    power: float = 0.0


units, signs = jb.dynamics.normalized_descent, jb.dynamics.sign_descent
momentum = functools.partial(functools.partial, momentum=0.9)
METHODS = {
    "gd": Method("GD", "#222222", optax.sgd),
    "gd_momentum": Method("GD + momentum", "#888888", momentum(optax.sgd)),
    "normalised": Method("normalised GD", "#E69F00", units),
    "normalised_momentum": Method("normalised GD + momentum", "#D55E00", momentum(units)),
    "sign": Method("sign descent", "#56B4E9", signs),
    "sign_momentum": Method("sign descent + momentum", "#0072B2", momentum(signs)),
    "adam": Method("Adam", "#009E73", optax.adam),
    "gd_root": Method("GD, weights 1/sqrt(pi)", "#CC79A7", optax.sgd, 0.5),
    "gd_inverse": Method("GD, weights 1/pi", "#7B3B5B", optax.sgd, 1.0),
}
CENTRED = {
    "centred_gd": Method("GD, nothing shared", "#222222", optax.sgd),
    "centred_adam": Method("Adam, nothing shared", "#009E73", optax.adam),
}
ALL = METHODS | CENTRED


def class_counts(config: Config) -> np.ndarray:
    """Examples of every class, the most frequent first."""
    levels = np.arange(config.levels)
    return np.repeat(2 ** (config.levels - levels), 2**levels)


def draw(config: Config, seed: int, *, centred: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs with a column of ones for the bias, labels, and a start."""
    generator, counts = np.random.default_rng(seed), class_counts(config)
    width = (config.levels + 1) * 2**config.levels
    # What all inputs share: their mean, and the column for the bias.
    inputs = np.full((counts.sum(), width + 1), 1 - centred, np.float32)
    inputs[:, :-1] = generator.random((counts.sum(), width), np.float32) - 0.5 * centred
    start = generator.uniform(-1, 1, (width + 1, len(counts))) / math.sqrt(width)
    return inputs, np.repeat(np.arange(len(counts)), counts), start.astype(np.float32)


def trained(config: Config, name: str) -> dict[str, np.ndarray]:
    """All step sizes and seeds of a method, of every group of classes."""
    method, counts = ALL[name], class_counts(config)
    halves = np.arange(config.step_sizes) - (config.step_sizes - 1) / 2
    sizes = np.asarray(getattr(config, name) * 10 ** (halves / 2), np.float32)
    how = {
        "steps": config.steps,
        "record_at": jb.dynamics.log_spaced_steps(config.steps, num_records=14),
        "class_weights": jb.counts.inverse_frequency_weights(counts, power=method.power),
    }
    seen = []
    for seed in range(config.seeds):
        inputs, labels, start = draw(config, seed, centred=name in CENTRED)
        runs = jb.dynamics.linear_sweep(method.optimizer, inputs, labels, start[None], sizes, **how)
        means = jb.dynamics.group_means(runs.record.class_loss, counts, num_groups=config.levels)
        seen.append((runs.loss, means.values, runs.diverged))
    loss, groups, diverged = (np.concatenate(leaves, axis=1) for leaves in zip(*seen, strict=True))
    choice = jb.dynamics.choose_step_size(runs._replace(loss=loss, diverged=diverged))
    arrays = choice._asdict() | {"sizes": sizes, "steps": runs.steps}
    return arrays | {"loss": loss, "groups": groups}


def mean_loss(weights: Any, seed: Any) -> jax.Array:
    """Of all examples."""
    return jnp.mean(jb.losses.weighted_cross_entropy(seed["inputs"] @ weights, seed["labels"]))


def here_and_opposite(state: Any, size: Any, seed: Any) -> tuple[jax.Array, Any]:
    """The loss, and gradient, Hessian and frequency of every class at W and at -W."""
    look = functools.partial(jb.dynamics.output_curvature, seed["inputs"], seed["labels"])
    return mean_loss(state.params, seed), (look(state.params), look(-state.params))


def path(config: Config) -> dict[str, np.ndarray]:
    """Adam's path from one start for every seed."""
    drawn = zip(*[draw(config, n, centred=False) for n in range(config.seeds)], strict=True)
    seeds = dict(zip(("inputs", "labels", "start"), map(np.stack, drawn), strict=True))
    gradient = jax.grad(mean_loss)
    runs = jb.dynamics.descent(lambda s: s["start"], lambda w, _, s, t: gradient(w, s), optax.adam)
    marks = jb.dynamics.log_spaced_steps(config.steps, num_records=8)
    grid, number = np.array([config.path_step_size]), config.steps
    result = jb.dynamics.sweep(*runs, here_and_opposite, grid, seeds, steps=number, record_at=marks)
    kept = {"steps": result.steps}
    for side, seen in zip(("here", "opposite"), result.record, strict=True):
        kept |= {f"{side}, {name}": x[0] for name, x in seen._asdict().items() if x.ndim == 3}
    return kept


def flow(config: Config) -> dict[str, np.ndarray]:
    """One-hot inputs of classes with shares 1/k: flows in closed form, and discrete steps."""
    size, little, wanted = 1.0, 0.05, 0.1
    prior = 1 / np.arange(1, config.flow_classes + 1)
    prior /= prior.sum()
    with jax.enable_x64(True):
        times = np.asarray(jb.dynamics.one_hot_time_to_loss(prior, wanted)) / size
        sign_times = np.asarray(jb.dynamics.one_hot_sign_time_to_loss(prior, wanted)) / little
        last, enough = math.ceil(1.05 * times.max()), math.ceil(3 * sign_times.max())
        # The third size is free of any bound by the curvature.
        sizes = [size, size / 2, 1e3 * len(prior)]
        long, short, free = one_hot_runs(prior, optax.sgd, sizes, 2 * last)
        by_signs = one_hot_runs(prior, signs, [little], enough)[0]
        by_adam = one_hot_runs(prior, optax.adam, [little], enough)[0]
        exact = jb.dynamics.one_hot_gradient_flow(prior, size * np.arange(last + 1)).losses
        sign_exact = jb.dynamics.one_hot_sign_flow(prior, little * np.arange(enough + 1)).losses
        errors = [np.abs(run / exact - 1).max() for run in (long[: last + 1], short[::2])]
        sign_error = np.abs(by_signs - sign_exact).max()
    named = {"gd": long, "gd, free step size": free, "sign": by_signs, "adam": by_adam}
    steps = {name: steps_to_loss(losses, wanted) for name, losses in named.items()}
    known = {"gd, closed form": times, "sign, closed form": sign_times}
    return steps | known | {"errors": errors, "sign error": sign_error}


def one_hot_runs(prior: np.ndarray, optimizer: Any, sizes: list[float], steps: int) -> np.ndarray:
    """Losses of every class after every discrete step from zero, ``[sizes, steps + 1, K]``."""
    start, ids = np.zeros((1, len(prior), len(prior))), np.arange(len(prior))
    runs = jb.dynamics.linear_sweep(
        optimizer, np.eye(len(prior)), ids, start, np.array(sizes), steps=steps, class_weights=prior
    )
    return np.asarray(runs.record.class_loss[:, 0])


def steps_to_loss(losses: np.ndarray, wanted: float) -> np.ndarray:
    """First step at which the loss of every class is no larger ``[K]``, -1 if there is none."""
    below = losses <= wanted
    return np.where(below.any(axis=0), below.argmax(axis=0), -1)


def parts(config: Config) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """Every method; gradient descent and Adam without the inputs' mean; path; flow."""
    runs = {name: functools.partial(trained, config, name) for name in ALL}
    return runs | {part.__name__: functools.partial(part, config) for part in (path, flow)}


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """Every method at its best step size, the null, the path's correlations, and the flow."""
    numbers: dict[str, Any] = {name: of_method(record, name) for name in ALL}
    loss = {name: row["loss"][0] for name, row in numbers.items()}
    numbers["share of Adam's gain"] = {
        name: jb.experiments.rounded(
            (loss["gd_momentum"] - loss[name]) / (loss["gd_momentum"] - loss["adam"])
        )
        for name in ("sign_momentum", "normalised_momentum")
    }
    numbers["at equal loss"] = {n: at_loss(record, n, loss["gd"]) for n in ("gd", "centred_gd")}
    numbers["path"], numbers["flow"] = {}, {}
    for key, values in record.items():
        part, name = key.split("/")
        if part == "path" and name != "steps":
            numbers[part][name] = [jb.experiments.mean_and_range(values[:, i]) for i in (0, -1)]
        elif part == "flow":
            numbers[part][name] = np.vectorize(jb.experiments.rounded)(values).tolist()
    return numbers


def of_method(record: dict[str, np.ndarray], name: str) -> dict[str, Any]:
    """Mean, lowest and highest loss of the seeds, before and after; the groups' mean losses."""
    sizes, scores, best = (record[f"{name}/{what}"] for what in ("sizes", "scores", "position"))
    finite = zip(sizes, scores, record[f"{name}/diverged"], strict=True)
    groups = record[f"{name}/groups"][best, :, -1]
    return {
        "step size": jb.experiments.rounded(sizes[best]),
        "grid": [
            [jb.experiments.rounded(s), None if gone else jb.experiments.rounded(x)]
            for s, x, gone in finite
        ],
        "start": jb.experiments.mean_and_range(record[f"{name}/loss"][best, :, 0]),
        "loss": jb.experiments.mean_and_range(record[f"{name}/loss"][best, :, -1]),
        "groups": [
            jb.experiments.mean_and_range(groups[:, level]) for level in range(groups.shape[1])
        ],
    }


def at_loss(record: dict[str, np.ndarray], name: str, wanted: float) -> dict[str, Any]:
    """Mean loss nearest to one wanted, of all step sizes and records; the groups' losses there."""
    losses = record[f"{name}/loss"].mean(axis=1)
    size, step = np.unravel_index(np.abs(losses - wanted).argmin(), losses.shape)
    groups = record[f"{name}/groups"][size, :, step].mean(axis=0)
    return {
        "loss": jb.experiments.rounded(losses[size, step]),
        "groups": [jb.experiments.rounded(x) for x in groups],
    }


def check(numbers: dict[str, Any]) -> None:
    """Assert the order of the groups, what signs and weights change, the null, path and flow."""
    loss = {name: numbers[name]["loss"] for name in METHODS}
    groups = {name: [group[0] for group in numbers[name]["groups"]] for name in METHODS}
    for name in METHODS:
        scores = [score for _, score in numbers[name]["grid"]]
        best = min((score for score in scores if score is not None), default=None)
        assert best not in (scores[0], scores[-1]), f"{name}: the best step size is at an edge"
    for name in ("gd", "gd_momentum"):
        assert np.all(np.diff(groups[name]) > 0), f"{name} learns in another order"
        assert groups[name][-1] > 0.8 * numbers[name]["start"][0], f"{name} fits rare classes"
    for name in ("sign", "sign_momentum", "adam"):
        assert groups[name][-1] < 0.5 * groups[name][0], f"{name} is late with rare classes"
        assert loss[name][2] < loss["gd"][1], f"{name} is no better than GD"
    assert loss["adam"][2] < 0.5 * loss["gd_momentum"][1], "Adam gains little"
    assert numbers["share of Adam's gain"]["sign_momentum"] > 0.75, "signs lose Adam's gain"
    assert loss["gd_root"][2] < loss["gd"][1], "weights 1/sqrt(pi) do not help"
    _check_null(numbers)
    path = numbers["path"]
    assert max(map(abs, path["here, hessian_frequency"][0])) < 0.3, "correlated at the start"
    assert path["here, hessian_frequency"][1][1] > 0.8, "not correlated on Adam's path"
    assert path["opposite, hessian_frequency"][1][2] < -0.5, "not reversed at -W"
    _check_flow(numbers["flow"])


def _check_null(numbers: dict[str, Any]) -> None:
    mean, none = (numbers["at equal loss"][name] for name in ("gd", "centred_gd"))
    assert abs(none["loss"] / mean["loss"] - 1) < 0.15, "not at about the same loss"
    gap, null = np.ptp(mean["groups"]), np.ptp(none["groups"])
    assert null < 0.1 * gap, "a gap without any direction that inputs share"
    assert all(numbers[name]["loss"][2] < 0.1 for name in CENTRED), "the null is not fitted"


def _check_flow(flow: dict[str, Any]) -> None:
    np.testing.assert_allclose(flow["gd"], flow["gd, closed form"], rtol=0.03, atol=1)
    assert 1.7 < np.divide(*flow["errors"]) < 2.3, "the error is not of first order in the size"
    assert flow["sign error"] < 1e-9, "sign descent differs from its flow"
    assert flow["sign"] == np.ceil(flow["sign, closed form"]).tolist()
    assert np.ptp(flow["adam"]) == 0, "Adam has classes wait"
    assert set(flow["gd, free step size"]) <= {1, 2, 3}, "a free step size does not hide the gap"


def summary(numbers: dict[str, Any]) -> str:
    """Losses over all, of the most frequent and of the rarest group; what else was looked at."""
    rare = {name: numbers[name]["groups"][-1][0] for name in ALL}
    lines = [
        f"The rarest classes start at a loss of {numbers['gd']['start'][0]:.2f} and are at "
        f"{rare['gd']:.2f} after gradient descent, {rare['sign_momentum']:.2f} after sign descent "
        f"with momentum, {rare['adam']:.2f} after Adam; where inputs share no direction gradient "
        f"descent, too, brings them to {rare['centred_gd']:.2f}.",
        "",
        "| method | step size | mean loss (range of seeds) | most frequent | rarest |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, method in ALL.items():
        row, loss = numbers[name], "{:.3f} ({:.3f} to {:.3f})".format(*numbers[name]["loss"])
        ends = f"{row['groups'][0][0]:.2f} | {rare[name]:.2f}"
        lines.append(f"| {method.label} | {row['step size']:g} | {loss} | {ends} |")
    return "\n".join([*lines, "", _more(numbers)])


def _more(numbers: dict[str, Any]) -> str:
    kept, flow = numbers["share of Adam's gain"], numbers["flow"]
    gaps = [np.ptp(state["groups"]) for state in numbers["at equal loss"].values()]
    along, other = (numbers["path"][f"{side}, hessian_frequency"] for side in ("here", "opposite"))
    ends = {n: f"{s[0]:.0f} and {s[-1]:.0f}" for n, s in flow.items() if isinstance(s, list)}
    return (
        f"Of Adam's gain over GD, all with momentum, signs keep {kept['sign_momentum']:.0%} and "
        f"normalisation {kept['normalised_momentum']:.0%}. At the same loss the groups of GD are "
        f"{gaps[0]:.2f} apart, and {gaps[1]:.2f} with nothing shared. A class's Hessian and "
        f"frequency correlate by {along[0][0]:.2f} at the start, {along[1][0]:.2f} after Adam, "
        f"{other[1][0]:.2f} at the opposite weights. One-hot inputs, steps to fit the most and the "
        f"least frequent class: GD {ends['gd']} (closed form {ends['gd, closed form']}), signs "
        f"{ends['sign']}, Adam {ends['adam']}, GD with huge steps {ends['gd, free step size']}."
    )


def plot(record: dict[str, np.ndarray]) -> Any:
    """Curves of the groups; below, step sizes, final losses of groups, the null, the path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    upper, lower = figure.subplots(2, 4)
    for axis, name in zip(upper, ("gd", "gd_momentum", "sign_momentum", "adam"), strict=True):
        draw_groups(axis, record, name, int(record[f"{name}/position"]))
        axis.set(title=METHODS[name].label, ylim=(0, 10))
    upper[0].set(ylabel="loss of a group")
    upper[-1].legend(title="classes of examples", bbox_to_anchor=(1.02, 1), loc="upper left")
    draw_methods(lower[0], lower[1], record)
    figure.legend(*lower[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    draw_groups(lower[2], record, "centred_gd", 0)  # The others are soon done.
    lower[2].set(title="null: GD, nothing shared", ylabel="loss of a group", ylim=(0, None))
    draw_path(lower[3], record)
    return figure


def draw_groups(axis: Any, record: dict[str, np.ndarray], name: str, size: int) -> None:
    """Mean over seeds of every group's loss, at one step size."""
    from matplotlib import colormaps

    groups = record[f"{name}/groups"][size].mean(axis=0)
    colours = colormaps["viridis"](np.linspace(0, 0.92, groups.shape[1]))
    for level, colour in enumerate(colours):
        shown = f"{2**level} of {2 ** (groups.shape[1] - level)}"
        axis.plot(record[f"{name}/steps"], groups[:, level], color=colour, label=shown)
    axis.set(xlabel="step", xlim=(0, None))


def draw_methods(left: Any, right: Any, record: dict[str, np.ndarray]) -> None:
    """Final loss over the step size, and of every group at the best one."""
    for name, method in METHODS.items():
        sizes, best = record[f"{name}/sizes"], record[f"{name}/position"]
        scores = np.where(record[f"{name}/diverged"], np.nan, record[f"{name}/scores"])
        left.plot(sizes, scores, color=method.colour, label=method.label, marker=".")
        groups = record[f"{name}/groups"][best, :, -1].mean(axis=0)
        right.plot(np.arange(len(groups)), groups, color=method.colour, marker=".")
    left.set(xlabel="step size", ylabel="final loss, worst seed", xscale="log", ylim=(0, None))
    right.set(xlabel="level, frequent to rare", ylabel="final loss of a group", ylim=(0, None))
    left.set_title("step sizes (diverged: not drawn)")
    right.set_title("at the best step size")


def draw_path(axis: Any, record: dict[str, np.ndarray]) -> None:
    """Correlation of Hessian and gradient with frequency along Adam's path and along -W."""
    for side, dash in (("here", "-"), ("opposite", "--")):
        for what, colour in (("Hessian", "#009E73"), ("gradient", "#0072B2")):
            values = record[f"path/{side}, {what.lower()}_frequency"].mean(axis=0)
            label = f"{what}, {'W' if side == 'here' else '-W'}"
            axis.plot(record["path/steps"], values, dash, color=colour, label=label)
    axis.set(title="with frequency, Adam's path", xlabel="step", ylabel="correlation of logarithms")
    axis.set(xscale="symlog", xlim=(0, None), ylim=(-1.05, 1.05))
    axis.legend(bbox_to_anchor=(1.02, 1), loc="upper left")


if __name__ == "__main__":
    jb.experiments.main(__file__)
