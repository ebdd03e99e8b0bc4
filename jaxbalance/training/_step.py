"""One training step as a pure function, and what it records."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxbalance import _check, counts
from jaxbalance._types import Array, ArrayLike, ArrayTree, ExampleLoss, Params, PerExampleLoss


class TrainState(NamedTuple):
    """Everything a run carries from step to step; an ordinary pytree."""

    step: Array
    """Steps taken, int32."""
    params: Params
    """Trainable leaves."""
    opt_state: optax.OptState
    """State of the optax chain."""
    model_state: ArrayTree
    """Batch statistics and the like; an empty tuple where there are none."""
    key: Array
    """PRNG key of the run; step t draws from ``fold_in(key, t)``, so a resume draws the same."""


class StepRecord(NamedTuple):
    """What a step saw, at no extra pass; stacked over steps by :func:`run_steps`."""

    loss: Array
    """Mean loss over the labelled examples of the batch; 0 if there is none."""
    class_loss: Array
    """Sum of the losses of each class ``[K]``; divide by ``class_count`` for means."""
    class_count: Array
    """Labelled examples of each class ``[K]``; both add up over steps and devices. An example with
    class probabilities counts in proportion, one with several labels on counts in each."""
    gradient_norm: Array
    """Euclidean norm of the gradient of ``loss``."""


Step = Callable[[TrainState, Array, Array], tuple[TrainState, StepRecord]]
"""``step(state, inputs, labels) -> (state, record)``, pure and not yet compiled."""

StatefulLoss = Callable[[Any, ArrayTree, Array, Array, Array], tuple[Array, ArrayTree]]
"""``loss(params, model_state, key, inputs, labels) -> (losses [B], model_state)``."""


def init_state(
    params: Params,
    tx: optax.GradientTransformation,
    *,
    key: Array | None = None,
    model_state: ArrayTree = (),
) -> TrainState:
    """The state before the first step.

    Args:
      params: trainable leaves, any pytree.
      tx: the optax chain the step will use.
      key: PRNG key of the run (dropout and the like); None is ``jax.random.key(0)``.
      model_state: what a stateful model carries besides parameters.

    Returns:
      A :class:`TrainState` at step 0.

    >>> init_state({"w": jnp.zeros(3)}, optax.sgd(0.1)).step
    Array(0, dtype=int32)
    """
    key = jax.random.key(0) if key is None else key
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), model_state, key)


def example_loss(apply: Callable[[Any, Array], Array], loss: PerExampleLoss) -> ExampleLoss:
    """Put a model and a loss together: ``(params, inputs, labels) -> [B]``.

    Args:
      apply: ``apply(params, inputs) -> logits [B, ..., K]``; for a Flax NNX module
        ``jaxbalance.models.functional(module).apply``.
      loss: a per-example loss, its knobs fixed with :func:`functools.partial`.

    Returns:
      The one function of a model that steps and gradient transforms need.

    >>> from functools import partial
    >>> from jaxbalance import losses
    >>> loss = partial(losses.softmax_focal_loss, gamma=1.0)
    >>> per_example = example_loss(lambda w, x: x @ w, loss)
    >>> per_example(jnp.zeros((2, 3)), jnp.ones((4, 2)), jnp.zeros(4, jnp.int32)).shape
    (4,)
    """

    def per_example(params: Any, inputs: Array, labels: Array) -> Array:
        return loss(apply(params, inputs), labels)

    return per_example


def make_step(loss: ExampleLoss, tx: optax.GradientTransformation, *, num_classes: int) -> Step:
    r"""Build a training step from a per-example loss and any optax chain.

    .. math:: g = \nabla_\theta \frac{\sum_i \ell_i}{\#\{i : y_i \text{ labelled}\}}, \qquad
              \theta \leftarrow \theta + \mathrm{tx}(g)

    The denominator counts labelled examples, not weights, and numerator and denominator are each
    one sum over the batch: the same numbers on one device and on a batch split over many.

    Args:
      loss: ``loss(params, inputs, labels) -> [B]``, see :func:`example_loss`.
      tx: any optax gradient transformation.
      num_classes: K, for the per-class record.

    Labels are class ids ``[B]`` (−1 unlabelled), class probabilities ``[B, K]`` (an all-zero row is
    unlabelled) or, as integers ``[B, K]``, several labels on (1), off (0) or unknown (−1).

    Returns:
      A pure function ``step(state, inputs, labels) -> (state, record)``. Compile it with
      :func:`jit_step`, or run many with :func:`run_steps`.

    Raises:
      ValueError: while tracing: the loss is not one number per example, or the chain returns
        updates whose shapes are not those of the parameters (optax itself would broadcast them
        into the parameters without a word).

    >>> from jaxbalance import losses
    >>> per_example = example_loss(lambda w, x: x @ w, losses.weighted_cross_entropy)
    >>> step = make_step(per_example, optax.sgd(0.5), num_classes=2)
    >>> state = init_state(jnp.zeros((2, 2)), optax.sgd(0.5))
    >>> state, record = step(state, jnp.eye(2), jnp.array([0, 1]))
    >>> record.class_loss
    Array([0.6931..., 0.6931...], dtype=float32)
    """

    def stateless(
        params: Any, model_state: ArrayTree, key: Array, inputs: Array, labels: Array
    ) -> tuple[Array, ArrayTree]:
        del key
        return loss(params, inputs, labels), model_state

    return make_stateful_step(stateless, tx, num_classes=num_classes)


def make_stateful_step(
    loss: StatefulLoss, tx: optax.GradientTransformation, *, num_classes: int
) -> Step:
    """As :func:`make_step`, for models with batch statistics, dropout or other state.

    Args:
      loss: ``loss(params, model_state, key, inputs, labels) -> (losses [B], model_state)``; the
        whole batch goes through the model at once, and ``key`` is fresh at every step.
      tx: any optax gradient transformation.
      num_classes: K, for the per-class record.

    Returns:
      A pure function ``step(state, inputs, labels) -> (state, record)``.

    Raises:
      ValueError: as :func:`make_step`.

    >>> from jaxbalance import losses
    >>> def loss(params, model_state, key, inputs, labels):
    ...     noisy = inputs + jax.random.normal(key, inputs.shape)
    ...     return losses.weighted_cross_entropy(noisy @ params, labels), model_state + 1
    >>> step = make_stateful_step(loss, optax.sgd(0.1), num_classes=2)
    >>> state = init_state(jnp.ones((2, 2)), optax.sgd(0.1), model_state=jnp.zeros(()))
    >>> state, record = step(state, jnp.eye(2), jnp.array([0, 1]))
    >>> state.model_state
    Array(1., dtype=float32)
    """
    _check.positive_integer(num_classes=num_classes)

    def mean_loss(
        params: Any, state: TrainState, inputs: Array, labels: Array
    ) -> tuple[Array, tuple[Array, Array, ArrayTree]]:
        key = jax.random.fold_in(state.key, state.step)
        values, model_state = loss(params, state.model_state, key, inputs, labels)
        class_loss, class_count, labelled = _class_record(values, labels, num_classes)
        mean = jnp.sum(values.astype(class_loss.dtype)) / jnp.where(labelled > 0, labelled, 1)
        return mean, (class_loss, class_count, model_state)

    def step(state: TrainState, inputs: Array, labels: Array) -> tuple[TrainState, StepRecord]:
        gradient = jax.value_and_grad(mean_loss, has_aux=True)
        (mean, aux), grads = gradient(state.params, state, inputs, labels)
        class_loss, class_count, model_state = aux
        # optax's own arithmetic relies on implicit promotion; the caller may have forbidden it.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            _check_updates(updates, state.params)
            params = optax.apply_updates(state.params, updates)
            norm = optax.tree.norm(grads)
        record = StepRecord(mean, class_loss, class_count, norm)
        return TrainState(state.step + 1, params, opt_state, model_state, state.key), record

    return step


def _class_record(values: Array, labels: Array, num_classes: int) -> tuple[Array, Array, Array]:
    """Loss and number of examples of each class, and how many examples are labelled at all."""
    if values.ndim < 1 or values.shape not in (labels.shape, labels.shape[:-1]):
        raise ValueError(
            f"loss: got values of shape {values.shape} for labels of shape {labels.shape}, wanted "
            "one number per example; do not average inside the loss"
        )
    values = jax.lax.stop_gradient(values)
    if values.shape == labels.shape:
        labelled = (labels >= 0) & (labels < num_classes)
    elif _check.is_class_ids(labels):
        labelled = jnp.any(labels >= 0, axis=-1)
        labels = (labels == 1).astype(values.dtype)
    else:
        labelled = jnp.any(labels != 0, axis=-1)
    class_loss = counts.class_sums(values, labels, num_classes=num_classes)
    class_count = counts.class_sums(jnp.ones_like(values), labels, num_classes=num_classes)
    return class_loss, class_count, jnp.sum(labelled).astype(class_loss.dtype)


def _check_updates(updates: ArrayTree, params: Params) -> None:
    def compare(path: Any, update: ArrayLike, param: ArrayLike) -> None:
        if jnp.shape(update) != jnp.shape(param):
            raise ValueError(
                f"tx: got an update of shape {jnp.shape(update)} for the parameter "
                f"{jax.tree_util.keystr(path)} of shape {jnp.shape(param)}; updates stacked over "
                "classes need a link in the chain that combines the classes"
            )

    jax.tree_util.tree_map_with_path(compare, updates, params)


def jit_step(step: Step) -> Step:
    """Compile a step; the state handed in is donated, so use only the state it returns.

    >>> from jaxbalance import losses
    >>> per_example = example_loss(lambda w, x: x @ w, losses.weighted_cross_entropy)
    >>> step = jit_step(make_step(per_example, optax.sgd(0.5), num_classes=2))
    >>> state = init_state(jnp.zeros((2, 2)), optax.sgd(0.5))
    >>> state, record = step(state, jnp.eye(2), jnp.array([0, 1]))
    >>> state.step
    Array(1, dtype=int32)
    """
    compiled: Step = jax.jit(step, donate_argnums=0)
    return compiled
