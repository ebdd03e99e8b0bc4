"""Features that few examples of a class have: plain training misses them, mixup learns them.

Claim: where most examples of a class show one feature and a few show another one in its place,
training to a small loss fits those few by their noise; mixup, whose mixtures tie rare features to
common ones, learns the rare feature too. It does so early, so that it can be stopped and training
go on without, and it needs no common weight of inputs and labels (Zou, Cao, Li and Gu 2023,
arXiv:2303.08433). With little noise, the null run, both are right on all examples.

Inputs are patches: a feature, a weak copy of any feature, and Gaussian noise. The network is one
layer of filters with squared responses, added up by class; full-batch gradient descent. The
features are four unit vectors, here the first four coordinates: noise and initial filters are alike
in all directions. The effect depends on the strength of the noise, so several are run. The same
step size serves every method: each ends at a small loss. Under more noise, mixup that is stopped or
has two weights keeps less of the gain than mixup itself: that is measured and not asserted.

    python experiments/mixup_rare_features.py
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxbalance as jb


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run depends on."""

    dimension: int = 800
    patches: int = 5
    examples: int = 300
    rare: jb.experiments.Share = 0.1
    weak: float = 0.2
    noises: tuple[float, ...] = (0.08, 0.12, 0.16)
    filters: int = 10
    initial: jb.experiments.Positive = 0.01
    step_size: jb.experiments.Positive = 0.3
    steps: int = 1500
    stop: int = 500
    input_weight: jb.experiments.Share = 0.6
    label_weight: jb.experiments.Share = 0.8
    test_examples: int = 1000
    seeds: int = 3


# No code of the source is known: the same model with more seeds, noises and examples to test on.
PAPER = Config(noises=(0.08, 0.1, 0.12, 0.14, 0.16, 0.18), test_examples=10_000, seeds=10)

METHODS = ("plain", "mixup", "stopped mixup", "two weights")
RECORDS = 15


class Patches(NamedTuple):
    """Examples of two classes; features are coordinates, the common ones before the rare ones."""

    noise: Any
    """Patches without a feature, ``[n, patches - 2, d]``."""
    feature: Any
    """Coordinate of each example's feature, ``[n]``: its class, plus 2 if the rare one."""
    copy: Any
    """Coordinate of the weak copy, ``[n]``."""
    labels: Any


class Seed(NamedTuple):
    """What differs between runs of one method."""

    key: jax.Array
    train: Patches
    test: Patches
    """The first half with common features, the second with rare ones."""


def draw(config: Config, noise: float, seed: int, is_rare: np.ndarray) -> Patches:
    """Examples of both classes in turn."""
    generator, number = np.random.default_rng(seed), len(is_rare)
    shape = (number, config.patches - 2, config.dimension)
    labels = np.arange(number, dtype=np.int32) % 2
    noises = noise * generator.standard_normal(shape, dtype=np.float32)
    copies = generator.integers(4, size=number, dtype=np.int32)
    return Patches(noises, labels + 2 * is_rare.astype(np.int32), copies, labels)


def responses(config: Config, filters: jax.Array, data: Patches) -> jax.Array:
    """Inner products of all patches with all filters ``[d, F]``: ``[n, patches, F]``."""
    rows = data.noise.reshape(-1, config.dimension) @ filters
    rest = rows.reshape(*data.noise.shape[:2], -1)
    both = filters[data.feature], config.weak * filters[data.copy]
    return jnp.concatenate([jnp.stack(both, axis=1), rest], axis=1)


def logits(response: jax.Array) -> jax.Array:
    """Squares added up over patches and over the filters of a class."""
    return jnp.sum(response**2, axis=1).reshape(len(response), 2, -1).sum(axis=-1)


