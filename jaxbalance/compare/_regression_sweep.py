"""Many regressions in one compiled program: every seed and step size of every method of a kind."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbalance import losses, metrics, training
from jaxbalance._types import Array, ArrayTree, HostArray, Params
from jaxbalance.compare._augmentations import NONE
from jaxbalance.compare._draws import SEGMENTS, Draw
from jaxbalance.compare._evaluate import outputs
from jaxbalance.compare._plan import Budget, Shared, make_shared, of_seed, reader
from jaxbalance.compare._regression_methods import (
    CLASSES,
    Bins,
    RegressionMethod,
    Truth,
    Weigh,
)
from jaxbalance.compare._regression_network import Regressor, over_runs, predict, regressor
from jaxbalance.compare._regression_task import RegressionTask
from jaxbalance.samplers import ClassIndex

_DRAW_SEED = 1_000_003


class RegressionOutcome(NamedTuple):
    """All runs of one method, on the host: seeds S, step sizes L."""

    validation: HostArray
    """Predictions ``[S, L, n]``, in the standard deviations of the seed's training targets."""
    test: HostArray
    """``[S, L, m]``"""
    curve: HostArray
    """MAE of each bin on (part of) the validation set along training, ``[S, L, segments, M]``."""
    params: Params
    """Final parameters, leading axes ``[S, L]``."""


class _Plan(NamedTuple):
    """What is fixed in a compiled program."""

    method: RegressionMethod
    """Any of those that the program serves."""
    network: Regressor
    steps: int
    num_bins: int


class _Shared(NamedTuple):
    """What all runs read; an argument of the programs, so that no data are compiled into them."""

    data: Shared
    """Its labels are bins, its learning curve is of validation rows."""
    targets: Array
    """``[S, N]``"""
    statistics: Bins
    """With a leading axis of seeds."""
    weights: Array
    """``[methods, S, N]``"""
    rows: Array
    """``[methods, S, segments, steps, B]``"""


class _Runs(NamedTuple):
    """What differs between runs, in the order (method, seed, step size)."""

    learning_rate: Array
    seed: Array
    method: Array


def program(method: RegressionMethod) -> Any:
    """What methods of one compiled program have in common."""
    return method.objective, method.smooths_features


def train_regressions(
    task: RegressionTask,
    budget: Budget,
    methods: Sequence[RegressionMethod],
    report: Callable[[float], None],
) -> tuple[list[RegressionOutcome], int]:
    """Train every seed and step size of methods that share one compiled program.

    Args:
      task: the data.
      budget: steps, batch size, step sizes, model.
      methods: with equal :func:`program`.
      report: called with the fraction done after every segment.

    Returns:
      One outcome per method, and how often the training program was compiled (once).
    """
    plan, shared = _plan(task, budget, methods[0]), share(task, budget, methods)
    runs = _runs(len(methods), len(task.center), budget)
    params, curve, compilations = _train(plan, runs, shared, report)
    found = _evaluate(plan.network, params, runs, shared.data)
    shape = (len(methods), len(task.center), len(budget.step_sizes))
    host = jax.tree.map(
        lambda leaf: np.asarray(leaf).reshape(shape + leaf.shape[1:]), (*found, curve, params)
    )
    outcomes = [
        RegressionOutcome(*jax.tree.map(lambda leaf, i=i: leaf[i], host))
        for i in range(len(methods))
    ]
    return outcomes, compilations


def _plan(task: RegressionTask, budget: Budget, method: RegressionMethod) -> _Plan:
    return _Plan(
        method=method,
        network=regressor(task.split.inputs.shape[1:], model=budget.model),
        steps=budget.steps,
        num_bins=task.num_bins,
    )


def _runs(methods: int, seeds: int, budget: Budget) -> _Runs:
    rates = jnp.asarray(budget.step_sizes, jnp.float32)
    grid = jnp.meshgrid(jnp.arange(methods), jnp.arange(seeds), rates, indexing="ij")
    method, seed, rate = (axis.reshape(-1) for axis in grid)
    return _Runs(rate, seed, method)


