"""Augmentation: new examples between those there are."""

from jaxbalance.augment._mixing import Mixed as Mixed
from jaxbalance.augment._mixing import balanced_partners as balanced_partners
from jaxbalance.augment._mixing import mixup as mixup
from jaxbalance.augment._mixing import remix as remix
from jaxbalance.augment._neighbors import Neighbors as Neighbors
from jaxbalance.augment._neighbors import nearest_neighbors as nearest_neighbors
from jaxbalance.augment._smote import Resampled as Resampled
from jaxbalance.augment._smote import borderline as borderline
from jaxbalance.augment._smote import smote as smote
