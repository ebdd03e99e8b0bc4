"""Attacks on inputs, and training against them when classes are unequal."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxbalance import _check, losses, metrics
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
    wide = x.astype(far.dtype)
    within = partial(_within, wide, radius=far, norm=norm, lowest=lowest, highest=highest)

    def climb(_: Any, moved: Array) -> Array:
        gradient = jax.grad(lambda z: jnp.sum(loss(params, z.astype(x.dtype), labels)))(moved)
        return within(moved + size * _direction(gradient, norm))

    start = within(wide if key is None else wide + far * _inside_ball(key, wide, norm))
    unroll = _loops.slow_in_loops(climb, 0, start)
    attacked = jax.lax.fori_loop(0, steps, climb, start, unroll=unroll)
    return jax.lax.stop_gradient(attacked.astype(x.dtype))


def adversarial_loss(loss: ExampleLoss, attack: Attack) -> ExampleLoss:
    r"""The loss of a model on inputs an adversary has had.

    .. math:: \ell'_i = \ell_i(\theta, \mathrm{attack}(x_i))

    The attack may climb another loss than the one trained: usually plain cross entropy for the
    attack, and class weights (:func:`losses.weighted_cross_entropy`) for training. An attack of
    radius 0 is the identity.

    Args:
      loss: ``loss(params, inputs, labels) -> [B]``.
      attack: ``attack(params, inputs, labels)``, such as :func:`projected_gradient_attack` with its
        loss and knobs bound by ``functools.partial``.

    Returns:
      A loss of the same form, for ``training.make_step`` or ``make_class_step``.

    Source: Madry et al. 2018, arXiv:1706.06083, eq. 2.1.

    >>> loss = lambda w, x, y: losses.weighted_cross_entropy(x @ w, y)
    >>> attack = partial(projected_gradient_attack, loss, radius=1.0, step_size=1.0, steps=1)
    >>> batch = jnp.zeros((1, 2)), jnp.array([0])
    >>> round(float(adversarial_loss(loss, attack)(jnp.eye(2), *batch)[0]), 4)
    2.1269
    """

    def attacked(params: Any, inputs: Array, labels: Array) -> Array:
        return loss(params, attack(params, inputs, labels), labels)

    return attacked


def separable_reweighted_loss(
    apply: Callable[[Any, Array], tuple[Array, Array]],
    attack: Attack,
    *,
    class_weights: ArrayLike | None = None,
    separation: Scalar = 1.0,
    temperature: Scalar = 0.1,
) -> ExampleLoss:
    r"""Class-weighted adversarial training that also separates the classes' features (SRAT).

    .. math:: \ell_i = w_{y_i} \mathrm{CE}(f(x'_i), y_i) + \lambda\,
              \mathrm{SupCon}_i(z(x'_1), \dots, z(x'_B)), \qquad x' = \mathrm{attack}(x)

    Under attack, weights alone trade one class against another where features are poorly separable.
    ``separation=0`` is the identity: weighted adversarial cross entropy, to the last bit. An
    example's loss depends on its batch then and only then.

    Args:
      apply: ``apply(params, inputs) -> (features [B, D], logits [B, K])``.
      attack: see :func:`adversarial_loss`.
      class_weights: w, ``[K]``; None is one for every class.
      separation: lambda >= 0.
      temperature: of :func:`losses.supervised_contrastive_loss`, > 0.

    Returns:
      ``loss(params, inputs, labels) -> [B]``; 0 for unlabelled examples (−1).

    Raises:
      ValueError: while called: shapes do not fit, or a knob is out of range.

    Source: Wang et al. 2021, arXiv:2107.13639 (SRAT).

    >>> plain = lambda w, x, y: losses.weighted_cross_entropy(x @ w, y)
    >>> attack = partial(projected_gradient_attack, plain, radius=0.1, step_size=0.1, steps=1)
    >>> loss = separable_reweighted_loss(lambda w, x: (x, x @ w), attack)
    >>> x = jnp.array([[1.0, 0.0], [0.5, 0.0], [0.0, 1.0]])
    >>> loss(jnp.eye(2), x, jnp.array([0, 0, 1])).shape
    (3,)
    """
    _check.at_least(0, separation=separation)
    _check.more_than(0, temperature=temperature)

    def per_example(params: Any, inputs: Array, labels: Array) -> Array:
        features, logits = apply(params, attack(params, inputs, labels))
        entropy = losses.weighted_cross_entropy(logits, labels, class_weights=class_weights)
        apart = losses.supervised_contrastive_loss(features, labels, temperature=temperature)
        return entropy + jnp.asarray(separation, entropy.dtype) * apart.astype(entropy.dtype)

    return per_example


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

    Additive over batches and devices, like :func:`metrics.confusion_matrix`; with an attack of
    radius 0 it is that matrix. ``metrics.recall`` of it is the robust accuracy of every class.

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
