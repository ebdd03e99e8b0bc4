"""What happens to a batch before the network sees it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbalance import augment
from jaxbalance._types import Array

_NEIGHBORS = 5


class Batch(NamedTuple):
    """A batch as it was drawn."""

    inputs: Array
    """``[B, ...]``, standardised."""
    labels: Array
    """Class ids ``[B]``; −1 is padding."""
    rows: Array
    """Where they are in the data ``[B]``."""
    class_counts: Array
    """Training counts ``[K]``."""
    read: Callable[[Array], Array]
    """From rows to standardised inputs."""


class Augmentation(NamedTuple):
    """A change of batches, new at every step, and what it needs to know beforehand."""

    change: Callable[[Array, Batch, Any], tuple[Array, Array]]
    """``(key, batch, prepared) -> (inputs, labels)``; labels may become class probabilities."""
    prepare: Callable[[Array, Array, Array], Any] | None = None
    """``(inputs, labels, class_counts) -> prepared``, once per seed: all inputs, standardised, and
    their labels, −1 outside the seed's training rows. None prepares nothing."""


def _as_drawn(key: Array, batch: Batch, prepared: Any) -> tuple[Array, Array]:
    del key, prepared
    return batch.inputs, batch.labels


def _mixup(key: Array, batch: Batch, prepared: Any) -> tuple[Array, Array]:
    del prepared
    number = batch.class_counts.size
    return augment.mixup(key, batch.inputs, batch.labels, num_classes=number)


def _remix(key: Array, batch: Batch, prepared: Any) -> tuple[Array, Array]:
    del prepared
    return augment.remix(key, batch.inputs, batch.labels, class_counts=batch.class_counts)


def _neighbors(inputs: Array, labels: Array, class_counts: Array) -> Array:
    """Rows of the nearest examples of each growing class ``[N, k]``, −1 where there are no more."""
    grows = class_counts < jnp.max(class_counts)
    wanted = jnp.where((labels >= 0) & grows[labels], labels, -1)
    number = class_counts.size
    return augment.nearest_neighbors(inputs, wanted, num_classes=number, k=_NEIGHBORS).indices


def _smote(key: Array, batch: Batch, neighbors: Array) -> tuple[Array, Array]:
    """Move as many towards a neighbour as SMOTE would have made, of oversampled batches.

    Of the examples of a class that grew from n to m, m - n are synthetic.
    """
    which, choose, go = jax.random.split(key, 3)
    number = batch.class_counts[batch.labels]
    largest = jnp.max(batch.class_counts)
    synthetic = jax.random.uniform(which, number.shape) * largest >= number
    near = neighbors[batch.rows]
    available = jnp.sum(near >= 0, axis=1)
    drawn = jax.random.randint(choose, available.shape, 0, jnp.maximum(available, 1))
    partner = jnp.take_along_axis(near, drawn[:, None], axis=1)[:, 0]
    moved = synthetic & (available > 0)
    share = jnp.where(moved, jax.random.uniform(go, number.shape), 0)
    share = share.reshape(-1, *[1] * (batch.inputs.ndim - 1))
    towards = batch.read(jnp.where(moved, partner, batch.rows))
    return batch.inputs + share * (towards - batch.inputs), batch.labels


NONE = Augmentation(_as_drawn)
MIXUP = Augmentation(_mixup)
REMIX = Augmentation(_remix)
SMOTE = Augmentation(_smote, _neighbors)