@functools.cache
def programs(config: Config) -> tuple[Any, Any, Any]:
    """``start``, ``step`` and ``measure`` of a sweep over methods."""
    per_example = jb.losses.weighted_cross_entropy

    def mixed_loss(filters: Any, data: Patches, setting: Any, order: Any, on: Any) -> jax.Array:
        share, label_share = (jnp.where(on, setting[k], 1.0) for k in ("inputs", "labels"))
        # Filters are linear in the input: mixing their responses is mixing the inputs.
        plain, target = responses(config, filters, data), jax.nn.one_hot(data.labels, 2)
        mixed = share * plain + (1 - share) * plain[order]
        targets = label_share * target + (1 - label_share) * target[order]
        return jnp.mean(per_example(logits(mixed), targets))

    def start(setting: Any, seed: Seed) -> jax.Array:
        shape = (config.dimension, 2 * config.filters)
        return config.initial * jax.random.normal(jax.random.fold_in(seed.key, 0), shape)

    def step(filters: jax.Array, setting: Any, seed: Seed, number: jax.Array) -> jax.Array:
        key = jax.random.fold_in(seed.key, number + 1)
        order = jax.random.permutation(key, len(seed.train.labels))
        extra = (seed.train, setting, order, number < setting["stop"])
        return filters - config.step_size * jax.grad(mixed_loss)(filters, *extra)

    def measure(filters: jax.Array, setting: Any, seed: Seed) -> tuple[jax.Array, Any]:
        outputs = logits(responses(config, filters, seed.train))
        hits = logits(responses(config, filters, seed.test)).argmax(-1) == seed.test.labels
        # Each feature seen by the filters of its own class: [common or rare, class].
        seen = jnp.abs(filters[:4]).reshape(2, 2, 2, -1).max(axis=-1)
        aligned = jnp.diagonal(seen, axis1=1, axis2=2)
        record = {"accuracy": hits.reshape(2, -1).mean(axis=1), "alignment": aligned.mean(axis=1)}
        return jnp.mean(per_example(outputs, seed.train.labels)), record

    return start, step, measure


def settings(config: Config) -> dict[str, np.ndarray]:
    """Of the methods: the weight of an example and of its label, and the steps with mixing."""
    mixed, always = config.input_weight, config.steps
    return {
        "inputs": np.array([1, mixed, mixed, mixed], np.float32),
        "labels": np.array([1, mixed, mixed, config.label_weight], np.float32),
        "stop": np.array([0, always, min(config.stop, always), always], np.int32),
    }


def one_noise(config: Config, noise: float) -> dict[str, np.ndarray]:
    """All methods and seeds, at one strength of noise."""
    halves = np.repeat([False, True], config.test_examples)
    drawn = []
    for seed in range(config.seeds):
        few = np.random.default_rng([seed, 1]).random(config.examples) < config.rare
        train, test = draw(config, noise, seed, few), draw(config, noise, seed + 10**6, halves)
        drawn.append(Seed(jax.random.key(seed), train, test))
    seeds = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
    marks = np.unique(np.linspace(0, config.steps, RECORDS + 1).astype(int))
    result = jb.dynamics.sweep(
        *programs(config), settings(config), seeds, steps=config.steps, record_at=marks
    )
    return {
        "steps": result.steps,
        "stop": settings(config)["stop"][METHODS.index("stopped mixup")],
        "loss": result.loss,
        "diverged": result.diverged,
        **result.record,
    }


def parts(config: Config) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """The strengths of noise."""
    return {f"{noise:g}": functools.partial(one_noise, config, noise) for noise in config.noises}


def noises(record: dict[str, np.ndarray]) -> list[str]:
    """Strengths of noise that were run, rising."""
    return sorted({name.split("/")[0] for name in record}, key=float)


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """Mean over seeds with the lowest and the highest, at the end; diverged runs are left out."""
    numbers: dict[str, Any] = {}
    for noise in noises(record):
        arrays = {k: record[f"{noise}/{k}"] for k in ("loss", "diverged", "accuracy", "alignment")}
        rows = {}
        for i, method in enumerate(METHODS):
            kept = ~arrays["diverged"][i]
            row: dict[str, Any] = {"diverged": int((~kept).sum())}
            row["training loss"] = _range(arrays["loss"][i, kept, -1])
            for what in ("accuracy", "alignment"):
                for j, group in enumerate(("common", "rare")):
                    row[f"{group} {what}"] = _range(arrays[what][i, kept, -1, j])
            rows[method] = row
        numbers[noise] = rows
    return numbers


def _range(values: np.ndarray) -> list[float] | None:
    """Mean, lowest, highest; None of nothing."""
    return jb.experiments.mean_and_range(values) if len(values) else None


def gain(rows: dict[str, Any]) -> float:
    """Accuracy on rare features that mixup adds."""
    rare = [rows[method]["rare accuracy"] or [0.0] for method in ("mixup", "plain")]
    return float(rare[0][0] - rare[1][0])


def clearest(numbers: dict[str, Any]) -> str:
    """The noise at which mixup adds most."""
    return max(numbers, key=lambda noise: gain(numbers[noise]))


