"""Every class counted alike: a ResNet on long-tailed images, with per-class normalised steps.

Claim: on a long-tailed training set SGD learns the rare classes last; per-class normalised steps
(PCNSGD: Francazi, Baity-Jesi and Lucchi, ICML 2023, arXiv:2207.00391) raise their recall within the
same number of steps. On balanced data, the null run, there is less to gain.

Every method has the same step sizes, chosen by mean recall on one half of the test split; recall is
reported on the other half. Beside them runs the identity: the sum of the classes' gradients is the
gradient. Long runs (``--paper``) were not measured.

    python experiments/long_tailed_vision.py --data=FOLDER    (Fashion-MNIST, CIFAR-10; or digits)
"""

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import _cifar10_jpeg
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxbalance as jb


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run depends on."""

    data: str = "digits"
    """digits, a folder of images, or one that holds CIFAR-10 as JPEG coefficients."""
    devices: Literal["jit", "sharded", "pmap"] = "jit"
    """One device, or all of them in one of two ways; CPUs then count as eight."""
    ratio: jb.experiments.Ratio = 100.0
    depth: int = 8
    width: int = 8
    shrink: int = 2
    """Pixels of a square that become one; images that would be under 8 x 8 stay as they are."""
    batch_size: int = 128
    steps: int = 200
    step_sizes: tuple[jb.experiments.Positive, ...] = (0.1, 0.3, 1.0, 3.0)
    seeds: int = 3
    evaluated: int = 100
    dtype: Literal["float32", "float64"] = "float32"


PAPER = Config(depth=32, width=16, shrink=1, steps=20_000, seeds=5, evaluated=500)

KINDS = ("long tail", "balanced")
METHODS = ("sgd", "pcnsgd")
COMPARED = 5
RARE = 3


def chain(config: Config, method: str, size: float) -> optax.GradientTransformation:
    """What is compared; the step size is kept in the state, so that all sizes are one program."""
    decay = optax.cosine_decay_schedule(1.0, config.steps)
    decayed = optax.inject_hyperparams(lambda peak: optax.sgd(lambda count: peak * decay(count)))
    sgd = decayed(peak=size)
    return {
        "sgd": sgd,
        "sum of classes": optax.chain(jb.transforms.sum_classes(), sgd),
        "pcnsgd": optax.chain(jb.transforms.normalize_classes(), sgd),
    }[method]


class Sample(NamedTuple):
    """Images and labels to train on, to choose the step size with, and to report."""

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def load(source: str) -> jb.data.Dataset:
    """Any data set of :func:`jaxbalance.data.load`, or CIFAR-10 kept as JPEG coefficients."""
    archive = pathlib.Path(source) / "cifar10_dct.npz"
    return _cifar10_jpeg.read(archive) if archive.is_file() else jb.data.load(source)


def _shrunk(images: np.ndarray, factor: int) -> np.ndarray:
    """The mean of each ``factor`` x ``factor`` square, so that a step is cheap on a CPU."""
    n, rows, columns, channels = images.shape
    rows, columns = rows // factor, columns // factor
    cut = images[:, : rows * factor, : columns * factor].astype(np.float32)
    return cut.reshape(n, rows, factor, columns, factor, channels).mean(axis=(2, 4))


def _class_sizes(labels: np.ndarray, config: Config, *, balanced: bool) -> np.ndarray:
    """A long tail, or the same number of examples spread evenly, as far as there are so many."""
    counts = np.bincount(labels)
    tail = jb.counts.exponential(len(counts), largest=int(counts[0]), ratio=config.ratio)
    even = min(int(counts.min()), int(tail.sum()) // len(counts))
    return np.full_like(tail, even) if balanced else tail


def draw(config: Config, dataset: jb.data.Dataset, *, balanced: bool) -> Sample:
    """A training set of the wanted class sizes, and balanced rows of both halves of the test."""
    labels, split = dataset.labels, jb.data.stratified_split
    two = {"seed": 0, "validation_fraction": 0.0}
    part = split(labels, test_fraction=0.4, test_indices=dataset.test_indices, **two)
    halves = split(labels[part.test], test_fraction=0.5, **two)

    def subset(rows: np.ndarray, wanted: Any) -> np.ndarray:
        return rows[jb.data.long_tail_subset(labels[rows], wanted, seed=0)]

    train = subset(part.train, _class_sizes(labels[part.train], config, balanced=balanced))
    held_out = [part.test[half] for half in (halves.train, halves.test)]
    few = min(config.evaluated, *(int(np.bincount(labels[rows]).min()) for rows in held_out))
    every = [train, *(subset(rows, [few] * len(dataset.class_names)) for rows in held_out)]
    images = _shrunk(dataset.inputs, config.shrink).astype(config.dtype)
    mean, deviation = images[train].mean(), images[train].std()
    return Sample(*(((images[rows] - mean) / deviation, labels[rows]) for rows in every))


class Way(NamedTuple):
    """A compiled step, the way into its form of state, the way out for parameters and losses."""

    take: Callable[..., Any]
    enter: Callable[[Any], Any]
    leave: Callable[[Any], Any]


def on_one(step: Any) -> Way:
    """The step on one device."""
    return Way(jb.training.jit_step(step), lambda state: state, lambda tree: tree)


def on_mesh(step: Any) -> Way:
    """The step on all devices, its batch sharded."""
    axis_types = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=axis_types)
    return Way(jb.training.sharded_step(step, mesh), lambda state: state, jax.device_get)


def on_all(step: Any) -> Way:
    """The step on all devices by ``pmap``."""
    number, mapped = jax.device_count(), jb.training.pmap_step(step)

    def take(state: Any, images: np.ndarray, labels: np.ndarray) -> Any:
        return mapped(state, *(x.reshape(number, -1, *x.shape[1:]) for x in (images, labels)))

    copies = jax.jit(lambda state: jax.tree.map(lambda leaf: jnp.stack([leaf] * number), state))
    return Way(take, copies, lambda tree: jax.tree.map(lambda leaf: leaf[0], jax.device_get(tree)))


DEVICES = {"jit": on_one, "sharded": on_mesh, "pmap": on_all}


class Trainer:
    """One network, and one compiled step for each method and kind of devices."""

    def __init__(self, config: Config, dataset: jb.data.Dataset):
        self.config = config
        self.num_classes = len(dataset.class_names)
        rows, columns, channels = dataset.inputs.shape[1:]
        shape = (rows // config.shrink, columns // config.shrink, channels)
        network = functools.partial(jb.models.ResNet, depth=config.depth, width=config.width)
        self.build = nnx.jit(lambda key: network(shape, self.num_classes, rngs=nnx.Rngs(key)))
        self.apply = jb.models.functional(self.build(jax.random.key(0))).apply
        self.predict = jax.jit(lambda params, images: self.apply(params, images).argmax(-1))
        self.ways: dict[tuple[str, str], Way] = {}

    def way(self, method: str, devices: str) -> Way:
        """The compiled step, made once."""
        if (method, devices) not in self.ways:
            training = jb.training
            loss = training.example_loss(self.apply, jb.losses.weighted_cross_entropy)
            make = training.make_step if method == "sgd" else training.make_class_step
            step = make(loss, chain(self.config, method, 1.0), num_classes=self.num_classes)
            self.ways[method, devices] = DEVICES[devices](step)
        return self.ways[method, devices]

    def start(self, method: str, size: float, seed: int) -> jb.training.TrainState:
        """The state of a run before its first step; the same parameters for every method."""
        params = jb.models.functional(self.build(jax.random.key(seed))).params
        params = jax.tree.map(lambda leaf: leaf.astype(self.config.dtype), params)
        return jb.training.init_state(params, chain(self.config, method, size))

    def recall(self, params: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Recall of every class."""
        predictions = self.predict(params, images)
        table = jb.metrics.confusion_matrix(labels, predictions, num_classes=self.num_classes)
        return np.asarray(jb.metrics.recall(table))


