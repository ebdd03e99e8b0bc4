"""What every fit on held-out examples begins with."""

import jax.numpy as jnp
import numpy as np

from jaxbalance import _check, counts
from jaxbalance._types import Array, ArrayLike


def held_out(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Checked logits in the working dtype, 0 in padding, and labels, −1 in padding."""
    scores = _check.logits(logits)
    ids = _check.labels(_check.class_ids(labels), scores)
    labelled = (ids >= 0) & (ids < scores.shape[-1])
    scores = jnp.where(labelled[..., None], scores, jnp.zeros_like(scores))
    return scores.astype(_check.working_dtype(scores)), jnp.where(labelled, ids, -1)


def class_shares(class_weights: ArrayLike | None, number: Array, dtype: np.dtype) -> Array:
    """Worth of one example of each class, as a share of all the examples' worth."""
    if class_weights is None:
        weights = counts.inverse_frequency_weights(number)
    else:
        weights = _check.class_vector("class_weights", class_weights, number.size)
    weights = weights.astype(dtype)
    total = jnp.sum(weights * number.astype(dtype))
    shares: Array = weights / jnp.where(total > 0, total, jnp.ones_like(total))
    return shares