def share(task: RegressionTask, budget: Budget, methods: Sequence[RegressionMethod]) -> _Shared:
    """Data on the device, with the weights and the rows of every method."""
    split, targets = task.split, jnp.asarray(task.standardized)
    train = jnp.asarray(split.train, jnp.int32)
    trained = np.take_along_axis(task.standardized, split.train, axis=1)
    statistics = Bins(
        edges=jnp.asarray(task.standardized_edges),
        counts=jnp.tile(jnp.asarray(split.class_counts, jnp.float32), (len(train), 1)),
        centers=jnp.asarray(_centers(task, trained)),
        class_edges=jnp.asarray(np.stack([_class_edges(values) for values in trained])),
    )

    rows = {draw: _rows(task, budget, draw) for draw in {method.draw for method in methods}}
    # Learning curves are of what is held out last: here of validation rows, not of test rows.
    held_out = make_shared(split._replace(test=split.validation), NONE)
    return _Shared(
        data=held_out._replace(test=jnp.asarray(split.test, jnp.int32)),
        targets=targets,
        statistics=statistics,
        weights=jnp.stack(
            [_weights(m.weigh, train, targets, split.labels, statistics) for m in methods]
        ),
        rows=jnp.stack([rows[method.draw] for method in methods]),
    )


def _centers(task: RegressionTask, trained: HostArray) -> HostArray:
    """Those of :class:`Bins`, ``[S, M]``; 0 for an empty bin."""
    ids, sizes = task.split.dataset.labels[task.split.train], task.split.class_counts
    sums = np.stack([np.bincount(b, t, task.num_bins) for b, t in zip(ids, trained, strict=True)])
    centers = sums / np.maximum(sizes, 1)[None]
    occupied = np.flatnonzero(sizes)
    centers[:, occupied[0]] = trained.min(axis=1)
    centers[:, occupied[-1]] = trained.max(axis=1)
    return centers.astype(np.float32)


def _class_edges(targets: HostArray) -> HostArray:
    """Edges of about equally large classes, those of merged ones moved beyond all targets."""
    edges = np.full(CLASSES + 1, np.inf, np.float32)
    if np.ptp(targets) > 0:
        found = losses.equalized_edges(targets, num_bins=CLASSES)
        edges[: len(found) - 1] = found[:-1]
    return edges


@partial(jax.jit, static_argnums=0)
def _weights(weigh: Weigh, train: Array, targets: Array, bins: Array, statistics: Bins) -> Array:
    """``[S, N]``, 0 outside the training rows."""

    def one(seed: tuple[Array, Array, Bins]) -> Array:
        rows, values, known = seed
        weights = weigh(values[rows], bins[rows], known)
        return jnp.zeros_like(values).at[rows].set(weights)

    # One seed after the other, for the memory of one.
    return jax.lax.map(one, (train, targets, statistics))


def _rows(task: RegressionTask, budget: Budget, draw: Draw) -> Array:
    """Rows of every step, ``[S, segments, steps, B]``."""

    def one(seed: Array, index: ClassIndex) -> Array:
        sizes = {"batch_size": budget.batch_size, "steps": budget.steps}
        return draw(jax.random.key(seed), index, task.split.class_counts, **sizes)

    # Not compiled as a whole: the samplers' own programs serve several draws.
    seeds = jnp.arange(len(task.center)) + _DRAW_SEED
    rows = jax.vmap(one)(seeds, task.split.class_index)
    return rows.reshape(len(seeds), SEGMENTS, -1, budget.batch_size)


def _train(
    plan: _Plan, runs: _Runs, shared: _Shared, report: Callable[[float], None]
) -> tuple[Params, HostArray, int]:
    """Final parameters and curves of all runs, and how often the program was compiled."""
    traces: list[_Plan] = []

    def segment(*arguments: Any) -> training.TrainState:
        traces.append(plan)
        return _segment(plan, *arguments)

    compiled = jax.jit(segment, donate_argnums=0)
    states, curve = _start(plan, runs), []
    for part in range(SEGMENTS):
        states = compiled(states, runs, shared, jnp.asarray(part))
        errors = _errors(plan.network, plan.num_bins, states.params, runs, shared)
        curve.append(np.asarray(errors))
        report((part + 1) / SEGMENTS)
    return states.params, np.stack(curve, axis=1), len(traces)


