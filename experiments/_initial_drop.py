"""Two unequal classes, and the runs on them that differ in how class gradients are combined."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxbalance as jb

TEST_EXAMPLES = 500


class Problem(NamedTuple):
    """What differs between the runs of one program: start, data, batches."""

    params: Any
    inputs: Any
    labels: Any
    test_inputs: Any
    test_labels: Any
    rows: Any


def sizes(examples: int, ratio: int) -> tuple[int, int]:
    """Of majority and minority: the same sum at any ratio, so that one program trains them all."""
    rare = max(1, round(examples / (1 + ratio)))
    return examples - rare, rare


def batches(key: jax.Array, counts: Any, batch: tuple[int, int], steps: int) -> jax.Array:
    """Row numbers ``[steps, B]``; each class is gone through in shuffled passes of its own."""
    rows = [
        jb.samplers.shuffled_epochs(key, num_examples=number, batch_size=size, steps=steps)
        for key, number, size in zip(jax.random.split(key), counts, batch, strict=True)
    ]
    return jnp.concatenate([rows[0], counts[0] + rows[1]], axis=1)


def batch_sizes(method: str, size: int, ratio: int) -> tuple[int, int]:
    """Examples of both classes in a batch: in proportion, or as many of each."""
    rare = size // 2 if method.endswith("+O") else max(1, round(size / (1 + ratio)))
    return size - rare, rare


def start(wide: int, hidden: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Parameters of a tanh network with one hidden layer."""
    return {
        "kernel": generator.normal(size=(wide, hidden)) / wide**0.5,
        "bias": np.zeros(hidden),
        "head": generator.normal(size=(hidden, 2)) / hidden**0.5,
        "shift": np.zeros(2),
    }


def network(params: Any, inputs: jax.Array) -> jax.Array:
    """Logits of every row."""
    hidden = jnp.tanh(inputs @ params["kernel"] + params["bias"])
    return hidden @ params["head"] + params["shift"]


def gaussians(config: Any, counts: tuple[int, int], offset: float, seed: int) -> Problem:
    """Two Gaussians whose means lie ``distance`` apart and share an offset; without batches."""
    generator = np.random.default_rng(seed)
    means = np.zeros((2, config.dimension))
    means[:, 0], means[:, 1] = (-config.distance / 2, config.distance / 2), offset
    params = start(config.dimension, config.hidden, generator)
    labels = [np.repeat([0, 1], n) for n in (counts, (TEST_EXAMPLES, TEST_EXAMPLES))]
    inputs = [generator.normal(size=(len(y), config.dimension)) + means[y] for y in labels]
    return Problem(params, inputs[0], labels[0], inputs[1], labels[1], np.zeros(1))


@functools.cache
def image_model(shape: tuple[int, ...], seed: int) -> jb.models.Functional:
    """A network with one hidden layer for tiny images, else a convolutional one; in float64.

    Its outputs start at zero: chance would start one class at a lower loss, which then rises.
    """
    head = functools.partial(nnx.Linear, kernel_init=nnx.initializers.zeros)
    known: dict[str, Any] = {"head": head, "rngs": nnx.Rngs(seed)}
    if min(shape[:2]) < 16:
        module = jb.models.MLP(int(np.prod(shape)), 2, hidden=(32,), **known)
    else:
        module = jb.models.SmallCNN(shape, 2, **known)
    model = jb.models.functional(module)
    return model._replace(params=jax.tree.map(lambda x: x.astype(jnp.float64), model.params))


def images(
    dataset: jb.data.Dataset, groups: Any, counts: tuple[int, int], seed: int, rows: Any
) -> Problem:
    """Images of two groups of classes, by name, standardised by one mean and one deviation."""
    names = np.array(dataset.class_names)[dataset.labels]
    member = np.stack([np.isin(names, group) for group in groups])
    known, ids = np.flatnonzero(member.any(axis=0)), member.argmax(axis=0)
    two = {"seed": seed, "validation_fraction": 0.0, "test_fraction": 0.4}
    part = jb.data.stratified_split(ids[known], **two)
    train, test = known[part.train], known[part.test]
    size = min(TEST_EXAMPLES, *np.bincount(ids[test], minlength=2).tolist())
    train, test = (
        here[jb.data.long_tail_subset(ids[here], wanted, seed=seed)]
        for here, wanted in ((train, counts), (test, (size, size)))
    )
    train = train[np.argsort(ids[train], kind="stable")]
    inputs = [dataset.inputs[here].astype(np.float64) for here in (train, test)]
    mean, deviation = inputs[0].mean(), inputs[0].std()
    inputs = [(x - mean) / deviation for x in inputs]
    params = image_model(dataset.inputs.shape[1:], seed).params
    return Problem(params, inputs[0], ids[train], inputs[1], ids[test], rows)


