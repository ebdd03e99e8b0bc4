"""Domains of unequal size that share a teacher, and runs that choose how to draw them."""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

import jaxbalance as jb

TEACHER_UNITS = 12


class Domains(NamedTuple):
    """Examples of all domains, sorted by domain, and the key of what a run draws.

    Of those held out the first half of every domain is for validation, the second to test.
    """

    inputs: Any
    labels: Any
    held_inputs: Any
    held_labels: Any
    key: Any


class Policy(NamedTuple):
    """How a run draws and weighs domains, ``[2, domains]``: before the switch and from it on."""

    draw: Any
    weight: Any
    switch: Any
    """First step of the second phase."""
    restart: Any
    """Whether the optimiser and its schedule begin anew there."""
    step_size: Any


def probabilities(sizes: Any, temperature: float) -> np.ndarray:
    """Of drawing every domain."""
    powers = np.asarray(sizes, float) ** (1 / temperature)
    return powers / powers.sum()


def draw_domains(config: Any, seed: int) -> Domains:
    """Teachers, then examples labelled by a draw from their soft answer."""
    generator = np.random.default_rng(seed)
    wide, domains = (config.dimension, TEACHER_UNITS), len(config.sizes)
    first = 1.5 * generator.normal(size=wide) / config.dimension**0.5
    last = 2 * generator.normal(size=(TEACHER_UNITS, config.classes)) / TEACHER_UNITS**0.5
    own = generator.normal(size=(domains, config.dimension, config.classes))
    own *= config.own_teacher / config.dimension**0.5
    parts: list[np.ndarray] = []
    for sizes in (config.sizes, (2 * config.test_examples,) * domains):
        domain = np.repeat(np.arange(domains), sizes)
        inputs = generator.normal(size=(len(domain), config.dimension))
        answer = np.tanh(inputs @ first) @ last + np.einsum("nd,ndc->nc", inputs, own[domain])
        labels = config.sharpness * answer + generator.gumbel(size=answer.shape)
        told = np.concatenate([inputs, np.eye(domains)[domain]], axis=1)
        parts += [told.astype(np.float32), labels.argmax(axis=1).astype(np.int32)]
    return Domains(*parts, key=None)


def all_seeds(config: Any) -> Domains:
    """Every seed's domains, stacked, with keys."""
    drawn = [draw_domains(config, seed)[:4] for seed in range(config.seeds)]
    keys = jax.random.split(jax.random.key(0), config.seeds)
    return Domains(*(np.stack(parts) for parts in zip(*drawn, strict=True)), key=keys)


def losses(params: Any, inputs: Any, labels: Any) -> jax.Array:
    """Cross entropy of every example."""
    logits = jnp.tanh(inputs @ params["kernel"] + params["bias"]) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def rows(config: Any, key: Any, draw: Any, number: int) -> tuple[jax.Array, jax.Array]:
    """Domain and row of examples: a domain by its probability, then any of its examples."""
    which, where = jax.random.uniform(key, (2, number))
    domain = jnp.sum(which[:, None] >= jnp.cumsum(draw)[:-1], axis=1)
    sizes = jnp.array(config.sizes)[domain]
    begins = jnp.array(np.cumsum((0, *config.sizes[:-1])))[domain]
    return domain, begins + jnp.minimum((where * sizes).astype(int), sizes - 1)


def batch_gradient(config: Any, params: Any, seed: Any, key: Any, draw: Any, weight: Any) -> Any:
    """Of one mini-batch."""
    domain, row = rows(config, key, draw, config.batch_size)

    def loss(params: Any) -> jax.Array:
        return jnp.mean(weight[domain] * losses(params, seed.inputs[row], seed.labels[row]))

    return jax.grad(loss)(params)


def domain_means(values: Any, sizes: tuple[int, ...]) -> jax.Array:
    """Mean of every domain's examples."""
    ends = np.cumsum((0, *sizes)).tolist()
    return jnp.stack([jnp.mean(values[a:b]) for a, b in itertools.pairwise(ends)])


