"""Class weights in training against attacks, where classes lie close together and far apart.

Claim: against an attacker, weights raise the recall of a rare class at the price of the frequent
one, and much more so where the classes are poorly separable than where they are well separable;
training that also separates the classes' features, SRAT, makes for a better trade (Wang et al.
2021, arXiv:2107.13639). With equal classes, the null run, weights change nothing and no class is
ahead. Without an attack the same weights on the same classes cost less.

Of two Gaussians the best linear rule against an attack in the maximum norm is known; a small
network is trained by Adam. Its step size has the smallest weighted loss under attack, the term that
separates left out.

The half of the claim about SRAT is measured and not asserted, for it does not reproduce here: with
many examples weights alone come near the closed form, and with few separation moves the network
along its trade, as larger weights would. Nor does a point of rare recall cost less of the frequent
one where classes are far apart: they have less to trade.

    python experiments/robust_separation.py
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxbalance as jb


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run depends on. Class weights are inverse frequencies to a power: 0, 1 and others."""

    dimension: int = 10
    difference: jb.experiments.Positive = 1.0
    close_deviation: jb.experiments.Positive = 1.0
    apart_deviation: jb.experiments.Positive = 0.4
    radius: float = 0.2
    ratio: jb.experiments.Ratio = 20.0
    examples: int = 4200
    few_examples: int = 1050
    test_examples: int = 1000
    other_powers: tuple[float, ...] = (0.5, 1.5)
    separations: tuple[jb.experiments.Positive, ...] = (0.3, 1.0)
    temperature: jb.experiments.Positive = 0.1
    hidden: int = 32
    attack_steps: int = 5
    test_attack_steps: int = 10
    batch_size: int = 128
    steps: int = 300
    step_sizes: tuple[jb.experiments.Positive, ...] = (0.01, 0.04, 0.16, 0.64)
    seeds: int = 4


# The source trains a ResNet on images; this is the same experiment with more of everything.
PAPER = Config(examples=21_000, test_examples=10_000, hidden=128, steps=4000, seeds=5)

EQUAL, ALONE = "close, equal classes", "separation 0"


class Setting(NamedTuple):
    """Two classes, an attack on them, and strengths of separation to compare with none."""

    deviation: float
    ratio: float
    radius: float
    examples: int
    separations: tuple[float, ...] = ()


def settings(config: Config) -> dict[str, Setting]:
    """Everything that is run, by name."""
    close, apart, number = config.close_deviation, config.apart_deviation, config.examples
    attacked, few = (config.ratio, config.radius), config.few_examples
    return {
        "close": Setting(close, *attacked, number, config.separations),
        "close, few examples": Setting(close, *attacked, few, config.separations),
        "close, no attack": Setting(close, config.ratio, 0.0, number),
        "apart": Setting(apart, *attacked, number),
        EQUAL: Setting(close, 1.0, config.radius, number),
    }


def powers(config: Config) -> list[float]:
    """Of the class weights, rising."""
    return sorted({0.0, 1.0, *config.other_powers})


def sizes(setting: Setting) -> tuple[int, int]:
    """Examples of the frequent class and of the rare one."""
    rare = max(1, round(setting.examples / (1 + setting.ratio)))
    return setting.examples - rare, rare


def class_weights(setting: Setting, power: float) -> np.ndarray:
    """Their mean over examples is 1, so that step sizes compare."""
    counts = np.array(sizes(setting))
    weights = np.asarray(jb.counts.inverse_frequency_weights(counts, power=power))
    return weights * counts.sum() / (counts @ weights)


def draw(config: Config, deviation: float, number: tuple[int, int], seed: int) -> Any:
    """Inputs and labels: so many of the frequent class 0, then of the rare class 1."""
    generator = np.random.default_rng(seed)
    labels = np.repeat([0, 1], number).astype(np.int32)
    noise = generator.normal(scale=deviation, size=(len(labels), config.dimension))
    return (noise + config.difference * (labels[:, None] - 0.5)).astype(np.float32), labels


@functools.cache
def network(config: Config, seed: int = 0) -> jb.models.Functional:
    """One hidden layer, whose outputs are the features."""
    hidden, rngs = (config.hidden,), nnx.Rngs(seed)
    return jb.models.functional(jb.models.MLP(config.dimension, 2, hidden=hidden, rngs=rngs))


def one_seed(config: Config, setting: Setting, seed: int) -> dict[str, Any]:
    """A network to begin with, mini-batches, and examples to train on and to test."""
    batches = {"num_examples": setting.examples, "batch_size": config.batch_size}
    rows = jb.samplers.shuffled_epochs(jax.random.key(seed), **batches, steps=config.steps)
    train = draw(config, setting.deviation, sizes(setting), seed)
    test = draw(config, setting.deviation, (config.test_examples,) * 2, seed + 10**6)
    return {"params": network(config, seed).params, "rows": rows, "train": train, "test": test}


