"""Which examples a run sees, step by step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxbalance import samplers
from jaxbalance._types import Array, HostArray

SEGMENTS = 20
"""Compiled calls per run: each ends with a point of the learning curve and a progress report."""
LATE = 16
"""The segment from which a training's late part lasts: the last fifth."""

Draw = Callable[..., Array]
"""``draw(key, index, class_counts, batch_size=, steps=) -> [steps, B]``; ``steps`` is a multiple of
``SEGMENTS``."""


def resampled(targets: Callable[[HostArray], HostArray]) -> Draw:
    """Shuffled epochs of which each holds as many of each class as ``targets`` says."""

    def draw(
        key: Array, index: samplers.ClassIndex, class_counts: HostArray, **sizes: int
    ) -> Array:
        return samplers.resampled_epochs(key, index, target_counts=targets(class_counts), **sizes)

    return draw


natural = resampled(lambda sizes: sizes)
"""Shuffled epochs of the data as they are."""


def balanced(
    key: Array,
    index: samplers.ClassIndex,
    class_counts: HostArray,
    *,
    batch_size: int,
    steps: int,
) -> Array:
    """Every class equally often, with replacement."""
    del class_counts
    return samplers.class_balanced(key, index, batch_size=batch_size, steps=steps)


def balanced_late(
    key: Array,
    index: samplers.ClassIndex,
    class_counts: HostArray,
    *,
    batch_size: int,
    steps: int,
) -> Array:
    """The data as they are, and in the late part every class equally often."""
    early = steps // SEGMENTS * LATE
    # All steps are drawn, for the program that draws plain's.
    first = natural(key, index, class_counts, batch_size=batch_size, steps=steps)[:early]
    second = balanced(
        jax.random.fold_in(key, 1),
        index,
        class_counts,
        batch_size=batch_size,
        steps=steps - early,
    )
    return jnp.concatenate([first, second])
