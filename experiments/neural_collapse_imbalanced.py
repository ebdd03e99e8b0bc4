"""Unequal classes collapse to vectors of unequal length, and rare ones can vanish or merge.

Claim: training free features and linear layers without bias, by least squares, ends with orthogonal
classifier rows and class means, whose lengths follow in closed form from counts, decays and depth:
a frequent class has the longer row, one below a threshold none (Dang et al. 2023,
arXiv:2301.00437). With cross entropy the rows of the minority classes of a step imbalance turn
towards each other and, from a finite ratio on, are one and the same (Fang et al. 2021,
arXiv:2101.12699, who bound norms; with penalties, and K_A frequent and K_B rare classes, the ratio
is (1 / (decay of weights * decay of features) - K_B) / K_A, derived and tested here).

Null runs: equal classes have equal lengths, in an orthogonal frame without a bias, and in a simplex
with one that is not penalised or with cross entropy. A network on real images whose last features
are penalised alike must come nearer to the frame than to a simplex. That features of frequent
classes are shorter holds above a count only, which the closed form gives, and is not asserted.

    python experiments/neural_collapse_imbalanced.py
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

    counts: tuple[int, ...] = (20, 20, 12, 6, 2)
    width: int = 16
    steps: int = 8000
    step_sizes: tuple[jb.experiments.Positive, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    seeds: int = 3
    step_classes: tuple[int, ...] = (5, 5)
    merge_decays: tuple[jb.experiments.Positive, ...] = (0.02, 0.01)
    merge_at: tuple[jb.experiments.Positive, ...] = (0.05, 0.2, 0.5, 0.8, 0.9, 1.1, 1.3)
    data: str = "digits"
    image_counts: tuple[int, ...] = (100, 100, 80, 80, 60, 60, 40, 40, 20, 20)
    hidden: int = 64
    image_steps: int = 2000
    image_step_sizes: tuple[jb.experiments.Positive, ...] = (0.001, 0.003, 0.01)
    image_decay: jb.experiments.Positive = 0.0005


# Published: width, length, and of the images counts and hidden width. The images are still digits,
# unless --data names others, and their decay ours.
PAPER = Config(
    width=64,
    steps=30_000,
    image_counts=(170, 170, 136, 136, 102, 102, 68, 68, 34, 34),
    hidden=2048,
    image_steps=12_000,
    image_step_sizes=(0.00003, 0.0001, 0.0003, 0.001),
)

# Number of layers, decays of weights and of features, and whether there is a bias.
FREE = {
    "one layer": (1, 2e-3, 2e-3, False),
    "two layers": (2, 1e-2, 1e-3, False),
    "one layer, strong decay": (1, 3e-2, 3e-2, False),
    "two layers, strong decay": (2, 3e-2, 3e-3, False),
    "equal, one layer": (1, 2e-3, 2e-3, False),
    "equal, two layers": (2, 1e-2, 1e-3, False),
    "equal, with a bias": (1, 2e-3, 2e-3, True),
}
IMAGES = ("images", "equal, images")
DISTANCES = ("within classes", "classifier", "features", "alignment")
SAME = 1e-8
"""Final losses closer than this are equally good."""


class Problem(NamedTuple):
    """What differs between the runs of one program; every leaf has a leading axis of seeds."""

    key: Any
    labels: Any
    counts: Any
    weight_decay: Any
    feature_decay: Any
    inputs: Any = None
    """Images as rows, or None where the features themselves are trained."""


def start(config: Config, depth: int, bias: bool, problem: Problem) -> dict[str, Any]:
    """Small random layers, and either free features or a network without biases."""
    classes, dtype = problem.counts.shape[0], problem.counts.dtype
    width = config.width if problem.inputs is None else config.hidden
    keys = iter(jax.random.split(problem.key, depth + 2))

    def normal(*shape: int, scale: float = 0.3) -> jax.Array:
        return scale * jax.random.normal(next(keys), shape, dtype)

    layers = [normal(width, width) for _ in range(depth - 1)] + [normal(classes, width)]
    params: dict[str, Any] = {"layers": layers}
    if bias:
        params["bias"] = jnp.zeros(classes, dtype)
    if problem.inputs is None:
        params["features"] = normal(problem.labels.shape[0], width)
    else:
        pixels = problem.inputs.shape[1]
        params["first"] = normal(width, pixels, scale=pixels**-0.5)
        params["last"] = normal(width, width, scale=0.3 * width**-0.5)
    return params


def vectors(params: dict[str, Any], problem: Problem) -> tuple[jax.Array, jax.Array]:
    """Rows of the product of all linear layers, ``[K, width]``, and features, ``[N, width]``."""
    rows = functools.reduce(lambda inner, outer: outer @ inner, params["layers"])
    if problem.inputs is None:
        return rows, params["features"]
    return rows, jax.nn.relu(problem.inputs @ params["first"].T) @ params["last"].T


def least_squares(params: dict[str, Any], problem: Problem) -> jax.Array:
    """Of one-hot labels, with both penalties."""
    rows, features = vectors(params, problem)
    outputs = features @ rows.T + params.get("bias", jnp.zeros_like(rows, shape=len(rows)))
    wanted = jax.nn.one_hot(problem.labels, len(rows), dtype=outputs.dtype)
    layers = sum(jnp.sum(layer**2) for layer in params["layers"])
    penalty = problem.weight_decay * layers + problem.feature_decay * jnp.sum(features**2)
    return jnp.sum((outputs - wanted) ** 2) / (2 * len(features)) + penalty / 2


def cross_entropy(params: dict[str, Any], problem: Problem) -> jax.Array:
    """Of one example per class, weighted by counts, with both penalties.

    All of a class have one convex problem given the rows, so their features end as one vector.
    """
    rows, features = vectors(params, problem)
    shares = problem.counts / jnp.sum(problem.counts)
    losses = jb.losses.weighted_cross_entropy(
        features @ rows.T, problem.labels, class_weights=jnp.ones_like(shares)
    )
    penalty = problem.weight_decay * jnp.sum(rows**2)
    penalty += problem.feature_decay * jnp.sum(shares @ features**2)
    return jnp.sum(shares * losses) + penalty / 2


def frame_and_simplex(state: Any, size: Any, problem: Problem) -> Any:
    """Loss; distances from both; squared lengths and inner products, and what they should be."""
    rows, features = vectors(state.params, problem)
    decays = {"weight_decay": problem.weight_decay, "feature_decay": problem.feature_decay}
    depth, classes = len(state.params["layers"]), len(rows)
    frame = jb.dynamics.orthogonal_frame(problem.counts, **decays, depth=depth)
    means, _ = jb.losses.class_feature_means(features, problem.labels, num_classes=classes)
    collapse = functools.partial(
        jb.dynamics.neural_collapse, features, problem.labels, rows, num_classes=classes
    )
    return least_squares(state.params, problem), {
        "to frame": jnp.stack(collapse(frame=frame)),
        "to simplex": jnp.stack(collapse()),
        "trained": jnp.sum(jnp.stack([rows * rows, means * means, rows * means]), axis=-1),
        "predicted": jnp.stack(frame),
    }


def minority(majority: int, state: Any, size: Any, problem: Problem) -> Any:
    """Loss; cosine of minority rows, mean over pairs; the longest way of one to their mean."""
    rows = vectors(state.params, problem)[0][majority:]
    units = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    pairs = len(rows) * (len(rows) - 1)
    cosine = (jnp.sum(jnp.sum(units, axis=0) ** 2) - len(rows)) / pairs
    apart = jnp.linalg.norm(rows - jnp.mean(rows, axis=0, keepdims=True), axis=1)
    return cross_entropy(state.params, problem), {"cosine": cosine, "apart": jnp.max(apart)}


@functools.cache
def runs(config: Config, steps: int, merge: bool, depth: int, bias: bool) -> tuple[Any, ...]:
    """The functions of a sweep, made once, so that each shape of problem is compiled once."""
    loss = cross_entropy if merge else least_squares
    observe = functools.partial(minority, config.step_classes[0]) if merge else frame_and_simplex
    init = functools.partial(start, config, depth, bias)

    def adam(size: Any) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(size, steps))

    moves = jb.dynamics.descent(init, lambda params, _, one, t: jax.grad(loss)(params, one), adam)
    return (*moves, observe)


def train(
    config: Config, problem: Problem, *, depth: int = 1, bias: bool = False, merge: bool = False
) -> dict[str, Any]:
    """All step sizes and seeds; of the best sizes the middle one, all along training."""
    image = problem.inputs is not None
    steps = config.image_steps if image else config.steps
    sizes = config.image_step_sizes if image else config.step_sizes
    marks = jb.dynamics.log_spaced_steps(steps, num_records=40)
    functions = runs(config, steps, merge, depth, bias)
    result = jb.dynamics.sweep(*functions, jnp.array(sizes), problem, steps=steps, record_at=marks)
    scores = np.asarray(jb.dynamics.choose_step_size(result).scores)
    good = np.flatnonzero(scores <= scores.min() + SAME)
    position = int(good[len(good) // 2])
    grid = {"grid": np.array(sizes), "size": np.array(sizes[position])}
    chosen = {key: np.asarray(value[position]) for key, value in result.record.items()}
    return {"steps": marks, "excess": scores - scores.min(), **grid, **chosen}


def problem_of(config: Config, labels: Any, counts: Any, decays: Any, dtype: Any) -> Problem:
    """The same for all seeds but their keys."""
    keys = jax.random.split(jax.random.key(0), config.seeds)
    leaves = (np.asarray(labels), *(np.asarray(leaf, dtype) for leaf in (counts, *decays)))
    return Problem(keys, *(jnp.asarray(np.stack([leaf] * config.seeds)) for leaf in leaves))


def counts_of(counts: tuple[int, ...], name: str) -> np.ndarray:
    """As they are, or all equal."""
    equal = (sum(counts) // len(counts),) * len(counts)
    return np.array(equal if name.startswith("equal") else counts)


def free(config: Config, name: str) -> dict[str, Any]:
    """Features without a network, in float64."""
    depth, *decays, bias = FREE[name]
    counts = counts_of(config.counts, name)
    labels = np.repeat(np.arange(len(counts)), counts)
    with jax.enable_x64(True):
        problem = problem_of(config, labels, counts, decays, np.float64)
        return {"counts": counts, **train(config, problem, depth=depth, bias=bias)}


def images(config: Config, name: str) -> dict[str, Any]:
    """A network on real images, other ones for every seed."""
    dataset, counts = jb.data.load(config.data), counts_of(config.image_counts, name)
    subset = functools.partial(jb.data.long_tail_subset, dataset.labels, counts)
    drawn = [subset(seed=seed) for seed in range(config.seeds)]
    rows = np.stack([one[np.argsort(dataset.labels[one], kind="stable")] for one in drawn])
    pixels = dataset.inputs[rows].reshape(*rows.shape, -1).astype(np.float32)
    labels, decays = dataset.labels[rows[0]], [config.image_decay] * 2
    problem = problem_of(config, labels, counts, decays, np.float32)
    inputs = jnp.asarray((pixels - pixels.mean()) / pixels.std())
    return {"counts": counts, **train(config, problem._replace(inputs=inputs))}


def merging(config: Config, decay: float) -> dict[str, Any]:
    """Minority rows after training at ratios below and above the derived one, in float64."""
    number, both = config.step_classes, {"weight_decay": decay, "feature_decay": decay}
    end = float(jb.dynamics.minority_collapse_ratio(*number, **both))
    ratios = np.array([1.0, *(fraction * end for fraction in config.merge_at)])
    found = []
    with jax.enable_x64(True):
        for ratio in ratios:
            counts = np.repeat([ratio, 1.0], number)
            problem = problem_of(config, np.arange(len(counts)), counts, both.values(), np.float64)
            found.append(train(config, problem, merge=True))
    kept = {key: np.stack([one[key] for one in found]) for key in found[0]}
    return {"ratios": ratios, "end": np.array(end), **kept}


def parts(config: Config) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """Free features in all settings, the images, and cross entropy at every decay."""
    settings = {name: functools.partial(free, config, name) for name in FREE}
    settings |= {name: functools.partial(images, config, name) for name in IMAGES}
    merged = {f"merging, {x:g}": functools.partial(merging, config, x) for x in config.merge_decays}
    return settings | merged


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """Squared lengths beside the predicted ones, distances of the worst seed; all merging."""
    numbers: dict[str, Any] = {}
    for name in dict.fromkeys(key.partition("/")[0] for key in record):
        here = under(record, name)
        numbers[name] = {key: here[key].tolist() for key in ("grid", "size", "excess")}
        numbers[name] |= _merged(here) if "end" in here else _collapsed(here)
    return numbers


def under(record: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Arrays of one part."""
    return {key.rpartition("/")[2]: v for key, v in record.items() if key.startswith(f"{name}/")}