def attack(config: Config, knobs: dict[str, Any], steps: int) -> jb.adversarial.Attack:
    """The worst input in a cube around each example, found by steps up the wrong logit's lead."""
    # Of two classes that is the way up any loss. The cross entropy of a confident network is flat
    # to rounding: an attack on it would not move, and the network would look robust.
    lead = jb.training.example_loss(network(config).apply, jb.adversarial.logit_margin)
    radius = knobs["radius"]
    known = {"radius": radius, "step_size": 2.5 * radius / steps, "steps": steps}
    return functools.partial(jb.adversarial.projected_gradient_attack, lead, **known)


def reweighted(config: Config, knobs: dict[str, Any]) -> Any:
    """Loss of every example under attack, times the weight of its class."""
    weighted = functools.partial(jb.losses.weighted_cross_entropy, class_weights=knobs["weights"])
    loss = jb.training.example_loss(network(config).apply, weighted)
    return jb.adversarial.adversarial_loss(loss, attack(config, knobs, config.attack_steps))


def separated(config: Config, knobs: dict[str, Any]) -> Any:
    """The same, and a term that separates the features of the classes."""
    model = network(config)
    return jb.adversarial.separable_reweighted_loss(
        lambda params, inputs: (model.features(params, inputs), model.apply(params, inputs)),
        attack(config, knobs, config.attack_steps),
        class_weights=knobs["weights"],
        separation=knobs["separation"],
        temperature=config.temperature,
    )


@functools.cache
def programs(config: Config, loss: Callable[[Config, Any], Any]) -> tuple[Any, Any, Any]:
    """``start``, ``step`` and ``measure`` of a sweep over weights, separations and step sizes."""

    def chain(knobs: dict[str, Any]) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(knobs["size"], config.steps))

    def gradient(params: Any, knobs: dict[str, Any], seed: dict[str, Any], number: Any) -> Any:
        batch = [array[seed["rows"][number]] for array in seed["train"]]
        return jax.grad(lambda p: jnp.mean(loss(config, knobs)(p, *batch)))(params)

    def measure(state: Any, knobs: dict[str, Any], seed: dict[str, Any]) -> tuple[jax.Array, Any]:
        inputs, labels = seed["test"]
        adversary = attack(config, knobs, config.test_attack_steps)
        logits = network(config).apply(state.params, adversary(state.params, inputs, labels))
        confusion = jb.metrics.confusion_matrix(labels, logits.argmax(axis=-1), num_classes=2)
        area = jb.metrics.auroc(logits[:, 1] - logits[:, 0], labels)
        record = {"recall": jb.metrics.recall(confusion), "area": area}
        return jnp.mean(reweighted(config, knobs)(state.params, *seed["train"])), record

    return (*jb.dynamics.descent(lambda seed: seed["params"], gradient, chain), measure)


def closed_form(config: Config, setting: Setting, power: float) -> np.ndarray:
    """Recall of the frequent and of the rare class under attack, of the best rule at a weight."""
    means = jnp.full(config.dimension, config.difference)
    case = {"deviation": setting.deviation, "radius": setting.radius, "norm": math.inf}
    rule = jb.dynamics.robust_gaussian_rule(means, prior_ratio=setting.ratio ** (1 - power), **case)
    errors = jb.dynamics.gaussian_class_errors(rule, means, **case)
    return 1 - np.array([errors.majority, errors.minority])


def trained(config: Config, setting: Setting, separations: tuple[float, ...]) -> Any:
    """All weights, step sizes and seeds of some separations; of the step sizes the best."""
    loss = separated if any(separations) else reweighted
    weights = [class_weights(setting, power) for power in powers(config)]
    grid = list(itertools.product(separations, weights, config.step_sizes, [setting.radius]))
    columns = zip(("separation", "weights", "size", "radius"), zip(*grid, strict=True), strict=True)
    knobs = {name: np.array(values, np.float32) for name, values in columns}
    every = [one_seed(config, setting, seed) for seed in range(config.seeds)]
    seeds = jax.tree.map(lambda *leaves: np.stack(leaves), *every)
    ends = {"steps": config.steps, "record_at": ()}
    result = jax.device_get(jb.dynamics.sweep(*programs(config, loss), knobs, seeds, **ends))
    final = {name: values[:, :, -1] for name, values in result.record.items()}
    found, width = [], len(config.step_sizes)
    for runs in (slice(i, i + width) for i in range(0, len(grid), width)):
        some = result._replace(loss=result.loss[runs], diverged=result.diverged[runs])
        at, scores, _ = jb.dynamics.choose_step_size(some)
        tried = {"scores": scores, "by step size": final["recall"][runs].mean(axis=(1, 2))}
        best = {name: values[runs][at] for name, values in final.items()}
        found.append({**tried, **best, "position": at, "diverged": some.diverged[at]})
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *found)
    shape = len(separations), len(weights)
    return {name: array.reshape(*shape, *array.shape[1:]) for name, array in stacked.items()}


