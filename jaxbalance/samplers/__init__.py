"""Samplers: pure functions from a key to a matrix of example indices.

A row is a batch, an index −1 is padding, and row t depends on ``(key, start + t)`` alone: shapes
are static, memory is the size of the answer, and any host can compute any part of any run. The
indices feed :func:`jaxbalance.training.run_steps`, grain or any other loader as they are.
"""

from jaxbalance.samplers._class_index import ClassIndex as ClassIndex
from jaxbalance.samplers._class_index import class_index as class_index
from jaxbalance.samplers._draws import class_balanced as class_balanced
from jaxbalance.samplers._draws import oversampled_counts as oversampled_counts
from jaxbalance.samplers._draws import resampled_epochs as resampled_epochs
from jaxbalance.samplers._draws import shuffled_epochs as shuffled_epochs
from jaxbalance.samplers._draws import stratified as stratified
from jaxbalance.samplers._draws import undersampled_counts as undersampled_counts
