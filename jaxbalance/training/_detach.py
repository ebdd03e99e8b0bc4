"""Classes that train the head but not what lies below it."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import _check
from jaxbalance._types import Array, ArrayLike


def detach_classes(features: ArrayLike, labels: ArrayLike, *, detached: ArrayLike) -> Array:
    r"""Features as they are, whose gradient stops for the examples of chosen classes.

    .. math:: h'_i = h_i, \qquad
              \frac{\partial \ell}{\partial h_i} = (1 - d_{y_i}) \frac{\partial \ell}{\partial h'_i}

    Between the backbone and the head, it keeps tail classes out of representation learning: their
    few examples move the head as before, and nothing below it. Between 0 and 1 the gradient is the
    mean of one that is stopped at random with probability d.

    A schedule is any function of the step that returns d, such as
    ``tail * optax.linear_schedule(1.0, 0.0, 1000)(step)`` for tail classes that come in over 1000
    steps, or ``tail & (step < 1000)``; it needs no new compilation. In a step the count of steps
    travels as model state (:func:`make_stateful_step`); where d changes once, two phases of
    :func:`run_phases` do it.

    Identity: ``detached`` all 0, or False, changes no gradient.

    Args:
      features: ``[..., *S]``, floating: what leaves the backbone, with any axes S behind those of
        the labels.
      labels: integer class ids ``[...]``. The gradient of −1 and of any id that is no class passes
        as it is; what a loss does with such examples is its own affair.
      detached: d, ``[K]`` booleans, or numbers in [0, 1]: the part of the gradient that stops. An
        absent class may have any. It receives no gradient itself.

    Returns:
      ``features``, bit for bit. The gradient of a class with d = 1 is exactly 0, even where the
      loss has one that is NaN or infinite; that of a class with d = 0 is exactly as it was.

    Raises:
      ValueError: shapes or dtypes disagree, or a number of ``detached``, where its values are
        known, is outside [0, 1].

    Source: Liu et al. 2023, arXiv:2308.14024 (BRL), whose schedule detaches the representation
    learning of tail classes from training. Their code has no stopped gradient: it passes from the
    plain loss to class weights at one epoch, which is a :class:`Phase` with another loss.

    >>> features, labels = jnp.ones((3, 2)), jnp.array([0, 1, 2])
    >>> tail = jnp.array([False, False, True])
    >>> def loss(features, step):
    ...     share = jnp.where(step < 1000, tail.astype(jnp.float32), 0.0)
    ...     return jnp.sum(detach_classes(features, labels, detached=share))
    >>> [jax.grad(loss)(features, step)[:, 0].tolist() for step in (0, 1000)]
    [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    """
    rows, ids = _check.floating("features", features), _check.class_ids(labels)
    if rows.shape[: ids.ndim] != ids.shape:
        raise ValueError(
            f"labels: got shape {ids.shape}, wanted the leading axes of features of shape "
            f"{rows.shape}"
        )
    share = _shares(detached)
    classes = jnp.arange(share.size, dtype=ids.dtype)
    # A sum of one term rather than a gather, which JAX refuses where the batch is split over a mesh
    # with explicit axes.
    member = ids[..., None] == classes.reshape(*[1] * ids.ndim, -1)
    stopped = share.reshape(*[1] * ids.ndim, -1)
    kept = 1 - jnp.sum(jnp.where(member, stopped, jnp.zeros_like(stopped)), axis=-1)
    kept = kept.reshape(*ids.shape, *[1] * (rows.ndim - ids.ndim))
    return _damped(rows, kept.astype(rows.dtype))


def _shares(detached: ArrayLike) -> Array:
    share = jnp.asarray(detached)
    if share.dtype == jnp.bool_:
        share = share.astype(jnp.float32)
    share = _check.class_vector("detached", share)
    if not isinstance(share, jax.core.Tracer):
        known = np.asarray(share)
        if not np.all((known >= 0) & (known <= 1)):
            raise ValueError(f"detached: got {known.tolist()}, wanted numbers in [0, 1]")
    return share


@jax.custom_jvp
def _damped(features: Array, kept: Array) -> Array:
    """``features``, whose derivative is multiplied by ``kept [..., 1]``."""
    del kept
    return features


@_damped.defjvp
def _damped_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    features, kept = primals
    # Chosen, not only multiplied: on the way back 0 times an infinite gradient would be NaN.
    passing = jnp.where(kept > 0, kept * tangents[0], jnp.zeros_like(features))
    return features, passing