def moments(config: Config) -> np.ndarray:
    """The steps after which recall is measured: evenly spaced in the logarithm."""
    return np.unique(np.geomspace(1, config.steps, num=8).round().astype(int))


def train(
    trainer: Trainer,
    sample: Sample,
    method: str,
    size: float,
    seed: int,
    devices: str,
    stop: int | None = None,
) -> tuple[dict[str, np.ndarray], Any]:
    """One run: the loss of every step, recall ``[moments, K]``, and the parameters it ends with.

    With ``stop`` it ends early, after so many of its steps.
    """
    config, (images, labels) = trainer.config, sample.train
    shape = {"num_examples": len(labels), "batch_size": config.batch_size, "steps": config.steps}
    rows = jb.samplers.shuffled_epochs(jax.random.key(seed), **shape)
    way = trainer.way(method, devices)
    state = way.enter(trainer.start(method, size, seed))
    measured = set(moments(config).tolist())
    curves: dict[str, list[Any]] = {"loss": [], "validation": [], "test": []}
    for number, row in enumerate(np.asarray(rows)[:stop], start=1):
        state, record = way.take(state, images[row], labels[row])
        curves["loss"].append(way.leave(record.loss))
        if number in measured:
            params = way.leave(state.params)
            curves["validation"].append(trainer.recall(params, *sample.validation))
            curves["test"].append(trainer.recall(params, *sample.test))
    return {name: np.array(jax.device_get(curve)) for name, curve in curves.items()}, params


