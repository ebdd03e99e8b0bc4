"""Regression with a classification loss beside it, on imbalanced and on balanced targets.

Claim: cross entropy over bins of the target, from a second head that is dropped after training,
lowers the error of a regression, most where targets are imbalanced (Pintea, Lin, Dijkstra and van
Gemert 2023, arXiv:2308.10603). The null runs are those on balanced targets, where the paper finds
little gain.

The claim does not reproduce here. Asserted is what holds: imbalance raises the error, and most in
the bins of few shots; trained long enough, at step sizes chosen for each loss, the classification
loss neither helps nor harms by much at the coefficient that validation chooses, with either
sampling, and a large coefficient harms. Gains at short budgets and at equal step sizes, which can
have either sign, are measured and not asserted.

As published: random sums of two sines on a line, targets drawn evenly or around a peak, noise on
them, a network of three hidden layers trained by Adam, bins equalised. Errors are against the
function without noise, every bin of the target counting the same, and by shots of the bins. Every
loss has the same step sizes, chosen by the training loss of its worst function; the coefficient is
the one with the lowest validation error of all functions. The published images and videos are
not run.

    python experiments/classification_helps_regression.py
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

    examples: int = 600
    test_examples: int = 2000
    noise: float = 0.05
    peak_width: jb.experiments.Positive = 0.07
    floor: float = 0.02
    classes: int = 10
    hidden: int = 32
    budgets: tuple[int, ...] = (500, 2000)
    batch_size: int = 64
    coefficients: tuple[jb.experiments.Positive, ...] = (0.01, 0.1, 1.0)
    step_sizes: tuple[jb.experiments.Positive, ...] = (0.003, 0.01, 0.03, 0.1)
    many: int = 60
    few: int = 10
    seeds: int = 10


PAPER = Config(examples=3000, budgets=(5000, 50_000), hidden=64, many=300, few=75, seeds=50)

SAMPLINGS = ("imbalanced", "balanced")
GROUPS = ("many", "medium", "few")
BINS = 20
POOL = 100_000


class Problem(NamedTuple):
    """A function seen at some points."""

    inputs: Any
    targets: Any
    edges: Any
    counts: Any
    validation_inputs: Any
    validation_targets: Any
    test_inputs: Any
    test_targets: Any
    key: Any


def bin_of(targets: Any) -> Any:
    """Bin of a target, of equal width over the range of the function, which is [0, 1]."""
    return jb.losses.target_bins(targets, edges=jnp.linspace(0, 1, BINS + 1))


def draw(config: Config, sampling: str, seed: int) -> Problem:
    """A random function, points at which its values are as wanted, and held-out even ones."""
    generator = np.random.default_rng(seed)
    first, second = generator.uniform(0.3, 1.5, size=2)
    fast, slow = generator.uniform(6, 15), generator.uniform(2, 6)
    points = generator.uniform(-1, 1, size=POOL)
    values = first * np.sin(fast * points) + second * np.sin(slow * points)
    values = (values - values.min()) / np.ptp(values)
    bins = np.minimum((values * BINS).astype(int), BINS - 1)
    distance = (np.arange(BINS) + 0.5) / BINS - generator.uniform(0.2, 0.8)
    peak = config.floor + np.exp(-((distance / config.peak_width) ** 2) / 2)
    wanted = {"imbalanced": peak, "balanced": np.ones(BINS)}
    held = {}
    for name, share, number in (
        ("train", wanted[sampling], config.examples),
        ("validation", np.ones(BINS), config.test_examples),
        ("test", np.ones(BINS), config.test_examples),
    ):
        odds = (share / np.bincount(bins, minlength=BINS))[bins]
        rows = generator.choice(POOL, number, p=odds / odds.sum())
        held[name] = points[rows, None].astype(np.float32), values[rows].astype(np.float32)
    inputs, clean = held.pop("train")
    targets = clean + np.float32(config.noise) * generator.normal(size=len(clean))
    found = jb.losses.equalized_edges(targets, num_bins=config.classes)
    edges = np.full(config.classes + 1, np.inf)
    edges[: len(found) - 1] = found[:-1]
    counts = np.bincount(np.asarray(bin_of(jnp.asarray(clean))), minlength=BINS)
    rest = (*held["validation"], *held["test"], None)
    return Problem(inputs, targets.astype(np.float32), edges.astype(np.float32), counts, *rest)


def problems(config: Config, sampling: str) -> Problem:
    """Those of all seeds, stacked, with keys."""
    drawn = [draw(config, sampling, seed)[:-1] for seed in range(config.seeds)]
    keys = jax.random.split(jax.random.key(0), config.seeds)
    return Problem(*(np.stack(parts) for parts in zip(*drawn, strict=True)), key=keys)


def initial(config: Config, key: jax.Array) -> dict[str, Any]:
    """Three hidden layers, and a head for each loss."""
    keys, hidden = jax.random.split(key, 6), config.hidden
    wide = [(1, hidden), (hidden, hidden), (hidden, hidden)]
    layers = [
        {"kernel": jax.random.normal(one, shape) * (2 / shape[0]) ** 0.5, "bias": jnp.zeros(hidden)}
        for one, shape in zip(keys, wide, strict=False)
    ]
    layers[0]["bias"] = jax.random.uniform(keys[3], (hidden,), minval=-1.0)
    head = jax.random.normal(keys[4], (hidden, 1)) / hidden**0.5
    second = jax.random.normal(keys[5], (hidden, config.classes)) / hidden**0.5
    return {"layers": layers, "head": head, "offset": jnp.array(0.5), "second": second}


def predict(params: Any, inputs: Any) -> tuple[jax.Array, jax.Array]:
    """The target, and logits of its bins."""
    for layer in params["layers"]:
        inputs = jax.nn.relu(inputs @ layer["kernel"] + layer["bias"])
    return (inputs @ params["head"])[:, 0] + params["offset"], inputs @ params["second"]


def objective(params: Any, coefficient: Any, inputs: Any, targets: Any, edges: Any) -> jax.Array:
    """Mean squared error, and the classification loss times its coefficient."""
    values, logits = predict(params, inputs)
    loss = jb.losses.regression_with_classification_loss
    return jnp.mean(loss(values, logits, targets, edges=edges, coefficient=coefficient))


def errors(params: Any, inputs: Any, targets: Any) -> jax.Array:
    """Mean absolute error of every bin."""
    sums = jb.metrics.regression_errors(
        predict(params, inputs)[0], targets, bin_of(targets), num_bins=BINS
    )
    return jb.metrics.mean_absolute_error(sums)


@functools.cache
def functions(config: Config, steps: int) -> tuple[Any, Any, Any]:
    """What a sweep needs, for runs of a length."""

    def init(seed: Problem) -> Any:
        return initial(config, seed.key)

    def gradient(params: Any, setting: Any, seed: Problem, number: jax.Array) -> Any:
        key = jax.random.fold_in(seed.key, number)
        rows = jax.random.randint(key, (config.batch_size,), 0, config.examples)
        batch = seed.inputs[rows], seed.targets[rows], seed.edges
        return jax.grad(objective)(params, setting["coefficient"], *batch)

    def chain(setting: Any) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(setting["step size"], steps))

    def measure(state: Any, setting: Any, seed: Problem) -> tuple[jax.Array, dict[str, jax.Array]]:
        every = seed.inputs, seed.targets, seed.edges
        loss = objective(state.params, setting["coefficient"], *every)
        validation = errors(state.params, seed.validation_inputs, seed.validation_targets)
        test = errors(state.params, seed.test_inputs, seed.test_targets)
        return loss, {"validation": validation, "test": test}

    return (*jb.dynamics.descent(init, gradient, chain), measure)


def one_loss(
    config: Config, sampling: str, steps: int, coefficient: float
) -> dict[str, np.ndarray]:
    """The best step size's errors by function and bin."""
    sizes = np.array(config.step_sizes, np.float32)
    grid = {"step size": sizes, "coefficient": np.full_like(sizes, coefficient)}
    drawn = problems(config, sampling)
    three = functions(config, steps)
    result = jb.dynamics.sweep(*three, grid, drawn, steps=steps, record_at=[])
    choice = jb.dynamics.choose_step_size(result)
    groups = jb.counts.shot_groups
    return {
        "groups": np.stack([groups(row, many=config.many, few=config.few) for row in drawn.counts]),
        "sizes": np.array(config.step_sizes),
        "best": np.asarray(choice.position),
        "grid": np.asarray(choice.scores),
        "diverged": np.asarray(choice.diverged),
        **{name: np.asarray(values)[:, :, -1] for name, values in result.record.items()},
    }


