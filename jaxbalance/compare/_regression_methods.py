"""The methods that ``jaxbalance compare --task regression`` knows: one dict of functions."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from jaxbalance import losses, samplers
from jaxbalance._types import Array
from jaxbalance.compare import _draws
from jaxbalance.samplers import ClassIndex

CLASSES = 10
"""Most classes that the targets are cut into beside the regression, about equally large."""

_CONR = 0.2
_POINTS = 512


class Guess(NamedTuple):
    """What a network says of a batch; targets are in standard deviations from their mean."""

    targets: Array
    """``[B]``"""
    features: Array
    """What the last layer saw ``[B, D]``."""
    class_logits: Array
    """Of a second head ``[B, CLASSES]``."""
    noise_variance: Array
    """A trained number > 0."""


class Truth(NamedTuple):
    """What is known of a batch."""

    targets: Array
    """``[B]``; NaN is padding."""
    weights: Array
    """``[B]``"""


class Bins(NamedTuple):
    """A seed's training targets by bin, in their standard deviations from their mean."""

    edges: Array
    """``[M + 1]``"""
    counts: Array
    """Training examples ``[M]``."""
    centers: Array
    """Mean of each bin's targets ``[M]``, of the first bin their least, of the last their largest.
    """
    class_edges: Array
    """Of classes about equally large ``[CLASSES + 1]``; infinite where there are fewer."""


Objective = Callable[[Guess, Truth, Bins], Array]
"""One loss per example ``[B]``."""

Weigh = Callable[[Array, Array, Bins], Array]
"""``(targets [n], bins [n], statistics) -> weights [n]`` of the training examples, mean one."""


class RegressionMethod(NamedTuple):
    """One way to train. Those that differ in weights and draws alone share one program."""

    summary: str
    """One line for people."""
    objective: Objective
    weigh: Weigh
    draw: _draws.Draw = _draws.natural
    """The rows of every step."""
    smooths_features: bool = False
    """Whether features are smoothed over neighbouring bins while training (FDS)."""


def _squared(guess: Guess, truth: Truth, bins: Bins) -> Array:
    del bins
    return losses.squared_error(guess.targets, truth.targets, weights=truth.weights)


def _absolute(guess: Guess, truth: Truth, bins: Bins) -> Array:
    del bins
    return losses.absolute_error(guess.targets, truth.targets, weights=truth.weights)


def _balanced_squared(guess: Guess, truth: Truth, bins: Bins) -> Array:
    return losses.balanced_mse_bni(
        guess.targets,
        truth.targets,
        # A target beyond all centres would push its prediction away without end.
        bin_centers=bins.centers,
        bin_counts=bins.counts,
        noise_variance=guess.noise_variance,
    )


def _contrastive(guess: Guess, truth: Truth, bins: Bins) -> Array:
    apart = losses.conr_loss(
        guess.features,
        guess.targets,
        truth.targets,
        # A hair more than a bin, for neighbouring whole numbers are a bin apart but for rounding.
        window=1.001 * (bins.edges[1] - bins.edges[0]),
        rate=_CONR,
    )
    return _squared(guess, truth, bins) + _CONR * apart


def _with_classification(guess: Guess, truth: Truth, bins: Bins) -> Array:
    return losses.regression_with_classification_loss(
        guess.targets,
        guess.class_logits,
        truth.targets,
        edges=bins.class_edges,
    )


def _alike(targets: Array, ids: Array, bins: Bins) -> Array:
    del ids, bins
    return jnp.ones_like(targets)


def _smoothed_bins(power: float) -> Weigh:
    def weigh(targets: Array, ids: Array, bins: Bins) -> Array:
        del targets
        density = losses.smoothed_label_density(bins.counts, window=losses.gaussian_window())
        return losses.inverse_density_weights(density, power=power, counts=bins.counts)[ids]

    return weigh


def _kernel(rule: Callable[[Array], Array]) -> Weigh:
    def weigh(targets: Array, ids: Array, bins: Bins) -> Array:
        del ids, bins
        # At fixed points and between them straight lines, or time were quadratic in the examples.
        points = jnp.linspace(jnp.min(targets), jnp.max(targets), _POINTS)
        return rule(jnp.interp(targets, points, losses.kernel_density(points, targets)))

    return weigh


def _class_aware(
    key: Array, index: ClassIndex, class_counts: object, *, batch_size: int, steps: int
) -> Array:
    del class_counts
    return samplers.class_aware(key, index, batch_size=batch_size, steps=steps)


_PLAIN = RegressionMethod("squared error on the data as they are", _squared, _alike)

REGRESSION_METHODS: dict[str, RegressionMethod] = {
    "plain": _PLAIN,
    "absolute": _PLAIN._replace(summary="absolute error", objective=_absolute),
    "lds": _PLAIN._replace(
        summary="squared error weighted by one over the square root of the smoothed density (LDS)",
        weigh=_smoothed_bins(0.5),
    ),
    "lds-inverse": _PLAIN._replace(
        summary="squared error weighted by one over the smoothed density (LDS)",
        weigh=_smoothed_bins(1.0),
    ),
    "dense-loss": _PLAIN._replace(
        summary="squared error, weights falling linearly with the kernel density, alpha 1",
        weigh=_kernel(losses.dense_loss_weights),
    ),
    "mdi": _PLAIN._replace(
        summary="squared error, weights an involution of the kernel density (MDI), alpha 2",
        weigh=_kernel(partial(losses.involution_weights, alpha=2.0)),
    ),
    "balanced-bins": _PLAIN._replace(
        summary="bins of the target take turns in the batches, rare ones repeated",
        draw=_class_aware,
    ),
    "fds": _PLAIN._replace(
        summary="features smoothed over neighbouring bins while training (FDS)",
        smooths_features=True,
    ),
    "balanced-mse": _PLAIN._replace(
        summary="balanced MSE by the histogram of the targets (BNI), its noise trained along",
        objective=_balanced_squared,
    ),
    "conr": _PLAIN._replace(
        summary=f"squared error and {_CONR:g} times the contrastive regulariser ConR",
        objective=_contrastive,
    ),
    "classification": _PLAIN._replace(
        summary="squared error and cross entropy of equalised bins, from a second head",
        objective=_with_classification,
    ),
}
