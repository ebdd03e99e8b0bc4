"""Ensembles on under-samples that turn from easy to hard examples, against random under-samples.

Claim: an ensemble whose members train, one after another, on all of the minority and an equal part
of the majority ranks better if that part is chosen by how hard the majority's examples are for the
members so far: at first every bin of hardness contributes the same hardness in sum, at last the
same number of examples, and a self-paced factor leads from one to the other. It beats random parts,
by more where classes overlap more or are more unequal (Liu et al. 2020, arXiv:1909.03500, SPE). Its
data are a checkerboard: 16 Gaussians on a 4 by 4 grid, neighbours of different classes, whose
variance is the overlap; its measure is average precision, here on test data as unequal.

Null run: with equal classes every part is the whole majority, and how it is chosen changes nothing.

Beside the two, all with networks of one shape and step sizes of their own from one grid, by average
precision on validation data: parts with the factor held at its first and at its last value, and one
network trained on everything for as many steps as all members together, plain or with class
weights. As in the source, the first network, trained on a random part, only says what is hard and
is no member.

Measured and not asserted, for it does not reproduce here: more overlap narrows the lead, and more
imbalance widens it only where classes overlap least. The last factor alone, as many examples from
every bin, does as well as the self-paced one, and so does one plain network trained as long as all
members. Real data are digits, the rarest class against the rest, or any tables that --data names;
there the minority is thinned in training, where it is not rarer already, to the ratio asked for.

    python experiments/self_paced_ensemble.py
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from flax import nnx

import jaxbalance as jb


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run depends on. Ratios are majority to minority; overlaps variances of Gaussians."""

    minority: int = 100
    validation_minority: int = 60
    test_minority: int = 240
    overlaps: tuple[float, ...] = (0.05, 0.1, 0.15)
    ratios: tuple[jb.experiments.Ratio, ...] = (10.0, 40.0)
    data: tuple[str, ...] = ("digits",)
    data_ratio: jb.experiments.Ratio = 40.0
    members: int = 10
    bins: int = 20
    hidden: tuple[int, ...] = (32, 32)
    steps: int = 150
    step_sizes: tuple[jb.experiments.Positive, ...] = (0.01, 0.03, 0.1)
    seeds: int = 6


PAPER = Config(minority=1000, ratios=(10.0, 100.0), hidden=(128,), steps=1000, seeds=10)

RANDOM, PACED = "random parts", "self-paced parts"
FIRST, LAST = "factor 0", "factor infinite"
PLAIN, WEIGHTED = "one network", "one network, class weights"
ENSEMBLES, SINGLE = (RANDOM, PACED, FIRST, LAST), (PLAIN, WEIGHTED)
METHODS = ENSEMBLES + SINGLE
EQUAL, BOARD, LEAD = "equal classes", "overlap", "lead over random parts"


class Sample(NamedTuple):
    """So many examples to train on, majority first, so many to choose by, and others to test on."""

    inputs: np.ndarray
    labels: np.ndarray
    train: int
    validation: int

    @property
    def majority(self) -> int:
        """Of those to train on."""
        return int(np.sum(self.labels[: self.train] == 0))

    def known_labels(self) -> np.ndarray:
        """Those to train on, −1 for the others."""
        return np.where(np.arange(len(self.labels)) < self.train, self.labels, -1)


def checkerboard(config: Config, overlap: float, ratio: float, seed: int) -> Sample:
    """Gaussians on a grid, the minority on the white squares."""
    generator = np.random.default_rng(seed)
    rare = (config.minority, config.validation_minority, config.test_minority)
    sizes = [size for number in rare for size in (round(ratio * number), number)]
    labels = np.repeat(np.tile([0, 1], 3), sizes).astype(np.int32)
    row, half = generator.integers(4, size=len(labels)), generator.integers(2, size=len(labels))
    centres = np.stack([row, 2 * half + (row + labels) % 2], axis=1)
    inputs = centres + generator.normal(scale=overlap**0.5, size=centres.shape)
    return Sample(_standard(inputs, sum(sizes[:2])), labels, sum(sizes[:2]), sum(sizes[2:4]))


def real(config: Config, source: str, seed: int) -> Sample:
    """A part of each class to train on, a fifth to choose by, two fifths to test on."""
    dataset = jb.data.load(source)
    rarest = np.argmin(np.bincount(dataset.labels))
    labels = (dataset.labels == rarest).astype(np.int32)
    split = jb.data.stratified_split(labels, seed=seed, test_fraction=0.4)
    majority, rare = np.bincount(labels[split.train])
    sizes = [majority, min(rare, max(2, round(majority / config.data_ratio)))]
    train = split.train[jb.data.long_tail_subset(labels[split.train], sizes, seed=seed)]
    train = train[np.argsort(labels[train], kind="stable")]
    rows = np.concatenate([train, split.validation, split.test])
    table = dataset.inputs.reshape(len(labels), -1)[rows].astype(np.float64)
    if not np.isfinite(table).all():
        raise ValueError(f"data: got missing values in {source}, wanted a table without")
    return Sample(_standard(table, len(train)), labels[rows], len(train), len(split.validation))