def _collapsed(here: dict[str, np.ndarray]) -> dict[str, Any]:
    trained, predicted = here["trained"][:, -1], here["predicted"][:, -1]
    found: dict[str, Any] = {"counts": here["counts"].tolist()}
    for i, what in enumerate(("rows", "features")):
        found[what] = trained[:, i].mean(axis=0).round(6).tolist()
        found[f"{what}, predicted"] = predicted[0, i].round(6).tolist()
    for target in ("to frame", "to simplex"):
        worst = here[target][:, -1].max(axis=0).tolist()
        found[target] = dict(zip(DISTANCES, worst, strict=True))
    return found | {"largest error": float(np.abs(trained - predicted).max())}


def _merged(here: dict[str, np.ndarray]) -> dict[str, Any]:
    """Mean, lowest and highest of the seeds."""
    found = {"end": float(here["end"]), "ratios": here["ratios"].round(3).tolist()}
    for what in ("cosine", "apart"):
        last = here[what][..., -1]
        columns = last.mean(axis=1), last.min(axis=1), last.max(axis=1)
        found[what] = np.stack(columns, axis=1).round(6).tolist()
    return found


def check(numbers: dict[str, Any]) -> None:
    """Assert lengths, frames and merging, and what equal classes do instead."""
    for name, row in numbers.items():
        if name.startswith("merging"):
            _check_merging(name, row)
            continue
        bias = name in FREE and FREE[name][-1]
        near, far = ("to simplex", "to frame") if bias else ("to frame", "to simplex")
        if name in FREE:
            assert max(row[near].values()) < 1e-3, f"{name}: has not come {near}"
            assert bias or row["largest error"] < 1e-4, f"{name}: lengths are not as predicted"
        assert row[near]["classifier"] < row[far]["classifier"] / 2, f"{name}: as near {far}"
        _check_lengths(name, row, scale=max(row["rows"]) * (0.1 if name in IMAGES else 1e-4))


