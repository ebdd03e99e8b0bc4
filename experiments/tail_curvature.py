"""How sharp the loss of each class is after training: plain steps, SAM and ImbSAM.

Claim: trained on a long tail, the mean loss of a rare class is sharper than that of a frequent one,
in the largest eigenvalue of its Hessian (Rangwani et al. 2022, arXiv:2212.13827); on balanced data,
the null run, it is not. Where every class is too large for ImbSAM's tail (Zhou et al. 2023,
arXiv:2308.07815) it gives the numbers of plain training. What SAM and ImbSAM do to curvature is
measured and not asserted, nor is any escape from saddle points.

Curvature is that of each class's mean cross entropy on the training set, without weights, by
Lanczos, at the best of several step sizes on one half of the test split; recall on the other.
Curvature falls as a class is fitted, so different step sizes compare that as well. A published
claim, that re-weighted training leaves the rare classes at more strongly negative curvature, does
not show here. The larger size (``--paper``) is still digits, and not the published ResNet-32 on
long-tailed CIFAR.

    python experiments/tail_curvature.py
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxbalance as jb


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run depends on."""

    ratio: jb.experiments.Ratio = 20.0
    hidden: int = 32
    steps: int = 400
    batch_size: int = 64
    step_sizes: tuple[jb.experiments.Positive, ...] = (0.03, 0.1, 0.3)
    seeds: int = 3
    rho: float = 0.5
    tail_threshold: int = 20
    iterations: int = 40
    probes: int = 30


PAPER = Config(ratio=50.0, hidden=256, steps=20_000, seeds=5, iterations=100, probes=100)

KINDS = ("long tail", "balanced")
METHODS = ("sgd", "sam", "imb_sam")
LOSSES = ("plain", "weighted")
MEASURED = ("largest", "smallest", "trace", "trace_error")
GROUP = 3


