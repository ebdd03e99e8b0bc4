"""Data on the host: reading, checking, splitting, long-tailed subsets, standardizing.

Readers return a :class:`Dataset` of NumPy arrays; whatever is wrong with the data is said here, in
one line, before anything is compiled. Splits come before any resampling and are index arrays, so
that no row can be on both sides. What the readers need besides NumPy is imported on first use.
"""

from jaxbalance.data._csv import read_csv as read_csv
from jaxbalance.data._dataset import Dataset as Dataset
from jaxbalance.data._dataset import from_arrays as from_arrays
from jaxbalance.data._dataset import is_images as is_images
from jaxbalance.data._embedded import digits as digits
from jaxbalance.data._files import load as load
from jaxbalance.data._npz import read_npz as read_npz
from jaxbalance.data._splits import Split as Split
from jaxbalance.data._splits import fingerprint as fingerprint
from jaxbalance.data._splits import long_tail_subset as long_tail_subset
from jaxbalance.data._splits import stratified_split as stratified_split
from jaxbalance.data._standardize import Standardizer as Standardizer
from jaxbalance.data._standardize import fit_standardizer as fit_standardizer
from jaxbalance.data._standardize import standardize as standardize
from jaxbalance.data._targets import TargetDataset as TargetDataset
from jaxbalance.data._targets import from_target_arrays as from_target_arrays
from jaxbalance.data._targets import load_targets as load_targets
from jaxbalance.data._tfds import read_tfds as read_tfds
