"""Many runs in one compiled program: every seed and step size of every training of one shape."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbalance import classgrads, training
from jaxbalance._types import Array, ArrayTree, HostArray, Params
from jaxbalance.compare._augmentations import Batch
from jaxbalance.compare._corrections import Refit
from jaxbalance.compare._draws import LATE, SEGMENTS
from jaxbalance.compare._evaluate import evaluate, recall, refitted
from jaxbalance.compare._heads import join, without_body
from jaxbalance.compare._methods import Training
from jaxbalance.compare._plan import (
    Budget,
    Network,
    Plan,
    Runs,
    Shared,
    make_network,
    make_plan,
    make_runs,
    make_shared,
    of_seed,
    over_runs,
    reader,
)
from jaxbalance.compare._task import Task

Wanted = tuple[Training, Refit | None]
"""A training, and what makes a new last layer of its features; None keeps the trained one."""
Memory = dict[Any, Any]
"""What was compiled for earlier tasks, and serves later ones of equal shapes."""
Segment = Callable[..., tuple[training.TrainState, Array]]
"""``(states, runs, shared, part) -> (states, recall)``; takes the states' memory."""
_Made = TypeVar("_Made")


class Outcome(NamedTuple):
    """All runs of one training, on the host: seeds S, step sizes L, classes K."""

    validation_logits: HostArray
    """``[S, L, n, K]``"""
    test_logits: HostArray
    """``[S, L, m, K]``"""
    curve: HostArray
    """Recall of each class on (part of) the test set along training, ``[S, L, segments, K]``."""
    params: Params
    """Final parameters, leading axes ``[S, L]``."""


class Readings(NamedTuple):
    """What serves all trainings of equal networks, of all tasks of equal shapes."""

    evaluate: Callable[..., Any]
    """``(params, seeds, shared) -> (validation logits, test logits)``"""
    refitted: Callable[[Refit], Callable[..., Params]]
    """``refit -> ((params, seeds, shared) -> params)``"""


class Programs(NamedTuple):
    """All that one training needs: its plan, and programs that others may share."""

    plan: Plan
    traces: list[Plan]
    """One entry for every compilation of ``segment``."""
    segment: Segment
    readings: Readings


def train_group(
    task: Task,
    budget: Budget,
    wanted: Sequence[Wanted],
    report: Callable[[float], None],
    memory: Memory | None = None,
) -> tuple[list[Outcome], int]:
    """Train every seed and step size of trainings that share one compiled program.

    Args:
      task: the data.
      budget: steps, batch size, step sizes, model.
      wanted: what to train, and to refit afterwards; trainings with equal :func:`program`.
      report: called with the fraction done after every segment.
      memory: where networks and programs are kept for later calls, of this task or of others of
        equal shapes; None keeps none.

    Returns:
      One outcome per wanted, and how often the training program was compiled: once, or not at all
      where ``memory`` had it.
    """
    trainings = list(dict.fromkeys(training for training, _ in wanted))
    programs = _programs(task, budget, trainings[0], {} if memory is None else memory)
    before = len(programs.traces)
    shared = make_shared(task, trainings[0].augmentation)
    runs = make_runs(task, budget, trainings)
    curves = []
    for states, recalls in run_segments(programs.plan, runs, shared, programs.segment):
        params = states.params
        curves.append(np.asarray(recalls))
        report(len(curves) / SEGMENTS)
    # Readings are the same programs whatever an augmentation has to know.
    shared = shared._replace(prepared=())
    grid = (len(trainings), len(task.train) * len(budget.step_sizes))
    split = partial(jax.tree.map, lambda leaf: leaf.reshape(grid + leaf.shape[1:]))
    seeds, trained, curve = runs.seed[: grid[1]], split(params), split(np.stack(curves, axis=1))
    outcomes = []
    for made, refit in wanted:
        i = trainings.index(made)
        own = jax.tree.map(lambda leaf, i=i: leaf[i], trained)
        if refit is not None:
            own = programs.readings.refitted(refit)(own, seeds, shared)
        validation, test = programs.readings.evaluate(own, seeds, shared)
        outcomes.append(_outcome(budget, Outcome(validation, test, curve[i], own)))
    return outcomes, len(programs.traces) - before


def _programs(task: Task, budget: Budget, training: Training, memory: Memory) -> Programs:
    """Those in memory, with the plan of this very task."""
    sizes = budget, task.inputs.shape[1:], task.num_classes
    network = _kept(
        memory,
        (Network, training.head, sizes, task.shape),
        lambda: make_network(task, budget, training),
    )
    plan = make_plan(task, budget, training, network)
    readings = _kept(memory, (Readings, training.head, sizes), lambda: _compile_readings(plan))
    traces, segment = _kept(
        memory, (Segment, program(training), sizes), lambda: compile_segment(plan)
    )
    return Programs(plan, traces, segment, readings)


def _compile_readings(plan: Plan) -> Readings:
    @cache
    def refitting(refit: Refit) -> Callable[..., Params]:
        return jax.jit(partial(refitted, plan, refit))

    return Readings(jax.jit(partial(evaluate, plan)), refitting)


