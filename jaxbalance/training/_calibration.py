"""A head and an encoder trained in turn: the one on virtual features, the other on real data."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxbalance import _check, posthoc
from jaxbalance._types import Array
from jaxbalance.classgrads import _loops

State = TypeVar("State")


def iterative_calibration(
    key: Array,
    state: State,
    *,
    fit_gaussians: Callable[[State], posthoc.ClassGaussians],
    head_update: Callable[[State, Array, Array], State],
    encoder_update: Callable[[State, Array], State],
    rounds: int,
    examples_per_class: int,
    scan: bool | None = None,
) -> State:
    r"""Calibrate a classifier on balanced virtual features while the encoder goes on learning.

    .. math:: \tilde f_{kj} \sim N\big(\mu_k(\theta), \Sigma_k(\theta)\big), \qquad
              W \leftarrow \text{head}(W, \tilde f), \qquad
              \theta \leftarrow \text{encoder}(\theta, W)

    Each round fits one Gaussian per class to the features of the encoder as it is now, draws the
    same number of features of every class from them, trains the head on these, and then the encoder
    below that head on real examples. What is fitted and how either is trained is the caller's, in
    three functions of a state that is any pytree; for two :class:`TrainState` they are a line or
    two of :func:`run_steps` each, as below.

    Identity: ``rounds=0`` returns the state as it came. With an ``encoder_update`` that returns its
    state this is re-training the classifier on virtual features alone.

    Args:
      key: a JAX PRNG key; round t draws from ``fold_in(key, t)``.
      state: where to start, any pytree of arrays: head, encoder and their optimisers.
      fit_gaussians: ``fit_gaussians(state) -> gaussians`` of the encoder's features on the training
        set, such as :func:`posthoc.fit_class_gaussians` makes; it decides what rare classes borrow,
        and may trim, smooth or add up over batches.
      head_update: ``head_update(state, features, labels) -> state`` from virtual features
        ``[K b, D]`` and their labels ``[K b]``, int32, class by class; −1, unlabelled, for a class
        that has no example.
      encoder_update: ``encoder_update(state, number) -> state`` with the number of the round, int32
        from 0, to choose rows of real examples.
      rounds: how often, 0 or more.
      examples_per_class: b, virtual features of each class in each round, static.
      scan: True runs all rounds in one ``lax.scan``, False one after the other from Python. None
        scans, except where a round holds a convolution and XLA on CPU would be many times slower.

    Returns:
      The state after the last encoder update.

    Raises:
      ValueError: ``rounds`` is not an integer >= 0 or ``examples_per_class`` not one >= 1.

    Source: Pan et al. 2025, arXiv:2502.03238 (LMD), whose rounds begin with the head, too, on
    features drawn with the classes' own covariances plus 0.01 on the diagonal. They also keep the
    features of the encoder near a moving average of the Gaussians; in their published code the
    logits of the encoder's step are computed without gradient, so that this term alone moves it.

    >>> import optax
    >>> from jaxbalance import losses, training
    >>> inputs, labels = jnp.array([[1.0], [2.0], [3.0], [-2.0]]), jnp.array([0, 0, 0, 1])
    >>> encode = lambda encoder, inputs: inputs @ encoder
    >>> classify = training.example_loss(lambda head, f: f @ head, losses.weighted_cross_entropy)
    >>> def encoder_loss(encoder, head, key, inputs, labels):
    ...     return classify(head, encode(encoder, inputs), labels), head
    >>> tx = optax.sgd(0.1)
    >>> head_step = training.make_step(classify, tx, num_classes=2)
    >>> encoder_step = training.make_stateful_step(encoder_loss, tx, num_classes=2)
    >>> def fit_gaussians(state):
    ...     features = encode(state["encoder"].params, inputs)
    ...     moments = posthoc.class_moments(features, labels, num_classes=2)
    ...     return posthoc.fit_class_gaussians(moments)
    >>> def head_update(state, features, labels):
    ...     return state | {"head": head_step(state["head"], features, labels)[0]}
    >>> def encoder_update(state, number):
    ...     encoder = state["encoder"]._replace(model_state=state["head"].params)
    ...     return state | {"encoder": encoder_step(encoder, inputs, labels)[0]}
    >>> start = {"head": training.init_state(jnp.zeros((1, 2)), tx),
    ...          "encoder": training.init_state(jnp.eye(1), tx, model_state=jnp.zeros((1, 2)))}
    >>> end = iterative_calibration(
    ...     jax.random.key(0), start, fit_gaussians=fit_gaussians, head_update=head_update,
    ...     encoder_update=encoder_update, rounds=5, examples_per_class=8)
    >>> int(end["head"].step), int(end["encoder"].step)
    (5, 5)
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
        raise ValueError(f"rounds: got {rounds!r}, wanted an integer >= 0")
    _check.positive_integer(examples_per_class=examples_per_class)

    def one_round(state: State, number: Array) -> State:
        drawn = posthoc.virtual_features(
            jax.random.fold_in(key, number),
            fit_gaussians(state),
            examples_per_class=examples_per_class,
        )
        size = drawn.features.shape[-1]
        state = head_update(state, drawn.features.reshape(-1, size), drawn.labels.reshape(-1))
        return encoder_update(state, number)

    return _repeat(one_round, state, rounds, scan)


def _repeat(
    one_round: Callable[[Any, Array], Any], state: Any, rounds: int, scan: bool | None
) -> Any:
    if rounds == 0:
        return state
    if scan is None:
        scan = not _loops.slow_in_loops(one_round, state, jnp.int32(0))
    numbers = jnp.arange(rounds, dtype=jnp.int32)
    if scan:
        return jax.lax.scan(lambda state, n: (one_round(state, n), None), state, numbers)[0]
    for number in numbers:
        state = one_round(state, number)
    return state
