"""Prepared TFDS data sets, read without TensorFlow; what is not prepared comes with the recipe."""

import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxbalance import data
from tests.data_helpers import one_hot_by_hand, refusal

FEATURES = tfds.features


def prepared(folder, monkeypatch, *, name, features, splits, supervised_keys=None):
    """Prepare the rows in ``splits`` as array_record in ``folder``, in the manner of any builder."""

    def info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=FEATURES.FeaturesDict(features),
            supervised_keys=supervised_keys,
        )

    def generators(self, _):
        return {split: enumerate(rows) for split, rows in splits.items()}

    members = {
        "name": name,
        "VERSION": tfds.core.Version("1.0.0"),
        "pkg_dir_path": folder,
        "_info": info,
        "_split_generators": generators,
        "_generate_examples": None,
    }
    # Registered for good otherwise, and a second test could not reuse the name.
    with tfds.core.registered.skip_registration():
        builder = type(name.title(), (tfds.core.GeneratorBasedBuilder,), members)
    builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)