def _stacked(runs: Sequence[Any]) -> dict[str, np.ndarray]:
    return {name: np.stack([run[name] for run in runs]) for name in runs[0]}


def _search(trainer: Trainer, sample: Sample, method: str) -> dict[str, np.ndarray]:
    """Every step size with seed 0, the best of them with the other seeds: arrays ``[seeds, ...]``.

    Best is the highest mean recall on validation after the last step.
    """
    sizes, devices = trainer.config.step_sizes, trainer.config.devices
    grid = [train(trainer, sample, method, size, 0, devices)[0] for size in sizes]
    scores = np.array([curves["validation"][-1].mean() for curves in grid])
    best = int(scores.argmax())
    size, others = sizes[best], range(1, trainer.config.seeds)
    more = [train(trainer, sample, method, size, seed, devices)[0] for seed in others]
    return {"size": np.array(size), "grid": scores, **_stacked([grid[best], *more])}


def prepared(config: Config) -> tuple[Config, jb.data.Dataset]:
    """The data, and the settings as they fit its images."""
    dataset = load(config.data)
    if min(dataset.inputs.shape[1:3]) < 8 * config.shrink:
        config = dataclasses.replace(config, shrink=1)
    return config, dataset


def use_devices(config: Config) -> None:
    """Let a CPU count as eight devices, where more than one is wanted."""
    # Has no effect on accelerators, which bring their own number of devices.
    if config.devices != "jit" and "XLA_FLAGS" not in os.environ:
        jax.config.update("jax_num_cpu_devices", 8)


def parts(config: Config) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """Both methods on the long tail and on balanced data, and the identity beside them."""
    use_devices(config)

    @functools.cache
    def trainer() -> tuple[Trainer, jb.data.Dataset]:
        fitting, dataset = prepared(config)
        return Trainer(fitting, dataset), dataset

    every = list(itertools.product(KINDS, METHODS))
    work = {"/".join(s): functools.partial(one_setting, trainer, *s) for s in every}
    return {**work, "sum of classes": functools.partial(identity, trainer)}


def one_setting(made: Callable[[], Any], kind: str, method: str) -> dict[str, np.ndarray]:
    """Curves of the best step size, and when they were measured."""
    trainer, dataset = made()
    sample = draw(trainer.config, dataset, balanced=kind == "balanced")
    found = {"moments": moments(trainer.config), "counts": np.bincount(sample.train[1])}
    return found | _search(trainer, sample, method)


