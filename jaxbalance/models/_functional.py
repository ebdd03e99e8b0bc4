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

    >>> import jax
    >>> from jaxbalance.models import MLP
    >>> model = functional(MLP(4, 3, rngs=nnx.Rngs(0)))
    >>> model.apply(model.params, jax.numpy.ones((2, 4))).shape
    (2, 3)
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

    return Functional(params, state, apply, evaluate, train)
