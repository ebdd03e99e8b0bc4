"""Schedules: class probabilities as a function of the step."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxbalance import _check, counts
from jaxbalance._types import Array, ArrayLike, Scalar

Schedule: TypeAlias = Callable[[Array], Array]
"""``schedule(step []) -> probabilities [K]`` of classes or domains; need not add up to one.

Any function of the step that compiles will do. Those made here are pytrees of their settings, so
that a program compiled for one runs for another of the same kind."""


def as_pytree(function: Callable[[Array], Array]) -> Partial:
    """``function`` as something that passes into a compiled program."""
    return function if isinstance(function, Partial) else Partial(function)


def _constant(value: Array, step: Array) -> Array:
    del step
    return value


def constant_schedule(class_probabilities: ArrayLike | Sequence[float]) -> Schedule:
    r"""The same class probabilities at every step.

    .. math:: p_k(t) = q_k / \textstyle\sum_j q_j

    ``class_probabilities`` equal to the class counts is the identity: plain sampling with
    replacement.

    Args:
      class_probabilities: q, ``[K]``, not negative; need not add up to one.

    Returns:
      A ``Schedule``.

    Raises:
      ValueError: ``class_probabilities`` is not ``[K]``, or, where its values are known, one is
        negative or not finite, or all are zero.

    >>> constant_schedule([3.0, 1.0])(jnp.array(7))
    Array([0.75, 0.25], dtype=float32)
    """
    share = _check.class_vector("class_probabilities", jnp.asarray(class_probabilities))
    if not isinstance(share, jax.core.Tracer):
        known = _check.host_counts("class_probabilities", np.asarray(share))
        if not np.any(known > 0):
            raise ValueError(
                f"class_probabilities: got {known.tolist()}, wanted at least one above 0"
            )
    return Partial(_constant, share / jnp.sum(share))


def temperature_schedule(
    class_counts: ArrayLike, *, tau: Scalar | Callable[[Array], Array] = 1.0
) -> Schedule:
    r"""Temperature sampling: a power of the class counts, the power a number or itself scheduled.

    .. math:: p_k(t) = \frac{n_k^{1/\tau(t)}}{\sum_j n_j^{1/\tau(t)}}

    ``tau=1`` is the identity: plain sampling with replacement. ``tau=2`` is square-root sampling,
    infinity gives every present class the same share. A ``tau`` that falls during training is
    *Cooldown*: rare classes are drawn often while that teaches much, and no longer when they would
    be overfitted; any optax schedule serves.

    Args:
      class_counts: ``[K]``, examples, tokens or any other size of the classes or domains.
      tau: tau > 0, or a function of the step that returns one.

    Returns:
      A ``Schedule``. An absent class gets 0 and does not change the others; with no examples at
      all every class gets 0.

    Raises:
      ValueError: ``class_counts`` is not ``[K]``, or ``tau`` is a number that is not positive.

    Source: the temperature as in Arivazhagan et al. 2019, arXiv:1907.05019; Cooldown: Li et al.
    2024, arXiv:2410.04579, where tau falls once, from 5 to 1, half way through the run.

    >>> schedule = temperature_schedule(
    ...     jnp.array([75, 25, 0]), tau=lambda step: jnp.where(step < 500, jnp.inf, 1.0)
    ... )
    >>> schedule(jnp.array(499)), schedule(jnp.array(500))
    (Array([0.5, 0.5, 0. ], dtype=float32), Array([0.75..., 0.25..., 0. ...], dtype=float32))
    """
    sizes = _check.class_vector("class_counts", class_counts)
    if callable(tau):
        return Partial(_temperature, sizes, as_pytree(tau))
    _check.more_than(0.0, tau=tau)
    return Partial(_temperature, sizes, Partial(_constant, jnp.asarray(tau, sizes.dtype)))


def _temperature(sizes: Array, tau: Callable[[Array], Array], step: Array) -> Array:
    present = sizes > 0
    # Relative to the largest, so that no power overflows however small tau is.
    logs = jnp.log(jnp.where(present, sizes, jnp.ones_like(sizes)))
    largest = jnp.max(jnp.where(present, logs, jnp.full_like(logs, -jnp.inf)))
    relative = jnp.where(present, logs - largest, jnp.zeros_like(logs))
    powers = jnp.exp(relative / jnp.asarray(tau(jnp.asarray(step)), sizes.dtype))
    powers = jnp.where(present, powers, jnp.zeros_like(powers))
    # The largest contributes exactly 1, so the sum is below 1 only if no class is present.
    return powers / jnp.maximum(jnp.sum(powers), 1)


def effective_number_schedule(class_counts: ArrayLike, *, beta: Scalar = 0.999) -> Schedule:
    r"""Every example drawn in proportion to one over its class's effective number.

    .. math:: p_k \propto \frac{n_k}{E_k}, \qquad E_k = \frac{1 - \beta^{n_k}}{1 - \beta}

    In expectation, and up to one factor, the same as weighting the loss with
    :func:`jaxbalance.counts.effective_number_weights`. ``beta=0`` is the identity (plain sampling
    with replacement), ``beta=1`` gives every present class the same share.

    Args:
      class_counts: ``[K]``.
      beta: overlap in [0, 1].

    Returns:
      A ``Schedule``, the same at every step. An absent class gets 0 and does not change the
      others; with no examples at all every class gets 0.

    Raises:
      ValueError: ``class_counts`` is not ``[K]`` or ``beta`` is outside [0, 1].

    Source: the weights of Cui et al. 2019, arXiv:1901.05555, eq. 3, which they apply to the loss.

    >>> effective_number_schedule(jnp.array([100, 10]), beta=0.99)(jnp.array(0))
    Array([0.601..., 0.398...], dtype=float32)
    """
    sizes = _check.class_vector("class_counts", class_counts)
    share = sizes * counts.effective_number_weights(sizes, beta=beta)
    total = jnp.sum(share)
    return Partial(_constant, share / jnp.where(total > 0, total, jnp.ones_like(total)))


def switch_schedule(
    before: Schedule, after: Schedule, *, begin: Scalar, end: Scalar | None = None
) -> Schedule:
    r"""One schedule until a step, another from there on; or a straight passage between the two.

    .. math:: p(t) = (1 - \lambda) p^{\mathrm{before}}(t) + \lambda p^{\mathrm{after}}(t), \qquad
              \lambda = \min(1, \max(0, \tfrac{t - b}{e - b}))

    and lambda = [t >= b] where e = b. ``before`` equal to ``after`` is the identity. What the
    literature calls by name:

    - *late upsampling*: ``before`` proportional, ``after`` with a larger share of the small
      domains, ``begin`` at 80 to 90 % of the run;
    - *high-then-mix*: ``before`` with probability on the high-resource classes alone, ``after`` a
      mixture;
    - *progressively balanced*: from ``tau=1`` to ``tau=inf`` between ``begin=0`` and
      ``end=steps``;
    - *Cooldown* with one change of temperature.

    Each of the two is evaluated at the step itself and need not be constant. Switches nest.

    Args:
      before: ``Schedule`` up to ``begin``.
      after: ``Schedule`` from ``end`` on.
      begin: step b at which ``after`` begins to count.
      end: step e at which only ``after`` counts; None switches at once, at ``begin``.

    Returns:
      A ``Schedule``.

    Raises:
      ValueError: ``end`` is below ``begin``, or the two have different numbers of classes (when
        the schedule is evaluated).

    Source: late upsampling, Blakeney et al. 2024, arXiv:2406.03476; high-then-mix, Choi et al.
    2023, arXiv:2312.06134; progressively balanced, Kang et al. 2020, arXiv:1910.09217, eq. 2 with
    t/T per epoch (their code divides by T − 1, so that the last epoch is balanced: ``end=T - 1``).

    >>> proportional, balanced = constant_schedule([9.0, 1.0]), constant_schedule([1.0, 1.0])
    >>> schedule = switch_schedule(proportional, balanced, begin=0, end=100)
    >>> schedule(jnp.array(25))
    Array([0.8, 0.2], dtype=float32)
    """
    if end is None:
        end = begin
    elif not isinstance(begin, jax.Array):
        _check.at_least(begin, end=end)
    edges = jnp.asarray(begin, jnp.int32), jnp.asarray(end, jnp.int32)
    return Partial(_switch, as_pytree(before), as_pytree(after), *edges)


def _switch(before: Schedule, after: Schedule, begin: Array, end: Array, step: Array) -> Array:
    step = jnp.asarray(step, jnp.int32)
    first = _check.class_vector("before(step)", before(step))
    second = _check.class_vector("after(step)", after(step), first.size)
    dtype = jnp.promote_types(first.dtype, second.dtype)
    done = (step - begin).astype(dtype) / jnp.maximum(end - begin, 1).astype(dtype)
    done = jnp.where(step >= end, jnp.ones_like(done), jnp.clip(done, 0, 1))
    return (1 - done) * first.astype(dtype) + done * second.astype(dtype)
