"""What plain training is given afterwards: a factor and a bias per class, or a new last layer."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbalance import metrics, posthoc
from jaxbalance._types import Array

_MOST_TAU = 2.0
_TAUS = 21


class Evidence(NamedTuple):
    """What a correction may look at, of one run."""

    logits: Array
    """Held-out logits ``[n, K]``."""
    labels: Array
    """Their class ids ``[n]``; −1 where it must not look."""
    class_counts: Array
    """Training counts ``[K]``."""
    head: posthoc.LinearHead | None
    """The run's last layer; None where that is not linear with a bias."""
    target_logits: Array
    """Those it will be applied to ``[m, K]``, without labels."""
    target_mask: Array
    """Which of these are examples ``[m]``, and not what fills them up."""


Correction = Callable[[Evidence], posthoc.LogitScaling]
"""From evidence to a factor and a bias for every class's logit."""

Refit = Callable[[Array, Array, int], posthoc.LinearHead]
"""``(features [n, D], labels [n], num_classes) -> head``: a new last layer from training rows."""


def unchanged(evidence: Evidence) -> posthoc.LogitScaling:
    """Factors 1 and biases 0."""
    return _added(jnp.zeros_like(evidence.logits[0]))


def without_prior(evidence: Evidence) -> posthoc.LogitScaling:
    """Minus the log prior."""
    nothing = jnp.zeros_like(evidence.logits[0])
    return _added(posthoc.adjust_logits(nothing, class_counts=evidence.class_counts))


def calibrated(evidence: Evidence) -> posthoc.LogitScaling:
    """The biases, of two classes the threshold, of the best held-out balanced accuracy."""
    logits, labels = evidence.logits, evidence.labels
    if logits.shape[-1] > 2:
        return _added(posthoc.fit_class_bias(logits, labels))
    threshold = posthoc.fit_threshold(
        logits[:, 1] - logits[:, 0], labels, metric=metrics.balanced_accuracy, default=0.0
    )
    return _added(jnp.stack([threshold, jnp.zeros_like(threshold)]))


def tau_normalized(evidence: Evidence) -> posthoc.LogitScaling:
    """Class vectors over a power of their lengths, no bias; the gentlest of the best powers."""
    if evidence.head is None:
        raise ValueError("head: got None, wanted class vectors and a bias to normalise")
    vectors, bias = evidence.head
    lengths = jnp.linalg.norm(vectors, axis=1)

    def scaling(tau: Array) -> posthoc.LogitScaling:
        # What scales a class vector scales its logit, so the features need not be seen again.
        factors = jnp.where(lengths > 0, lengths, jnp.ones_like(lengths)) ** -tau
        return posthoc.LogitScaling(factors, -factors * bias)

    def quality(tau: Array) -> Array:
        scores = posthoc.scale_logits(evidence.logits, **scaling(tau)._asdict())
        predictions = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        matrix = metrics.confusion_matrix(evidence.labels, predictions, num_classes=bias.size)
        return metrics.balanced_accuracy(matrix)

    taus = jnp.linspace(0.0, _MOST_TAU, _TAUS)
    return scaling(taus[jnp.argmax(jax.lax.map(quality, taus))])


def bias_corrected(evidence: Evidence) -> posthoc.LogitScaling:
    """One factor and one bias for all classes rarer than the mean, by class-balanced loss."""
    rare = evidence.class_counts < jnp.mean(evidence.class_counts)
    return posthoc.fit_bias_correction(evidence.logits, evidence.labels, is_new=rare)


def rescaled(evidence: Evidence) -> posthoc.LogitScaling:
    """One factor per class, by class-balanced loss."""
    factors = posthoc.fit_class_factors(evidence.logits, evidence.labels)
    return posthoc.LogitScaling(factors, jnp.zeros_like(factors))


def shifted(evidence: Evidence) -> posthoc.LogitScaling:
    """From the training prior to that of the unlabelled logits, as they themselves suggest it."""
    prior = posthoc.fit_target_prior(
        evidence.target_logits, class_counts=evidence.class_counts, mask=evidence.target_mask
    )
    nothing = jnp.zeros_like(evidence.logits[0])
    return _added(
        posthoc.adapt_logits(nothing, class_counts=evidence.class_counts, class_prior=prior)
    )


def gaussian_head(features: Array, labels: Array, num_classes: int) -> posthoc.LinearHead:
    """The Gaussian discriminant of the features, uniform prior, shrunk as its source does."""
    # Around their mean the sums of squares keep their digits.
    known = labels >= 0
    number, size = jnp.sum(known).astype(features.dtype), features.shape[1]
    center = jnp.sum(jnp.where(known[:, None], features, jnp.zeros_like(features)), axis=0) / number
    moments = posthoc.class_moments(features - center[None], labels, num_classes=num_classes)
    gaussians = posthoc.fit_class_gaussians(moments, shrinkage=size / (number - 1 + size))
    vectors, bias = posthoc.gaussian_discriminant(gaussians)
    return posthoc.LinearHead(vectors, bias - jnp.matmul(vectors, center, precision="highest"))


def _added(bias: Array) -> posthoc.LogitScaling:
    return posthoc.LogitScaling(jnp.ones_like(bias), bias)
