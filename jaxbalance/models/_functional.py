"""From a Flax NNX module to the functions and pytrees that steps are made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx

from jaxbalance._types import Array, ArrayTree, Params


class Functional(NamedTuple):
    """A model as pure functions of its parameters."""

    params: Params
    """Every ``nnx.Param`` of the module."""
    model_state: ArrayTree
    """Everything else that changes or draws: batch statistics, random streams."""
    apply: Callable[[Params, Array], Array]
    """``apply(params, inputs) -> logits``: evaluation mode, with the state the module had."""
    evaluate: Callable[[Params, ArrayTree, Array], Array]
    """``evaluate(params, model_state, inputs) -> logits``: evaluation mode, any state."""
    train: Callable[[Params, ArrayTree, Array, Array], tuple[Array, ArrayTree]]
    """``train(params, model_state, key, inputs) -> (logits, model_state)``: training mode."""
    features: Callable[[Params, Array], Array]
    """``features(params, inputs)``: what enters ``module.head``, in evaluation mode. The head and
    its parameters take no part."""


def _split(module: Any) -> tuple[Any, Params, ArrayTree]:
    """Graph, parameters and the rest."""
    graph, *states = nnx.split(module, nnx.Param, ...)
    params, rest = states
    return graph, params, rest


def functional(module: Any) -> Functional:
    """Split an NNX module into parameters, state and pure functions.

    Args:
      module: any ``nnx.Module`` called as ``module(inputs) -> logits``.

    Returns:
      A :class:`Functional`. A model without batch statistics and dropout needs only ``params`` and
      ``apply``; the others need ``train``, whose ``key`` seeds every random stream of the module.
      ``features`` is for modules whose last layer is their ``head``, as here, and raises a
      ``ValueError`` for one that has none.

    >>> import jax
    >>> from jaxbalance.models import MLP
    >>> model = functional(MLP(4, 3, rngs=nnx.Rngs(0)))
    >>> model.apply(model.params, jax.numpy.ones((2, 4))).shape
    (2, 3)
    >>> model.features(model.params, jax.numpy.ones((2, 4))).shape
    (2, 128)
    """
    graph, params, state = _split(module)

    def evaluate(params: Params, model_state: ArrayTree, inputs: Array) -> Array:
        merged = nnx.merge(graph, params, model_state, copy=True)
        merged.eval()
        logits: Array = merged(inputs)
        return logits

    def apply(params: Params, inputs: Array) -> Array:
        return evaluate(params, state, inputs)

    def train(
        params: Params, model_state: ArrayTree, key: Array, inputs: Array
    ) -> tuple[Array, ArrayTree]:
        merged = nnx.merge(graph, params, model_state, copy=True)
        merged.train()
        nnx.reseed(merged, default=key, params=key, dropout=key)
        logits = merged(inputs)
        return logits, _split(merged)[2]

    def features(params: Params, inputs: Array) -> Array:
        if not hasattr(module, "head"):
            raise ValueError(f"module: got {type(module).__name__}, which has no attribute head")
        merged = nnx.merge(graph, params, state, copy=True)
        merged.eval()
        merged.head = _as_they_come
        entering: Array = merged(inputs)
        return entering

    return Functional(params, state, apply, evaluate, train, features)


def _as_they_come(features: Array) -> Array:
    return features
