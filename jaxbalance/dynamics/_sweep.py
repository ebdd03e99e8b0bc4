"""Many training runs in one compiled program: every setting of a grid with every seed."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbalance import _check
from jaxbalance._types import Array, ArrayTree, HostArray, Params
from jaxbalance.classgrads import _loops

Start: TypeAlias = Callable[[Any, Any], Any]
"""``start(setting, seed) -> state``: where a run begins."""

Advance: TypeAlias = Callable[[Any, Any, Any, Array], Any]
"""``step(state, setting, seed, number) -> state``: step ``number`` (int32, from 0) of a run."""

Measure: TypeAlias = Callable[[Any, Any, Any], tuple[Array, Any]]
"""``measure(state, setting, seed) -> (loss, record)``: the training loss, and any tree to keep."""

MANY_FLOPS = 1e8
"""Work per step from which one run keeps a CPU busy, so that batching runs only costs memory."""

_BLOW_UP = 1.5


class Sweep(NamedTuple):
    """What a grid of runs left behind: G settings, S seeds, R recorded steps. Never NaN by itself.

    A run whose loss stops being finite repeats its very first record from there on.
    """

    steps: Array
    """Steps taken before each record, int32 ``[R]``: 0 first, all steps last."""
    loss: Array
    """Training losses ``[G, S, R]``; infinite only where not even the start was finite."""
    record: Any
    """What was measured beside the loss, leaves ``[G, S, R, ...]``."""
    diverged: Array
    """Whether a recorded loss was not finite, or the last is over 1.5 times the first, ``[G, S]``.
    """
    state: Any
    """Where each run ended, leaves ``[G, S, ...]``; its start, if its loss stopped being finite."""


class StepSizeChoice(NamedTuple):
    """The setting of a grid whose worst seed ends best."""

    position: Array
    """Of the setting in the grid, int32 ``[]``."""
    scores: Array
    """Final loss of each setting's worst seed, ``[G]``; a diverged run counts its starting loss."""
    diverged: Array
    """Whether any seed of the setting diverged, ``[G]``."""


class DescentState(NamedTuple):
    """Where a run of an optax chain stands."""

    params: Params
    """Parameters, any pytree."""
    opt_state: optax.OptState
    """State of the chain."""


class Descent(NamedTuple):
    """The two functions of a :func:`sweep` that move."""

    start: Start
    """``start(setting, seed) -> DescentState``."""
    step: Advance
    """``step(state, setting, seed, number) -> DescentState``."""


def log_spaced_steps(steps: int, *, num_records: int = 50) -> HostArray:
    """Steps at which to record a run that is to be drawn over a logarithmic axis.

    Args:
      steps: length of the run, at least 1.
      num_records: at most so many steps from 1 on; small steps that round to the same are one.

    Returns:
      Rising step numbers on the host, int32: 0, then about evenly spaced in the logarithm from 1 to
      ``steps``, both included.

    Raises:
      ValueError: an argument is not an integer >= 1.

    >>> log_spaced_steps(100, num_records=5).tolist()
    [0, 1, 3, 10, 32, 100]
    """
    _check.positive_integer(steps=steps, num_records=num_records)
    spaced = np.unique(np.rint(np.geomspace(1, steps, num_records)).astype(np.int32))
    return np.unique(np.concatenate([[0], spaced, [steps]])).astype(np.int32)


def descent(
    init: Callable[[Any], Params],
    gradient: Callable[[Params, Any, Any, Array], ArrayTree],
    optimizer: Callable[[Any], optax.GradientTransformation],
) -> Descent:
    r"""Runs of an optax chain, for :func:`sweep`.

    .. math:: \theta_{t+1} = \theta_t + \mathrm{update}(\nabla L_t(\theta_t))

    Args:
      init: ``init(seed) -> params``.
      gradient: ``gradient(params, setting, seed, number)``, such as ``jax.grad(loss)`` of a loss
        of the same arguments, over all examples or the mini-batch ``seed.rows[number]``;
        class-stacked gradients for a chain that begins by combining them.
      optimizer: ``optimizer(setting) -> chain``, such as ``optax.sgd`` for a grid of step sizes.

    Returns:
      ``Descent(start, step)``.

    >>> runs = descent(lambda seed: seed, lambda p, size, seed, number: 2.0 * p, optax.sgd)
    >>> state = runs.start(jnp.float32(0.25), jnp.float32(8.0))
    >>> runs.step(state, jnp.float32(0.25), jnp.float32(8.0), jnp.int32(0)).params
    Array(4., dtype=float32)
    """

    def start(setting: Any, seed: Any) -> DescentState:
        params = init(seed)
        return DescentState(params, optimizer(setting).init(params))

    def step(state: DescentState, setting: Any, seed: Any, number: Array) -> DescentState:
        grads = gradient(state.params, setting, seed, number)
        return DescentState(*updated(optimizer(setting), grads, state.opt_state, state.params))

    return Descent(start, step)