def identity(made: Callable[[], Any]) -> dict[str, np.ndarray]:
    """First losses of plain training, and with the gradient as the sum of the classes' parts."""
    trainer, dataset = made()
    sample, size = draw(trainer.config, dataset, balanced=True), trainer.config.step_sizes[0]
    methods = ("sgd", "sum of classes")
    devices = trainer.config.devices
    runs = (train(trainer, sample, m, size, 0, devices, COMPARED)[0] for m in methods)
    return {"losses": np.stack([run["loss"] for run in runs])}


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """Recall on the test half: mean over seeds, and the lowest and the highest seed."""
    steps = record["long tail/sgd/moments"]
    early = int(np.searchsorted(steps, steps[-1] / 8))
    numbers: dict[str, Any] = {"steps": int(steps[-1]), "early step": int(steps[early])}
    for kind, method in itertools.product(KINDS, METHODS):
        name = f"{kind}/{method}"
        recall = record[f"{name}/test"]
        summary: dict[str, Any] = {"step size": float(record[f"{name}/size"])}
        summary["validation"] = [round(float(score), 3) for score in record[f"{name}/grid"]]
        for when, at in (("early", early), ("end", -1)):
            summary[f"rare, {when}"] = jb.experiments.mean_and_range(
                recall[:, at, -RARE:].mean(axis=-1)
            )
            summary[f"lowest, {when}"] = jb.experiments.mean_and_range(recall[:, at].min(axis=-1))
            summary[f"mean, {when}"] = jb.experiments.mean_and_range(recall[:, at].mean(axis=-1))
        numbers[name] = summary
    plain, summed = record["sum of classes/losses"]
    numbers["sum of classes, first losses off by"] = float(np.abs(summed - plain).max())
    return numbers


def check(numbers: dict[str, Any]) -> None:
    """Assert the claim, the null and the identity."""

    def gain(kind: str, what: str) -> float:
        return float(numbers[f"{kind}/pcnsgd"][what][0] - numbers[f"{kind}/sgd"][what][0])

    assert gain("long tail", "rare, early") >= 0
    assert gain("long tail", "rare, end") > 0
    assert gain("long tail", "lowest, end") >= 0
    assert gain("long tail", "mean, end") > 0
    assert gain("balanced", "mean, end") < gain("long tail", "mean, end")
    assert numbers["sum of classes, first losses off by"] < 1e-3


def summary(numbers: dict[str, Any]) -> str:
    """Recall by method: mean over seeds, lowest and highest."""
    plain, balanced = (numbers[f"long tail/{method}"]["rare, end"][0] for method in METHODS)
    lines = [
        f"After {numbers['steps']} steps on the long tail the recall of the {RARE} rarest classes "
        f"is {plain:.2f} with SGD and {balanced:.2f} with PCNSGD.",
        "",
        "| data, method | step size | rare | lowest | mean | rare, early |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in ("/".join(s) for s in itertools.product(KINDS, METHODS)):
        row = numbers[name]
        what = ("rare, end", "lowest, end", "mean, end", "rare, early")
        cells = (f"{row[w][0]:.2f} ({row[w][1]:.2f} to {row[w][2]:.2f})" for w in what)
        lines.append(f"| {name} | {row['step size']:g} | {' | '.join(cells)} |")
    early = f"Recall on test: mean of seeds (range). Early is step {numbers['early step']}."
    return "\n".join([*lines, "", early])


def plot(record: dict[str, np.ndarray]) -> Any:
    """Recall of the rare classes over time, and of every class at the end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for kind, style in zip(KINDS, ("-", ":"), strict=True):
        for method, colour in zip(METHODS, ("#222222", "#D55E00"), strict=True):
            recall = record[f"{kind}/{method}/test"].mean(axis=0)
            line = {"label": f"{method}, {kind}", "color": colour, "linestyle": style}
            axes[0].plot(record["long tail/sgd/moments"], recall[:, -RARE:].mean(axis=-1), **line)
            axes[1].plot(recall[-1], **line)
    axes[0].set(xscale="log", xlabel="step", ylabel=f"test recall, {RARE} rarest classes")
    axes[1].set(xlabel="class, frequent to rare", ylabel="test recall after the last step")
    axes[0].legend()
    return figure


if __name__ == "__main__":
    jb.experiments.main(__file__)
