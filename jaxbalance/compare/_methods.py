"""The methods that ``jaxbalance compare`` knows: one dict of functions."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxbalance import counts, losses, samplers, transforms, weightings
from jaxbalance._types import Array, PerExampleLoss
from jaxbalance.compare import _augmentations, _corrections, _draws
from jaxbalance.models import CosineLinear

Arguments = dict[str, Array]

Link = Callable[[Array], optax.GradientTransformationExtraArgs]
"""``class_counts [K] -> link``: the first link of a chain, from class gradients to one."""


class Training(NamedTuple):
    """One way to train. Those that differ in arguments and draws alone share one program."""

    loss: PerExampleLoss
    """Called as ``loss(logits, labels, **arguments)``."""
    arguments: Callable[[Array, bool], Arguments]
    """``(class_counts, late) -> arguments``; ``late`` is True in the last fifth of the steps."""
    draw: _draws.Draw
    """The rows of every step."""
    head: Callable[..., Any] = nnx.Linear
    """The last layer of the network."""
    link: Link | None = None
    """What comes before Adam and takes gradients of classes; None takes the ordinary gradient."""
    augmentation: _augmentations.Augmentation = _augmentations.NONE
    """What happens to every batch; not together with a link."""
    decoupled: bool = False
    """Whether the last fifth of the steps trains a new head alone, its schedule from the start."""


class Method(NamedTuple):
    """A training, and what is done with its network afterwards."""

    summary: str
    """One line for people."""
    training: Training
    correction: _corrections.Correction = _corrections.unchanged
    """Of the logits, fitted on held-out examples."""
    refit: _corrections.Refit | None = None
    """What makes a new last layer of features; None keeps the trained one."""

    @property
    def afterwards(self) -> bool:
        """Whether it only changes what another training made, and has no curve of its own."""
        return self.correction is not _corrections.unchanged or self.refit is not None


def _weights(
    weigh: Callable[[Array], Array], *, deferred: bool = False
) -> Callable[[Array, bool], Arguments]:
    def arguments(class_counts: Array, late: bool) -> Arguments:
        early = deferred and not late
        return {"class_weights": (jnp.ones_like if early else weigh)(class_counts)}

    return arguments


def _counts(**knobs: float) -> Callable[[Array, bool], Arguments]:
    def arguments(class_counts: Array, late: bool) -> Arguments:
        del late
        fixed = {name: jnp.asarray(value, jnp.float32) for name, value in knobs.items()}
        return {"class_counts": class_counts, **fixed}

    return arguments


def _focal_arguments(class_counts: Array, late: bool) -> Arguments:
    del class_counts, late
    return {"gamma": jnp.asarray(2.0, jnp.float32)}


def _ldam_arguments(class_counts: Array, late: bool) -> Arguments:
    effective = partial(counts.effective_number_weights, beta=0.9999)
    weights = _weights(effective, deferred=True)(class_counts, late)
    return {"class_counts": class_counts, **weights}


def _normalized(class_counts: Array) -> optax.GradientTransformationExtraArgs:
    del class_counts
    return transforms.normalize_classes()


def _common_descent(class_counts: Array) -> optax.GradientTransformationExtraArgs:
    del class_counts
    return transforms.combine_classes(weightings.mgda)


def _sharpness(class_counts: Array) -> optax.GradientTransformationExtraArgs:
    return transforms.imb_sam(tail=jnp.ones_like(class_counts), rho=_RADIUS)


def _tail_sharpness(class_counts: Array) -> optax.GradientTransformationExtraArgs:
    return transforms.imb_sam(tail=class_counts < jnp.mean(class_counts), rho=_RADIUS)


_RADIUS = 0.05

_PLAIN = Training(losses.weighted_cross_entropy, _weights(jnp.ones_like), _draws.natural)

METHODS: dict[str, Method] = {
    "plain": Method("cross entropy on the data as they are", _PLAIN),
    "class-weights": Method(
        "cross entropy weighted by inverse class frequency",
        _PLAIN._replace(arguments=_weights(counts.inverse_frequency_weights)),
    ),
    "effective-number": Method(
        "cross entropy weighted by the effective number of examples, beta 0.999",
        _PLAIN._replace(arguments=_weights(counts.effective_number_weights)),
    ),
    "focal": Method(
        "focal loss, gamma 2, no class weights",
        Training(losses.softmax_focal_loss, _focal_arguments, _draws.natural),
    ),
    "logit-adjustment": Method(
        "cross entropy with the log prior added while training, tau 1",
        Training(losses.logit_adjusted_cross_entropy, _counts(tau=1.0), _draws.natural),
    ),
    "ldam-drw": Method(
        "larger margins for rare classes on a cosine head, class weights in the last fifth",
        # The head already multiplies cosines by 30, so the margin 0.5 becomes 15 and the scale 1.
        Training(
            partial(losses.label_distribution_aware_margin_loss, max_margin=15.0, scale=1.0),
            _ldam_arguments,
            _draws.natural,
            CosineLinear,
        ),
    ),
    "vector-scaling": Method(
        "logits scaled and shifted by class size while training, gamma 0.3, tau 1",
        Training(losses.vector_scaling_loss, _counts(tau=1.0, gamma=0.3), _draws.natural),
    ),
    "balanced-sampling": Method(
        "every class drawn equally often, with replacement", _PLAIN._replace(draw=_draws.balanced)
    ),
    "oversampling": Method(
        "rare classes repeated up to the largest",
        _PLAIN._replace(draw=_draws.resampled(samplers.oversampled_counts)),
    ),
    "undersampling": Method(
        "frequent classes cut to the rarest, other members each epoch",
        _PLAIN._replace(draw=_draws.resampled(samplers.undersampled_counts)),
    ),
    "pcnsgd": Method(
        "every class's gradient scaled to length one (PCNSGD), then Adam",
        _PLAIN._replace(link=_normalized),
    ),
    "mgda": Method(
        "the shortest convex combination of the classes' gradients (MGDA), then Adam",
        _PLAIN._replace(link=_common_descent),
    ),
    "sam": Method("sharpness-aware minimisation, rho 0.05", _PLAIN._replace(link=_sharpness)),
    "imbsam": Method(
        "sharpness-aware for classes rarer than the mean, rho 0.05",
        _PLAIN._replace(link=_tail_sharpness),
    ),
    "smote": Method(
        "rare classes grown to the largest by points between neighbours, new ones at every step",
        _PLAIN._replace(
            draw=_draws.resampled(samplers.oversampled_counts), augmentation=_augmentations.SMOTE
        ),
    ),
    "mixup": Method(
        "every example mixed with another, labels alike, alpha 1",
        _PLAIN._replace(augmentation=_augmentations.MIXUP),
    ),
    "remix": Method(
        "mixup whose labels go to the class three times rarer or more, alpha 1",
        _PLAIN._replace(augmentation=_augmentations.REMIX),
    ),
    "crt": Method(
        "plain training, then in the last fifth a new head alone on class-balanced rows (cRT)",
        _PLAIN._replace(draw=_draws.balanced_late, decoupled=True),
    ),
    "gaussian-head": Method(
        "plain training, last layer replaced by the Gaussian discriminant of its features",
        _PLAIN,
        refit=_corrections.gaussian_head,
    ),
    "post-hoc": Method(
        "plain training, log prior subtracted at prediction", _PLAIN, _corrections.without_prior
    ),
    "calibrated": Method(
        "plain training, threshold or class biases fitted on validation data",
        _PLAIN,
        _corrections.calibrated,
    ),
    "tau-norm": Method(
        "plain training, class vectors over their length to a power chosen on validation, no bias",
        _PLAIN,
        _corrections.tau_normalized,
    ),
    "bias-correction": Method(
        "plain training, one factor and bias for the rarer classes fitted on validation (BiC)",
        _PLAIN,
        _corrections.bias_corrected,
    ),
    "learned-scaling": Method(
        "plain training, a factor per class fitted on validation with balanced weights (LWS)",
        _PLAIN,
        _corrections.rescaled,
    ),
    "label-shift": Method(
        "plain training, moved to class shares estimated from the test inputs, not their labels",
        _PLAIN,
        _corrections.shifted,
    ),
}


def split_arguments(training: Training, class_counts: Array) -> Arguments:
    """A training's arguments for the early and the late phase, stacked: ``[2, ...]`` each."""
    phases = [training.arguments(class_counts, late) for late in (False, True)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *phases)