def _standard(inputs: np.ndarray, train: int) -> np.ndarray:
    mean, deviation = inputs[:train].mean(axis=0), inputs[:train].std(axis=0)
    return ((inputs - mean) / np.where(deviation > 0, deviation, 1)).astype(np.float32)


@functools.cache
def network(hidden: tuple[int, ...], features: int, seed: int = 0) -> jb.models.Functional:
    """A small network of two outputs."""
    rngs = nnx.Rngs(seed)
    return jb.models.functional(jb.models.MLP(features, 2, hidden=hidden, rngs=rngs))


@functools.cache
def programs(hidden: tuple[int, ...], features: int, batch: int, steps: int) -> tuple[Any, ...]:
    """``start``, ``step`` and ``measure`` of a sweep, the same for all methods."""
    model = network(hidden, features)

    def chain(setting: Any) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(setting["size"], steps))

    def gradient(params: Any, setting: Any, seed: Any, number: Any) -> Any:
        rows = seed["chosen"][setting["number"]]
        if len(rows) > batch:
            sizes = {"num_examples": len(rows), "batch_size": batch, "steps": 1}
            rows = rows[jb.samplers.shuffled_epochs(seed["key"], **sizes, start=number)[0]]

        def loss(params: Any) -> jax.Array:
            return jnp.mean(losses(model.apply(params, seed["inputs"][rows]), seed, rows))

        return jax.grad(loss)(params)

    def measure(state: Any, setting: Any, seed: Any) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(state.params, seed["inputs"])
        return jnp.mean(losses(logits, seed, slice(None))), jax.nn.softmax(logits)[:, 1]

    return (*jb.dynamics.descent(lambda seed: seed["params"], gradient, chain), measure)


def losses(logits: jax.Array, seed: Any, rows: Any) -> jax.Array:
    """Cross entropy of some rows, 0 of those that are not to train on."""
    weights = seed["class_weights"]
    return jb.losses.weighted_cross_entropy(logits, seed["labels"][rows], class_weights=weights)


class Run(NamedTuple):
    """A sweep over step sizes and seeds of one data set."""

    config: Config
    samples: tuple[Sample, ...]
    """One for each seed."""

    def train(self, chosen: np.ndarray, number: int, class_weights: Any, steps: int) -> np.ndarray:
        """Probabilities ``[step sizes, seeds, examples]`` of the minority, trained on ``chosen``.

        These are rows ``[step sizes, seeds, rows]``; ``number`` tells one member from another.
        """
        config, first = self.config, self.samples[0]
        shape, seeds = (config.hidden, first.inputs.shape[1]), np.arange(len(self.samples))
        begin = [network(*shape, 1000 * number + int(seed)).params for seed in seeds]
        each = {
            "params": jax.tree.map(lambda *leaves: jnp.stack(leaves), *begin),
            "key": jax.vmap(jax.random.key)(1000 * number + seeds),
            "inputs": np.stack([sample.inputs for sample in self.samples]),
            "labels": np.stack([sample.known_labels() for sample in self.samples]),
            "class_weights": np.tile(np.asarray(class_weights, np.float32), (len(seeds), 1)),
            "chosen": np.swapaxes(chosen, 0, 1),
        }
        size = np.array(config.step_sizes, np.float32)
        grid = {"size": size, "number": np.arange(len(size))}
        functions = programs(*shape, 2 * (first.train - first.majority), steps)
        ends = {"steps": steps, "record_at": (), "batched": True}
        return np.asarray(jb.dynamics.sweep(*functions, grid, each, **ends).record[:, :, -1])


def parts_by_hardness(run: Run, hardness: np.ndarray, bins: int, factor: Any, key: Any) -> Any:
    """Rows ``[step sizes, seeds, rows]``: all of the minority, as many of the majority."""
    sample = run.samples[0]
    majority, rare = sample.majority, sample.train - sample.majority
    flat = hardness.reshape(-1, majority)
    keys = jax.random.split(key, len(flat))
    found = []
    for one, own in zip(flat, keys, strict=True):
        ids = jb.samplers.statistic_bins(one, num_bins=bins)
        shares = _shares(one, ids, num_bins=bins, alpha=factor)
        counts = np.bincount(ids, minlength=bins)
        targets = jb.samplers.apportioned_counts(counts, class_probabilities=shares, total=rare)
        index = jb.samplers.class_index(ids, num_classes=bins)
        sizes = {"target_counts": targets, "batch_size": rare, "steps": 1}
        drawn = np.asarray(jb.samplers.resampled_epochs(own, index, **sizes)[0])
        # In one order, so that equal parts are trained on in exactly the same way.
        found.append(np.concatenate([np.sort(drawn), np.arange(majority, sample.train)]))
    return np.stack(found).reshape(*hardness.shape[:2], -1)