def _check_lengths(name: str, row: dict[str, Any], scale: float) -> None:
    """Frequent classes have longer rows, equal ones equally long ones."""
    pairs = itertools.combinations(zip(row["counts"], row["rows"], strict=True), 2)
    for (more, long), (fewer, short) in pairs:
        equal = more == fewer
        assert not equal or abs(long - short) < scale, f"{name}: equal classes differ"
        assert equal or (long > short) == (more > fewer), f"{name}: a rare class is longer"


def _check_merging(name: str, row: dict[str, Any]) -> None:
    """Apart below the derived ratio and one above it; a simplex at equal counts."""
    for ratio, cosine, apart in zip(row["ratios"], row["cosine"], row["apart"], strict=True):
        if ratio < row["end"]:
            assert apart[1] > 0.01, f"{name}: one at ratio {ratio:g} already"
        else:
            assert apart[2] < 1e-3 < cosine[1] - 0.998, f"{name}: apart at ratio {ratio:g}"
    assert row["cosine"][0][2] < 0, f"{name}: equal classes have turned towards each other"
    below = [c[0] for c, r in zip(row["cosine"], row["ratios"], strict=True) if r < row["end"]]
    assert np.all(np.diff(below) > 0), f"{name}: they do not turn as the ratio grows"


def summary(numbers: dict[str, Any]) -> str:
    """Worst error and distances of every setting, and how minority classifiers merge."""
    free = [numbers[name]["largest error"] for name in FREE if not FREE[name][-1]]
    near, far = (numbers["images"][target]["classifier"] for target in ("to frame", "to simplex"))
    merged = [name for name in numbers if name.startswith("merging")]
    first = numbers[merged[0]]
    one = [r for r, c in zip(first["ratios"], first["cosine"], strict=True) if c[1] > 0.9999]
    lines = [
        f"Free features end within {max(free):.0e} of the lengths in closed form; the rows of a "
        f"network end {near:.2f} from the predicted frame, {far:.2f} from a simplex; minority rows "
        f"are one at ratios {', '.join(f'{r:.0f}' for r in one)} (derived: {first['end']:.0f}).",
        "",
        "| setting | squared row by count (predicted) | distance of rows to frame, simplex |",
        "| --- | --- | --- |",
    ]
    for name in (*FREE, *IMAGES):
        row = numbers[name]
        triples = zip(row["counts"], row["rows"], row["rows, predicted"], strict=True)
        cells = ", ".join(f"{n}: {a:.2f} ({b:.2f})" for n, a, b in triples)
        near, far = (row[target]["classifier"] for target in ("to frame", "to simplex"))
        lines.append(f"| {name} | {cells} | {near:.2g}, {far:.2g} |")
    for name in merged:
        row = numbers[name]
        pairs = zip(row["ratios"], row["cosine"], row["apart"], strict=True)
        cells = ", ".join(f"{r:g}: {c[0]:.3f} ({d[0]:.3f})" for r, c, d in pairs)
        lines += ["", f"{name.capitalize()}, cosine (largest distance) by ratio: {cells}."]
    return "\n".join([*lines, "", "With a bias nothing is predicted but a simplex."])


