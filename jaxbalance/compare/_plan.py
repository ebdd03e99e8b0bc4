"""What a compiled program is made of: what is fixed in it, what all runs read, what differs."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxbalance import data, models, samplers
from jaxbalance._types import Array, HostArray, Params
from jaxbalance.compare._augmentations import NONE, Augmentation
from jaxbalance.compare._draws import LATE, SEGMENTS, Draw
from jaxbalance.compare._methods import Training, split_arguments
from jaxbalance.compare._task import Task

_CURVE_EXAMPLES = 300
_DRAW_SEED = 1_000_003


class Budget(NamedTuple):
    """What every method gets, alike."""

    steps: int
    batch_size: int
    step_sizes: tuple[float, ...]
    model: str
    """``linear``, ``mlp`` or ``cnn``."""


class Network(NamedTuple):
    """What is trained; trainings with equal heads have the same."""

    build: Callable[[Array], models.Functional]
    initial: Callable[[int, bool], Params]
    """``(seeds, fresh) -> params``, one network per seed, or another one for ``fresh`` heads."""
    apply: Callable[[Params, Array], Array]
    features: Callable[[Params, Array], Array]


class Plan(NamedTuple):
    """What is fixed in a compiled program."""

    training: Training
    """Any of those that the program serves."""
    network: Network
    num_classes: int
    phases: tuple[int, ...]
    """Steps of every cosine schedule, one after the other."""
    one_by_one: bool


class Shared(NamedTuple):
    """What all runs read; an argument of the programs, so that no data are compiled into them."""

    inputs: Array
    labels: Array
    train: Array
    validation: Array
    test: Array
    curve: Array
    standardizer: data.Standardizer
    prepared: Any
    """What the augmentation made of each seed's training rows."""


class Runs(NamedTuple):
    """What differs between runs; every leaf has a leading axis of runs."""

    learning_rate: Array
    seed: Array
    arguments: Any
    class_counts: Array
    rows: Array
    """``[R, segments, steps, B]``"""


def model_builder(
    shape: Sequence[int], num_classes: int, *, model: str, head: Any
) -> Callable[[Array], models.Functional]:
    """A function from a key to a freshly initialised model for inputs of the given shape."""

    def build(key: Array) -> models.Functional:
        rngs = nnx.Rngs(key)
        if model == "cnn":
            return models.functional(models.SmallCNN(shape, num_classes, head=head, rngs=rngs))
        hidden = () if model == "linear" else (128,)
        features = int(np.prod(shape))
        return models.functional(
            models.MLP(features, num_classes, hidden=hidden, head=head, rngs=rngs)
        )

    return build


def task_builder(
    task: Task, budget: Budget, training: Training
) -> Callable[[Array], models.Functional]:
    """:func:`model_builder` for the model that a training gives a task.

    Columns that were added to a task get weights of zero, and the others those they would have had.
    """
    maker = partial(
        model_builder, num_classes=task.num_classes, model=budget.model, head=training.head
    )
    build = maker(task.inputs.shape[1:])
    if task.inputs.shape[1:] == task.shape:
        return build
    own = maker(task.shape)

    def widened(key: Array) -> models.Functional:
        wide = build(key)
        return wide._replace(params=jax.tree.map(_filled_up, own(key).params, wide.params))

    return widened


def _filled_up(leaf: Array, like: Array) -> Array:
    widths = [(0, wide - own) for own, wide in zip(leaf.shape, like.shape, strict=True)]
    return jnp.pad(leaf, widths)


def make_network(task: Task, budget: Budget, training: Training) -> Network:
    """The network of a training and of those that have its head."""
    build = task_builder(task, budget, training)
    model = build(jax.random.key(0))
    return Network(build, cache(partial(_initial, build)), model.apply, model.features)


def make_plan(
    task: Task, budget: Budget, training: Training, network: Network | None = None
) -> Plan:
    """The plan of a training and of those that share its program; None makes the network."""
    if training.link is not None and training.augmentation is not NONE:
        raise ValueError("training: got a link and an augmentation, wanted one of them at most")
    early = budget.steps // SEGMENTS * LATE
    return Plan(
        training=training,
        network=make_network(task, budget, training) if network is None else network,
        num_classes=task.num_classes,
        phases=(early, budget.steps - early) if training.decoupled else (budget.steps,),
        # Convolutions fill the cores by themselves: on CPU one run after the other is faster
        # (experiments/benchmarks/convolution_loops.py); everything else gains from batching.
        one_by_one=budget.model == "cnn" and jax.default_backend() == "cpu",
    )