def _start(plan: _Plan, runs: _Runs) -> training.TrainState:
    # The same initial network for every method and step size: differences are the method's.
    fresh = [plan.network.start(seed) for seed in range(int(jnp.max(runs.seed)) + 1)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves)[runs.seed], *fresh)
    kernel: Any = fresh[0]
    width = kernel["classes"]["kernel"].shape[0]

    def start(params: Params, run: _Runs) -> training.TrainState:
        state: ArrayTree = ()
        if plan.method.smooths_features:
            state = losses.init_feature_smoothing_state(
                num_buckets=plan.num_bins, num_features=width
            )
        key = jax.random.key(run.seed)
        return training.init_state(params, _optimizer(plan, run), model_state=state, key=key)

    return jax.vmap(start)(params, runs)


def _optimizer(plan: _Plan, run: _Runs) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(1.0, plan.steps)
    return optax.adam(lambda step: run.learning_rate * schedule(step))


def _segment(
    plan: _Plan, states: training.TrainState, runs: _Runs, shared: _Shared, part: Array
) -> training.TrainState:
    bins = shared.data.labels
    places = jnp.arange(bins.size)

    def one(carried: tuple[training.TrainState, _Runs]) -> training.TrainState:
        state, run = carried
        step = training.make_stateful_step(
            _loss(plan, run, shared), _optimizer(plan, run), num_classes=plan.num_bins
        )
        rows = shared.rows[run.method, run.seed, part]
        state, _ = training.run_steps(step, state, places, bins, rows, scan=True)
        if not plan.method.smooths_features:
            return state
        window = losses.gaussian_window()
        folded = losses.fold_feature_statistics(state.model_state, window=window)
        return state._replace(model_state=folded)

    return over_runs(plan.network, one, (states, runs))


def _loss(plan: _Plan, run: _Runs, shared: _Shared) -> training.StatefulLoss:
    """The loss of a batch that is given by its rows; its labels are bins."""
    read, network = reader(shared.data, run.seed), plan.network
    targets, weights = shared.targets[run.seed], shared.weights[run.method, run.seed]
    statistics = of_seed(shared.statistics, run.seed)

    def loss(
        params: Params, model_state: Any, key: Array, rows: Array, bins: Array
    ) -> tuple[Array, Any]:
        del key
        features = network.features(params, read(rows))
        if plan.method.smooths_features:
            smoothed = losses.smooth_features(features, bins, model_state)
            model_state = losses.add_feature_statistics(features, bins, model_state)
            features = smoothed
        known = jnp.where(bins >= 0, targets[rows], jnp.nan)
        truth = Truth(known, weights[rows])
        return plan.method.objective(
            network.guess(params, features), truth, statistics
        ), model_state

    return loss


@partial(jax.jit, static_argnums=(0, 1))
def _errors(
    network: Regressor, num_bins: int, params: Params, runs: _Runs, shared: _Shared
) -> Array:
    """MAE of each bin of all runs ``[R, M]``, on the rows of the learning curve."""

    def one(carried: tuple[Params, _Runs]) -> Array:
        params, run = carried
        rows = shared.data.curve[run.seed]
        errors = metrics.regression_errors(
            _predictions(network, params, rows, run, shared.data),
            shared.targets[run.seed, rows],
            shared.data.labels[rows],
            num_bins=num_bins,
        )
        return metrics.mean_absolute_error(errors)

    errors: Array = over_runs(network, one, (params, runs))
    return errors


@partial(jax.jit, static_argnums=0)
def _evaluate(
    network: Regressor, params: Params, runs: _Runs, shared: Shared
) -> tuple[Array, Array]:
    """Validation and test predictions of all runs."""

    def one(carried: tuple[Params, _Runs]) -> tuple[Array, Array]:
        params, run = carried
        return (
            _predictions(network, params, shared.validation[run.seed], run, shared),
            _predictions(network, params, shared.test[run.seed], run, shared),
        )

    found: tuple[Array, Array] = over_runs(network, one, (params, runs))
    return found


def _predictions(
    network: Regressor, params: Params, rows: Array, run: _Runs, shared: Shared
) -> Array:
    return outputs(partial(predict, network), params, rows, run.seed, shared)
