"""Imbalance costs a network ranking and accuracy, and priors divided out give accuracy back.

Claim: the area under the ROC curve (one class against the rest, averaged) of a plainly trained
network falls as the ratio of class sizes grows, and as more classes are small; dividing its
probabilities by the training priors raises accuracy on a balanced test set (Buda, Maki and
Mazurowski 2018, arXiv:1710.05381). Exactly: this leaves every such area as it was, as long as
nobody makes the quotients add up to one again, and it is the same as taking log priors off logits.

Null run: with equal classes priors change nothing at all and the remedies are equal up to chance.
That over-sampling is best in nearly all cases and does not overfit, where two-phase training
stands, and which prior to divide by after over-sampling (here that of the data as they are) is
measured and not asserted: their networks were convolutional and their sets larger.

A step imbalance has two sizes of classes, a linear one equally spaced sizes; which classes are
small differs by seed. Test rows are set aside before anything is resampled. All methods take
equally many steps of SGD with momentum; the step size is that whose worst seed ends with the lowest
loss on what the method trains on last. Two-phase training ends by training the head alone on the
data as they are.

    python experiments/remedy_grid.py
"""

import dataclasses
import functools
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

    data: str = "digits"
    largest: int = 120
    test_per_class: int = 50
    ratios: tuple[jb.experiments.Ratio, ...] = (10.0, 40.0)
    fractions: tuple[jb.experiments.OpenShare, ...] = (0.1, 0.5, 0.9)
    hidden: int = 64
    steps: int = 500
    batch_size: int = 64
    step_sizes: tuple[jb.experiments.Positive, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    seeds: int = 4


# Sizes and ratios that were published for MNIST, which --data can name; the network stays small.
PAPER = Config(
    largest=5000,
    test_per_class=1000,
    ratios=(10.0, 100.0, 1000.0),
    hidden=256,
    steps=20_000,
    seeds=5,
)

TRAINED = ("plain", "oversampling", "undersampling", "two-phase, over", "two-phase, under")
WHAT = ("area", "accuracy", "accuracy, thresholded")


class Sample(NamedTuple):
    """Images as rows, and labels: at most to train on, and to test on, as many of each class."""

    inputs: np.ndarray
    labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    shared: int
    """Rows in both."""


class Plan(NamedTuple):
    """What differs between methods and seeds."""

    key: Any
    rows: Any
    """Batches, ``[steps, batch]``."""
    head_from: Any
    """Step from which only the head is trained."""
    shares: Any
    """How often each example is met in the last phase, adding up to one."""


@functools.cache
def sample(config: Config) -> Sample:
    """Draw both parts, apart from each other."""
    dataset = jb.data.load(config.data)
    classes = int(dataset.labels.max()) + 1
    draw = functools.partial(jb.data.long_tail_subset, seed=0)
    test = draw(dataset.labels, [config.test_per_class] * classes)
    others = np.setdiff1d(np.arange(len(dataset.labels)), test)
    train = others[draw(dataset.labels[others], [config.largest] * classes)]
    pixels = dataset.inputs.reshape(len(dataset.labels), -1)
    mean, deviation = pixels[train].mean(), pixels[train].std()
    arrays = []
    for rows in (train, test):
        scaled = (pixels[rows].astype(np.float32) - mean) / deviation
        arrays += [scaled.astype(np.float32), dataset.labels[rows]]
    return Sample(*arrays, shared=len(np.intersect1d(train, test)))


def sizes_of(config: Config, kind: str, ratio: float, fraction: float, seed: int) -> np.ndarray:
    """Training examples of each class."""
    classes = int(sample(config).labels.max()) + 1
    if kind == "linear":
        sizes = jb.counts.linear(classes, largest=config.largest, ratio=ratio)
    else:
        sizes = jb.counts.step(
            classes, largest=config.largest, ratio=ratio, minority_fraction=fraction
        )
    return sizes[np.random.default_rng(seed).permutation(classes)]


def batches(config: Config, method: str, chosen: np.ndarray, seed: int) -> np.ndarray:
    """Rows of the batches of one phase, ``[steps, batch]``."""
    labels, key = sample(config).labels[chosen], jax.random.key(seed)
    counts = np.bincount(labels)
    shape = {"batch_size": config.batch_size, "steps": config.steps}
    if method == "over":
        index = jb.samplers.class_index(labels, num_classes=len(counts))
        target = jb.samplers.oversampled_counts(counts)
        return chosen[jb.samplers.resampled_epochs(key, index, target_counts=target, **shape)]
    if method == "under":
        kept = jb.data.long_tail_subset(labels, jb.samplers.undersampled_counts(counts), seed=seed)
        chosen = chosen[kept]
    return chosen[jb.samplers.shuffled_epochs(key, num_examples=len(chosen), **shape)]


def plan(config: Config, method: str, chosen: np.ndarray, seed: int) -> Plan:
    """Batches of one method: resampled, plain, or half of each."""
    kind = next((kind for kind in ("over", "under") if kind in method), "plain")
    rows, head_from = batches(config, kind, chosen, seed), config.steps
    if method.startswith("two-phase"):
        head_from = config.steps // 2
        rows = np.concatenate(
            [rows[:head_from], batches(config, "plain", chosen, seed)[head_from:]]
        )
    last = rows[head_from % config.steps :].ravel()
    shares = np.bincount(last, minlength=len(sample(config).labels)) / len(last)
    return Plan(jax.random.key(seed), rows, np.int32(head_from), shares.astype(np.float32))


@functools.cache
def runs(config: Config) -> tuple[Any, ...]:
    """The functions of the sweep, made once: all methods are one program."""
    data = Sample(*(jnp.asarray(leaf) for leaf in sample(config)))
    pixels, classes = data.inputs.shape[1], int(data.labels.max()) + 1

    def start(size: Any, seed: Plan) -> Any:
        first, last = jax.random.split(seed.key)
        kernel = jax.random.normal(first, (pixels, config.hidden)) * (2 / pixels) ** 0.5
        head = jax.random.normal(last, (config.hidden, classes)) * config.hidden**-0.5
        body = {"kernel": kernel, "bias": jnp.zeros(config.hidden)}
        params = {"body": body, "head": {"kernel": head, "bias": jnp.zeros(classes)}}
        return params, optax.sgd(size, momentum=0.9).init(params)

    def step(state: Any, size: Any, seed: Plan, number: Any) -> Any:
        params, opt_state = state
        rows = seed.rows[number]
        batch = data.inputs[rows], data.labels[rows], jnp.ones_like(rows, jnp.float32) / len(rows)
        grads = jax.grad(loss)(params, *batch)
        updates, opt_state = optax.sgd(size, momentum=0.9).update(grads, opt_state)
        moves = (number < seed.head_from).astype(jnp.float32)
        updates["body"] = jax.tree.map(lambda leaf: moves * leaf, updates["body"])
        return optax.apply_updates(params, updates), opt_state

    def measure(state: Any, size: Any, seed: Plan) -> Any:
        whole = loss(state[0], data.inputs, data.labels, seed.shares)
        return whole, {"logits": network(state[0], data.test_inputs)}

    return start, step, measure


def network(params: Any, inputs: Any) -> jax.Array:
    """Logits of one hidden layer."""
    hidden = jax.nn.relu(inputs @ params["body"]["kernel"] + params["body"]["bias"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


def loss(params: Any, inputs: Any, labels: Any, shares: Any) -> jax.Array:
    """Cross entropy, each example counting as its share."""
    ones = jnp.ones(params["head"]["bias"].shape)
    losses = jb.losses.weighted_cross_entropy(network(params, inputs), labels, class_weights=ones)
    return jnp.sum(shares * losses)


def setting(config: Config, kind: str, ratio: float, fraction: float) -> dict[str, np.ndarray]:
    """All methods on one kind of imbalance, with and without priors divided out."""
    seeds = range(config.seeds)
    sizes = [sizes_of(config, kind, ratio, fraction, seed) for seed in seeds]
    subset = functools.partial(jb.data.long_tail_subset, sample(config).labels)
    chosen = [subset(sizes[seed], seed=seed) for seed in seeds]
    plans = [plan(config, method, chosen[seed], seed) for method in TRAINED for seed in seeds]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *plans)
    result = jb.dynamics.sweep(
        *runs(config), jnp.array(config.step_sizes), stacked, steps=config.steps, record_at=[]
    )
    result = jax.device_get(result)
    found: dict[str, np.ndarray] = {"sizes": np.array(sizes), "grid": np.array(config.step_sizes)}
    for number, method in enumerate(TRAINED):
        own = slice(number * config.seeds, (number + 1) * config.seeds)
        one = result._replace(loss=result.loss[:, own], diverged=result.diverged[:, own])
        choice = jb.dynamics.choose_step_size(one)
        logits = np.asarray(result.record["logits"][choice.position, own, -1], np.float64)
        scores = scored(logits, sample(config).test_labels, np.array(sizes))
        scores |= {"losses": choice.scores, "diverged": choice.diverged, "best": choice.position}
        found |= {f"{method}: {name}": np.asarray(value) for name, value in scores.items()}
    return found


areas_of = jax.jit(jax.vmap(jb.metrics.auroc, in_axes=(0, None)))


@jax.vmap
def adjusted_by(logits: jax.Array, class_counts: jax.Array) -> jax.Array:
    """Logits of one seed for a test set of equal classes."""
    return jb.posthoc.adjust_logits(logits, class_counts=class_counts)


def scored(logits: np.ndarray, labels: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Areas and accuracies ``[seeds]``: as trained, divided by priors, and renormalised."""
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    priors = (sizes / sizes.sum(axis=1, keepdims=True))[:, None, :]
    divided = np.exp(log_p) / priors
    with jax.enable_x64(True):
        forms = (np.exp(log_p), divided, divided / divided.sum(axis=-1, keepdims=True))
        area, again, renormalised = (np.asarray(areas_of(form, labels)) for form in forms)
        adjusted = np.asarray(adjusted_by(jnp.asarray(logits), jnp.asarray(sizes)))
    right = (form.argmax(axis=-1) == labels for form in (log_p, divided))
    accuracy, thresholded = (hits.mean(axis=-1) for hits in right)
    return {
        "area": area.mean(axis=-1),
        "area changed by priors": np.abs(again - area).max(axis=-1),
        "area renormalised": renormalised.mean(axis=-1),
        "accuracy": accuracy,
        "accuracy, thresholded": thresholded,
        "other classes by logits": (adjusted.argmax(-1) != divided.argmax(-1)).sum(axis=-1),
    }


def separation(config: Config) -> dict[str, np.ndarray]:
    """Whether anything to train on is tested on."""
    return {"shared": np.array(sample(config).shared)}


def parts(config: Config) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """Equal classes, steps of every ratio and fraction, and linear sizes of every ratio."""
    every = {"rows": functools.partial(separation, config)}
    every["equal"] = functools.partial(setting, config, "step", 1.0, 0.5)
    for ratio in config.ratios:
        for fraction in config.fractions:
            name = f"step, ratio {ratio:g}, small {fraction:g}"
            every[name] = functools.partial(setting, config, "step", ratio, fraction)
        every[f"linear, ratio {ratio:g}"] = functools.partial(setting, config, "linear", ratio, 0.0)
    return every


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """Mean, lowest and highest of the seeds, by setting and method; the exact statements."""
    changed = [v for key, v in record.items() if key.endswith("area changed by priors")]
    other = [v for key, v in record.items() if key.endswith("other classes by logits")]
    numbers: dict[str, Any] = {
        "rows shared with test": int(record["rows/shared"]),
        "largest change of an area by priors": float(np.max(changed)),
        "other classes by logits": int(np.sum(other)),
        "settings": {},
    }
    for name in (key.removesuffix("/sizes") for key in record if key.endswith("/sizes")):
        numbers["settings"][name] = {m: _method(record, f"{name}/{m}: ", name) for m in TRAINED}
    return numbers


def _method(record: dict[str, np.ndarray], prefix: str, name: str) -> dict[str, Any]:
    wanted = (*WHAT, "area renormalised")
    grid, best = record[f"{name}/grid"], int(record[f"{prefix}best"])
    losses = [float(f"{x:.3g}") for x in record[f"{prefix}losses"]]
    return {
        **{what: jb.experiments.mean_and_range(record[f"{prefix}{what}"]) for what in wanted},
        "step size": float(grid[best]),
        "grid": dict(zip(map(str, grid.tolist()), losses, strict=True)),
        "diverged": grid[record[f"{prefix}diverged"]].tolist(),
    }


def check(numbers: dict[str, Any]) -> None:
    """Assert what imbalance costs, what priors give back, what is exact, and the null."""
    assert numbers["rows shared with test"] == 0, "tested on what was trained on"
    assert numbers["largest change of an area by priors"] < 1e-9, "priors changed an area"
    assert numbers["other classes by logits"] == 0, "logits and quotients choose other classes"
    settings = numbers["settings"]
    equal = settings["equal"]
    plain = equal["plain"]
    for method, row in equal.items():
        assert row["accuracy"] == row["accuracy, thresholded"], f"equal: priors change {method}"
        if not method.startswith("two-phase"):
            assert abs(row["accuracy"][0] - plain["accuracy"][0]) < 0.02, f"equal: {method} differs"
    for name, row in settings.items():
        if name != "equal":
            gain = row["plain"]["accuracy, thresholded"][0] - row["plain"]["accuracy"][0]
            assert gain > 0, f"{name}: priors do not give accuracy back"
            assert row["plain"]["area"][0] < plain["area"][0], f"{name}: imbalance costs no area"
    _check_trend(settings)


def _check_trend(settings: dict[str, Any]) -> None:
    """Of the same fraction the larger ratio is worse; of the largest ratio the larger fraction."""
    steps = [_place(name) for name in settings if name.startswith("step")]
    area = {place: settings[name]["plain"]["area"][0] for place, name in steps}
    for ratio, small in area:
        for other, fraction in area:
            if small == fraction and ratio < other:
                assert area[ratio, small] > area[other, small], f"ratio {other:g} costs no more"
    last = max(ratio for ratio, _ in area)
    falling = [area[place] for place in sorted(area) if place[0] == last]
    assert np.all(np.diff(falling) < 0), "more small classes do not cost more"


def _place(name: str) -> tuple[tuple[float, float], str]:
    _, ratio, small = (part.split()[-1] for part in name.split(", "))
    return (float(ratio), float(small)), name


def summary(numbers: dict[str, Any]) -> str:
    """Area and accuracy of every method, with and without priors divided out."""
    settings = {name: row for name, row in numbers["settings"].items() if name != "equal"}
    mean = functools.partial(_mean, settings)
    best = [max(TRAINED, key=lambda m, row=row: row[m]["area"][0]) for row in settings.values()]
    lines = [
        f"Dividing by priors takes plain training from {mean('plain', 'accuracy'):.3f} to "
        f"{mean('plain', 'accuracy, thresholded'):.3f} of accuracy over {len(settings)} settings, "
        f"over-sampling alone gets {mean('oversampling', 'accuracy'):.3f}; over-sampling has the "
        f"largest area in {best.count('oversampling')} of them, plain training in "
        f"{best.count('plain')}.",
        "",
        f"| area; accuracy (priors divided out) | {' | '.join(TRAINED)} |",
        f"| --- |{' --- |' * len(TRAINED)}",
    ]
    for name, row in numbers["settings"].items():
        triples = ([row[m][what][0] for what in WHAT] for m in TRAINED)
        cells = (f"{area:.4f}; {plain:.3f} ({divided:.3f})" for area, plain, divided in triples)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    change = numbers["largest change of an area by priors"]
    return "\n".join(
        [*lines, "", f"Means over seeds. Priors change an area by {change:.0e} at most."]
    )


def _mean(settings: dict[str, Any], method: str, what: str) -> float:
    return float(np.mean([row[method][what][0] for row in settings.values()]))


def plot(record: dict[str, np.ndarray]) -> Any:
    """Area and accuracy of all methods in all settings, with ranges over seeds."""
    from matplotlib.figure import Figure

    names = [key.removesuffix("/sizes") for key in record if key.endswith("/sizes")]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    every = {"area": TRAINED, "accuracy": (*TRAINED, "plain", "oversampling")}
    for axis, (what, methods) in zip(axes, every.items(), strict=True):
        for i, method in enumerate(methods):
            divided = i >= len(TRAINED)
            key = f"{method}: {what}" + (", thresholded" if divided else "")
            values = np.stack([record[f"{name}/{key}"] for name in names])
            mean, places = values.mean(axis=1), np.arange(len(names)) + 0.11 * (i - 3)
            spread = np.abs(np.stack([values.min(axis=1), values.max(axis=1)]) - mean)
            style = {"fmt": "s" if divided else "o", "ms": 4, "lw": 1}
            colour = f"C{TRAINED.index(method)}"
            label = f"{method}, priors divided out" if divided else method
            fill = {"mfc": "white"} if divided else {}
            axis.errorbar(mean, places, xerr=spread, color=colour, label=label, **style, **fill)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    axes[0].set(xlabel="area under the ROC curve, one against the rest")
    axes[1].set(xlabel="accuracy on balanced test images")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


if __name__ == "__main__":
    jb.experiments.main(__file__)