def sweep(
    start: Start,
    step: Advance,
    measure: Measure,
    grid: ArrayTree,
    seeds: ArrayTree,
    *,
    steps: int,
    record_at: Sequence[int] | HostArray | None = None,
    batched: bool | None = None,
) -> Sweep:
    """Train every setting of a grid with every seed, in one compiled program.

    Each run is one loop over steps that leaves the device nothing but its records. The program is
    compiled once for the same three functions, shapes and lengths: define the functions once.

    Args:
      start: ``start(setting, seed) -> state``, any pytree of arrays.
      step: ``step(state, setting, seed, number) -> state`` with the number of the step, int32 from
        0: a row of a mini-batch index matrix, or a fold into the seed's key. :func:`descent` makes
        both from a gradient and an optax chain.
      measure: ``measure(state, setting, seed) -> (loss, record)``: the training loss of the whole
        training set, a floating scalar that is not negative, and anything else to record.
      grid: the settings, leaves ``[G, ...]``: step sizes, or a tree of hyper-parameters that all
        programs of one shape can share.
      seeds: what differs between seeds, leaves ``[S, ...]``: keys, data sets, batches.
      steps: T >= 1.
      record_at: rising step numbers in 0 .. T, for example ``range(0, T, 10)`` or
        :func:`log_spaced_steps`; 0 and T are always recorded. None records every step.
      batched: True advances all runs together (``vmap``), False one after the other. None batches
        on accelerators, and on CPU if a step takes fewer than 1e8 floating-point operations. With
        None, and outside ``jit``, steps that hold a convolution are called one by one from Python
        on CPU, because XLA there runs convolutions many times slower inside loops.

    Returns:
      ``Sweep(steps, loss, record, diverged, state)``. A diverged run is flagged and never makes a
      NaN: from the first recorded loss that is not finite on, loss and record repeat those of the
      start. A NaN that ``measure`` itself puts in a record beside a finite loss stays.

    Raises:
      ValueError: ``steps`` is not an integer >= 1, ``record_at`` is not rising within 0 .. T, the
        leaves of ``grid`` or of ``seeds`` do not share a leading axis, or the loss is not a
        floating scalar.

    Source: the protocol of Kunstner et al. 2024, arXiv:2402.19449, as their code has it.

    >>> runs = descent(lambda seed: seed, lambda p, size, seed, number: 2.0 * p, optax.sgd)
    >>> result = sweep(*runs, lambda state, size, seed: (state.params**2, {}),
    ...                jnp.array([0.25, 5.0]), jnp.array([8.0]), steps=4, record_at=[0, 2])
    >>> result.steps, result.diverged[:, 0]
    (Array([0, 2, 4], dtype=int32), Array([False,  True], dtype=bool))
    >>> result.loss[0, 0]
    Array([64.  ,  4.  ,  0.25], dtype=float32)
    """
    marks = record_steps(steps, record_at)
    for name, tree in (("grid", grid), ("seeds", seeds)):
        _leading(name, tree)
    grid, seeds = jax.tree.map(jnp.asarray, (grid, seeds))
    if batched is None:
        if _from_python(start, step, grid, seeds):
            return _call_by_call(start, step, measure, marks, grid, seeds)
        batched = _light(start, step, grid, seeds)
    results = _compiled(start, step, measure, marks, batched, grid, seeds)
    return Sweep(jnp.asarray(marks, jnp.int32), *results)


