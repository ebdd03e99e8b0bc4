"""Names that appear in public signatures, one sentence each."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
from chex import ArrayTree

Array: TypeAlias = jax.Array
"""What every function returns: a JAX array."""

ArrayLike: TypeAlias = jax.Array | np.ndarray[Any, Any]
"""What every function accepts: a JAX or NumPy array."""

HostArray: TypeAlias = np.ndarray[Any, Any]
"""A NumPy array, on the host: data as read, indices as built, numbers as reported."""

Scalar: TypeAlias = float | jax.Array
"""One number: a Python float is checked at once, a traced value is taken on trust."""

Params: TypeAlias = ArrayTree
"""The trainable leaves of a model, in any pytree."""

PerExampleLoss: TypeAlias = Callable[..., Array]
"""``loss(logits [..., K], labels, **knobs) -> [...]``: one number for each example."""

ExampleLoss: TypeAlias = Callable[[Any, Array, Array], Array]
"""``example_loss(params, inputs, labels) -> [B]``: model and loss together."""

__all__ = [
    "Array",
    "ArrayLike",
    "ArrayTree",
    "ExampleLoss",
    "HostArray",
    "Params",
    "PerExampleLoss",
    "Scalar",
]
