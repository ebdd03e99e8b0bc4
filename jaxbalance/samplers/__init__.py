"""Samplers: pure functions from a key to a matrix of example indices.

A row is a batch, an index −1 is padding, and row t depends on ``(key, start + t)`` alone: shapes
are static, memory is the size of the answer, and any host can compute any part of any run
(:func:`shard_rows`). The indices feed :func:`jaxbalance.training.run_steps`, grain or any other
loader as they are.
"""

from jaxbalance.samplers._batches import class_aware as class_aware
from jaxbalance.samplers._batches import m_per_class as m_per_class
from jaxbalance.samplers._batches import scheduled as scheduled
from jaxbalance.samplers._batches import shard_rows as shard_rows
from jaxbalance.samplers._binned import apportioned_counts as apportioned_counts
from jaxbalance.samplers._binned import self_paced_factor as self_paced_factor
from jaxbalance.samplers._binned import self_paced_probabilities as self_paced_probabilities
from jaxbalance.samplers._binned import statistic_bins as statistic_bins
from jaxbalance.samplers._class_index import ClassIndex as ClassIndex
from jaxbalance.samplers._class_index import class_index as class_index
from jaxbalance.samplers._class_index import multilabel_index as multilabel_index
from jaxbalance.samplers._draws import class_balanced as class_balanced
from jaxbalance.samplers._draws import oversampled_counts as oversampled_counts
from jaxbalance.samplers._draws import resampled_epochs as resampled_epochs
from jaxbalance.samplers._draws import shuffled_epochs as shuffled_epochs
from jaxbalance.samplers._draws import stratified as stratified
from jaxbalance.samplers._draws import undersampled_counts as undersampled_counts
from jaxbalance.samplers._schedules import Schedule as Schedule
from jaxbalance.samplers._schedules import constant_schedule as constant_schedule
from jaxbalance.samplers._schedules import effective_number_schedule as effective_number_schedule
from jaxbalance.samplers._schedules import switch_schedule as switch_schedule
from jaxbalance.samplers._schedules import temperature_schedule as temperature_schedule
