"""From parameters to logits, recall along training, and new last layers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxbalance import metrics
from jaxbalance._types import Array, Params
from jaxbalance.compare._corrections import Refit
from jaxbalance.compare._heads import with_head
from jaxbalance.compare._plan import Plan, Shared, over_runs, reader

_BLOCK = 500


def evaluate(plan: Plan, params: Params, seeds: Array, shared: Shared) -> tuple[Array, Array]:
    """Validation and test logits of all runs."""

    def one(carried: tuple[Params, Array]) -> tuple[Array, Array]:
        params, seed = carried
        return (
            outputs(plan.network.apply, params, shared.validation[seed], seed, shared),
            outputs(plan.network.apply, params, shared.test[seed], seed, shared),
        )

    return over_runs(plan, one, (params, seeds))


def recall(plan: Plan, params: Params, seed: Array, shared: Shared) -> Array:
    """Recall of each class on the rows of the learning curve."""
    rows = shared.curve[seed]
    predictions = jnp.argmax(outputs(plan.network.apply, params, rows, seed, shared), axis=-1)
    return metrics.recall(
        metrics.confusion_matrix(
            shared.labels[rows], predictions.astype(jnp.int32), num_classes=plan.num_classes
        )
    )


def refitted(plan: Plan, refit: Refit, params: Params, seeds: Array, shared: Shared) -> Params:
    """Parameters of all runs with the last layer that ``refit`` makes of the training rows."""

    def one(carried: tuple[Params, Array]) -> Params:
        params, seed = carried
        rows = shared.train[seed]
        features = outputs(plan.network.features, params, rows, seed, shared)
        return with_head(params, refit(features, shared.labels[rows], plan.num_classes))

    # One run after the other, for the memory of one.
    return jax.lax.map(one, (params, seeds))


def outputs(
    function: Callable[[Params, Array], Array],
    params: Params,
    rows: Array,
    seed: Array,
    shared: Shared,
) -> Array:
    """What a function of a network gives for some rows of the data."""
    read = reader(shared, seed)
    # Blocks bound the memory that a convolutional model's activations take.
    return jax.lax.map(
        lambda row: function(params, read(row[None]))[0],
        rows,
        batch_size=min(_BLOCK, rows.shape[0]),
    )