_shares = jax.jit(jb.samplers.self_paced_probabilities, static_argnames="num_bins")


def ensemble(run: Run, method: str) -> np.ndarray:
    """Mean probabilities ``[step sizes, seeds, examples]`` of members trained in turn."""
    config, first = run.config, run.samples[0]
    factors = {PACED: None, RANDOM: 0.0, FIRST: 0.0, LAST: np.inf}
    bins = 1 if method == RANDOM else config.bins
    hardness = np.zeros((len(config.step_sizes), len(run.samples), first.majority), np.float32)
    seen = []
    for number in range(config.members + 1):
        factor = factors[method]
        if factor is None:
            factor = jb.samplers.self_paced_factor(number, num_iterations=config.members)
        # The first part is random: nothing is known to be hard, and all lies in one bin.
        chosen = parts_by_hardness(run, hardness, bins, factor, jax.random.key(number))
        seen.append(run.train(chosen, number, (1.0, 1.0), config.steps))
        # Of the majority, label 0, the absolute error is the probability of the other class.
        hardness = np.mean(seen, axis=0)[:, :, : first.majority]
    return np.mean(seen[1:], axis=0)


def on_everything(run: Run, method: str) -> np.ndarray:
    """The same of one network trained on all examples, as long as all members together."""
    config, first = run.config, run.samples[0]
    counts = np.array([first.majority, first.train - first.majority])
    weights = np.ones(2)
    if method == WEIGHTED:
        weights = np.asarray(jb.counts.inverse_frequency_weights(counts))
        # Mean one over examples, so that step sizes compare.
        weights = weights * counts.sum() / (counts @ weights)
    shape = len(config.step_sizes), len(run.samples), first.train
    chosen = np.broadcast_to(np.arange(first.train), shape)
    return run.train(chosen, 0, weights, config.members * config.steps)


def setting(config: Config, make: Callable[[int], Sample]) -> dict[str, np.ndarray]:
    """All methods on one kind of data: average precision ``[step sizes, seeds]``."""
    samples = tuple(make(seed) for seed in range(config.seeds))
    run, first = Run(config, samples), samples[0]
    sizes = np.array([first.majority, first.train - first.majority])
    found: dict[str, np.ndarray] = {"sizes": sizes, "grid": np.array(config.step_sizes)}
    for method in METHODS:
        scores = (on_everything if method in SINGLE else ensemble)(run, method)
        areas = [[_areas(*pair) for pair in zip(row, samples, strict=True)] for row in scores]
        validation, test = np.moveaxis(np.array(areas), -1, 0)
        found |= {f"{method}: validation": validation, f"{method}: test": test}
    return found


def _areas(scores: np.ndarray, sample: Sample) -> list[float]:
    end = sample.train + sample.validation
    spans = slice(sample.train, end), slice(end, None)
    area = jb.metrics.average_precision
    return [float(area(scores[span], sample.labels[span])) for span in spans]


def parts(config: Config) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """Every overlap with every ratio, equal classes, and real data."""
    if config.seeds < 2:
        raise ValueError(f"seeds: got {config.seeds}, wanted at least 2")
    board = functools.partial(functools.partial, checkerboard, config)
    every: dict[str, Callable[[int], Sample]] = {
        f"{BOARD} {overlap:g}, ratio {ratio:g}": board(overlap, ratio)
        for overlap, ratio in itertools.product(config.overlaps, config.ratios)
    }
    every[EQUAL] = board(config.overlaps[0], 1.0)
    for source in config.data:
        every[f"data {pathlib.Path(source).stem}"] = functools.partial(real, config, source)
    return {name: functools.partial(setting, config, make) for name, make in every.items()}


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """Average precision of every method, and its lead over random parts, seed by seed."""
    names = [key.removesuffix("/sizes") for key in record if key.endswith("/sizes")]
    every = [leads(record, name) for name in names if name.startswith(BOARD)]
    pooled = {m: np.mean([board[m] for board in every], axis=0) for m in METHODS}
    equal = [record[f"{EQUAL}/{m}: test"] for m in ENSEMBLES]
    return {
        f"{LEAD}, all boards": {m: interval(pooled[m]) for m in METHODS},
        "difference of ensembles, equal classes": float(np.max(np.ptp(equal, axis=0))),
        "settings": {name: _setting(record, name) for name in names},
    }