def _initial(build: Callable[[Array], models.Functional], seeds: int, fresh: bool) -> Params:
    keys = [jax.random.key(seed) for seed in range(seeds)]
    if fresh:
        keys = [jax.random.fold_in(key, 1) for key in keys]
    networks = [build(key).params for key in keys]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)


def make_shared(task: Task, augmentation: Augmentation) -> Shared:
    """Data on the device, and what the augmentation has to know of them."""
    curve = np.stack([_curve_rows(rows, task.dataset.labels[rows]) for rows in task.test])
    return Shared(
        inputs=task.inputs,
        labels=task.labels,
        train=jnp.asarray(task.train, jnp.int32),
        validation=jnp.asarray(task.validation, jnp.int32),
        test=jnp.asarray(task.test, jnp.int32),
        curve=jnp.asarray(curve, jnp.int32),
        standardizer=jax.tree.map(jnp.asarray, task.standardizer),
        prepared=_prepare(task, augmentation),
    )


def _curve_rows(rows: HostArray, labels: HostArray) -> HostArray:
    """A few test rows with every class in it, as evenly as the test set allows."""
    rank = np.full(len(rows), len(rows))
    for k in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == k)
        rank[members] = np.arange(len(members))
    return rows[np.sort(np.argsort(rank, kind="stable")[:_CURVE_EXAMPLES])]


def _prepare(task: Task, augmentation: Augmentation) -> Any:
    prepare = augmentation.prepare
    if prepare is None:
        return ()
    seeds = jnp.asarray(task.train, jnp.int32), jax.tree.map(jnp.asarray, task.standardizer)
    class_counts = jnp.asarray(task.class_counts, jnp.float32)
    return _prepare_seeds(prepare, seeds, task.inputs, task.labels, class_counts)


@partial(jax.jit, static_argnums=0)
def _prepare_seeds(
    prepare: Callable[[Array, Array, Array], Any],
    seeds: tuple[Array, data.Standardizer],
    inputs: Array,
    labels: Array,
    class_counts: Array,
) -> Any:
    def one(seed: tuple[Array, data.Standardizer]) -> Any:
        rows, standardizer = seed
        known = jnp.full_like(labels, -1).at[rows].set(labels[rows])
        return prepare(data.standardize(standardizer, inputs), known, class_counts)

    # One seed after the other, for the memory of one.
    return jax.lax.map(one, seeds)


def make_runs(task: Task, budget: Budget, trainings: Sequence[Training]) -> Runs:
    """Runs in the order (training, seed, step size); what does not vary is repeated."""
    seeds, rates = len(task.train), len(budget.step_sizes)
    class_counts = jnp.asarray(task.class_counts, jnp.float32)
    arguments = [split_arguments(training, class_counts) for training in trainings]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arguments)
    rows = jnp.concatenate([_draw(task, budget, training.draw) for training in trainings])
    return Runs(
        learning_rate=jnp.tile(jnp.asarray(budget.step_sizes, jnp.float32), len(trainings) * seeds),
        seed=jnp.tile(jnp.repeat(jnp.arange(seeds), rates), len(trainings)),
        arguments=jax.tree.map(lambda leaf: jnp.repeat(leaf, seeds * rates, axis=0), stacked),
        class_counts=jnp.tile(class_counts, (len(trainings) * seeds * rates, 1)),
        rows=jnp.repeat(rows, rates, axis=0),
    )


def _draw(task: Task, budget: Budget, draw: Draw) -> Array:
    def one(seed: Array, index: samplers.ClassIndex) -> Array:
        sizes = {"batch_size": budget.batch_size, "steps": budget.steps}
        return draw(jax.random.key(seed), index, task.class_counts, **sizes)

    # Not compiled as a whole: the samplers' own programs serve several draws, and other tasks.
    seeds = jnp.arange(len(task.train)) + _DRAW_SEED
    rows = jax.vmap(one)(seeds, task.class_index)
    return rows.reshape(len(seeds), SEGMENTS, -1, budget.batch_size)


def reader(shared: Shared, seed: Array) -> Callable[[Array], Array]:
    """From rows of the data to inputs, standardised as a seed's training rows say."""
    standardizer = of_seed(shared.standardizer, seed)
    return lambda rows: data.standardize(standardizer, shared.inputs[rows])


def of_seed(tree: Any, seed: Array) -> Any:
    """One seed's part of what has a leading axis of seeds."""
    return jax.tree.map(lambda leaf: leaf[seed], tree)


def over_runs(plan: Plan, one: Callable[[Any], Any], carried: Any) -> Any:
    """Apply a function to every run."""
    return jax.lax.map(one, carried) if plan.one_by_one else jax.vmap(one)(carried)