def one_setting(config: Config, setting: Setting) -> dict[str, np.ndarray]:
    """Arrays ``[separations, powers, ...]``, and the closed forms ``[powers, 2]``."""
    methods = (0.0, *setting.separations)
    found = [trained(config, setting, some) for some in (methods[:1], methods[1:]) if some]
    exact = functools.partial(closed_form, config, setting)
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]} | {
        "sizes": np.array(sizes(setting)),
        "separations": np.array(methods),
        "powers": np.array(powers(config)),
        "step sizes": np.array(config.step_sizes),
        "exact": np.stack([exact(power) for power in powers(config)]),
        "curve": np.stack([exact(x) for x in np.linspace(-1, 1 + powers(config)[-1], 60)]),
    }


def parts(config: Config) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """Every setting."""
    return {n: functools.partial(one_setting, config, s) for n, s in settings(config).items()}


def _of(name: str, record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k.split("/")[1]: array for k, array in record.items() if k.startswith(f"{name}/")}


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """Of each setting, method and power: mean, lowest and highest of the seeds; exact trades."""
    numbers: dict[str, Any] = {}
    for name in dict.fromkeys(key.split("/")[0] for key in record):
        part = _of(name, record)
        at = {f"{power:g}": j for j, power in enumerate(part["powers"])}
        methods = {f"separation {s:g}": i for i, s in enumerate(part["separations"])}
        numbers[name] = {
            "examples": part["sizes"].tolist(),
            "exact": dict(zip(at, _rounded(part["exact"]), strict=True)),
            "methods": {m: {p: _row(part, i, at[p]) for p in at} for m, i in methods.items()},
        }
    return numbers


def _row(part: dict[str, np.ndarray], method: int, power: int) -> dict[str, Any]:
    """One method at one power; of separation also what it adds, seed by seed, to weights alone."""
    at, recall = (method, power), part["recall"]
    kept = ~part["diverged"][at]
    values = {"frequent": recall[..., 0], "rare": recall[..., 1], "area": part["area"]}
    values["mean recall"] = recall.mean(axis=-1)
    row = {name: _range(array[at][kept]) for name, array in values.items()}
    for name in ("mean recall", "area") if method else ():
        added = values[name][at] - values[name][0, power]
        row[f"{name}, added"] = _range(added[kept & ~part["diverged"][0, power]])
    return row | {
        "diverged": int((~kept).sum()),
        "step size": float(part["step sizes"][part["position"][at]]),
        "step sizes": part["step sizes"].tolist(),
        "training losses": _rounded(part["scores"][at]),
        "mean recalls": _rounded(part["by step size"][at]),
    }


def _range(values: np.ndarray) -> list[float] | None:
    """Mean, lowest, highest; None of nothing."""
    return [_rounded(f(values)) for f in (np.mean, np.min, np.max)] if len(values) else None


def _rounded(values: np.ndarray) -> Any:
    return np.round(np.asarray(values, float), 4).tolist()


def change(numbers: dict[str, Any], name: str) -> np.ndarray:
    """Rare recall gained and frequent recall lost by full weights: trained, then of best rules."""
    rows, exact = numbers[name]["methods"][ALONE], numbers[name]["exact"]
    means = [[[rows[p]["rare"][0], rows[p]["frequent"][0]], exact[p][::-1]] for p in "01"]
    return np.subtract(means[1], means[0]) * [1, -1]


def _rows(numbers: dict[str, Any]) -> list[tuple[str, Any]]:
    methods = [(name, rows) for name, part in numbers.items() for rows in part["methods"].values()]
    return [(name, row) for name, rows in methods for row in rows.values()]