def _setting(record: dict[str, np.ndarray], name: str) -> dict[str, Any]:
    methods = {method: _method(record, name, method) for method in METHODS}
    return {"examples": record[f"{name}/sizes"].tolist(), "methods": methods}


def chosen_size(record: dict[str, np.ndarray], name: str, method: str) -> int:
    """Which step size has the largest mean average precision on validation data."""
    return int(np.argmax(record[f"{name}/{method}: validation"].mean(axis=1)))


def leads(record: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Of every method over random parts, ``[seeds]``."""
    tests = {m: record[f"{name}/{m}: test"][chosen_size(record, name, m)] for m in METHODS}
    return {method: test - tests[RANDOM] for method, test in tests.items()}


def interval(values: np.ndarray) -> list[float]:
    """Mean, and the ends of its 95 % interval by Student's t."""
    error = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return [round(float(values.mean() + sign * error), 4) for sign in (0, -1, 1)]


def _method(record: dict[str, np.ndarray], name: str, method: str) -> dict[str, Any]:
    at, grid = chosen_size(record, name, method), record[f"{name}/grid"]
    tried = record[f"{name}/{method}: validation"].mean(axis=1)
    return {
        "average precision": jb.experiments.mean_and_range(record[f"{name}/{method}: test"][at]),
        LEAD: interval(leads(record, name)[method]),
        "step size": float(grid[at]),
        "grid": dict(zip(map(str, grid.tolist()), tried.round(4).tolist(), strict=True)),
    }


def check(numbers: dict[str, Any]) -> None:
    """Assert the lead on checkerboards, and that equal classes leave nothing to choose."""
    apart = numbers["difference of ensembles, equal classes"]
    assert apart == 0, "equal classes: how parts are chosen changes the result"
    _, low, _ = numbers[f"{LEAD}, all boards"][PACED]
    assert low > 0, "self-paced parts are not ahead of random ones"


def summary(numbers: dict[str, Any]) -> str:
    """The lead of self-paced parts, where it is large, and all average precisions."""
    settings, pooled = numbers["settings"], numbers[f"{LEAD}, all boards"]
    boards = (name for name in settings if name.startswith(BOARD))
    by = {name: settings[name]["methods"][PACED][LEAD][0] for name in boards}
    ends = [f"{by[name]:+.3f} ({name})" for name in (min(by, key=by.get), max(by, key=by.get))]
    beside = (f"{pooled[method][0]:+.3f} ({method})" for method in (FIRST, LAST, *SINGLE))
    lead, low, high = pooled[PACED]
    lines = [
        f"Self-paced parts add {lead:+.3f} ({low:+.3f} to {high:+.3f}) to the average precision of "
        f"random ones over {len(by)} checkerboards, from {' to '.join(ends)}; beside them "
        f"{', '.join(beside)}.",
        "",
        f"| average precision (lead over random parts) | {' | '.join(METHODS)} |",
        f"| --- |{' --- |' * len(METHODS)}",
    ]
    for name, row in settings.items():
        pairs = [(m["average precision"][0], m[LEAD][0]) for m in row["methods"].values()]
        cells = [f"{area:.3f} ({more:+.3f})" for area, more in pairs]
        title = f"{name} ({row['examples'][1]} of {sum(row['examples'])})"
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", NOTE])


NOTE = """In parentheses the minority among all examples to train on. Means over seeds; the lead of
the first line with its 95 % interval over seeds, each averaged over the boards."""


def plot(record: dict[str, np.ndarray]) -> Any:
    """Average precision of all methods, and their leads over random parts."""
    from matplotlib.figure import Figure

    names = [key.removesuffix("/sizes") for key in record if key.endswith("/sizes")]
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for i, method in enumerate(METHODS):
        places = np.arange(len(names)) + 0.12 * (i - 2.5)
        tests = [record[f"{n}/{method}: test"][chosen_size(record, n, method)] for n in names]
        ranges = [[values.mean(), values.min(), values.max()] for values in tests]
        intervals = [interval(leads(record, name)[method]) for name in names]
        for axis, rows in zip(axes, (ranges, intervals), strict=True):
            mean, low, high = np.transpose(rows)
            style = {"fmt": "s" if method in SINGLE else "o", "ms": 4, "lw": 1, "label": method}
            axis.errorbar(mean, places, xerr=np.abs([mean - low, high - mean]), **style)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    axes[0].set(xlabel="average precision (range over seeds)", title="on test data")
    axes[1].set(xlabel="difference (95 % interval over seeds)", title="lead over random parts")
    axes[1].axvline(0, color="#999999", lw=0.8, zorder=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


if __name__ == "__main__":
    jb.experiments.main(__file__)
