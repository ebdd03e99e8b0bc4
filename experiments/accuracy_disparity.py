"""Adversarial training widens the gap between unequal classes: closed forms and trained models.

Claim: training against an attacker costs a rare class more than a frequent one, and the more the
stronger the attack (Hu, Wu, Zhang and Zhao 2023, arXiv:2211.15762). On two Gaussians the optimum is
known: an attack shortens the distance between the classes that a linear classifier may rely on, and
the threshold moves towards the rare class by log R over that distance. With equal classes, the null
run, there is no gap at any strength. On Cauchy inputs the rare class is given up altogether, and at
once, at a finite R.

Error of the minority less that of the majority, on untouched inputs: in closed form, and of linear
models trained by Adam (the best of several step sizes), whose errors are exact too.

    python experiments/accuracy_disparity.py
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxbalance as jb


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run depends on."""

    dimension: int = 20
    strong: int = 2
    weak: float = 0.2
    majority: int = 4000
    ratios: tuple[jb.experiments.Ratio, ...] = (1.0, 2.0, 5.0, 10.0)
    maximum_radii: tuple[float, ...] = (0.0, 0.05, 0.09)
    euclidean_radii: tuple[float, ...] = (0.0, 0.15, 0.3)
    steps: int = 300
    step_sizes: tuple[jb.experiments.Positive, ...] = (0.01, 0.03, 0.1, 0.3)
    seeds: int = 5
    cauchy_separation: jb.experiments.Positive = 4.0
    cauchy_examples: int = 100_000


# The published dimension, examples, seeds and about as many steps, here of the whole batch; the
# means are our own.
PAPER = Config(dimension=100, majority=1000, steps=8000)

NORMS = {"l2": 2.0, "linf": math.inf}


def radii(config: Config) -> dict[str, tuple[float, ...]]:
    """Of each attack; the first is none."""
    return {"l2": config.euclidean_radii, "linf": config.maximum_radii}


def separation(config: Config) -> np.ndarray:
    """Difference of the means: some strong inputs, and many weak ones an attacker can turn."""
    means = np.full(config.dimension, config.weak, np.float32)
    means[: config.strong] = 1.0
    return means


