"""Attacks on inputs, and what a model makes of them, class by class."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxbalance import _check, metrics
from jaxbalance._types import Array, ArrayLike, ExampleLoss, Params, Scalar
from jaxbalance.classgrads import _loops

Attack: TypeAlias = Callable[[Any, Array, Array], Array]
"""``attack(params, inputs, labels) -> inputs``: what an adversary makes of a batch."""


def projected_gradient_attack(
    loss: ExampleLoss,
    params: Params,
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    radius: Scalar,
    step_size: Scalar,
    steps: int,
    norm: float = math.inf,
    key: Array | None = None,
    lowest: float = -math.inf,
    highest: float = math.inf,
) -> Array:
    r"""Projected gradient descent (PGD): raise every example's loss within a ball around it.

    .. math:: x^{t+1} = \Pi_{\lVert x - x^0 \rVert_p \le \epsilon}
              \bigl(x^t + \alpha\, d_p(\nabla_x \ell(x^t))\bigr), \qquad
              d_\infty(g) = \operatorname{sign} g, \quad d_2(g) = g / \lVert g \rVert_2

    ``steps=1`` with ``step_size=radius`` and no key is the fast gradient (sign) method. A radius of
    0 is the identity. Radius and step size may be traced: changing them compiles nothing.

    Where a network is very sure the gradient of cross entropy rounds to exactly 0, nothing moves
    and the network looks robust. To measure robustness climb :func:`logit_margin` instead.

    Args:
      loss: ``loss(params, inputs, labels) -> [B]``; that of example i may depend on input i alone.
      params: parameters of the model under attack.
      inputs: ``[B, ...]``, floating.
      labels: whatever the loss takes. An example whose loss is constant, an unlabelled one among
        them, moves by its random start alone.
      radius: epsilon >= 0, in the units of the inputs.
      step_size: alpha >= 0, in the same units; 2.5 radius / steps is usual.
      steps: number of gradient steps, static.
      norm: p, infinity or 2.
      key: PRNG key of a start drawn from the ball, uniformly; None starts at the inputs.
      lowest: smallest value an input can have, such as 0 for pixels. Inputs beyond are moved in.
      highest: largest value.

    Returns:
      Attacked inputs, in the inputs' shape and dtype; no gradient flows through them.

    Raises:
      ValueError: ``norm`` is neither 2 nor infinity, ``steps`` is no positive integer, a radius or
        step size is negative, ``lowest`` exceeds ``highest``, or ``inputs`` are not floating.

    Source: Madry et al. 2018, arXiv:1706.06083, section 2.1.

    >>> from jaxbalance import losses
    >>> loss = lambda w, x, y: losses.weighted_cross_entropy(x @ w, y)
    >>> attack = partial(projected_gradient_attack, loss, radius=0.5, step_size=0.2, steps=5)
    >>> attack(jnp.eye(2), jnp.zeros((2, 2)), jnp.array([0, 1]))
    Array([[-0.5,  0.5],
           [ 0.5, -0.5]], dtype=float32)
    """
    x = _check.floating("inputs", inputs)
    _check.at_least(0, radius=radius, step_size=step_size)
    _check.positive_integer(steps=steps)
    if norm not in (2, math.inf):
        raise ValueError(f"norm: got {norm}, wanted 2 or infinity")
    if not lowest <= highest:
        raise ValueError(f"lowest: got {lowest}, wanted at most highest, {highest}")
    far = jnp.asarray(radius, _check.working_dtype(x))
    size = jnp.asarray(step_size, far.dtype)
    wide, targets = x.astype(far.dtype), jnp.asarray(labels)
    within = partial(_within, wide, radius=far, norm=norm, lowest=lowest, highest=highest)

    def climb(_: Any, moved: Array) -> Array:
        gradient = jax.grad(lambda z: jnp.sum(loss(params, z.astype(x.dtype), targets)))(moved)
        return within(moved + size * _direction(gradient, norm))

    start = within(wide if key is None else wide + far * _inside_ball(key, wide, norm))
    unroll = _loops.slow_in_loops(climb, 0, start)
    attacked = jax.lax.fori_loop(0, steps, climb, start, unroll=unroll)
    return jax.lax.stop_gradient(attacked.astype(x.dtype))


def logit_margin(logits: ArrayLike, labels: ArrayLike) -> Array:
    r"""How far the best wrong logit is ahead of the right one: what an attack may climb.

    .. math:: \ell = \max_{k \ne y} z_k - z_y

    Positive where the example is misclassified. Unlike that of cross entropy, its gradient does not
    vanish where the network is sure.

    Args:
      logits: ``[..., K]``, floating.
      labels: class ids ``[...]``; −1 (and any id outside ``0 .. K-1``) gives 0, with gradient 0.

    Returns:
      ``[...]`` in the dtype of ``logits``.

    Raises:
      ValueError: shapes do not fit each other, or labels are no class ids.

    Source: Carlini and Wagner 2017, arXiv:1608.04644, section V, the objective f6 without its
    threshold.

    >>> logit_margin(jnp.array([[3.0, 1.0, 2.0], [0.0, 4.0, 1.0]]), jnp.array([0, 2]))
    Array([-1.,  3.], dtype=float32)
    """
    scores = _check.logits(logits)
    ids = _check.labels(_check.class_ids(labels), scores)
    num_classes = scores.shape[-1]
    known = (ids >= 0) & (ids < num_classes)
    safe = jnp.where(known[..., None], scores, jnp.zeros_like(scores))
    own = jax.nn.one_hot(ids, num_classes, dtype=bool)
    right = jnp.sum(jnp.where(own, safe, jnp.zeros_like(safe)), axis=-1)
    wrong = jnp.max(jnp.where(own, jnp.full_like(safe, -jnp.inf), safe), axis=-1)
    return jnp.where(known, wrong - right, jnp.zeros_like(right))


def robust_confusion_matrix(
    apply: Callable[[Any, Array], Array],
    params: Params,
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    attack: Attack,
    num_classes: int,
) -> Array:
    """Confusion matrix under attack; every per-class metric of it is that metric's robust form.

    Additive over batches and devices, like :func:`jaxbalance.metrics.confusion_matrix`; with an
    attack of radius 0 it is that matrix. ``metrics.recall`` of it is the robust accuracy of every
    class.

    Args:
      apply: ``apply(params, inputs) -> logits [B, K]``.
      params: of the model.
      inputs: ``[B, ...]``, floating.
      labels: class ids ``[B]``; −1 counts nowhere.
      attack: see :func:`adversarial_loss`.
      num_classes: K.

    Returns:
      Counts ``[K, K]``, rows true classes, columns predicted ones.

    Raises:
      ValueError: shapes do not fit each other.

    >>> from jaxbalance import losses
    >>> plain = lambda w, x, y: losses.weighted_cross_entropy(x @ w, y)
    >>> attack = partial(projected_gradient_attack, plain, radius=0.5, step_size=0.5, steps=1)
    >>> x, y = jnp.array([[2.0, 0.0], [0.4, 0.0], [0.0, 3.0]]), jnp.array([0, 0, 1])
    >>> robust_confusion_matrix(lambda w, x: x @ w, jnp.eye(2), x, y, attack=attack, num_classes=2)
    Array([[1, 1],
           [0, 1]], dtype=int32)
    """
    ids = _check.class_ids(labels)
    attacked = attack(params, jnp.asarray(inputs), ids)
    predictions = jnp.argmax(apply(params, attacked), axis=-1)
    return metrics.confusion_matrix(ids, predictions, num_classes=num_classes)


def _lengths(array: Array) -> Array:
    """Euclidean length of every example, in a shape that meets the examples."""
    axes = tuple(range(1, array.ndim))
    widest = jnp.max(jnp.abs(array), axis=axes, keepdims=True)
    safe = jnp.where(widest > 0, widest, jnp.ones_like(widest))
    return safe * jnp.sqrt(jnp.sum((array / safe) ** 2, axis=axes, keepdims=True))


def _direction(gradient: Array, norm: float) -> Array:
    """Steepest ascent of length one; nowhere for a zero gradient, or one that is not finite."""
    usable = jnp.where(jnp.isfinite(gradient), gradient, jnp.zeros_like(gradient))
    if norm == math.inf:
        return jnp.sign(usable)
    lengths = _lengths(usable)
    return usable / jnp.where(lengths > 0, lengths, jnp.ones_like(lengths))


def _within(
    centre: Array, moved: Array, *, radius: Array, norm: float, lowest: float, highest: float
) -> Array:
    """The nearest point of the ball, then of the range; each step back is towards the centre."""
    way = moved - centre
    if norm == math.inf:
        way = jnp.clip(way, -radius, radius)
    else:
        lengths = _lengths(way)
        way = way * jnp.minimum(1, radius / jnp.where(lengths > 0, lengths, jnp.ones_like(lengths)))
    return jnp.clip(centre + way, lowest, highest)


def _inside_ball(key: Array, like: Array, norm: float) -> Array:
    """A uniform draw from the unit ball, for every example."""
    if norm == math.inf:
        return jax.random.uniform(key, like.shape, like.dtype, -1, 1)
    first, second = jax.random.split(key)
    ways = _direction(jax.random.normal(first, like.shape, like.dtype), norm)
    shares = jax.random.uniform(second, (len(like), *[1] * (like.ndim - 1)), like.dtype)
    return ways * shares ** (1 / max(math.prod(like.shape[1:]), 1))
