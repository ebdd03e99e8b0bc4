"""The minority initial drop where it is known exactly: logistic regression, and two points."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _initial_drop import class_means

import jaxbalance as jb

LOGISTIC = ((0.25, 0.0), (0.5, 0.0), (0.9, 0.0), (1.2, 0.0), (1.2, 2.0), (2.0, 2.0))
TWO_POINTS = ((0.3, 3e4), (0.5, 3e4), (0.5, 60.0), (0.5, 1.5))


def logistic_loss(weights: jax.Array, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Of every row; the last weight is the bias."""
    return jax.nn.softplus((1 - 2 * labels) * (inputs @ weights[:-1] + weights[-1]))


def logistic() -> dict[str, Any]:
    """Thresholds of logistic regression, and which steps below and above them raise the loss."""
    oracle = jb.classgrads.class_value_and_grad(logistic_loss, 2)
    noise = np.random.default_rng(0).normal(size=(2, 50, 2))
    noise -= noise.mean(axis=1, keepdims=True)
    labels = np.repeat([0, 1], 50)

    @jax.jit
    def one(means: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs = (means[:, None] + noise).reshape(100, 2)
        exact = jb.dynamics.logistic_drop(means)
        before, sums = oracle(jnp.zeros(3), inputs, labels)
        found = jb.dynamics.drop_threshold(jb.classgrads.gram(sums))
        # Where there is no threshold, not even a thousand to one raises the loss.
        ratios = jnp.where(found < 1e3, found, 1e3) * jnp.array([0.97, 1.03])
        steps = (ratios[:, None] * sums[0] + sums[1]) / (1 + ratios)[:, None]
        after = jax.vmap(lambda step: oracle(-1e-6 * step, inputs, labels)[0].total[1])(steps)
        return jnp.stack([exact.threshold, found]), after > before.total[1]

    with jax.enable_x64(True):
        means = jnp.array([[[-half, shared], [half, shared]] for half, shared in LOGISTIC])
        thresholds, rises = jax.vmap(one)(means)
        return {"thresholds": thresholds, "rises": rises, "overlap": overlap()}


def overlap() -> jax.Array:
    """Mean losses of both classes, 60:1, that overlap: gradient descent until it has converged."""
    rows = np.arange(0.5, 400) / 400
    normal = np.asarray(jax.scipy.stats.norm.ppf(jnp.asarray(rows)))
    inputs = jnp.asarray(np.concatenate([normal - 0.5, normal + 0.5])[:, None])
    labels = np.repeat([0, 1], 400)
    shares = jnp.array([60.0, 1.0]) / 61

    def losses(weights: jax.Array) -> jax.Array:
        return class_means(logistic_loss(weights, inputs, labels), labels)

    def step(weights: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return weights - jax.grad(lambda w: shares @ losses(w))(weights), losses(weights)

    return jax.lax.scan(step, jnp.zeros(2), length=2000)[1]


def flow(normalized: bool, half: Any, ratio: Any, end: float) -> tuple[jax.Array, ...]:
    """Times, margins of majority and minority, and rate of the latter, on two points.

    Fourth-order Runge-Kutta in the logarithm of time, along which both classes slow down evenly.
    """
    shares, count = jnp.stack([ratio, jnp.ones_like(ratio)]) / (1 + ratio), 4000
    span = jnp.log1p(end) / count

    def margins(weights: jax.Array) -> jax.Array:
        return half * weights[0] + jnp.array([-1.0, 1.0]) * weights[1]

    def field(time: Any, weights: jax.Array) -> jax.Array:
        grads = jax.jacrev(lambda w: shares * jax.nn.softplus(-margins(w)))(weights)
        if normalized:
            grads = grads / jnp.linalg.norm(grads, axis=1, keepdims=True)
        return -jnp.exp(time) * grads.sum(axis=0)

    def step(weights: jax.Array, number: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        now = number * span
        a = field(now, weights)
        b = field(now + span / 2, weights + span / 2 * a)
        c = field(now + span / 2, weights + span / 2 * b)
        d = field(now + span, weights + span * c)
        seen = jnp.expm1(now), margins(weights), margins(a)[1]
        return weights + span / 6 * (a + 2 * b + 2 * c + d), seen

    return jax.lax.scan(step, jnp.zeros(2), jnp.arange(count))[1]


def two_points() -> dict[str, Any]:
    """Top of the minority's loss, by leading terms and by flow; error of the normalised flow."""
    with jax.enable_x64(True):
        halves, ratios = jnp.array(TWO_POINTS).T
        top = jb.dynamics.two_point_drop(ratios, halves)
        times, margins, rates = jax.jit(jax.vmap(lambda h, r: flow(False, h, r, 1e6)))(
            halves, ratios
        )
        turn = jnp.argmax(rates >= 0, axis=1)
        lowest = jnp.take_along_axis(margins[..., 1], turn[:, None], axis=1)[:, 0]
        when = jnp.take_along_axis(times, turn[:, None], axis=1)[:, 0]
        clock, both, _ = jax.jit(jax.vmap(lambda h, r: flow(True, h, r, 50.0)))(halves, ratios)
        exact = jax.vmap(jb.dynamics.two_point_normalized_flow)(clock, halves)
        return {
            "times": jnp.stack([top.time, when], axis=1),
            "losses": jnp.stack([top.loss, jax.nn.softplus(-lowest)], axis=1),
            "normalized error": jnp.abs(both - exact[..., None]).max(),
        }
