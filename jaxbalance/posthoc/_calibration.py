"""Calibration of confidence by one number."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance._types import Array, ArrayLike
from jaxbalance.posthoc._held_out import held_out

_LARGEST_TEMPERATURE = 1e3


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> Array:
    r"""Find the temperature that makes the cross entropy of held-out examples lowest.

    .. math:: T^* = \arg\min_{10^{-3} \le T \le 10^3} \frac{1}{n} \sum_i
              -\log \operatorname{softmax}(z_i / T)_{y_i}

    Convex in 1/T, so bisecting the sign of the derivative on a logarithmic scale finds it, one bit
    per step in a fixed number of steps. Dividing logits by T changes no ``argmax``. Where more
    confidence never hurts (every example right) the answer is 1e-3, where logits say the opposite
    of the labels 1e3.

    Args:
      logits: ``[..., K]``, floating.
      labels: integer class ids ``[...]``; −1 and any id outside ``0 .. K-1`` counts nowhere.

    Returns:
      T, ``[]``, at least float32: predict with ``softmax(logits / T)``. 1 without a labelled
      example and where all logits of each are equal.

    Raises:
      ValueError: shapes or dtypes disagree.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.

    >>> logits = jnp.log(jnp.array([[4.0, 1.0], [4.0, 1.0], [4.0, 1.0]]))
    >>> fit_temperature(logits, jnp.array([0, 0, 1])).round(4)
    Array(2., dtype=float32)
    """
    scores, ids = held_out(logits, labels)
    classes = jnp.broadcast_to(jnp.arange(scores.shape[-1], dtype=ids.dtype), scores.shape)
    own = jnp.where(classes == ids[..., None], scores, jnp.zeros_like(scores))
    gaps = scores - jnp.sum(own, axis=-1, keepdims=True)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        slope = jnp.sum(gaps * jax.nn.softmax(jnp.exp(middle) * gaps, axis=-1))
        too_sharp = slope > 0
        return jnp.where(too_sharp, low, middle), jnp.where(too_sharp, middle, high)

    most = jnp.log(jnp.asarray(_LARGEST_TEMPERATURE, scores.dtype))
    steps = int(np.finfo(scores.dtype).nmant) + 5
    low, high = jax.lax.fori_loop(0, steps, halve, (-most, most))
    informative = jnp.any(gaps != 0)
    return jnp.where(informative, jnp.exp(-(low + high) / 2), jnp.ones_like(low))