def plot(record: dict[str, np.ndarray]) -> Any:
    """Lengths, collapse along training on images, and merging over the ratio."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    axes = figure.subplots(1, 3)
    for i, name in enumerate((*list(FREE)[:4], "images")):
        here = under(record, name)
        share = here["counts"] / here["counts"].sum()
        axes[0].plot(share, here["predicted"][0, -1, 0], f"C{i}", label=f"{name}, predicted")
        axes[0].plot(share, here["trained"][:, -1, 0].T, f"oC{i}", ms=4)
    axes[0].set(title="classifier rows (dots: trained)", xlabel="share of the class")
    axes[0].set(ylabel="squared length")
    paths = under(record, "images")
    for target, what in itertools.product(("to frame", "to simplex"), (1, 2, 3)):
        style = f"C{what - 1}" + ("-" if target == "to frame" else ":")
        mean, label = paths[target][..., what].mean(axis=0), f"{DISTANCES[what]} {target}"
        axes[1].plot(paths["steps"], mean, style, label=label)
    axes[1].set(title="network on images", xlabel="steps", xscale="symlog", ylabel="distance")
    for i, name in enumerate(key.removesuffix("/end") for key in record if key.endswith("/end")):
        here = under(record, name)
        where, label = here["ratios"] / here["end"], name.replace("merging,", "decays")
        axes[2].plot(where, here["apart"][..., -1].mean(axis=1), f"oC{i}-", label=label)
    axes[2].axvline(1, color="#222222", lw=1, ls="--", label="derived")
    axes[2].set(title="minority rows, cross entropy", xlabel="ratio / derived ratio")
    axes[2].set(ylabel="largest distance to their mean")
    for axis in axes:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize="small")
    return figure


if __name__ == "__main__":
    jb.experiments.main(__file__)