def check(numbers: dict[str, Any]) -> None:
    """Assert what weights do to close, far and equal classes; of separation nothing."""
    for name, row in _rows(numbers):
        assert not row["diverged"], f"{name}: a run diverged"
        best = np.mean(numbers[name]["exact"]["1"])
        assert row["mean recall"][0] < best + 0.02, f"{name}: the attack is too weak"
    before, after = (numbers["close"]["methods"][ALONE][power] for power in "01")
    assert after["rare"][1] > before["rare"][2] + 0.1, "weights do not raise the rare recall"
    assert after["frequent"][2] < before["frequent"][1] - 0.05, "weights cost nothing"
    names = ("close", "apart", "close, no attack")
    close, apart, calm = changes = [change(numbers, name) for name in names]
    assert np.all(close > 3 * apart), "weights do as much where classes are far apart"
    assert np.all(close[:, 1] > 1.5 * calm[:, 1]), "weights cost as much without an attack"
    assert np.abs(np.diff(changes, axis=1)).max() < 0.12, "not the trade of the closed form"
    rows = numbers[EQUAL]["methods"][ALONE].values()
    recalls = np.array([[row["rare"][0], row["frequent"][0]] for row in rows])
    assert np.ptp(recalls, axis=0).max() < 0.01, "weights change the recall of equal classes"
    assert np.abs(recalls[:, 0] - recalls[:, 1]).max() < 0.05, "one of two equal classes is ahead"


def summary(numbers: dict[str, Any]) -> str:
    """What full weights trade, what separation adds to that, and all recalls."""
    if any(row["diverged"] for _, row in _rows(numbers)):
        return "Nothing can be compared: some runs diverged at every step size."
    close, apart = (change(numbers, name) for name in ("close", "apart"))
    rows = numbers["close"]["methods"].items()
    added = [f"{_cell(r['1'], 'area, added')} ({name})" for name, r in rows if name != ALONE]
    heads = ["setting", "method", *numbers["close"]["exact"], "by step size", "added", "area added"]
    lines = [
        f"Under attack, full weights add {close[0, 0]:.3f} to the recall of the rare class and "
        f"take {close[0, 1]:.3f} from the frequent one where classes are close, {apart[0, 0]:.3f} "
        f"and {apart[0, 1]:.3f} where they are far apart; separated features then change the area "
        f"under the ROC curve of close classes by {', '.join(added)}.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * len(heads)}",
    ]
    for name, part in numbers.items():
        exact = (f"{rare:.3f} / {frequent:.3f}" for frequent, rare in part["exact"].values())
        title = f"{name} ({part['examples'][1]} rare of {sum(part['examples'])})"
        lines.append(f"| {title} | closed form | {' | '.join(exact)} | | | |")
        for method, by_power in part["methods"].items():
            pairs = (f"{r['rare'][0]:.3f} / {r['frequent'][0]:.3f}" for r in by_power.values())
            row = by_power["1"]
            ends = [_cell(row, f"{what}, added") for what in ("mean recall", "area")]
            tried = f"{min(row['mean recalls']):.3f} to {max(row['mean recalls']):.3f}"
            lines.append(f"| {name} | {method} | {' | '.join([*pairs, tried, *ends])} |")
    return "\n".join([*lines, "", NOTE])


def _cell(row: dict[str, Any], what: str) -> str:
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(*row[what]) if what in row else ""


NOTE = """Rare / frequent recall under attack by the power of the class weights, mean over seeds.
Separation 0 is weights alone. At power 1: the mean of both recalls by step size, lowest to highest,
and what separation adds to it and to the area under the ROC curve, seed by seed: mean (lowest to
highest). The area has no threshold: a mean recall that rises without it is a threshold moved."""


def plot(record: dict[str, np.ndarray]) -> Any:
    """The recall of one class over that of the other, by the weights: exact and trained."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    every = [name for name in dict.fromkeys(k.split("/")[0] for k in record) if name != EQUAL]
    axes = figure.subplots(1, len(every), sharex=True, sharey=True)
    for axis, name in zip(axes, every, strict=True):
        _trade(axis, _of(name, record))
        axis.set(title=name, xlabel="recall of the frequent class")
    axes[0].set(ylabel="recall of the rare class", xlim=(0.5, 1.02), ylim=(0.2, 1.03))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
    return figure


def _trade(axis: Any, part: dict[str, np.ndarray]) -> None:
    """One setting: the curve of the best rules, and every method with the range of its seeds."""
    axis.plot(*part["curve"].T, color="#999999", label="best rules")
    axis.plot(*part["exact"].T, "x", color="#999999", label="best rules, by power of weights")
    for power, where in zip(part["powers"], part["exact"], strict=True):
        if part["exact"][0, 1] < 0.5:
            axis.annotate(f"{power:g}", where, (7, 3), textcoords="offset points", color="#777777")
    for i, separation in enumerate(part["separations"]):
        runs = part["recall"][i]
        mean = runs.mean(axis=1)
        spread = np.abs(np.stack([runs.min(axis=1), runs.max(axis=1)]) - mean)
        bars = {"fmt": "o:", "markersize": 4, "linewidth": 1, "elinewidth": 1, "alpha": 0.8}
        bars["label"] = f"separation {separation:g}" + ("" if separation else " (weights alone)")
        axis.errorbar(*mean.T, spread[..., 1], spread[..., 0], **bars)


if __name__ == "__main__":
    jb.experiments.main(__file__)
