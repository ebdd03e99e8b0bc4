"""Next words by a small transformer: who learns the rare ones, gradient descent, Adam or signs.

Claim: words have a heavy tail, and stochastic gradient descent lowers the loss of the rare ones far
more slowly than that of frequent ones, which Adam does much less, and weights 1/sqrt(frequency) in
the loss undo (Kunstner et al. 2024, arXiv:2402.19449). It is so where all layers are trained, and
where all but the head are frozen. The null run has as many examples of the same words, all equally
frequent: then words that are rare in the text lag behind by no method.

Training losses after few steps, at the step size whose worst seed ends best, by groups of words of
about equal frequency in all. Every example is a context and the next word; contexts keep their own
tail in the null run. What signs do is measured and not asserted, nor are average losses. Two
published claims do not show at this size: signs with momentum lower the average loss but leave rare
words about as far behind as gradient descent does, and where all layers are trained Adam leads in
the average loss with equally frequent words as well.

    python experiments/heavy_tailed_language.py
"""

import dataclasses
import functools
import itertools
import pathlib
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from pydoc_data import topics as manual
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxbalance as jb


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run depends on."""

    data: str = "python"
    vocabulary: int = 512
    examples: int = 4096
    per_word: int = 8
    length: int = 4
    width: int = 32
    hidden: int = 64
    depth: int = 1
    heads: int = 2
    batch_size: int = 512
    steps: int = 100
    momentum: jb.experiments.Share = 0.9
    sgd_sizes: tuple[jb.experiments.Positive, ...] = (0.1, 0.3, 1.0, 3.0)
    sign_sizes: tuple[jb.experiments.Positive, ...] = (0.0003, 0.001, 0.003, 0.01)
    adam_sizes: tuple[jb.experiments.Positive, ...] = (0.003, 0.01, 0.03, 0.1)
    head_sgd_sizes: tuple[jb.experiments.Positive, ...] = (0.3, 1.0, 3.0, 10.0)
    head_sign_sizes: tuple[jb.experiments.Positive, ...] = (0.00003, 0.0001, 0.0003, 0.001)
    head_adam_sizes: tuple[jb.experiments.Positive, ...] = (0.03, 0.1, 0.3, 1.0)
    seeds: int = 3


# Model, batch and epochs of the published run on the Penn Treebank (``data``: the folder that holds
# ptb.zip). The published one has dropout and predicts every word of a sequence; here one word is.
PAPER = Config(
    data="ptb",
    vocabulary=10_000,
    examples=900_000,
    per_word=100,
    length=35,
    width=1000,
    hidden=1000,
    depth=2,
    heads=4,
    steps=180_000,
    sgd_sizes=(0.003, 0.01, 0.03, 0.1, 0.3),
    sign_sizes=(0.00001, 0.00003, 0.0001, 0.0003, 0.001),
    adam_sizes=(0.00003, 0.0001, 0.0003, 0.001, 0.003),
    head_sgd_sizes=(0.01, 0.03, 0.1, 0.3, 1.0),
    head_sign_sizes=(0.00001, 0.00003, 0.0001, 0.0003, 0.001),
    head_adam_sizes=(0.0001, 0.0003, 0.001, 0.003, 0.01),
)

METHODS = ("sgd", "weighted sgd", "sign", "adam")
NULL_METHODS = ("sgd", "adam")
KINDS = ("text", "equal")
TRAINED = ("all", "head")
NUM_GROUPS = 10
ENDS = 3


class Sample(NamedTuple):
    """What a seed brings: contexts and the word after each, a start, an order."""

    inputs: Any
    """Contexts ``[N, T]``, or what the frozen layers make of them ``[N, width]``."""
    labels: Any
    weights: jax.Array
    """Of every word in the loss that is trained."""
    params: Any
    key: jax.Array


def words(data: str) -> list[str]:
    """Python's manual of itself, the training text of ``ptb.zip`` in a folder, or a text file."""
    if data == "python":
        text = " ".join(manual.topics[name] for name in sorted(manual.topics)).lower()
        return [found.group() for found in re.finditer(r"[a-z_]+|\d+|([^\w\s])\1*", text)]
    place = pathlib.Path(data)
    if place.is_dir():
        place = next(iter([*place.glob("ptb.zip"), *sorted(place.glob("*.txt"))]), place)
    if not place.is_file():
        raise ValueError(f"data: got {data!r}, wanted python, a text, or a folder with ptb.zip")
    if place.suffix == ".zip":
        text = zipfile.ZipFile(place).read("ptb/ptb.train.txt").decode()
    else:
        text = place.read_text(encoding="utf-8")
    return text.replace("\n", " <eos> ").split()


