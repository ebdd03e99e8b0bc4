"""Standardizing against scikit-learn, and the edges: constants, gaps, huge and tiny columns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxbalance import data


def table_with_gaps(generator, rows=200):
    table = generator.normal(size=(rows, 5)) * [1, 10, 1e-3, 1e4, 1] + [0, 5, 0, -1e4, 3]
    table[generator.random(table.shape) < 0.1] = np.nan
    return table.astype(np.float32)


def test_tables_agree_with_scikit_learn(generator):
    train, test = table_with_gaps(generator), table_with_gaps(generator)
    reference = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    reference.fit(train.astype(np.float64))
    standardizer = data.fit_standardizer(train)
    for rows in (train, test):
        result = data.standardize(standardizer, rows)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, reference.transform(rows.astype(float)), atol=5e-6)


def test_parts_are_float32_with_one_number_per_column(generator):
    standardizer = data.fit_standardizer(table_with_gaps(generator))
    for part in standardizer:
        assert part.dtype == np.float32
        assert part.shape == (5,)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("number", [7, 2500])
def test_images_share_one_mean_and_one_deviation(generator, dtype, number):
    images = generator.integers(0, 256, (number, 4, 3, 2)).astype(dtype)
    standardizer = data.fit_standardizer(images)
    assert all(part.shape == () and part.dtype == np.float32 for part in standardizer)
    wide = images.astype(np.float64)
    result = data.standardize(standardizer, images)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, (wide - wide.mean()) / wide.std(), atol=2e-6)
    one = data.standardize(standardizer, images[0])
    np.testing.assert_array_equal(one, result[0])


@pytest.mark.parametrize("constant", [0.0, 0.1, 3e38, 1e-30])
def test_a_constant_column_says_nothing_of_any_row(constant):
    # The mean of many 0.1 is not exactly 0.1, so that a deviation of 0 would not be found.
    train = np.stack([np.full(1001, constant), np.arange(1001)], axis=1)
    standardizer = data.fit_standardizer(train)
    assert standardizer.inverse_scale[0] == 0
    unseen = np.array([[constant, 500], [5, 500], [-3e38, 500], [np.nan, 500]], np.float32)
    result = data.standardize(standardizer, unseen)
    np.testing.assert_array_equal(result, np.zeros((4, 2)))


def test_constant_images_come_out_as_zero():
    standardizer = data.fit_standardizer(np.full((3, 2, 2, 1), 7, np.uint8))
    result = data.standardize(standardizer, np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1))
    np.testing.assert_array_equal(result, np.zeros((1, 2, 2, 1)))


def test_a_column_missing_from_all_training_rows_is_filled_with_zero_and_ignored():
    train = np.array([[np.nan, 1], [np.nan, 2]], np.float32)
    standardizer = data.fit_standardizer(train)
    assert standardizer.fill[0] == 0
    result = data.standardize(standardizer, np.array([[9.0, 1.5], [np.nan, np.nan]], np.float32))
    np.testing.assert_array_equal(result, np.zeros((2, 2)))


def test_the_median_fills_before_mean_and_deviation():
    train = np.array([[1.0], [2.0], [9.0], [np.nan]], np.float32)
    center, inverse_scale, fill = data.fit_standardizer(train)
    filled = np.array([1.0, 2.0, 9.0, 2.0])
    assert fill[0] == 2
    assert center[0] == pytest.approx(filled.mean())
    assert inverse_scale[0] == pytest.approx(1 / filled.std())
    result = data.standardize(data.fit_standardizer(train), train)
    np.testing.assert_array_equal(result[3], result[1])


def test_columns_far_from_one_stay_finite():
    train = np.array(
        [[1e-36, 1e37, 1e-44, 3e38], [2e-36, -1e37, 2e-44, -3e38], [3e-36, 0, 0, 0]], np.float32
    )
    result = np.asarray(data.standardize(data.fit_standardizer(train), train))
    assert np.all(np.isfinite(result))
    np.testing.assert_allclose(result[:, 0], np.sqrt([1.5, 0, 1.5]) * [-1, 0, 1], atol=1e-5)
    np.testing.assert_allclose(result[:, 1], np.sqrt([1.5, 1.5, 0]) * [1, -1, 0], rtol=1e-5)
    # Where float32 cannot hold one over the deviation, the column is as good as constant.
    np.testing.assert_array_equal(result[:, 2:], np.zeros((3, 2)))


def test_other_rows_play_no_role(generator):
    table = table_with_gaps(generator)
    before = data.fit_standardizer(table[:100])
    table[100:] = 1e9
    after = data.fit_standardizer(table[:100])
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_the_identity_standardizer_changes_nothing(generator):
    rows = generator.normal(size=(4, 2)).astype(np.float32)
    identity = data.Standardizer(np.zeros(2), np.ones(2), np.zeros(2))
    np.testing.assert_array_equal(data.standardize(identity, rows), rows)


def test_compiled_and_mapped_equal_eager(generator):
    table = table_with_gaps(generator)
    standardizer = data.fit_standardizer(table)
    eager = data.standardize(standardizer, table)
    compiled = jax.jit(data.standardize)(standardizer, table)
    np.testing.assert_allclose(compiled, eager, rtol=1e-6, atol=1e-6)
    mapped = jax.vmap(data.standardize, in_axes=(None, 0))(standardizer, table)
    np.testing.assert_array_equal(mapped, eager)
    stacked = jax.tree.map(lambda part: np.stack([part, part]), standardizer)
    twice = jax.vmap(data.standardize)(stacked, np.stack([table, table]))
    np.testing.assert_array_equal(twice[1], eager)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float16, jnp.bfloat16])
def test_inputs_of_other_dtypes_become_float32(dtype):
    standardizer = data.Standardizer(np.float32(0.5), np.float32(2), np.float32(0))
    result = data.standardize(standardizer, jnp.array([[0, 1], [1, 0]]).astype(dtype))
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, [[-1, 1], [1, -1]])


@pytest.mark.parametrize("shape", [(3,), (3, 2, 2), (0, 3), (0, 2, 2, 1)])
def test_fit_refuses_what_is_neither_table_nor_images(shape):
    with pytest.raises(ValueError, match=r"inputs: got shape"):
        data.fit_standardizer(np.zeros(shape))


def test_standardize_refuses_another_number_of_columns(generator):
    standardizer = data.fit_standardizer(table_with_gaps(generator))
    with pytest.raises(ValueError, match=r"\(7, 4\), wanted 5 columns"):
        data.standardize(standardizer, np.zeros((7, 4)))
