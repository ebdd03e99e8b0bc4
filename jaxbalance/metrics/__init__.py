"""Metrics that mean something when classes are unequal: additive statistics, functions of them.

A *statistic* (a confusion matrix, :class:`CalibrationBins`) is summed over examples, so those of
batches, hosts and devices add up: ``jax.tree.map(jnp.add, first, second)``. Everything else is a
pure function of a statistic. The exact ranking metrics need all scores at once and add up to
nothing; those of a :class:`ScoreHistogram` do, with a bound on their error.

Labels are class ids; −1 and any id outside ``0 .. K-1`` is padding and counts nowhere. A class
without a labelled example is *absent*: its entry of a per-class vector is NaN, and averages are
over the present classes, NaN only where none is.
"""

from jaxbalance.metrics._agreement import cohen_kappa as cohen_kappa
from jaxbalance.metrics._agreement import matthews_correlation as matthews_correlation
from jaxbalance.metrics._bootstrap import BootstrapInterval as BootstrapInterval
from jaxbalance.metrics._bootstrap import bootstrap_interval as bootstrap_interval
from jaxbalance.metrics._calibration import CalibrationBins as CalibrationBins
from jaxbalance.metrics._calibration import Reliability as Reliability
from jaxbalance.metrics._calibration import brier_score as brier_score
from jaxbalance.metrics._calibration import calibration_bins as calibration_bins
from jaxbalance.metrics._calibration import classwise_calibration_bins as classwise_calibration_bins
from jaxbalance.metrics._calibration import (
    expected_calibration_error as expected_calibration_error,
)
from jaxbalance.metrics._calibration import reliability as reliability
from jaxbalance.metrics._confusion import accuracy as accuracy
from jaxbalance.metrics._confusion import balanced_accuracy as balanced_accuracy
from jaxbalance.metrics._confusion import confusion_matrix as confusion_matrix
from jaxbalance.metrics._confusion import f_beta as f_beta
from jaxbalance.metrics._confusion import geometric_mean as geometric_mean
from jaxbalance.metrics._confusion import jaccard_index as jaccard_index
from jaxbalance.metrics._confusion import macro as macro
from jaxbalance.metrics._confusion import macro_f1 as macro_f1
from jaxbalance.metrics._confusion import precision as precision
from jaxbalance.metrics._confusion import present as present
from jaxbalance.metrics._confusion import recall as recall
from jaxbalance.metrics._confusion import support as support
from jaxbalance.metrics._confusion import worst_class_recall as worst_class_recall
from jaxbalance.metrics._curves import PrecisionRecallCurve as PrecisionRecallCurve
from jaxbalance.metrics._curves import RocCurve as RocCurve
from jaxbalance.metrics._curves import precision_recall_curve as precision_recall_curve
from jaxbalance.metrics._curves import roc_curve as roc_curve
from jaxbalance.metrics._groups import group_confusion as group_confusion
from jaxbalance.metrics._groups import group_recall as group_recall
from jaxbalance.metrics._groups import worst as worst
from jaxbalance.metrics._histogram import Bounded as Bounded
from jaxbalance.metrics._histogram import ScoreHistogram as ScoreHistogram
from jaxbalance.metrics._histogram import histogram_auroc as histogram_auroc
from jaxbalance.metrics._histogram import histogram_average_precision as histogram_average_precision
from jaxbalance.metrics._histogram import score_histogram as score_histogram
from jaxbalance.metrics._multilabel import LabelSetAgreement as LabelSetAgreement
from jaxbalance.metrics._multilabel import hamming_loss as hamming_loss
from jaxbalance.metrics._multilabel import label_set_agreement as label_set_agreement
from jaxbalance.metrics._multilabel import label_set_overlap as label_set_overlap
from jaxbalance.metrics._multilabel import micro_f1 as micro_f1
from jaxbalance.metrics._multilabel import multilabel_confusion as multilabel_confusion
from jaxbalance.metrics._multilabel import subset_accuracy as subset_accuracy
from jaxbalance.metrics._pairwise import hand_till_auroc as hand_till_auroc
from jaxbalance.metrics._pairwise import pairwise_auroc as pairwise_auroc
from jaxbalance.metrics._ranking import auroc as auroc
from jaxbalance.metrics._ranking import average_precision as average_precision
from jaxbalance.metrics._ranking import partial_auroc as partial_auroc
from jaxbalance.metrics._regression import RegressionErrors as RegressionErrors
from jaxbalance.metrics._regression import geometric_mean_error as geometric_mean_error
from jaxbalance.metrics._regression import group_errors as group_errors
from jaxbalance.metrics._regression import mean_absolute_error as mean_absolute_error
from jaxbalance.metrics._regression import mean_squared_error as mean_squared_error
from jaxbalance.metrics._regression import pearson_correlation as pearson_correlation
from jaxbalance.metrics._regression import regression_errors as regression_errors
from jaxbalance.metrics._separation import fisher_discriminant_ratio as fisher_discriminant_ratio