@functools.cache
def corpus(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The text as numbers of words, 0 the most frequent; and the group of each word that counts.

    Words too rare for the vocabulary share the number after it. No group is empty.
    """
    stream = words(config.data)
    frequent = Counter(stream).most_common(config.vocabulary)
    numbers = {word: number for number, (word, _) in enumerate(frequent)}
    tokens = np.array([numbers.get(word, config.vocabulary) for word in stream], np.int32)
    counts = np.array([count for _, count in frequent])
    groups = np.asarray(jb.counts.frequency_groups(counts, num_groups=NUM_GROUPS))
    return tokens, np.unique(groups, return_inverse=True)[1]


def draw(config: Config, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Contexts ``[N, T]`` and next words: as in the text, or all words equally often.

    A word too rare for the vocabulary is one more token of the contexts, and never predicted; a
    word too rare to be drawn ``per_word`` times is left out where all are to be equal.
    """
    windows = np.lib.stride_tricks.sliding_window_view(corpus(config)[0], config.length + 1)
    windows = windows[windows[:, -1] < config.vocabulary]
    labels = windows[:, -1]
    if kind == "equal":
        enough = np.bincount(labels, minlength=config.vocabulary) >= config.per_word
        rows = jb.data.long_tail_subset(labels, enough * config.per_word, seed=seed)
    else:
        generator = np.random.default_rng(seed)
        number = min(config.examples, len(labels))
        rows = generator.choice(len(labels), number, replace=False)
    return windows[rows, :-1], labels[rows]


def build(config: Config, key: jax.Array, head: Any = nnx.Linear) -> jb.models.Functional:
    """The transformer as functions; the words left out of the vocabulary are its last token."""
    sizes = {"width": config.width, "hidden": config.hidden, "length": config.length}
    layers = {"depth": config.depth, "heads": config.heads, "head": head}
    known = config.vocabulary
    model = jb.models.Transformer(known + 1, known, **sizes, **layers, rngs=nnx.Rngs(key))
    return jb.models.functional(model)


def no_head(width: int, num_classes: int, *, rngs: nnx.Rngs) -> Callable[[Any], Any]:
    """In place of the last layer: its inputs."""
    return lambda features: features


@functools.partial(jax.jit, static_argnums=0)
def frozen(config: Config, key: jax.Array, inputs: jax.Array) -> jax.Array:
    """What untrained layers make of every context, ``[N, width]``."""
    body = build(config, key, no_head)
    one = functools.partial(_each, functools.partial(body.apply, body.params))
    return jax.lax.map(one, inputs, batch_size=config.batch_size)


def _each(function: Callable[..., jax.Array], *rows: jax.Array) -> jax.Array:
    """A function of batches at one example."""
    return function(*(row[None] for row in rows))[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def init(config: Config, trained: str, key: jax.Array) -> Any:
    """Parameters to train."""
    if trained == "all":
        return build(config, key).params
    kernel = jax.random.normal(key, (config.width, config.vocabulary)) / config.width**0.5
    return {"kernel": kernel, "bias": jnp.zeros(config.vocabulary)}


def linear(params: Any, features: jax.Array) -> jax.Array:
    """Logits of the head alone."""
    return features @ params["kernel"] + params["bias"][None]


def weights(config: Config, method: str, labels: np.ndarray) -> jax.Array:
    """Of every word, one on average over the examples, so that step sizes compare."""
    counts = np.bincount(labels, minlength=config.vocabulary)
    power = 0.5 if method == "weighted sgd" else 0.0
    values = jb.counts.inverse_frequency_weights(counts, power=power)
    return values * counts.sum() / (values @ counts)


def optimizer(config: Config, family: str) -> Callable[[Any], optax.GradientTransformation]:
    """A chain for every step size."""
    momentum = config.momentum
    if family == "adam":
        return functools.partial(optax.adam, b1=momentum)
    descend = jb.dynamics.sign_descent if family == "sign" else optax.sgd
    return functools.partial(descend, momentum=momentum)


@functools.cache
def programs(config: Config, trained: str, family: str) -> tuple[Any, Any, Any]:
    """For a sweep; SGD with and without weights, on either sample, is compiled once."""
    groups = corpus(config)[1]
    apply = linear if trained == "head" else build(config, jax.random.key(0)).apply
    per_example = jb.training.example_loss(apply, jb.losses.weighted_cross_entropy)

    def gradient(params: Any, size: Any, sample: Sample, number: jax.Array) -> Any:
        shape = {"num_examples": len(sample.labels), "batch_size": config.batch_size, "steps": 1}
        rows = jb.samplers.shuffled_epochs(sample.key, start=number, **shape)[0]
        inputs, labels = sample.inputs[rows], sample.labels[rows]
        weight = sample.weights[labels]
        return jax.grad(lambda p: jnp.mean(weight * per_example(p, inputs, labels)))(params)

    def measure(state: Any, size: Any, sample: Sample) -> tuple[jax.Array, dict[str, jax.Array]]:
        # In pieces, because the logits of all examples and words need not fit.
        one = functools.partial(_each, functools.partial(per_example, state.params))
        examples = sample.inputs, sample.labels
        losses = jax.lax.map(lambda pair: one(*pair), examples, batch_size=config.batch_size)
        member = jax.nn.one_hot(jnp.asarray(groups)[sample.labels], int(groups.max()) + 1)
        means = losses @ member / jnp.maximum(jnp.sum(member, axis=0), 1)
        return jnp.mean(losses), {"groups": means}

    chain = optimizer(config, family)
    return (*jb.dynamics.descent(lambda sample: sample.params, gradient, chain), measure)


def draw_seed(config: Config, kind: str, trained: str, method: str, seed: int) -> Sample:
    """Everything of one seed: equal for all methods but for the weights."""
    first, last, order = jax.random.split(jax.random.key(seed), 3)
    inputs, labels = draw(config, kind, seed)
    weight = weights(config, method, labels)
    if trained == "head":
        inputs = frozen(config, first, inputs)
    return Sample(inputs, labels, weight, init(config, trained, last), order)


def one_setting(config: Config, kind: str, trained: str, method: str) -> dict[str, np.ndarray]:
    """The grid's scores, and losses at the step size whose worst seed ends best."""
    drawn = [draw_seed(config, kind, trained, method, seed) for seed in range(config.seeds)]
    samples = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
    family, prefix = method.split()[-1], "head_" if trained == "head" else ""
    sizes = jnp.asarray(getattr(config, f"{prefix}{family}_sizes"))
    # Measured before training and after. On CPU, batches of runs are slower than run after run.
    how = {"steps": config.steps, "record_at": [], "batched": jax.default_backend() != "cpu"}
    result = jb.dynamics.sweep(*programs(config, trained, family), sizes, samples, **how)
    choice = jb.dynamics.choose_step_size(result)
    best = int(choice.position)
    return {
        "sizes": sizes,
        "scores": choice.scores,
        "diverged": choice.diverged,
        "loss": result.loss[best],
        "groups": result.record["groups"][best],
    }


def parts(config: Config) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """All methods, on both samples, with all layers trained or only the last."""
    every = itertools.product(KINDS, TRAINED, METHODS)
    # Where all words are equally frequent, all weights are one.
    wanted = [s for s in every if s[0] == "text" or s[2] in NULL_METHODS]
    return {"/".join(s): functools.partial(one_setting, config, *s) for s in wanted}


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """Final losses at the best step size, over seeds: mean, lowest, highest; the grids' scores."""
    numbers: dict[str, Any] = {}
    for name in (key.removesuffix("/groups") for key in record if key.endswith("/groups")):
        sizes, scores, gone = (record[f"{name}/{k}"] for k in ("sizes", "scores", "diverged"))
        groups, best = record[f"{name}/groups"][:, -1], int(scores.argmin())
        frequent, rare = groups[:, :ENDS].mean(axis=1), groups[:, -ENDS:].mean(axis=1)
        numbers[name] = {
            "step sizes": [float(f"{size:.6g}") for size in sizes],
            "worst seed": [
                None if g else round(float(x), 3) for x, g in zip(scores, gone, strict=True)
            ],
            "inside the grid": 0 < best < len(sizes) - 1,
            "diverged": bool(gone[best]),
            "loss": jb.experiments.mean_and_range(record[f"{name}/loss"][:, -1]),
            "frequent": jb.experiments.mean_and_range(frequent),
            "rare": jb.experiments.mean_and_range(rare),
            "lag": jb.experiments.mean_and_range(rare - frequent),
            "groups": groups.mean(axis=0).round(3).tolist(),
        }
    return numbers


def check(numbers: dict[str, Any]) -> None:
    """Assert that rare words lag by gradient descent where they are rare, and only there."""
    for name, row in numbers.items():
        assert not row["diverged"], f"{name} diverged"
        assert row["inside the grid"], f"{name}: the best step size is at the edge of its grid"
    for trained in TRAINED:
        text = {method: numbers[f"text/{trained}/{method}"] for method in METHODS}
        sgd = text["sgd"]["lag"]
        assert sgd[1] > text["adam"]["lag"][2] + 1, f"{trained}: rare words lag as much by Adam"
        assert sgd[1] > text["weighted sgd"]["lag"][2] + 1, f"{trained}: weights do not help"
        for method in NULL_METHODS:
            null = numbers[f"equal/{trained}/{method}"]["lag"]
            assert null[2] < 0.25 * sgd[0], f"{trained}, {method}: a lag without a tail"
    rare = [numbers[f"text/all/{method}"]["rare"] for method in NULL_METHODS]
    assert rare[0][1] > rare[1][2] + 1, "Adam does not learn rare words better"


def summary(numbers: dict[str, Any]) -> str:
    """Losses at the best step sizes, and the grids."""
    text, equal = ({m: numbers.get(f"{k}/all/{m}") for m in METHODS} for k in KINDS)
    lags = [row[method]["lag"][0] for row in (text, equal) for method in NULL_METHODS]
    lines = [
        f"The loss of rare words ends {lags[0]:.1f} above that of frequent ones by SGD and "
        f"{lags[1]:.1f} by Adam; {lags[2]:.1f} and {lags[3]:.1f} where they are equally frequent.",
        "",
        "| words / trained / method | loss | frequent words | rare words | rare less frequent | "
        "step size: worst seed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in numbers.items():
        columns = (row[what] for what in ("loss", "frequent", "rare", "lag"))
        ranges = (f"{mean:.2f} ({low:.2f} to {high:.2f})" for mean, low, high in columns)
        pairs = zip(row["step sizes"], row["worst seed"], strict=True)
        grid = ", ".join(f"{a:g}: {'diverged' if b is None else f'{b:.2f}'}" for a, b in pairs)
        lines.append(f"| {name} | {' | '.join(ranges)} | {grid} |")
    pairs = ([numbers[f"{k}/{t}/{m}"]["loss"][0] for m in NULL_METHODS] for t, k in TITLES)
    gaps = [f"{sgd - adam:.1f}" for sgd, adam in pairs]
    ends = (f"{method} {text[method]['loss'][0]:.1f}" for method in METHODS)
    rare = (f"{method} {text[method]['rare'][0]:.1f}" for method in METHODS)
    behind = "do not catch" if text["sign"]["lag"][0] > 0.75 * lags[0] else "catch"
    remarks = (
        f"On the text, all layers trained, the average loss ends at {', '.join(ends)}; that of "
        f"rare words at {', '.join(rare)}: signs {behind} up. Adam's lead over SGD in the average "
        f"is {gaps[0]} on the text and {gaps[1]} with equally frequent words; {gaps[2]} and "
        f"{gaps[3]} where only the head is trained. Means over seeds (lowest to highest)."
    )
    return "\n".join([*lines, "", remarks])


STYLES = {
    "sgd": {"label": "SGD", "color": "#222222", "marker": "o"},
    "weighted sgd": {"label": "SGD, weighted loss", "color": "#E69F00", "marker": "s"},
    "sign": {"label": "signs", "color": "#009E73", "marker": "^"},
    "adam": {"label": "Adam", "color": "#0072B2", "marker": "D"},
}
TITLES = {
    ("all", "text"): "words as in the text",
    ("all", "equal"): "words equally frequent",
    ("head", "text"): "as in the text, head only",
    ("head", "equal"): "equally frequent, head only",
}


def plot(record: dict[str, np.ndarray]) -> Any:
    """Final loss of every group of words, at each method's best step size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    axes = figure.subplots(1, len(TITLES), sharey=True)
    for axis, ((trained, kind), title) in zip(axes, TITLES.items(), strict=True):
        place = f"{kind}/{trained}"
        for method, style in STYLES.items():
            if f"{place}/{method}/groups" not in record:
                continue
            values = record[f"{place}/{method}/groups"]
            ranks = np.arange(1, values.shape[-1] + 1)
            last = values[:, -1]
            axis.plot(ranks, last.mean(axis=0), markersize=4, **style)
            axis.fill_between(ranks, last.min(0), last.max(0), color=style["color"], alpha=0.15)
        before = record[f"{place}/sgd/groups"][:, 0].mean(axis=0)
        axis.plot(ranks, before, color="#999999", linestyle=":", label="before training")
        axis.set(title=title, xlabel="group of words, rare on the right")
    axes[0].set(ylabel="training loss of the next word (nats)")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(STYLES) + 1)
    return figure


if __name__ == "__main__":
    jb.experiments.main(__file__)