def choose_step_size(result: Sweep) -> StepSizeChoice:
    r"""The setting whose worst seed has the smallest final training loss.

    .. math:: \arg\min_g \max_s L_{gs}, \qquad L_{gs} = \begin{cases}
              L_{gs}(0) & \text{diverged} \\ L_{gs}(T) & \text{otherwise} \end{cases}

    Args:
      result: from :func:`sweep` or :func:`linear_sweep`.

    Returns:
      ``StepSizeChoice(position, scores, diverged)``; of equal scores the first wins. If every
      setting diverged the choice says nothing about training: look at ``diverged``.

    Source: Kunstner et al. 2024, arXiv:2402.19449, as their code has it.

    >>> loss = jnp.array([[[4.0, 1.0], [4.0, 3.0]], [[4.0, 2.0], [4.0, 2.5]]])
    >>> runs = Sweep(jnp.array([0, 9]), loss, {}, jnp.zeros((2, 2), bool), {})
    >>> choose_step_size(runs).position, choose_step_size(runs).scores
    (Array(1, dtype=int32), Array([3. , 2.5], dtype=float32))
    """
    final = jnp.where(result.diverged, result.loss[..., 0], result.loss[..., -1])
    scores = jnp.max(final, axis=1)
    return StepSizeChoice(
        jnp.argmin(scores).astype(jnp.int32), scores, jnp.any(result.diverged, axis=1)
    )


def updated(
    tx: optax.GradientTransformation, grads: ArrayTree, opt_state: Any, params: Any
) -> tuple[Any, Any]:
    """New parameters and state of the chain; optax itself mixes dtypes, so strictness pauses."""
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state


def record_steps(steps: int, record_at: Sequence[int] | HostArray | None) -> tuple[int, ...]:
    """Checked step numbers to record at, 0 and the last included."""
    _check.positive_integer(steps=steps)
    if record_at is None:
        return tuple(range(steps + 1))
    marks = np.asarray(record_at)
    whole = marks.ndim == 1 and (marks.size == 0 or np.issubdtype(marks.dtype, np.integer))
    ends = np.concatenate([[-1], marks, [steps + 1]]) if whole else np.zeros(2)
    if not whole or np.any(np.diff(ends) <= 0):
        raise ValueError(
            f"record_at: got {marks.tolist()}, wanted rising step numbers in 0 .. steps={steps}"
        )
    return tuple(sorted({0, steps, *(int(mark) for mark in marks)}))


def record_run(
    step: Callable[[Any, Array], Any],
    measure: Callable[[Any], Any],
    state: Any,
    marks: tuple[int, ...],
) -> tuple[Any, Any]:
    """Take all steps; return the final state and what was measured at each mark, stacked."""
    gaps, look = set(np.diff(marks).tolist()), jax.jit(measure)  # Two calls of it, traced once.

    def to_next(state: Any, span: tuple[Array, Array]) -> tuple[Any, Any]:
        begin, length = span
        # A trip count known to the compiler saves an accelerator a look at the host every step.
        count = gaps.copy().pop() if len(gaps) == 1 else length
        state = jax.lax.fori_loop(0, count, lambda i, s: step(s, begin + i), state)
        return state, look(state)

    first = look(state)
    spans = jnp.asarray(marks[:-1], jnp.int32), jnp.asarray(np.diff(marks), jnp.int32)
    state, rest = jax.lax.scan(to_next, state, spans)
    joined = jax.tree.map(lambda a, b: jnp.concatenate([jnp.asarray(a)[None], b]), first, rest)
    return state, joined