def _kept(memory: Memory, key: Any, make: Callable[[], _Made]) -> _Made:
    if key not in memory:
        memory[key] = make()
    made: _Made = memory[key]
    return made


def _outcome(budget: Budget, flat: Outcome) -> Outcome:
    rates = len(budget.step_sizes)
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, rates, *leaf.shape[1:]), flat)


def program(training: Training) -> Any:
    """What trainings of one compiled program have in common, besides their arguments' shapes."""
    return (
        training.loss,
        training.head,
        training.link,
        training.augmentation,
        training.decoupled,
    )


def compile_segment(plan: Plan) -> tuple[list[Plan], Segment]:
    """A segment of training, and a list that gets an entry for every compilation of it."""
    traces: list[Plan] = []

    def segment(*arguments: Any) -> tuple[training.TrainState, Array]:
        traces.append(plan)
        return _segment(plan, *arguments)

    return traces, jax.jit(segment, donate_argnums=0)


def run_segments(
    plan: Plan, runs: Runs, shared: Shared, segment: Segment
) -> Iterator[tuple[training.TrainState, Array]]:
    """Train, and give states (until the next segment takes their memory) and recall as they come.

    ``segment`` is that of :func:`compile_segment`, for this plan or one of equal shapes.
    """
    states = _start(plan, runs)
    for part in range(SEGMENTS):
        if plan.training.decoupled and part == LATE:
            states = _with_new_heads(plan, states, runs)
        states, recalls = segment(states, runs, shared, jnp.asarray(part))
        yield states, recalls


def _optimizer(plan: Plan, run: Runs, late: Array) -> optax.GradientTransformation:
    schedules = [optax.cosine_decay_schedule(1.0, steps) for steps in plan.phases]

    def rate(step: Array) -> Array:
        return run.learning_rate * jnp.where(late, schedules[-1](step), schedules[0](step))

    links = [optax.adam(rate)]
    if plan.training.link is not None:
        links = [plan.training.link(run.class_counts), *links]
    if plan.training.decoupled:
        links = [*links, optax.stateless(lambda updates, _: without_body(updates, late))]
    return optax.chain(*links)


def _step(plan: Plan, run: Runs, shared: Shared, late: Array) -> training.Step[Any]:
    """A step that takes rows of the data for inputs."""
    tx, read = _optimizer(plan, run, late), reader(shared, run.seed)
    arguments = jax.tree.map(lambda leaf: leaf[late.astype(jnp.int32)], run.arguments)
    loss = partial(plan.training.loss, **arguments)
    if plan.training.link is not None:
        oracle = partial(classgrads.recorded_value_and_grad, check_coupling=False)
        of_rows = training.example_loss(
            lambda params, rows: plan.network.apply(params, read(rows)), loss
        )
        return training.make_class_step(of_rows, tx, num_classes=plan.num_classes, oracle=oracle)
    prepared = of_seed(shared.prepared, run.seed)

    def changed(
        params: Params, model_state: ArrayTree, key: Array, rows: Array, labels: Array
    ) -> tuple[Array, ArrayTree]:
        batch = Batch(read(rows), labels, rows, run.class_counts, read)
        inputs, targets = plan.training.augmentation.change(key, batch, prepared)
        return loss(plan.network.apply(params, inputs), targets), model_state

    return training.make_stateful_step(changed, tx, num_classes=plan.num_classes)


def _start(plan: Plan, runs: Runs) -> training.TrainState:
    # The same initial network for every method and step size: differences are the method's.
    def start(params: Params, run: Runs) -> training.TrainState:
        tx = _optimizer(plan, run, jnp.asarray(False))
        return training.init_state(params, tx, key=jax.random.key(run.seed))

    return jax.vmap(start)(_networks(plan, runs, fresh=False), runs)


def _networks(plan: Plan, runs: Runs, *, fresh: bool) -> Params:
    stacked = plan.network.initial(int(jnp.max(runs.seed)) + 1, fresh)
    return jax.tree.map(lambda leaf: leaf[runs.seed], stacked)


def _with_new_heads(plan: Plan, states: training.TrainState, runs: Runs) -> training.TrainState:
    """New heads on the bodies as they are, and optimisers at their beginning."""
    fresh = _networks(plan, runs, fresh=True)

    def restart(params: Params, run: Runs) -> Any:
        return _optimizer(plan, run, jnp.asarray(True)).init(params)

    params = join(states.params, fresh)
    return states._replace(params=params, opt_state=jax.vmap(restart)(params, runs))


def _segment(
    plan: Plan, states: training.TrainState, runs: Runs, shared: Shared, part: Array
) -> tuple[training.TrainState, Array]:
    places = jnp.arange(shared.labels.size)

    def one(carried: tuple[training.TrainState, Runs]) -> tuple[training.TrainState, Array]:
        state, run = carried
        step = _step(plan, run, shared, part >= LATE)
        rows = run.rows[part]
        state, _ = training.run_steps(step, state, places, shared.labels, rows, scan=True)
        return state, recall(plan, state.params, run.seed, shared)

    return over_runs(plan, one, (states, runs))
