"""Losses under attack, for training when classes are unequal."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxbalance import _check, losses
from jaxbalance._types import Array, ArrayLike, ExampleLoss, Scalar
from jaxbalance.adversarial._attacks import Attack


def adversarial_loss(loss: ExampleLoss, attack: Attack) -> ExampleLoss:
    r"""The loss of a model on inputs an adversary has had.

    .. math:: \ell'_i = \ell_i(\theta, \mathrm{attack}(x_i))

    The attack may climb another loss than the one trained: usually plain cross entropy for the
    attack, and class weights (:func:`jaxbalance.losses.weighted_cross_entropy`) for training. An
    attack of radius 0 is the identity.

    Args:
      loss: ``loss(params, inputs, labels) -> [B]``.
      attack: ``attack(params, inputs, labels)``, such as :func:`projected_gradient_attack` with its
        loss and knobs bound by ``functools.partial``.

    Returns:
      A loss of the same form, for ``training.make_step`` or ``make_class_step``.

    Source: Madry et al. 2018, arXiv:1706.06083, eq. 2.1.

    >>> from functools import partial
    >>> from jaxbalance.adversarial import projected_gradient_attack
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
      temperature: of :func:`jaxbalance.losses.supervised_contrastive_loss`, > 0.

    Returns:
      ``loss(params, inputs, labels) -> [B]``; 0 for unlabelled examples (−1).

    Raises:
      ValueError: while called: shapes do not fit, or a knob is out of range.

    Source: Wang et al. 2021, arXiv:2107.13639 (SRAT).

    >>> from functools import partial
    >>> from jaxbalance.adversarial import projected_gradient_attack
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
