"""Training in phases: the same data and model, another loss, sampler, optimiser or part of it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optax

from jaxbalance._types import ArrayLike, ArrayTree, Params
from jaxbalance.training._run import run_steps
from jaxbalance.training._state import Step, TrainState


class Phase(NamedTuple):
    """One phase of :func:`run_phases`."""

    step: Step[Any]
    """From :func:`make_step` or another maker, not compiled."""
    indices: ArrayLike
    """Its rows, ``[steps, B]`` or ``[steps, K, b]``, from a sampler."""
    restart: optax.GradientTransformation | None = None
    """The chain of ``step``, to begin with a new optimiser state; None goes on with the old one,
    for chains of one structure."""
    prepare: Callable[[Params], Params] | None = None
    """What happens to the parameters before, such as a new head; the optimiser is started after."""


def run_phases(
    phases: Sequence[Phase], state: TrainState, inputs: ArrayTree, labels: ArrayLike
) -> tuple[TrainState, tuple[Any, ...]]:
    """Train in phases, one after the other.

    What is known as decoupled or deferred training is a choice of phases:

    - *classifier re-training (cRT)*: plain rows; then class-balanced rows, ``prepare`` with a new
      head, ``restart`` with a chain that moves the head alone
      (``optax.transforms.selective_transform``);
    - *learnable weight scaling (LWS)*: the same, for one factor per class that multiplies logits;
    - *two-phase training*: over- or undersampled rows, then plain ones for the last layer;
    - *deferred re-weighting or margins (DRW)*: a plain loss, then a weighted one, the optimiser
      going on;
    - *contrastive to cross entropy*: a step on features, then one on logits.

    One phase, or several of the same step without ``restart`` and ``prepare``, is one run: the
    identity. The count of steps goes on through all phases, so that a resumed or sampled run can
    tell where it is. Like :func:`run_steps`, this may be compiled and vmapped as a whole.

    Args:
      phases: in their order.
      state: where to start, for the chain of the first phase.
      inputs: all examples, ``[N, ...]`` or a pytree of such.
      labels: ``[N]`` class ids or ``[N, K]`` class probabilities.

    Returns:
      The final state, and for every phase the records of its steps, stacked.

    Raises:
      ValueError: there is no phase, or one has rows that are no index matrix.

    Source: Kang et al. 2020, arXiv:1910.09217, section 4; Cao et al. 2019, arXiv:1906.07413,
    algorithm 1; Buda et al. 2018, arXiv:1710.05381, section 3.3.

    >>> import jax, jax.numpy as jnp
    >>> from jaxbalance import losses, samplers, training
    >>> def network(params, x):
    ...     return jnp.tanh(x @ params["body"]) @ params["head"]
    >>> loss = training.example_loss(network, losses.weighted_cross_entropy)
    >>> whole = optax.adam(0.1)
    >>> frozen = {"body": True, "head": False}
    >>> head = optax.transforms.selective_transform(whole, freeze_mask=frozen)
    >>> x, y = jnp.eye(4), jnp.array([0, 0, 0, 1])
    >>> rows = samplers.shuffled_epochs(jax.random.key(0), num_examples=4, batch_size=4, steps=20)
    >>> even = samplers.class_balanced(
    ...     jax.random.key(1), samplers.class_index(y, num_classes=2), batch_size=4, steps=20)
    >>> phases = [
    ...     Phase(training.make_step(loss, whole, num_classes=2), rows),
    ...     Phase(training.make_step(loss, head, num_classes=2), even, restart=head),
    ... ]
    >>> params = {"body": jnp.ones((4, 3)), "head": jnp.zeros((3, 2))}
    >>> state, records = run_phases(phases, training.init_state(params, whole), x, y)
    >>> int(state.step), len(records)
    (40, 2)
    """
    if not phases:
        raise ValueError("phases: got none, wanted at least one")
    records = []
    for phase in phases:
        if phase.prepare is not None:
            state = state._replace(params=phase.prepare(state.params))
        if phase.restart is not None:
            state = state._replace(opt_state=phase.restart.init(state.params))
        state, record = run_steps(phase.step, state, inputs, labels, phase.indices)
        records.append(record)
    return state, tuple(records)
