"""Losses for imbalanced classes, filed by mechanism.

Each is a pure function ``loss(logits [..., K], labels, *, ...) -> [...]``: one number per example,
never an average. Labels are class ids (−1 is unlabelled and contributes exactly 0) or class
probabilities; multi-label losses take and return ``[..., K]``. Class statistics come as
``class_counts``.

What to combine: one mechanism at a time. Class weights, a logit adjustment and a class-balanced
sampler all correct for the same prior, and two of them correct it twice.
"""

from jaxbalance.losses._focusing import sigmoid_focal_loss as sigmoid_focal_loss
from jaxbalance.losses._focusing import softmax_focal_loss as softmax_focal_loss
from jaxbalance.losses._margins import (
    class_dependent_temperature_loss as class_dependent_temperature_loss,
)
from jaxbalance.losses._margins import (
    label_distribution_aware_margin_loss as label_distribution_aware_margin_loss,
)
from jaxbalance.losses._margins import logit_adjusted_cross_entropy as logit_adjusted_cross_entropy
from jaxbalance.losses._margins import vector_scaling_loss as vector_scaling_loss
from jaxbalance.losses._reweighting import weighted_cross_entropy as weighted_cross_entropy