class Sample(NamedTuple):
    """Images as rows, and labels: to train on, to choose the step size with, to report."""

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def draw(config: Config, dataset: jb.data.Dataset, *, balanced: bool) -> Sample:
    """A long-tailed training set, or a balanced one as large as it can be; both halves of the test.

    Class 0 is the most frequent. The balanced one has as many examples of each class as the long
    tail has on average.
    """
    labels, split = dataset.labels, jb.data.stratified_split
    two = {"seed": 0, "validation_fraction": 0.0}
    part = split(labels, test_fraction=0.4, **two)
    halves = split(labels[part.test], test_fraction=0.5, **two)
    smallest = int(np.bincount(labels[part.train]).min())
    sizes = jb.counts.exponential(10, largest=smallest, ratio=config.ratio)
    if balanced:
        sizes = np.full_like(sizes, sizes.sum() // 10)
    chosen = part.train[jb.data.long_tail_subset(labels[part.train], sizes, seed=0)]
    every = [chosen, part.test[halves.train], part.test[halves.test]]
    inputs = dataset.inputs.reshape(len(labels), -1).astype(np.float32)
    mean, deviation = inputs[chosen].mean(), inputs[chosen].std()
    return Sample(*(((inputs[rows] - mean) / deviation, labels[rows]) for rows in every))


def start(config: Config, key: jax.Array) -> dict[str, jax.Array]:
    """Parameters of a tanh network with one hidden layer, smooth so that Hessians say it all."""
    first, last = jax.random.split(key)
    return {
        "kernel": jax.random.normal(first, (64, config.hidden)) / 8,
        "bias": jnp.zeros(config.hidden),
        "head": jax.random.normal(last, (config.hidden, 10)) / config.hidden**0.5,
    }


def network(params: Any, inputs: jax.Array) -> jax.Array:
    """Logits of every row."""
    hidden = jnp.tanh(inputs @ params["kernel"] + params["bias"][None])
    return hidden @ params["head"]


def chain(config: Config, method: str, counts: Any, size: Any) -> Any:
    """What is compared."""
    sgd, tail = optax.sgd(size, momentum=0.9), config.tail_threshold
    transforms = jb.transforms
    links = {
        "sgd": [transforms.sum_classes()],
        "sam": [transforms.sum_classes(), transforms.sam(config.rho)],
        "imb_sam": [transforms.imb_sam(class_counts=counts, tail_threshold=tail, rho=config.rho)],
    }
    return optax.chain(*links[method], sgd)


def _weights(counts: np.ndarray, loss: str) -> jax.Array:
    """One for every class, or inverse frequencies: the same program for both."""
    return jb.counts.inverse_frequency_weights(counts, power=float(loss == "weighted"))


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(config: Config, method: str, inputs: Any, labels: Any, counts: Any, weights: Any) -> Any:
    """Final parameters for every step size and seed, in one compiled program."""
    per_example = functools.partial(jb.losses.weighted_cross_entropy, class_weights=weights)
    loss = jb.training.example_loss(network, per_example)

    def run(size: jax.Array, key: jax.Array) -> Any:
        init, order = jax.random.split(key)
        tx = chain(config, method, counts, size)
        step = jb.training.make_class_step(loss, tx, num_classes=10)
        rows = jb.samplers.shuffled_epochs(
            order, num_examples=len(labels), batch_size=config.batch_size, steps=config.steps
        )
        state = jb.training.init_state(start(config, init), tx)
        return jb.training.run_steps(step, state, inputs, labels, rows, scan=True)[0].params

    every = jax.vmap(jax.vmap(run, in_axes=(None, 0)), in_axes=(0, None))
    keys = jax.random.split(jax.random.key(0), config.seeds)
    return every(jnp.asarray(config.step_sizes, jnp.float32), keys)


@jax.jit
def predict(params: Any, inputs: Any) -> jax.Array:
    """The class of every row, ``[sizes, seeds, rows]``."""
    one = functools.partial(network, inputs=inputs)
    return jax.vmap(jax.vmap(one))(params).argmax(-1)


def recall(params: Any, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Recall of every class, ``[sizes, seeds, 10]``."""
    hits = np.asarray(predict(params, inputs)) == labels
    return np.stack([hits[..., labels == k].mean(axis=-1) for k in range(10)], axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def curvature(config: Config, params: Any, inputs: jax.Array, labels: jax.Array) -> Any:
    """Of every class's mean cross entropy, unweighted; ``[runs, 10]`` each."""
    report = functools.partial(
        jb.dynamics.class_curvature,
        jb.training.example_loss(network, jb.losses.weighted_cross_entropy),
        num_classes=10,
        key=jax.random.key(1),
        iterations=config.iterations,
        probes=config.probes,
    )
    return jax.lax.map(lambda one: report(one, inputs, labels), params)


def one_setting(config: Config, kind: str, loss: str, method: str) -> dict[str, np.ndarray]:
    """All step sizes and seeds, the best size on validation, and how sharp its runs end."""
    sample = draw(config, jb.data.load("digits"), balanced=kind == "balanced")
    counts = np.bincount(sample.train[1])
    runs = train(config, method, *sample.train, counts, _weights(counts, loss))
    scores = recall(runs, *sample.validation).mean(axis=(1, 2))
    best = int(scores.argmax())
    report = curvature(config, jax.tree.map(lambda leaf: leaf[best], runs), *sample.train)
    return {
        "counts": counts,
        "grid": scores,
        "size": np.array(config.step_sizes[best]),
        "recall": recall(runs, *sample.test)[best],
        **{name: np.asarray(getattr(report, name)) for name in MEASURED},
    }


def parts(config: Config) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """All methods with both losses on the long tail; on balanced data the two losses are one."""
    every = itertools.product(KINDS, LOSSES, METHODS)
    wanted = [setting for setting in every if setting[:2] != ("balanced", "weighted")]
    return {"/".join(s): functools.partial(one_setting, config, *s) for s in wanted}


def settings(record: dict[str, np.ndarray]) -> list[str]:
    """``kind/loss/method`` of all that was run."""
    return sorted(name.removesuffix("/largest") for name in record if name.endswith("/largest"))


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """Mean over seeds with the lowest and the highest, for frequent, middle and rare classes.

    Of a group of classes the largest and the smallest eigenvalues and the traces are averaged.
    """
    groups = {"frequent": slice(0, GROUP), "rare": slice(10 - GROUP, 10)}
    numbers: dict[str, Any] = {}
    for name in settings(record):
        summary: dict[str, Any] = {"step size": float(record[f"{name}/size"])}
        summary["validation"] = [round(float(score), 3) for score in record[f"{name}/grid"]]
        for group, what in itertools.product(groups, ("largest", "smallest", "trace", "recall")):
            values = record[f"{name}/{what}"][:, groups[group]].mean(axis=1)
            summary[f"{group}, {what}"] = jb.experiments.mean_and_range(values)
        numbers[name] = summary
    return numbers


def sharper(numbers: dict[str, Any], name: str) -> float:
    """How many times the largest eigenvalue of rare classes is that of frequent ones."""
    return float(numbers[name]["rare, largest"][0] / numbers[name]["frequent, largest"][0])


def check(numbers: dict[str, Any]) -> None:
    """Assert that rare classes end sharper on the long tail only. Of SAM nothing is asserted.

    Balanced classes are all too large for the tail: there ImbSAM must be plain training.
    """
    tail, null = (sharper(numbers, f"{kind}/plain/sgd") for kind in KINDS)
    assert tail > 2
    assert 0.5 < null < 2
    rare, frequent = (numbers["long tail/plain/sgd"][f"{g}, largest"] for g in ("rare", "frequent"))
    assert rare[1] > frequent[2], "the seeds overlap"
    same, other = (numbers[f"balanced/plain/{method}"] for method in ("sgd", "imb_sam"))
    for what in same:
        np.testing.assert_allclose(other[what], same[what], rtol=0.02, atol=2e-3)


def summary(numbers: dict[str, Any]) -> str:
    """Eigenvalues, traces and recall, frequent classes before rare ones."""
    tail, null = (sharper(numbers, f"{kind}/plain/sgd") for kind in KINDS)
    lines = [
        f"Rare classes end {tail:.1f} times as sharp as frequent ones after plain training on the "
        f"long tail, and {null:.1f} times on balanced data.",
        "",
        "| data / loss / method | step size | largest | smallest | trace | recall |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in numbers.items():
        pairs = (
            f"{row[f'frequent, {what}'][0]:.3g} / {row[f'rare, {what}'][0]:.3g}"
            for what in ("largest", "smallest", "trace", "recall")
        )
        lines.append(f"| {name} | {row['step size']:g} | {' | '.join(pairs)} |")
    return "\n".join([*lines, "", "Mean over seeds: frequent classes / rare classes."])


def plot(record: dict[str, np.ndarray]) -> Any:
    """Largest and smallest eigenvalue of every class after training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey="row")
    columns = ("long tail/plain", "long tail/weighted", "balanced/plain")
    colours = ("#222222", "#0072B2", "#D55E00")
    for column, setting in enumerate(columns):
        for (method, colour), row in itertools.product(zip(METHODS, colours, strict=True), (0, 1)):
            values = record[f"{setting}/{method}/{('largest', 'smallest')[row]}"]
            axis, classes = axes[row, column], np.arange(10)
            axis.plot(classes, values.mean(axis=0), color=colour, label=method, marker=".")
            axis.fill_between(classes, values.min(0), values.max(0), color=colour, alpha=0.15)
        axes[0, column].set(title=setting.replace("/", ", ") + " loss", yscale="log")
        axes[1, column].set(xlabel="class, frequent to rare" if column < 2 else "class")
    axes[0, 0].set(ylabel="largest eigenvalue")
    axes[1, 0].set(ylabel="smallest eigenvalue")
    axes[0, 0].legend(frameon=False)
    return figure


if __name__ == "__main__":
    jb.experiments.main(__file__)
