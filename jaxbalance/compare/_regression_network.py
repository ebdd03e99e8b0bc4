"""The network of a regression: a head for the target, one for classes of it, a trained noise."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxbalance._types import Array, Params
from jaxbalance.compare._heads import linear_head
from jaxbalance.compare._plan import model_builder
from jaxbalance.compare._regression_methods import CLASSES, Guess

_FIRST_NOISE = 0.1


class Regressor(NamedTuple):
    """A network in two parts, as functions of its parameters."""

    start: Callable[[int], Params]
    """From a seed to fresh parameters."""
    features: Callable[[Params, Array], Array]
    guess: Callable[[Params, Array], Guess]
    """From features to what the heads make of them."""
    one_by_one: bool
    """Whether runs follow each other: convolutions fill the cores of a CPU by themselves."""


@cache
def regressor(shape: tuple[int, ...], *, model: str) -> Regressor:
    """The network for inputs of a shape: a head for the target and one for classes of it.

    Always the same object, so that what is compiled for it is compiled once.
    """
    build = model_builder(shape, 1, model=model, head=nnx.Linear)
    functions = build(jax.random.key(0))
    example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    width = jax.eval_shape(functions.features, functions.params, example).shape[-1]

    @cache
    def start(seed: int) -> Params:
        classes = {"kernel": jnp.zeros((width, CLASSES)), "bias": jnp.zeros(CLASSES)}
        noise = jnp.log(jnp.asarray(_FIRST_NOISE, jnp.float32))
        network = build(jax.random.key(seed)).params
        return {"network": network, "classes": classes, "log_noise_variance": noise}

    def features(params: Any, inputs: Array) -> Array:
        return functions.features(params["network"], inputs)

    def guess(params: Any, features: Array) -> Guess:
        head, classes = linear_head(params["network"]), params["classes"]
        assert head is not None
        logits = features @ classes["kernel"] + classes["bias"][None]
        targets = features @ head.class_vectors[0] + head.bias[0]
        return Guess(targets, features, logits, jnp.exp(params["log_noise_variance"]))

    return Regressor(start, features, guess, model == "cnn" and jax.default_backend() == "cpu")


def predict(network: Regressor, params: Params, inputs: Array) -> Array:
    """Standardised targets ``[B]`` for standardised inputs."""
    return network.guess(params, network.features(params, inputs)).targets


def over_runs(network: Regressor, one: Callable[[Any], Any], carried: Any) -> Any:
    """Apply a function to every run."""
    return jax.lax.map(one, carried) if network.one_by_one else jax.vmap(one)(carried)
