"""Corrections after training: of logits, of the classifier's weights, of thresholds.

They need no gradient of the network and run in seconds: corrections by a prior or by counts, fits
on held-out examples, statistics of features with the classifiers that follow from them, and
estimates of the class shares where a model is used. The fits are exact searches, closed forms or
convex problems with a fixed number of iterations: they compile, map over runs with ``vmap`` and
need no step size. Fit on examples that neither training nor the final test has seen. Scores, logits
and features must be finite; −1 and any id that is no class is padding, whose values may be
anything.
"""

from jaxbalance.posthoc._calibration import fit_temperature as fit_temperature
from jaxbalance.posthoc._choice import lexicographic_choice as lexicographic_choice
from jaxbalance.posthoc._ensembles import backdoor_average as backdoor_average
from jaxbalance.posthoc._ensembles import ensemble_logits as ensemble_logits
from jaxbalance.posthoc._gaussian_scores import LinearHead as LinearHead
from jaxbalance.posthoc._gaussian_scores import VirtualFeatures as VirtualFeatures
from jaxbalance.posthoc._gaussian_scores import gaussian_discriminant as gaussian_discriminant
from jaxbalance.posthoc._gaussian_scores import mahalanobis_scores as mahalanobis_scores
from jaxbalance.posthoc._gaussian_scores import nearest_mean_scores as nearest_mean_scores
from jaxbalance.posthoc._gaussian_scores import virtual_features as virtual_features
from jaxbalance.posthoc._gaussians import ClassGaussians as ClassGaussians
from jaxbalance.posthoc._gaussians import ClassMoments as ClassMoments
from jaxbalance.posthoc._gaussians import class_means as class_means
from jaxbalance.posthoc._gaussians import class_moments as class_moments
from jaxbalance.posthoc._gaussians import fit_class_gaussians as fit_class_gaussians
from jaxbalance.posthoc._heads import align_weights as align_weights
from jaxbalance.posthoc._heads import multiply_logits as multiply_logits
from jaxbalance.posthoc._heads import normalize_features as normalize_features
from jaxbalance.posthoc._heads import scale_logits as scale_logits
from jaxbalance.posthoc._heads import tau_normalize as tau_normalize
from jaxbalance.posthoc._label_shift import fit_target_prior as fit_target_prior
from jaxbalance.posthoc._label_shift import (
    fit_target_prior_from_confusion as fit_target_prior_from_confusion,
)
from jaxbalance.posthoc._logit_scaling import LogitScaling as LogitScaling
from jaxbalance.posthoc._logit_scaling import fit_bias_correction as fit_bias_correction
from jaxbalance.posthoc._logit_scaling import fit_class_factors as fit_class_factors
from jaxbalance.posthoc._logit_scaling import fit_source_prior as fit_source_prior
from jaxbalance.posthoc._logit_scaling import fit_vector_scaling as fit_vector_scaling
from jaxbalance.posthoc._prior import adapt_logits as adapt_logits
from jaxbalance.posthoc._prior import adjust_logits as adjust_logits
from jaxbalance.posthoc._prior import debias_logits as debias_logits
from jaxbalance.posthoc._thresholds import fit_class_bias as fit_class_bias
from jaxbalance.posthoc._thresholds import fit_threshold as fit_threshold
from jaxbalance.posthoc._trimming import trim_outliers as trim_outliers
