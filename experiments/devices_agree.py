"""One device, a sharded batch and pmap train the same network.

Claim: a step of this library gives the numbers of one device on any number of them, for plain and
for per-class gradients, because every mean it takes is a sum over all devices divided by another.
A mean of each device's own class means, the null run, is another number: on a long tail most
devices see no example of a rare class.

Three steps of a ResNet on long-tailed images in float64, since in float32 a rounding error may push
one unit over the kink of its ReLU. A CPU counts as eight devices.

    python experiments/devices_agree.py --data=FOLDER    (Fashion-MNIST, CIFAR-10; or digits)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import long_tailed_vision as vision
import numpy as np

import jaxbalance as jb


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run depends on."""

    data: str = "digits"
    """digits, a folder of images, or one that holds CIFAR-10 as JPEG coefficients."""
    ratio: jb.experiments.Ratio = 100.0
    depth: int = 8
    width: int = 8
    batch_size: int = 128
    steps: int = 3
    step_size: jb.experiments.Positive = 0.1


PAPER = Config(depth=32, width=16)

METHODS = ("sgd", "sum of classes", "pcnsgd")


def training(config: Config) -> vision.Config:
    """The settings of the training runs."""
    shared = ("data", "ratio", "depth", "width", "batch_size", "steps")
    given = {name: getattr(config, name) for name in shared}
    return vision.Config(step_sizes=(config.step_size,), dtype="float64", seeds=1, **given)


def parts(config: Config) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """Every method on all kinds of devices, and the means that must not be taken."""
    vision.use_devices(dataclasses.replace(training(config), devices="sharded"))

    @functools.cache
    def made() -> tuple[vision.Trainer, vision.Sample]:
        fitting, dataset = vision.prepared(training(config))
        trainer = vision.Trainer(fitting, dataset)
        return trainer, vision.draw(fitting, dataset, balanced=False)

    work = {method: functools.partial(one_method, made, method) for method in METHODS}
    return {**work, "means of means": functools.partial(means_of_means, made)}


def one_method(made: Callable[[], Any], method: str) -> dict[str, np.ndarray]:
    """How far losses and final parameters are from those of one device."""
    found: dict[str, np.ndarray] = {}
    with jax.enable_x64(True):
        trainer, sample = made()
        ends = {}
        for devices in vision.DEVICES:
            size = trainer.config.step_sizes[0]
            curves, end = vision.train(trainer, sample, method, size, 0, devices)
            ends[devices] = (curves["loss"], end)
            gaps = jax.tree.map(_gap, ends["jit"], ends[devices])
            found[devices] = np.array(max(jax.tree.leaves(gaps)))
    return found | {"devices": np.array(jax.device_count())}


def _gap(wanted: Any, came: Any) -> float:
    """The largest difference, relative to the largest number where that is above one."""
    wanted, came = np.asarray(wanted), np.asarray(came)
    return float(np.abs(wanted - came).max() / max(np.abs(wanted).max(), 1))


def means_of_means(made: Callable[[], Any]) -> dict[str, np.ndarray]:
    """Class means of a random number per example: of the batch, and of the devices' own means."""
    with jax.enable_x64(True):
        trainer, sample = made()
    labels = sample.train[1]
    generator = np.random.default_rng(0)
    rows = generator.permutation(len(labels))[: trainer.config.batch_size]
    rows = rows[: len(rows) // jax.device_count() * jax.device_count()]
    shards = np.split(rows, jax.device_count())
    values = 1 + generator.random(len(labels))

    def class_means(shard: np.ndarray) -> np.ndarray:
        sums = np.bincount(labels[shard], values[shard], trainer.num_classes)
        return sums / np.maximum(np.bincount(labels[shard], minlength=trainer.num_classes), 1)

    return {
        "whole": class_means(rows),
        "of shards": np.mean([class_means(shard) for shard in shards], axis=0),
    }


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """The largest relative difference of losses and parameters, per method and kind of devices."""
    whole, shards = record["means of means/whole"], record["means of means/of shards"]
    numbers: dict[str, Any] = {"devices": int(record["sgd/devices"])}
    for method in METHODS:
        numbers[method] = {name: float(record[f"{method}/{name}"]) for name in vision.DEVICES}
    numbers["mean of means, off by"] = float(np.max(np.abs(whole - shards)) / np.max(whole))
    return numbers


def summary(numbers: dict[str, Any]) -> str:
    """The largest differences."""
    worst = max(max(numbers[method].values()) for method in METHODS)
    lines = [
        f"On {numbers['devices']} devices all numbers are those of one device to {worst:.0e}; a "
        f"mean of the devices' own class means is off by "
        f"{100 * numbers['mean of means, off by']:.0f} %.",
        "",
        "| method | sharded batch | pmap |",
        "| --- | --- | --- |",
    ]
    for method in METHODS:
        row = numbers[method]
        lines.append(f"| {method} | {row['sharded']:.1e} | {row['pmap']:.1e} |")
    return "\n".join(lines)


def check(numbers: dict[str, Any]) -> None:
    """Assert that devices agree, and that what they must not average would have shown."""
    for method in METHODS:
        assert max(numbers[method].values()) < 1e-9, f"{method} depends on the devices"
    if numbers["devices"] > 1:
        assert numbers["mean of means, off by"] > 0.05, "every device saw every class"


def plot(record: dict[str, np.ndarray]) -> Any:
    """Differences per method, and the class means of both kinds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = measure(record)
    for i, (devices, name) in enumerate((("sharded", "sharded batch"), ("pmap", "pmap"))):
        gaps = [numbers[method][devices] for method in METHODS]
        places = np.arange(len(METHODS)) + 0.35 * i
        left.bar(places, gaps, width=0.35, label=name)
        for x in places[np.array(gaps) == 0]:
            left.annotate("exactly 0", (x, 2e-18), ha="center", fontsize="small", rotation=90)
    left.axhline(np.finfo(np.float64).eps, color="#777777", linestyle=":", label="float64 epsilon")
    left.set(yscale="log", ylim=(1e-18, 1e-8), ylabel="largest relative difference")
    left.set_xticks(np.arange(len(METHODS)) + 0.175, METHODS)
    left.set(title="losses and parameters after the last step")
    left.legend()
    whole, shards = record["means of means/whole"], record["means of means/of shards"]
    (seen,) = np.nonzero(whole)
    right.plot(seen, whole[seen], "o", label="of the whole batch")
    right.plot(seen, shards[seen], "s", label="mean of the devices' means")
    right.set(xlabel="class of the batch, frequent to rare", ylabel="mean of random numbers")
    right.set(ylim=(0, None))
    right.set(title="why sums come before means")
    right.legend()
    return figure


if __name__ == "__main__":
    jb.experiments.main(__file__)