def parts(config: Config) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """Regression alone and with every coefficient, for both samplings and all budgets."""
    return {
        f"{sampling}, {steps} steps/{coefficient:g}": functools.partial(
            one_loss, config, sampling, steps, coefficient
        )
        for steps in config.budgets
        for sampling in SAMPLINGS
        for coefficient in (0.0, *config.coefficients)
    }


def by_group(record: dict[str, np.ndarray], part: str) -> dict[str, list[float] | None]:
    """Errors at the best step size in bins of many, medium and few shots, over the functions."""
    best, found = record[f"{part}/test"][record[f"{part}/best"]], {}
    for number, group in enumerate(GROUPS):
        rows = zip(best, record[f"{part}/groups"] == number, strict=True)
        means = [error[inside].mean() for error, inside in rows if inside.any()]
        found[group] = jb.experiments.mean_and_range(np.array(means)) if means else None
    return found


def part_numbers(record: dict[str, np.ndarray], part: str, alone: str) -> dict[str, Any]:
    """Errors of one loss, and how much lower they are than of regression alone, as a share."""
    best, first = record[f"{part}/best"], record[f"{alone}/best"]
    error, plain = (record[f"{name}/test"].mean(axis=-1) for name in (part, alone))
    equal = 1 - error.mean(axis=1) / plain.mean(axis=1)
    return {
        "step size": float(record[f"{part}/sizes"][best]),
        "scores": [round(float(score), 5) for score in record[f"{part}/grid"]],
        "diverged": record[f"{part}/diverged"].tolist(),
        "validation error": round(float(record[f"{part}/validation"][best].mean()), 5),
        "error": jb.experiments.mean_and_range(error[best]),
        "error by group": by_group(record, part),
        "gain": round(1 - float(error[best].mean() / plain[first].mean()), 4),
        "better in": int((error[best] < plain[first]).sum()),
        "gain at equal step sizes": [round(float(x), 4) for x in equal],
        "better in at equal step sizes": (error < plain).sum(axis=1).tolist(),
    }


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """Every loss of every sampling and budget, and the coefficient that validation chooses."""
    names = list(dict.fromkeys(name.split("/")[0] for name in record))
    numbers: dict[str, Any] = {}
    for name in names:
        parts = [
            p.removesuffix("/best") for p in record if p.startswith(name) and p.endswith("best")
        ]
        rows = {part.split("/")[1]: part_numbers(record, part, f"{name}/0") for part in parts}
        others = [coefficient for coefficient in rows if coefficient != "0"]
        chosen = min(others, key=lambda one, rows=rows: rows[one]["validation error"])
        numbers[name] = {"chosen": chosen, "losses": rows}
    functions = len(record[f"{names[0]}/0/groups"])
    sizes = record[f"{names[0]}/0/sizes"].tolist()
    return {"functions": functions, "step sizes": sizes, "settings": numbers}


