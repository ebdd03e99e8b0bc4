"""Prepared TFDS data sets, read without TensorFlow; what is not prepared comes with the recipe.

The tests prepare small sets as any builder would. Two of them bear the name and version of a set
that TFDS knows, so that its own description is read together with our files.
"""

import io
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxbalance import data
from tests.data_helpers import one_hot_by_hand, refusal

CLASS = tfds.features.ClassLabel(names=["no", "yes"])
NUMBER = tfds.features.Scalar(np.float32)
TEXT = tfds.features.Text()


def prepare(folder, *, splits, features, name="sample", version="1.0.0", keys=None):
    """Write the rows of ``splits`` as array_record below ``folder`` and return it as text."""

    def info(builder):
        return tfds.core.DatasetInfo(
            builder=builder,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=keys,
        )

    members = {
        # For a builder inside a package TFDS wants importlib_resources, which it does not install.
        "__module__": "__main__",
        "name": name,
        "VERSION": tfds.core.Version(version),
        "_info": info,
        "_split_generators": lambda _, __: {key: enumerate(rows) for key, rows in splits.items()},
        "_generate_examples": None,
    }
    # TFDS keeps the names of all builders for good, and the tests share one.
    with tfds.core.registered.skip_registration():
        builder = type(name.title(), (tfds.core.GeneratorBasedBuilder,), members)
    builder(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return str(folder)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    stream.seek(0)
    return stream


def by(dataset, column):
    """Rows sorted by one column, because TFDS stores rows in an order of its own."""
    order = np.argsort(dataset.inputs[:, dataset.feature_names.index(column)])
    return dataset.inputs[order], dataset.labels[order]


def test_a_table_of_numbers_in_two_splits(tmp_path):
    rows = [{"b": i / 4, "a": i, "ok": i > 3, "label": i % 2} for i in range(8)]
    features = {"b": NUMBER, "a": tfds.features.Scalar(np.int32), "label": CLASS}
    features["ok"] = tfds.features.Scalar(np.bool_)
    folder = prepare(tmp_path, features=features, splits={"train": rows[:5], "test": rows[5:]})
    dataset = data.read_tfds("sample", data_dir=folder)
    assert dataset.feature_names == ("a", "b", "ok")
    inputs, labels = by(dataset, "a")
    np.testing.assert_array_equal(inputs, [[i, i / 4, i > 3] for i in range(8)])
    np.testing.assert_array_equal(labels, [i % 2 for i in range(8)])
    assert dataset.class_names == ("no", "yes")
    assert dataset.name == "sample"
    assert sorted(dataset.inputs[dataset.test_indices, 0]) == [5, 6, 7]


def test_texts_classes_and_vectors_as_inputs(tmp_path):
    colours = ["red", "blue", "red", "green"]
    features = {
        "colour": TEXT,
        "place": tfds.features.Tensor(shape=(2,), dtype=np.float64),
        "sex": tfds.features.ClassLabel(names=["f", "m"]),
        "n": NUMBER,
        "label": TEXT,
    }
    rows = [
        {"colour": colour, "place": [i, -i], "sex": i % 2, "n": i, "label": "uvuv"[i]}
        for i, colour in enumerate(colours)
    ]
    keys = ({"n": "n", "rest": ("colour", "place", "sex")}, "label")
    folder = prepare(tmp_path, features=features, splits={"train": rows}, keys=keys)
    dataset = data.read_tfds("sample", data_dir=folder)
    levels, table = one_hot_by_hand(colours)
    names = [*(f"colour={one}" for one in levels), "n", "place[0]", "place[1]", "sex=f", "sex=m"]
    assert dataset.feature_names == tuple(names)
    inputs, labels = by(dataset, "n")
    by_hand = [[*table[i], i, i, -i, 1 - i % 2, i % 2] for i in range(4)]
    np.testing.assert_array_equal(inputs, by_hand)
    np.testing.assert_array_equal(labels, [0, 1, 0, 1])
    assert dataset.class_names == ("u", "v")
    assert dataset.test_indices is None


def test_a_group_of_features_as_input(tmp_path):
    features = {"x": {"b": NUMBER, "a": NUMBER}, "label": CLASS}
    rows = [{"x": {"b": i, "a": 10 * i}, "label": i % 2} for i in range(4)]
    folder = prepare(tmp_path, features=features, splits={"everything": rows}, keys=("x", "label"))
    dataset = data.read_tfds("sample", data_dir=folder)
    assert dataset.feature_names == ("a", "b")
    np.testing.assert_array_equal(by(dataset, "a")[0], [[10 * i, i] for i in range(4)])


def test_images_of_a_set_that_tfds_knows(tmp_path, generator):
    pixels = generator.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    rows = [{"image": png(image), "label": i + 1} for i, image in enumerate(pixels)]
    features = {
        "image": tfds.features.Image(shape=(28, 28, 1)),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    splits = {"train": rows[:4], "test": rows[4:]}
    folder = prepare(tmp_path, name="mnist", version="3.0.1", features=features, splits=splits)
    dataset = data.read_tfds("mnist", data_dir=folder)
    assert dataset.inputs.shape == (6, 28, 28, 1)
    assert dataset.inputs.dtype == np.uint8
    assert dataset.class_names == tuple("123456")
    order = np.argsort(dataset.labels)
    np.testing.assert_array_equal(dataset.inputs[order, ..., 0], pixels)
    assert sorted(dataset.labels[dataset.test_indices]) == [4, 5]


def test_the_one_image_is_the_input_where_the_builder_names_none(tmp_path):
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(1, 4, 5, 3) + np.array(
        [[[[0]]], [[[99]]]]
    )
    rows = [{"image": pixels[i].astype(np.uint8), "file": str(i), "label": i} for i in range(2)]
    features = {
        "image": tfds.features.Tensor(shape=(4, 5, 3), dtype=np.uint8),
        "file": TEXT,
        "label": CLASS,
    }
    folder = prepare(tmp_path, features=features, splits={"train": rows})
    dataset = data.read_tfds("sample", data_dir=folder)
    np.testing.assert_array_equal(dataset.inputs[np.argsort(dataset.labels)], pixels)


def test_images_of_different_sizes_are_refused(tmp_path):
    features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": CLASS}
    rows = [{"image": png(np.zeros((4, 5 + i, 3), np.uint8)), "label": i % 2} for i in range(3)]
    folder = prepare(tmp_path, features=features, splits={"train": rows})
    message = refusal(data.read_tfds, "sample", data_dir=folder)
    assert "3 different sizes, from (4, 5, 3) to (4, 7, 3)" in message


def test_other_splits_are_not_read(tmp_path):
    rows = [{"a": i, "label": i % 2} for i in range(9)]
    features = {"a": NUMBER, "label": CLASS}
    splits = {"train": rows[:4], "validation": rows[4:6], "unlabelled": rows[6:]}
    folder = prepare(tmp_path, features=features, splits=splits)
    dataset = data.read_tfds("sample", data_dir=folder)
    assert sorted(dataset.inputs[:, 0]) == [0, 1, 2, 3]
    assert dataset.test_indices is None


def test_the_environment_names_the_folder_and_load_reads_from_there(tmp_path, monkeypatch):
    rows = [{"a": i, "label": i % 2} for i in range(4)]
    folder = prepare(tmp_path, features={"a": NUMBER, "label": CLASS}, splits={"train": rows})
    # TFDS reads the variable while it is imported; data_dir wins over both.
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", folder)
    dataset = data.load("tfds:sample:1.0.0")
    assert dataset.name == "sample:1.0.0"
    assert sorted(dataset.inputs[:, 0]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("features", "row", "keys", "words"),
    [
        ({"a": NUMBER, "b": CLASS, "c": CLASS}, {"a": 1, "b": 0, "c": 1}, None, ["which feature"]),
        ({"a": NUMBER, "b": NUMBER}, {"a": 1, "b": 0}, None, ["which feature", "a (Scalar)"]),
        ({"a": NUMBER, "b": {"c": CLASS}}, {"a": 1, "b": {"c": 0}}, ("a", "b"), ["which feature"]),
        (
            {"a": tfds.features.Sequence(NUMBER), "label": CLASS},
            {"a": [1.0, 2.0], "label": 0},
            None,
            ["feature a (Sequence)", "neither numbers nor text"],
        ),
        (
            {"a": tfds.features.Tensor(shape=(2, 2, 2, 2), dtype=np.float32), "label": CLASS},
            {"a": np.zeros((2, 2, 2, 2), np.float32), "label": 0},
            None,
            ["feature a (Tensor)", "(2, 2, 2, 2)"],
        ),
        ({"a": NUMBER, "label": CLASS}, {"a": 1, "label": -1}, None, ["3 of 3", "no label"]),
        ({"a": NUMBER, "label": CLASS}, {"a": 1, "label": 0}, None, ["every row", "'no'"]),
        ({"label": CLASS}, {"label": 0}, None, ["no column besides"]),
    ],
)
def test_features_that_make_no_classification_are_refused(tmp_path, features, row, keys, words):
    folder = prepare(tmp_path, features=features, splits={"train": [row] * 3}, keys=keys)
    message = refusal(data.read_tfds, "sample", data_dir=folder)
    for word in words:
        assert word in message


def test_identifiers_are_refused(tmp_path):
    rows = [{"who": f"name{i}", "label": i % 2} for i in range(101)]
    folder = prepare(tmp_path, features={"who": TEXT, "label": CLASS}, splits={"train": rows})
    message = refusal(data.read_tfds, "sample", data_dir=folder)
    assert "tfds:sample: column 'who' has 101 different levels" in message


def test_several_splits_without_train_are_refused(tmp_path):
    rows = [{"a": i, "label": i % 2} for i in range(4)]
    splits = {"first": rows, "second": rows}
    folder = prepare(tmp_path, features={"a": NUMBER, "label": CLASS}, splits=splits)
    message = refusal(data.read_tfds, "sample", data_dir=folder)
    assert "no split called train but first, second" in message


@pytest.mark.parametrize(("name", "meant"), [("mnits", "mnist"), ("cifar1O", "cifar10")])
def test_an_unknown_name_comes_with_close_ones(tmp_path, name, meant):
    message = refusal(data.read_tfds, name, data_dir=str(tmp_path))
    assert f"tfds:{name}: " in message
    assert meant in message.split("did you mean")[1]


@pytest.mark.parametrize("name", ["", "no such name", "zzzzzzzz"])
def test_a_name_like_no_other_is_refused(tmp_path, name):
    assert "no such data set" in refusal(data.read_tfds, name, data_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["mnist", "mnist:3.0.1", "mnist:1.2.3", "titanic"])
def test_a_set_that_is_not_prepared_comes_with_the_recipe(tmp_path, name):
    message = refusal(data.read_tfds, name, data_dir=str(tmp_path))
    recipe = f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()"
    assert recipe in message
    assert not list(tmp_path.iterdir())


def test_a_set_whose_builder_needs_tensorflow_is_read_by_its_version(tmp_path):
    pytest.importorskip("tensorflow_datasets.datasets.titanic")
    rows = [{"age": i, "survived": i % 2} for i in range(4)]
    features = {"age": NUMBER, "survived": CLASS}
    folder = prepare(
        tmp_path,
        name="titanic",
        version="4.0.0",
        features=features,
        splits={"train": rows},
        keys=({"age": "age"}, "survived"),
    )
    assert "read tfds:titanic:VERSION" in refusal(data.read_tfds, "titanic", data_dir=folder)
    dataset = data.read_tfds("titanic:4.0.0", data_dir=folder)
    np.testing.assert_array_equal(by(dataset, "age")[0], np.arange(4.0)[:, None])


def test_files_that_are_damaged_come_with_the_recipe(tmp_path):
    rows = [{"image": png(np.zeros((28, 28), np.uint8)), "label": i % 2} for i in range(4)]
    features = {
        "image": tfds.features.Image(shape=(28, 28, 1)),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    folder = prepare(
        tmp_path, name="mnist", version="3.0.1", features=features, splits={"train": rows}
    )
    (record,) = tmp_path.rglob("*.array_record*")
    record.unlink()
    assert "download_and_prepare()" in refusal(data.read_tfds, "mnist", data_dir=folder)


def test_without_tfds_there_is_a_recipe(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert 'pip install "jaxbalance[data]"' in refusal(data.load, "tfds:mnist")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_mocked_data_of_a_catalogue_builder(name):
    """TFDS's own stand-in for data that are not there: random examples of the right features."""
    with tfds.testing.mock_data(num_examples=40):
        dataset = data.read_tfds(name)
        source = tfds.data_source(name, split="train")
    assert dataset.inputs.shape == (40, *source[0]["image"].shape)
    assert dataset.inputs.dtype == np.uint8
    expected = np.array([example["label"] for example in source])
    info = source.dataset_info.features["label"]
    assert [dataset.class_names[k] for k in dataset.labels] == [info.names[y] for y in expected]
