"""Attacks on inputs, and training against them when classes are unequal."""

from jaxbalance.adversarial._attacks import Attack as Attack
from jaxbalance.adversarial._attacks import logit_margin as logit_margin
from jaxbalance.adversarial._attacks import projected_gradient_attack as projected_gradient_attack
from jaxbalance.adversarial._attacks import robust_confusion_matrix as robust_confusion_matrix
from jaxbalance.adversarial._training import adversarial_loss as adversarial_loss
from jaxbalance.adversarial._training import separable_reweighted_loss as separable_reweighted_loss