def check(numbers: dict[str, Any]) -> None:
    """Assert the claim where it is clearest, and that with the least noise there is none of it."""
    for noise, rows in numbers.items():
        assert not any(row["diverged"] for row in rows.values()), f"a run diverged at {noise}"
        assert gain(rows) > -0.02, f"mixup loses rare features at {noise}"
        for method, row in rows.items():
            assert row["common accuracy"][1] > 0.97, f"{method} misses common features at {noise}"
    for method, row in numbers[min(numbers, key=float)].items():
        assert row["rare accuracy"][1] > 0.97, f"{method} misses rare features without much noise"
    rows = numbers[clearest(numbers)]
    plain = rows["plain"]
    assert plain["training loss"][2] < 0.05, "plain training has not fitted its examples"
    for method in METHODS[1:]:
        for what in ("rare accuracy", "rare alignment"):
            assert rows[method][what][1] > plain[what][2] + 0.1, f"{method}, {what}: no gain"


def summary(numbers: dict[str, Any]) -> str:
    """Accuracy on examples of either feature, and how far the filters follow the rare one."""
    where, null = clearest(numbers), min(numbers, key=float)
    rows = numbers[where]
    rare = {method: _cell(row["rare accuracy"]) for method, row in rows.items()}
    easy = _cell(numbers[null]["plain"]["rare accuracy"])
    lines = [
        f"At noise {where}, examples with a rare feature are right at a rate of {rare['plain']} "
        f"after plain training, {rare['mixup']} with mixup, {rare['stopped mixup']} with mixup "
        f"stopped early and {rare['two weights']} with other weights for labels than for inputs; "
        f"at noise {null} plain training has {easy}.",
        "",
        "| noise | method | common accuracy | rare accuracy | common / rare alignment | loss |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for noise, methods in numbers.items():
        for method, row in methods.items():
            ranges = " | ".join(_cell(row[f"{g} accuracy"], True) for g in ("common", "rare"))
            aligned = " / ".join(_cell(row[f"{g} alignment"]) for g in ("common", "rare"))
            loss = _cell(row["training loss"])
            lines.append(f"| {noise} | {method} | {ranges} | {aligned} | {loss} |")
    note = "Mean over seeds (lowest to highest). Alignment: the largest inner product of a feature"
    return "\n".join([*lines, "", f"{note} with a filter of its class. Loss: training, unmixed."])


def _cell(values: list[float] | None, seeds: bool = False) -> str:
    if values is None:
        return "diverged"
    mean, low, high = values
    return f"{mean:.3f}" + (f" ({low:.3f} to {high:.3f})" if seeds else "")


COLOURS = ("#222222", "#0072B2", "#009E73", "#D55E00")


def plot(record: dict[str, np.ndarray]) -> Any:
    """Rare accuracy by noise; at the clearest noise, accuracy and alignment over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    every, where = noises(record), clearest(measure(record))
    steps = record[f"{where}/steps"]
    for i, (method, colour) in enumerate(zip(METHODS, COLOURS, strict=True)):
        final = np.stack([record[f"{noise}/accuracy"][i, :, -1, 1] for noise in every])
        style = {"color": colour, "marker": "osD^"[i], "markersize": 4}
        _band(axes[0], [float(noise) for noise in every], final.T, label=method, **style)
        for axis, what in zip(axes[1:], ("accuracy", "alignment"), strict=True):
            _band(axis, steps, record[f"{where}/{what}"][i, :, :, 1], **style)
    axes[0].set(title="after training", xlabel="noise per coordinate")
    axes[0].set(ylabel="accuracy, rare feature", ylim=(0.45, 1.02))
    axes[1].set(title=f"at noise {where}", xlabel="steps", ylabel="accuracy, rare feature")
    axes[1].set(ylim=(0.45, 1.02))
    axes[2].set(title=f"at noise {where}", xlabel="steps", ylabel="alignment, rare feature")
    for axis in axes[1:]:
        axis.axvline(record[f"{where}/stop"], color="#009E73", linestyle=":", linewidth=1)
    axes[2].annotate(
        "mixing stopped", (record[f"{where}/stop"], 0), (4, 0), textcoords="offset points"
    )
    figure.legend(loc="outside lower center", ncols=len(METHODS))
    return figure


def _band(axis: Any, where: Any, values: np.ndarray, **style: Any) -> None:
    """Mean over the seeds, which come first, and their range."""
    axis.plot(where, values.mean(axis=0), **style)
    axis.fill_between(where, values.min(0), values.max(0), color=style["color"], alpha=0.15)


if __name__ == "__main__":
    jb.experiments.main(__file__)
