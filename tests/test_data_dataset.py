"""Arrays become a data set or one clear line; the embedded digits are scikit-learn's."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits
from sklearn.preprocessing import LabelEncoder

from jaxbalance import data
from tests.data_helpers import refusal

TABLE = np.arange(12.0).reshape(4, 3)
IMAGES = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)


def test_a_table_becomes_float32_with_numbered_columns_and_keeps_missing_values():
    table = TABLE.copy()
    table[1, 2] = np.nan
    dataset = data.from_arrays(table, [0, 1, 1, 0])
    assert dataset.inputs.dtype == np.float32
    np.testing.assert_array_equal(dataset.inputs, table.astype(np.float32))
    assert dataset.labels.dtype == np.int32
    assert dataset.feature_names == ("x0", "x1", "x2")
    assert dataset.name == "arrays"
    assert dataset.test_indices is None
    assert not data.is_images(dataset)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int64, np.float16, np.float64])
def test_every_kind_of_number_is_taken_in_tables(dtype):
    table = np.array([[0, 1], [1, 0]], dtype)
    dataset = data.from_arrays(table, [0, 1])
    np.testing.assert_array_equal(dataset.inputs, [[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("images", "shape", "dtype"),
    [
        (IMAGES, (4, 4, 4, 1), np.uint8),
        (IMAGES[..., None].repeat(3, -1), (4, 4, 4, 3), np.uint8),
        (IMAGES.astype(np.float64), (4, 4, 4, 1), np.float32),
        (IMAGES.astype(np.int64), (4, 4, 4, 1), np.float32),
    ],
)
def test_images_get_a_channel_axis_and_stay_bytes_or_become_float32(images, shape, dtype):
    dataset = data.from_arrays(images, [0, 1, 1, 0])
    assert dataset.inputs.shape == shape
    assert dataset.inputs.dtype == dtype
    np.testing.assert_array_equal(dataset.inputs.ravel(), images.ravel())
    assert dataset.feature_names == ()
    assert data.is_images(dataset)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([7, -1, 7, 10], ("-1", "7", "10")),
        (np.array([3, 3, 12, 1], np.uint8), ("1", "3", "12")),
        (np.array([2.0, 10.0, 2.0, -3.0]), ("-3", "2", "10")),
        ([1e20, 5.0, 5.0, 5.0], ("5", "100000000000000000000")),
        ([True, False, True, True], ("False", "True")),
        (np.array([True, False, True, True]), ("False", "True")),
        (["b", "a", "B", "a"], ("B", "a", "b")),
        (np.array(["10", "9", "9", "10"]), ("10", "9")),
        (np.array([b"x", b"\xc3\xa9", b"x", b"x"]), ("x", "é")),
        (np.array([b"x", b"\xff", b"x", b"x"]), ("x", "\ufffd")),
        (np.array(["x", "y", "x", "x"], np.dtypes.StringDType()), ("x", "y")),
        (["none", "nan", "none", "nan"], ("nan", "none")),
        (pd.Series(["u", "v", "v", "u"]), ("u", "v")),
        (pd.Series([4, 2, 2, 4]), ("2", "4")),
        ([1, "a", "a", 1], ("1", "a")),
    ],
)
def test_labels_of_any_kind_become_ids_in_sorted_order(labels, names):
    dataset = data.from_arrays(TABLE, labels)
    assert dataset.class_names == names
    assert dataset.labels.dtype == np.int32
    if not isinstance(labels, list) or len({type(one) for one in labels}) == 1:
        np.testing.assert_array_equal(dataset.labels, LabelEncoder().fit_transform(labels))


def test_jax_arrays_are_taken():
    dataset = data.from_arrays(jnp.asarray(TABLE), jnp.array([0, 1, 1, 0]))
    assert isinstance(dataset.inputs, np.ndarray)
    assert isinstance(dataset.labels, np.ndarray)


def test_class_names_are_looked_up_by_id_and_absent_ones_dropped():
    dataset = data.from_arrays(TABLE, [0, 3, 3, 0], class_names=["a", "b", "c", "d"])
    assert dataset.class_names == ("a", "d")
    np.testing.assert_array_equal(dataset.labels, [0, 1, 1, 0])


def test_class_names_of_other_labels_are_in_sorted_order():
    dataset = data.from_arrays(TABLE, [-1, 1, 1, -1], class_names=["healthy", "ill"])
    assert dataset.class_names == ("healthy", "ill")
    assert data.from_arrays(TABLE, list("nyyn"), class_names=["no", "yes"]).class_names[1] == "yes"


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT])
def test_missing_labels_are_counted(missing):
    message = refusal(data.from_arrays, TABLE, ["a", missing, "b", missing])
    assert message.startswith("arrays: 2 of 4 rows have no label")
    assert "1 of 4 rows" in refusal(data.from_arrays, TABLE, np.array([1, 2, np.inf, 2]))


@pytest.mark.parametrize(
    ("inputs", "labels", "words"),
    [
        (TABLE, [0.5, 1.0, 2.0, 2.0], ["regression target", "3 different", "0.5", "bin"]),
        (TABLE, [4, 4, 4, 4], ["every row", "'4'"]),
        (TABLE, [0, 1, 1], ["4 rows", "3 labels"]),
        (TABLE, [[0, 1]] * 4, ["(4, 2)", "one class per row"]),
        (TABLE, np.array([1j, 2, 3, 4]), ["complex128"]),
        (TABLE, np.array(["2020-01-01"] * 4, "M8[D]"), ["datetime64"]),
        (TABLE[0], [0, 1, 1], ["(3,)", "[N, F]"]),
        (np.zeros((4, 2, 2, 3, 1)), [0, 1, 1, 0], ["(4, 2, 2, 3, 1)"]),
        (np.zeros((0, 3)), [], ["no rows"]),
        (np.zeros((4, 0)), [0, 1, 1, 0], ["no columns"]),
        (np.zeros((4, 0, 3)), [0, 1, 1, 0], ["no pixels"]),
        (np.full((4, 2), "a"), [0, 1, 1, 0], ["<U1", "numbers"]),
        (TABLE.astype(object), [0, 1, 1, 0], ["object"]),
        (TABLE * 1j, [0, 1, 1, 0], ["complex128"]),
        (np.where(IMAGES < 20, np.nan, IMAGES), [0, 1, 1, 0], ["2 of 4 images", "NaN"]),
        (np.where(IMAGES == 0, np.inf, IMAGES), [0, 1, 1, 0], ["1 of 4 images"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(inputs, labels, words):
    message = refusal(data.from_arrays, inputs, labels, name="mine")
    assert message.startswith("mine: ")
    for word in words:
        assert word in message


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e39])
def test_infinite_values_are_refused_by_column(value):
    table = TABLE.copy()
    table[:2, 1] = value
    message = refusal(data.from_arrays, table, [0, 1, 1, 0], feature_names=["a", "b", "c"])
    assert "'b' is infinite (or beyond float32) in 2 of 4 rows;" in message
    table[3, 2] = value
    assert "in 2 of 4 rows (like 1 more column);" in refusal(data.from_arrays, table, [0, 1, 1, 0])


def test_a_column_without_values_is_refused_by_name():
    table = TABLE.copy()
    table[:, 1:] = np.nan
    message = refusal(data.from_arrays, table, [0, 1, 1, 0], feature_names=["a", "b", "c"])
    assert "'b' has no value in any row (like 1 more column)" in message
    wide = np.full((4, 5), np.nan)
    assert "(like 4 more columns)" in refusal(data.from_arrays, wide, [0, 1, 1, 0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"feature_names": ["a"]}, ["1 feature_names", "3 columns"]),
        ({"class_names": ["a", "b", "c"]}, ["3 class_names", "2 classes", "5, 9"]),
        ({"test_indices": [0, 4]}, ["0 to 3"]),
        ({"test_indices": [-1]}, ["0 to 3"]),
        ({"test_indices": [1, 1]}, ["distinct"]),
        ({"test_indices": [0.0]}, ["float64"]),
        ({"test_indices": [True, False, False, True]}, ["bool", "flatnonzero"]),
        ({"test_indices": [[0, 1]]}, ["(1, 2)"]),
        ({"test_indices": [3, 2, 1, 0]}, ["every row"]),
    ],
)
def test_names_and_test_rows_must_fit(options, words):
    message = refusal(data.from_arrays, TABLE, [5, 9, 9, 5], **options)
    for word in words:
        assert word in message


def test_images_take_no_feature_names():
    assert "no feature_names" in refusal(
        data.from_arrays, IMAGES, [0, 1, 1, 0], feature_names=["a"]
    )


def test_test_rows_are_kept_as_int64_and_none_mean_no_split():
    dataset = data.from_arrays(TABLE, [0, 1, 1, 0], test_indices=np.array([3, 0], np.uint8))
    assert dataset.test_indices.dtype == np.int64
    assert dataset.test_indices.tolist() == [3, 0]
    assert data.from_arrays(TABLE, [0, 1, 1, 0], test_indices=[]).test_indices is None


def test_digits_are_those_of_scikit_learn():
    dataset, reference = data.digits(), load_digits()
    assert dataset.inputs.shape == (1797, 8, 8, 1)
    assert dataset.inputs.dtype == np.uint8
    steps = np.array([round(255 * ink / 16) for ink in range(17)])
    np.testing.assert_array_equal(dataset.inputs[..., 0], steps[reference.images.astype(int)])
    np.testing.assert_array_equal(dataset.labels, reference.target)
    assert dataset.class_names == tuple("0123456789")
    assert dataset.name == "digits"
    assert data.is_images(dataset)


def test_importing_the_package_loads_no_reader():
    heavy = ["pandas", "tensorflow_datasets", "sklearn", "flax", "tensorflow"]
    code = f"import sys, jaxbalance.data; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
