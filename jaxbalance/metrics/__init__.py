"""Metrics that mean something when classes are unequal: additive statistics, functions of them.

A *statistic* (a confusion matrix, :class:`CalibrationBins`) is summed over examples, so those of
batches, hosts and devices add up: ``jax.tree.map(jnp.add, first, second)``. Everything else is a
pure function of a statistic. The ranking metrics need all scores at once and add up to nothing.

Labels are class ids; −1 and any id outside ``0 .. K-1`` is padding and counts nowhere. A class
without a labelled example is *absent*: its entry of a per-class vector is NaN, and averages are
over the present classes, NaN only where none is.
"""

from jaxbalance.metrics._agreement import cohen_kappa as cohen_kappa
from jaxbalance.metrics._agreement import matthews_correlation as matthews_correlation
from jaxbalance.metrics._calibration import CalibrationBins as CalibrationBins
from jaxbalance.metrics._calibration import brier_score as brier_score
from jaxbalance.metrics._calibration import calibration_bins as calibration_bins
from jaxbalance.metrics._calibration import (
    expected_calibration_error as expected_calibration_error,
)
from jaxbalance.metrics._confusion import accuracy as accuracy
from jaxbalance.metrics._confusion import balanced_accuracy as balanced_accuracy
from jaxbalance.metrics._confusion import confusion_matrix as confusion_matrix
from jaxbalance.metrics._confusion import f_beta as f_beta
from jaxbalance.metrics._confusion import geometric_mean as geometric_mean
from jaxbalance.metrics._confusion import macro as macro
from jaxbalance.metrics._confusion import macro_f1 as macro_f1
from jaxbalance.metrics._confusion import precision as precision
from jaxbalance.metrics._confusion import present as present
from jaxbalance.metrics._confusion import recall as recall
from jaxbalance.metrics._confusion import support as support
from jaxbalance.metrics._confusion import worst_class_recall as worst_class_recall
from jaxbalance.metrics._groups import group_recall as group_recall
from jaxbalance.metrics._ranking import auroc as auroc
from jaxbalance.metrics._ranking import average_precision as average_precision