def settle(start: Any, state: Any, loss: Array, record: Any) -> tuple[Array, Any, Array, Any]:
    """Losses ``[R]``, record, divergence and final state of one run, cleared of NaN."""
    finite = jnp.isfinite(loss)
    alive = jnp.cumsum(~finite) == 0
    first = jnp.where(finite[0], loss[0], jnp.full_like(loss[0], jnp.inf))
    # The first record stands, whatever it is.
    kept = alive.at[0].set(True)

    def hold(leaf: Array) -> Array:
        mask = kept.reshape(kept.shape + (1,) * (leaf.ndim - 1))
        return jnp.where(jnp.broadcast_to(mask, leaf.shape), leaf, leaf[:1])

    diverged = ~alive[-1] | (loss[-1] > _BLOW_UP * loss[0])
    last = jax.tree.map(lambda a, b: jnp.where(alive[-1], b, a), start, state)
    losses = jnp.where(alive, loss, jnp.broadcast_to(first, loss.shape))
    return losses, jax.tree.map(hold, record), diverged, last


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _compiled(
    start: Start,
    step: Advance,
    measure: Measure,
    marks: tuple[int, ...],
    batched: bool,
    grid: ArrayTree,
    seeds: ArrayTree,
) -> tuple[Array, Any, Array, Any]:
    def one(setting: Any, seed: Any) -> tuple[Array, Any, Array, Any]:
        first = start(setting, seed)
        state, (loss, record) = record_run(
            lambda state, number: step(state, setting, seed, number),
            lambda state: _seen(measure, state, setting, seed),
            first,
            marks,
        )
        return settle(first, state, loss, record)

    if batched:
        return jax.vmap(lambda g: jax.vmap(lambda s: one(g, s))(seeds))(grid)
    return jax.lax.map(lambda g: jax.lax.map(lambda s: one(g, s), seeds), grid)


def _call_by_call(
    start: Start,
    step: Advance,
    measure: Measure,
    marks: tuple[int, ...],
    grid: ArrayTree,
    seeds: ArrayTree,
) -> Sweep:
    """The same runs, with every step a call of a compiled function from Python."""
    begin, move, end = jax.jit(start), jax.jit(step), jax.jit(settle)
    look = jax.jit(partial(_seen, measure))

    def one(setting: Any, seed: Any) -> Any:
        first = state = begin(setting, seed)
        seen = [look(state, setting, seed)]
        for number in range(marks[-1]):
            state = move(state, setting, seed, jnp.int32(number))
            if number + 1 in marks:
                seen.append(look(state, setting, seed))
        loss, record = _stack(seen)
        return end(first, state, loss, record)

    def entry(tree: ArrayTree, index: int) -> ArrayTree:
        return jax.tree.map(lambda leaf: leaf[index], tree)

    rows = [
        _stack([one(entry(grid, g), entry(seeds, s)) for s in range(_leading("seeds", seeds))])
        for g in range(_leading("grid", grid))
    ]
    return Sweep(jnp.asarray(marks, jnp.int32), *_stack(rows))


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _leading(name: str, tree: ArrayTree) -> int:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            f"{name}: got leaves of shapes {shapes}, wanted one leading axis, of at least 1, that "
            "all leaves share"
        )
    return int(shapes[0][0])


def _first(start: Start, grid: ArrayTree, seeds: ArrayTree) -> tuple[Any, Any, Any]:
    """Shapes of a state, a setting and a seed."""
    setting, seed = jax.eval_shape(
        lambda trees: jax.tree.map(lambda leaf: leaf[0], trees), (grid, seeds)
    )
    return jax.eval_shape(start, setting, seed), setting, seed


def _seen(measure: Measure, state: Any, setting: Any, seed: Any) -> tuple[Array, Any]:
    """What ``measure`` says, with a loss that is one."""
    loss, record = measure(state, setting, seed)
    if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(
            f"measure: got a loss of shape {loss.shape} and dtype {loss.dtype}, wanted (loss, "
            "record) with a floating scalar first"
        )
    return loss, record


def _from_python(start: Start, step: Advance, grid: ArrayTree, seeds: ArrayTree) -> bool:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((grid, seeds))):
        return False
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return _loops.slow_in_loops(step, *_first(start, grid, seeds), number)


def _light(start: Start, step: Advance, grid: ArrayTree, seeds: ArrayTree) -> bool:
    """Whether a step leaves room on the device for others beside it."""
    if jax.default_backend() != "cpu":
        return True
    number = jax.ShapeDtypeStruct((), jnp.int32)
    account = jax.jit(step).lower(*_first(start, grid, seeds), number).cost_analysis()
    return float((account or {}).get("flops", 0.0)) < MANY_FLOPS