def chain(method: str, size: Any) -> optax.GradientTransformation:
    """What is compared."""
    transforms = jb.transforms
    if method.endswith("+R"):
        combined = transforms.normalize_projections()
    else:
        normalized = method.startswith("PCN")
        combined = transforms.normalize_classes() if normalized else transforms.sum_classes()
    return optax.chain(combined, optax.sgd(size))


@functools.cache
def motion(apply: Any, method: str) -> tuple[Callable[..., Any], ...]:
    """Start, step and measure of a sweep; the same functions again, so that they compile once."""
    loss = jb.training.example_loss(apply, jb.losses.weighted_cross_entropy)
    oracle = jb.classgrads.auto_value_and_grad(loss, 2)

    def begin(size: Any, problem: Problem) -> Any:
        return jb.training.init_state(problem.params, chain(method, size))

    def step(state: Any, size: Any, problem: Problem, number: Any) -> Any:
        def full(state: Any) -> dict[str, Any]:
            return {"full_gradients": oracle(state.params, problem.inputs, problem.labels)[1]}

        extra = full if method.endswith("+R") else None
        move = jb.training.make_class_step(
            loss, chain(method, size), num_classes=2, extra_args=extra
        )
        if method in ("GD", "PCNGD"):
            return move(state, problem.inputs, problem.labels)[0]
        rows = problem.rows[number]
        return move(state, problem.inputs[rows], problem.labels[rows])[0]

    def measure(state: Any, size: Any, problem: Problem) -> Any:
        losses = loss(state.params, problem.inputs, problem.labels)
        hits = apply(state.params, problem.test_inputs).argmax(-1) == problem.test_labels
        each = class_means(losses, problem.labels)
        recall = class_means(hits.astype(losses.dtype), problem.test_labels)
        return losses.mean(), {"loss": each, "recall": recall}

    return begin, step, measure


def class_means(values: jax.Array, labels: jax.Array) -> jax.Array:
    """Of both classes ``[2]``."""
    sums = functools.partial(jb.counts.class_sums, labels=labels, num_classes=2)
    return sums(values) / sums(jnp.ones_like(values))


@functools.partial(jax.jit, static_argnums=0)
def projections(
    loss: Any, params: Any, inputs: jax.Array, labels: jax.Array, rows: jax.Array, batch: jax.Array
) -> tuple[jax.Array, ...]:
    """Of both classes: by the formula, the mean of those drawn, and expected progress."""

    def gradient(row: jax.Array, label: jax.Array) -> jax.Array:
        grads = jax.grad(lambda p: loss(p, row[None], label[None])[0])(params)
        return jax.flatten_util.ravel_pytree(grads)[0]

    def mean(grads: jax.Array, labels: jax.Array) -> jax.Array:
        members = jax.nn.one_hot(labels, 2, dtype=grads.dtype)
        return members.T @ grads / members.sum(axis=0)[:, None]

    each = jax.vmap(gradient)(inputs, labels)
    means, counts = mean(each, labels), jnp.bincount(labels, length=2)
    spread = mean(((each - means[labels]) ** 2).sum(axis=1, keepdims=True), labels)[:, 0]
    squares = (means**2).sum(axis=1)
    formula = jb.dynamics.batch_projection(squares, spread, batch, class_counts=counts)
    drawn = jax.lax.map(
        lambda row: jb.dynamics.directional_noise(mean(each[row], labels[row]), means), rows
    )
    return formula, drawn.mean(axis=0), jb.dynamics.noisy_progress(means @ means.T, formula)