def longest(numbers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Numbers of both samplings at the longest budget."""
    settings = list(numbers["settings"].items())[-len(SAMPLINGS) :]
    return {name.split(",")[0]: row for name, row in settings}


def check(numbers: dict[str, Any]) -> None:
    """Assert what imbalance does, and that the classification loss makes no large difference."""
    last = longest(numbers)
    alone = {sampling: row["losses"]["0"] for sampling, row in last.items()}
    groups = alone["imbalanced"]["error by group"]
    assert groups["few"][0] > 2 * groups["many"][0], "few-shot bins are no worse than others"
    errors = [alone[sampling]["error"][0] for sampling in SAMPLINGS]
    assert errors[0] > 1.5 * errors[1], "imbalance does not raise the error"
    for sampling, row in last.items():
        gain = row["losses"][row["chosen"]]["gain"]
        assert abs(gain) < 0.15, f"{sampling}: the classification loss makes a difference"
        *_, heaviest = row["losses"].values()
        assert heaviest["gain"] < -0.15, f"{sampling}: its largest coefficient does not harm"


def summary(numbers: dict[str, Any]) -> str:
    """Errors by group, and gains over regression alone."""
    gains = {name: row["losses"][row["chosen"]] for name, row in longest(numbers).items()}
    rare, even = (gains[sampling] for sampling in SAMPLINGS)
    number, sizes = numbers["functions"], ", ".join(f"{x:g}" for x in numbers["step sizes"])
    lines = [
        f"The published gain does not show: trained long, the classification loss changes the "
        f"error by {-rare['gain']:+.0%} on imbalanced targets (lower in {rare['better in']} of "
        f"{number} functions) and by {-even['gain']:+.0%} on balanced ones (lower in "
        f"{even['better in']}).",
        "",
        "| targets, budget | coefficient | step size | error (lowest to highest) | many / medium / "
        f"few shots | gain, lower in | gain at equal step sizes {sizes} |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in numbers["settings"].items():
        for coefficient, loss in row["losses"].items():
            mean, low, high = loss["error"]
            groups = (value and f"{value[0]:.3f}" for value in loss["error by group"].values())
            cells = (
                f"{coefficient}{' (chosen)' if coefficient == row['chosen'] else ''}",
                f"{loss['step size']:g}",
                f"{mean:.4f} ({low:.4f} to {high:.4f})",
                " / ".join(group or "none" for group in groups),
                f"{loss['gain']:+.0%}, {loss['better in']} of {number}",
                ", ".join(f"{x:+.0%}" for x in loss["gain at equal step sizes"]),
            )
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(record: dict[str, np.ndarray]) -> Any:
    """Error over the step size, for every loss, sampling and budget."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name.split("/")[0] for name in record))
    figure = Figure(figsize=(3.1 * len(names), 4), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    colours = ("#222222", "#56B4E9", "#0072B2", "#D55E00", "#CC79A7")
    for axis, name in zip(axes, names, strict=True):
        parts = [
            p.removesuffix("/best") for p in record if p.startswith(name) and p.endswith("best")
        ]
        for part, colour in zip(parts, colours, strict=False):
            coefficient, sizes = part.split("/")[1], record[f"{part}/sizes"]
            label = "regression alone" if coefficient == "0" else f"coefficient {coefficient}"
            error = record[f"{part}/test"].mean(axis=-1)
            middle, scatter = error.mean(axis=1), error.std(axis=1) / error.shape[1] ** 0.5
            best = record[f"{part}/best"]
            axis.errorbar(sizes, middle, scatter, color=colour, capsize=3, label=label)
            axis.plot(sizes[best], middle[best], "o", color=colour, markersize=9, fillstyle="none")
        axis.set(title=name, xscale="log", yscale="log", xlabel="step size of Adam")
    axes[0].set(ylabel="absolute error, mean of bins\n(range of the function is 1)")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, ncols=len(colours), loc="outside lower center")
    return figure


if __name__ == "__main__":
    jb.experiments.main(__file__)