def initial(config: Any, key: jax.Array) -> dict[str, jax.Array]:
    """Parameters of a network with one hidden layer."""
    first, last = jax.random.split(key)
    inputs, hidden = config.dimension + len(config.sizes), config.hidden
    return {
        "kernel": jax.random.normal(first, (inputs, hidden)) / config.dimension**0.5,
        "bias": jnp.zeros(hidden),
        "head": jax.random.normal(last, (hidden, config.classes)) / hidden**0.5,
    }


def look(config: Any, state: Any, policy: Policy, seed: Domains) -> tuple[jax.Array, Any]:
    """What the run minimises in the end, on all training examples; losses of every domain."""
    domains = len(config.sizes)
    halves = (config.test_examples,) * (2 * domains)
    train = domain_means(losses(state.params, seed.inputs, seed.labels), config.sizes)
    held = domain_means(losses(state.params, seed.held_inputs, seed.held_labels), halves)
    validation, test = held.reshape(domains, 2).T
    record = {"train": train, "validation": validation, "test": test}
    return train @ (policy.draw[1] * policy.weight[1]), record


@functools.cache
def functions(config: Any, steps: int, adaptive: bool) -> tuple[Any, Any, Any]:
    """What a sweep needs; the same ones for all policies, which are then one compiled program.

    Plain SGD with a constant step size, or Adam whose step size falls to zero along a cosine.
    """
    tx = optax.scale_by_adam() if adaptive else optax.identity()

    def start(policy: Policy, seed: Domains) -> Any:
        params = initial(config, seed.key)
        return jb.dynamics.DescentState(params, tx.init(params))

    def step(state: Any, policy: Policy, seed: Domains, number: jax.Array) -> Any:
        phase, key = (number >= policy.switch).astype(int), jax.random.fold_in(seed.key, number)
        one = policy.draw[phase], policy.weight[phase]
        grads = batch_gradient(config, state.params, seed, key, *one)
        again = policy.restart & (number == policy.switch)
        fresh = tx.init(state.params)
        old = jax.tree.map(lambda a, b: jnp.where(again, a, b), fresh, state.opt_state)
        updates, opt_state = tx.update(grads, old)
        begin = jnp.where(policy.restart & (phase == 1), policy.switch, 0)
        end = jnp.where(policy.restart & (phase == 0), policy.switch, steps)
        done = (number - begin) / (end - begin)
        size = policy.step_size * (0.5 + 0.5 * jnp.cos(jnp.pi * done) if adaptive else 1.0)
        updates = jax.tree.map(lambda leaf: -size * leaf, updates)
        return jb.dynamics.DescentState(optax.apply_updates(state.params, updates), opt_state)

    return start, step, functools.partial(look, config)


def run(config: Any, policies: list[Policy], steps: int, *, adaptive: bool = False) -> Any:
    """A sweep over policies of all seeds."""
    grid = jax.tree.map(lambda *leaves: np.stack(leaves), *policies)
    marks = np.unique(np.linspace(0, steps, min(config.records, steps) + 1).astype(int))
    # What domains have of their own is in the data: it is no reason to compile once more.
    three = functions(dataclasses.replace(config, own_teacher=0.0), steps, adaptive)
    result = jb.dynamics.sweep(*three, grid, all_seeds(config), steps=steps, record_at=marks)
    return jax.device_get(result)


def gradients(params: Any, seed: Domains) -> np.ndarray:
    """Of every training example, flat, in float64."""
    with jax.enable_x64(True):
        flat, back = jax.flatten_util.ravel_pytree(jax.tree.map(np.float64, params))
        one = jax.grad(lambda flat, inputs, label: losses(back(flat), inputs, label))
        every = jax.jit(jax.vmap(one, in_axes=(None, 0, 0)))
        return np.asarray(every(flat, np.float64(seed.inputs), seed.labels))


def host_means(values: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Mean of every domain's examples, in the dtype given."""
    return np.array([part.mean() for part in np.split(values, np.cumsum(sizes)[:-1])])


def spread(values: np.ndarray) -> list[float]:
    """Mean, lowest, highest."""
    return [round(float(x), 4) for x in (values.mean(), values.min(), values.max())]