def draw(config: Config, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels ±1 (minority +1), padded by label 0 to the size of equal classes."""
    generator = np.random.default_rng(seed)
    number = np.array([round(config.majority / ratio), config.majority])
    labels = np.zeros(2 * config.majority, np.float32)
    labels[: number[0]], labels[config.majority :] = 1, -1
    noise = generator.normal(size=(len(labels), config.dimension)).astype(np.float32)
    return noise + labels[:, None] * separation(config) / 2, labels


def attacked_loss(rule: Any, inputs: Any, labels: Any, radius: Any, norm: float) -> jax.Array:
    """Mean logistic loss after the worst move of every input, which a linear model has exactly."""
    weights, bias = rule.direction, rule.bias
    squares = jnp.sum(weights * weights)
    length = jnp.sqrt(squares + 1e-12) if norm == 2 else jnp.sum(jnp.abs(weights))
    losses = jax.nn.softplus(radius * length - labels * (inputs @ weights + bias))
    return jnp.sum(jnp.abs(labels) * losses) / jnp.sum(jnp.abs(labels))


def train(config: Config, norm: float) -> Any:
    """A compiled function of data, radius and step size: final loss and rule, by Adam."""

    def run_one(inputs: Any, labels: Any, radius: Any, size: Any) -> Any:
        tx = optax.adam(optax.cosine_decay_schedule(1.0, config.steps))

        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            rule, state = carry
            loss, grads = jax.value_and_grad(attacked_loss)(rule, inputs, labels, radius, norm)
            updates, state = tx.update(grads, state)
            updates = jax.tree.map(lambda leaf: size * leaf, updates)
            return (optax.apply_updates(rule, updates), state), loss

        rule = jb.dynamics.LinearRule(jnp.zeros(config.dimension), jnp.zeros(()))
        (rule, _), _ = jax.lax.scan(step, (rule, tx.init(rule)), length=config.steps)
        return attacked_loss(rule, inputs, labels, radius, norm), rule

    over_sizes = jax.vmap(run_one, in_axes=(None, None, None, 0))
    over_radii = jax.vmap(over_sizes, in_axes=(None, None, 0, None))
    return jax.jit(jax.vmap(over_radii, in_axes=(0, 0, None, None)))


def closed_forms(config: Config, name: str) -> np.ndarray:
    """Errors of the robust optimum on untouched inputs, ``[ratios, radii, 2]``."""
    means, norm = jnp.asarray(separation(config)), NORMS[name]

    def both(ratio: Any, radius: Any) -> Any:
        rule = jb.dynamics.robust_gaussian_rule(means, prior_ratio=ratio, radius=radius, norm=norm)
        return jnp.stack(jb.dynamics.gaussian_class_errors(rule, means))

    over_radii = jax.vmap(both, in_axes=(None, 0))
    grid = jnp.array(config.ratios), jnp.array(radii(config)[name])
    return np.asarray(jax.jit(jax.vmap(over_radii, in_axes=(0, None)))(*grid))


def trained(config: Config, name: str) -> dict[str, np.ndarray]:
    """Errors of trained models, exact for each model, ``[ratios, seeds, radii, 2]``."""
    means, chosen, errors = jnp.asarray(separation(config)), [], []
    fit = train(config, NORMS[name])
    measured = jax.vmap(jax.vmap(lambda rule: jb.dynamics.gaussian_class_errors(rule, means)))
    for ratio in config.ratios:
        drawn = [draw(config, ratio, seed) for seed in range(config.seeds)]
        inputs, labels = (np.stack(parts) for parts in zip(*drawn, strict=True))
        grid = jnp.array(radii(config)[name]), jnp.array(config.step_sizes)
        losses, rules = fit(inputs, labels, *grid)
        # The same step size for all seeds: the one whose worst seed has the lowest training loss.
        worst = np.where(np.isfinite(losses), losses, np.inf).max(axis=0)
        best = worst.argmin(axis=-1)
        rows = np.arange(len(best))
        rules = jax.tree.map(lambda leaf, rows=rows, best=best: leaf[:, rows, best], rules)
        chosen.append(np.array(config.step_sizes)[best])
        errors.append(np.stack(jax.jit(measured)(rules), axis=-1))
    return {"errors": np.stack(errors), "step sizes": np.stack(chosen)}


def cauchy(config: Config) -> dict[str, np.ndarray]:
    """Minority error of the best threshold in closed form and on a sample, by ratio."""
    ratios = np.concatenate([np.geomspace(1, 20, 40), np.array(config.ratios)])
    ratios = np.unique(ratios.round(3)).astype(np.float32)
    far = config.cauchy_separation

    def exact(ratio: Any) -> jax.Array:
        cut = jb.dynamics.robust_cauchy_threshold(far, prior_ratio=ratio)
        return jb.dynamics.cauchy_class_errors(cut, far).minority

    generator = np.random.default_rng(0)
    sample = generator.standard_cauchy(size=(2, config.cauchy_examples))
    values = np.concatenate([sample[0] + far / 2, sample[1] - far / 2])
    rare = np.repeat([1.0, 0.0], config.cauchy_examples)[np.argsort(values)]
    missed = np.append(0, np.cumsum(rare)) / config.cauchy_examples
    alarms = 1 - np.append(0, np.cumsum(1 - rare)) / config.cauchy_examples
    found = [missed[np.argmin(missed + ratio * alarms)] for ratio in ratios]
    return {
        "ratios": ratios,
        "exact": np.asarray(jax.jit(jax.vmap(exact))(jnp.asarray(ratios))),
        "sample": np.array(found),
    }


def attack(config: Config, name: str) -> dict[str, np.ndarray]:
    """One attack on Gaussians, in closed form and trained."""
    known = {"ratios": np.array(config.ratios), "radii": np.array(radii(config)[name])}
    return known | {"exact": closed_forms(config, name), **trained(config, name)}


def parts(config: Config) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """The Cauchy case, and both attacks on Gaussians."""
    attacks = {name: functools.partial(attack, config, name) for name in NORMS}
    return {"cauchy": functools.partial(cauchy, config), **attacks}


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """Gaps, minority less majority: exact, and mean, lowest and highest of the seeds."""
    numbers: dict[str, Any] = {}
    for name in NORMS:
        exact = record[f"{name}/exact"] @ np.array([1.0, -1.0])
        gaps = record[f"{name}/errors"] @ np.array([1.0, -1.0])
        for i, ratio in enumerate(record["l2/ratios"]):
            numbers[f"{name}, R={ratio:g}"] = {
                "radii": record[f"{name}/radii"].tolist(),
                "exact gap": exact[i].round(3).tolist(),
                "gap": [jb.experiments.mean_and_range(gaps[i, :, j]) for j in range(gaps.shape[2])],
                "step sizes": record[f"{name}/step sizes"][i].tolist(),
            }
    gone = record["cauchy/exact"] == 1
    first = int(np.argmax(gone))
    numbers["cauchy"] = {
        "given up between ratios": record["cauchy/ratios"][[first - 1, first]].tolist(),
        "minority error before": float(record["cauchy/exact"][first - 1]),
        "sample, before and after": record["cauchy/sample"][[first - 1, first]].tolist(),
        "largest difference to the sample": float(
            np.abs(record["cauchy/exact"] - record["cauchy/sample"]).max()
        ),
    }
    return numbers


def check(numbers: dict[str, Any]) -> None:
    """Assert the claim, its closed form, and the null."""
    for name in NORMS:
        rows = {key: row for key, row in numbers.items() if key.startswith(f"{name},")}
        gaps = np.array([[gap[0] for gap in row["gap"]] for row in rows.values()])
        exact = np.array([row["exact gap"] for row in rows.values()])
        assert np.abs(exact[0]).max() == 0
        assert np.abs(gaps[0]).max() < 0.02, "equal classes, and yet a gap"
        assert np.all(np.diff(exact[1:], axis=1) > 0)
        assert np.all(np.diff(gaps[1:], axis=1) > 0), "the gap grows with the attack"
        assert np.all(np.diff(gaps, axis=0) > 0), "and with the ratio"
        assert np.abs(gaps - exact).max() < 0.03, "the best for errors is learnt by logistic loss"
    before, after = numbers["cauchy"]["sample, before and after"]
    assert max(before, numbers["cauchy"]["minority error before"]) < 0.5
    assert after > 0.9


def summary(numbers: dict[str, Any]) -> str:
    """Gaps in closed form, and trained ones in brackets."""
    settings = {name: row for name, row in numbers.items() if name != "cauchy"}
    worst = max(settings, key=lambda name: settings[name]["exact gap"][-1])
    row, cauchy = settings[worst], numbers["cauchy"]
    plain, attacked = row["exact gap"][0], row["exact gap"][-1]
    lines = [
        f"The gap between the classes' errors grows with the attack, from {plain:.2f} to "
        f"{attacked:.2f} in closed form at {worst} ({row['gap'][0][0]:.2f} to "
        f"{row['gap'][-1][0]:.2f} trained); with equal classes there is none.",
        "",
        "| attack, ratio | gap by radius: closed form (trained, mean) |",
        "| --- | --- |",
    ]
    for name, row in settings.items():
        cells = zip(row["radii"], row["exact gap"], row["gap"], strict=True)
        cells = (f"{r:g}: {exact:.3f} ({gap[0]:.3f})" for r, exact, gap in cells)
        lines.append(f"| {name} | {', '.join(cells)} |")
    before, after = cauchy["given up between ratios"]
    lines += [
        "",
        f"On Cauchy inputs the minority's error jumps from {cauchy['minority error before']:.2f} "
        f"at R = {before:.1f} to 1 at R = {after:.1f}.",
    ]
    return "\n".join(lines)


def plot(record: dict[str, np.ndarray]) -> Any:
    """The gap over the radius of both attacks, and the Cauchy minority over the ratio."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    colours = ("#777777", "#0072B2", "#D55E00", "#CC79A7")
    titles = {"l2": "attack in the 2-norm", "linf": "attack in the maximum norm"}
    for axis, (name, title) in zip(axes, titles.items(), strict=False):
        where = record[f"{name}/radii"]
        exact = record[f"{name}/exact"] @ np.array([1.0, -1.0])
        gaps = record[f"{name}/errors"] @ np.array([1.0, -1.0])
        for i, ratio in enumerate(record["l2/ratios"]):
            colour = colours[i % len(colours)]
            mean = gaps[i].mean(axis=0)
            spread = np.stack([mean - gaps[i].min(axis=0), gaps[i].max(axis=0) - mean])
            axis.plot(where, exact[i], color=colour, label=f"R = {ratio:g}, closed form")
            bars = {"fmt": "o", "color": colour, "capsize": 4}
            axis.errorbar(where, mean, spread, label=f"R = {ratio:g}, trained", **bars)
        axis.set(title=title, xlabel="radius trained against", ylim=(-0.05, 1))
    axes[0].set(ylabel="error of minority less majority")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, ncols=len(record["l2/ratios"]), loc="outside lower left")
    axes[2].plot(record["cauchy/ratios"], record["cauchy/sample"], color="#D55E00", label="sample")
    axes[2].plot(record["cauchy/ratios"], record["cauchy/exact"], "k--", label="closed form")
    axes[2].set(title="Cauchy inputs, no attack", xlabel="ratio R", ylabel="minority error")
    axes[2].set(xscale="log", ylim=(0, 1.05))
    axes[2].legend(frameon=False)
    return figure


if __name__ == "__main__":
    jb.experiments.main(__file__)
