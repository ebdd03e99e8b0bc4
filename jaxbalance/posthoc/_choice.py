"""Choice of a model by several metrics, the most important first."""

import jax
import jax.numpy as jnp

from jaxbalance import _check
from jaxbalance._types import Array, ArrayLike, Scalar


def lexicographic_choice(values: ArrayLike, *, tolerance: Scalar | ArrayLike = 0.0) -> Array:
    r"""Choose the model that is best by the first metric, ties broken by the second, and so on.

    .. math:: S_0 = \{1, \dots, M\}, \qquad
              S_j = \{m \in S_{j-1} : v_{mj} \ge \max_{l \in S_{j-1}} v_{lj} - \epsilon_j\},
              \qquad m^* = \min S_J

    ``tolerance=0`` breaks exact ties only; an infinite one ignores its metric, unless the metric
    has no value for a model. With one metric and no tolerance this is ``argmax``.

    Args:
      values: ``[M, J]``, floating: metric j of model m, the larger the better. A model whose metric
        is NaN loses to every model that has a value; a metric that is NaN for all the models still
        in the race decides nothing.
      tolerance: epsilon >= 0, one number or one per metric ``[J]``, in the units of the metrics.

    Returns:
      Index of the chosen model, ``[]``, int32; of equals the first.

    Raises:
      ValueError: ``values`` is not ``[M, J]`` with M, J >= 1, ``tolerance`` is neither one number
        nor ``[J]``, or it is negative.

    >>> f1_then_gmean = jnp.array([[0.80, 0.60], [0.79, 0.75], [0.50, 0.90]])
    >>> lexicographic_choice(f1_then_gmean)
    Array(0, dtype=int32)
    >>> lexicographic_choice(f1_then_gmean, tolerance=0.02)
    Array(1, dtype=int32)
    """
    table = _check.rows("values", values)
    if table.size == 0:
        raise ValueError(f"values: got shape {table.shape}, wanted [M, J] with M, J >= 1")
    table = table.astype(_check.working_dtype(table))
    if not isinstance(tolerance, jax.Array):
        for number in jnp.ravel(jnp.asarray(tolerance)).tolist():
            _check.at_least(0.0, tolerance=number)
    slack = jnp.asarray(tolerance).astype(table.dtype)
    if slack.shape not in ((), table.shape[1:]):
        raise ValueError(
            f"tolerance: got shape {slack.shape}, wanted one number or shape {table.shape[1:]}"
        )

    def narrow(left: Array, metric: tuple[Array, Array]) -> tuple[Array, None]:
        column, allowed = metric
        worth = jnp.where(left & ~jnp.isnan(column), column, -jnp.inf)
        best = jnp.max(worth)
        good = left & ~jnp.isnan(column) & ((worth >= best - allowed) | (worth == best))
        return jnp.where(jnp.any(good), good, left), None

    everyone = jnp.ones_like(table[:, 0], dtype=bool)
    each = jnp.broadcast_to(slack, table.shape[1:])
    survivors, _ = jax.lax.scan(narrow, everyone, (table.T, each))
    return jnp.argmax(survivors).astype(jnp.int32)
