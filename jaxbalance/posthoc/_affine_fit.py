"""Newton's method for factors and biases of logits: one convex problem behind several fits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance._types import Array
from jaxbalance.posthoc._calibration import fit_temperature

_STEPS = 40
"""A dozen is the rule; the rest is for logits of which a few classes are far off in scale."""


class AffineProblem(NamedTuple):
    """Cross entropy of scaled logits in parameters t: ``(factors - 1, bias) = basis @ t``."""

    scores: Array
    """Held-out logits ``[N, K]``."""
    ids: Array
    """Class ids ``[N]``, −1 in padding."""
    shares: Array
    """What an example of each class weighs ``[K]``."""
    present: Array
    """The classes of the softmax, bool ``[K]``."""
    basis: Array
    """``[2K, P]``."""
    ridge: Array
    """Half of it times the squared length of t is added to the loss, ``[]``."""


# Compiled here, it is one program also where nobody compiles the caller.
@jax.jit
def fit_affine(problem: AffineProblem) -> tuple[Array, Array]:
    """Factors and biases ``[K]`` of the lowest penalised loss.

    The start is the better of the identity and one temperature for all; a step is taken if it does
    not raise the objective, else the damping grows.
    """
    worth = _worth(problem)
    # No softmax bends the loss more than at p = 1/2, however saturated it is at present.
    squared = jnp.sum(worth[:, None] * problem.scores**2, axis=0) / 4
    most_bend = (problem.basis**2).T @ jnp.concatenate([squared, jnp.full_like(squared, 0.25)])
    sharper = 1 / fit_temperature(problem.scores, problem.ids) - 1
    sharper = jnp.broadcast_to(sharper, squared.shape)
    warm = problem.basis.T @ jnp.concatenate([sharper, jnp.zeros_like(sharper)])
    cold = jnp.zeros_like(warm)

    def step(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        t, value, damping = state
        proposal = t + _direction(problem, t, problem.ridge + damping * most_bend)
        reached = _objective(problem, proposal)
        # Near the optimum the gradient still tells apart what the rounded objective does not.
        good = reached <= value * (1 + 4 * float(np.finfo(value.dtype).eps))
        calmer, bolder = jnp.minimum(damping * 8, 1e6), jnp.maximum(damping / 8, 1e-6)
        t, value = jnp.where(good, proposal, t), jnp.where(good, reached, value)
        return t, value, jnp.where(good, bolder, calmer)

    start = jnp.where(_objective(problem, warm) < _objective(problem, cold), warm, cold)
    first = start, _objective(problem, start), jnp.full((), 1e-3, start.dtype)
    return _factors_and_bias(problem, jax.lax.fori_loop(0, _STEPS, step, first)[0])


def _factors_and_bias(problem: AffineProblem, t: Array) -> tuple[Array, Array]:
    moved, bias = jnp.split(problem.basis @ t, 2)
    return 1 + moved, bias


def _worth(problem: AffineProblem) -> Array:
    nothing = jnp.zeros_like(problem.shares, shape=())
    return jnp.where(problem.ids >= 0, problem.shares[problem.ids], nothing)


def _own(problem: AffineProblem) -> Array:
    classes = jnp.arange(problem.shares.size, dtype=problem.ids.dtype)
    return classes[None, :] == problem.ids[:, None]


def _log_p(problem: AffineProblem, t: Array) -> Array:
    factors, bias = _factors_and_bias(problem, t)
    shifted = problem.scores * factors[None, :] + bias[None, :]
    counted = jnp.broadcast_to(problem.present, shifted.shape)
    return jax.nn.log_softmax(jnp.where(counted, shifted, -jnp.inf), axis=-1)


def _objective(problem: AffineProblem, t: Array) -> Array:
    picked = jnp.sum(jnp.where(_own(problem), _log_p(problem, t), 0), axis=-1)
    return -jnp.sum(_worth(problem) * picked) + problem.ridge / 2 * jnp.sum(t**2)


def _direction(problem: AffineProblem, t: Array, added_bend: Array) -> Array:
    """Newton's step with ``added_bend [P]`` on the diagonal of the Hessian."""
    slope, bend = _derivatives(problem, jnp.exp(_log_p(problem, t)))
    slope = problem.basis.T @ slope + problem.ridge * t
    bend = problem.basis.T @ bend @ problem.basis + jnp.diag(added_bend)
    # In units in which every parameter bends alike, logits of any scale are well conditioned.
    unit = 1 / jnp.sqrt(jnp.maximum(jnp.diagonal(bend), problem.ridge))
    bend = bend * unit[:, None] * unit[None, :]
    # A Hessian that rounding made indefinite gives NaN, which is no descent: the damping grows.
    return -unit * jax.scipy.linalg.solve(bend, unit * slope, assume_a="pos")


def _derivatives(problem: AffineProblem, p: Array) -> tuple[Array, Array]:
    """Gradient ``[2K]`` and Hessian ``[2K, 2K]`` of the loss in factors and biases."""
    scores, worth = problem.scores, _worth(problem)
    wrong = worth[:, None] * (p - _own(problem).astype(p.dtype))
    slope = jnp.concatenate([jnp.sum(wrong * scores, axis=0), jnp.sum(wrong, axis=0)])
    weighed = worth[:, None] * p
    both = jnp.concatenate([p * scores, p], axis=-1)
    bend = -jnp.matmul((worth[:, None] * both).T, both, precision="highest")
    second, first, zeroth = (jnp.sum(weighed * scores**power, axis=0) for power in (2, 1, 0))
    top = jnp.concatenate([jnp.diag(second), jnp.diag(first)], axis=1)
    bottom = jnp.concatenate([jnp.diag(first), jnp.diag(zeroth)], axis=1)
    return slope, bend + jnp.concatenate([top, bottom], axis=0)
