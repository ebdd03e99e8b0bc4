"""Data sets of a suite are filled up to common shapes, and give what they give as they are."""

import numpy as np
import pytest

from jaxbalance import data
from jaxbalance.compare import _plan, _run, _suite_padding, _sweep
from jaxbalance.compare._augmentations import SMOTE
from jaxbalance.compare._methods import METHODS
from jaxbalance.compare._score import score
from jaxbalance.compare._task import make_task
from tests.data_helpers import two_classes

pytestmark = pytest.mark.usefixtures("as_users_do")

BUDGET = _plan.Budget(20, 32, (0.01,), "mlp")
WANTED = [_run.wanted_of(METHODS[name]) for name in ("plain", "gaussian-head", "oversampling")]


@pytest.fixture(scope="module")
def both(as_users_do):
    """A task, the same filled up, what both were trained to, and the programs of the second."""
    inputs, labels = two_classes(np.random.default_rng(12), rows=150, rare=20, columns=4)
    inputs[::9, 2] = np.nan
    task = make_task(data.from_arrays(inputs, labels), profile="natural", seeds=2)
    wide, memory = _suite_padding.padded(task, columns=True), {}
    (ours, number), (theirs, _) = (
        _sweep.train_group(one, BUDGET, WANTED, lambda fraction: None, kept)
        for one, kept in ((wide, memory), (task, {}))
    )
    assert number == 1
    return (wide, ours), (task, theirs), memory


def test_padding_changes_no_number(both):
    """Rows, columns and parts that are filled up, against the task as it is."""
    (wide, ours), (task, theirs), _ = both
    assert wide.inputs.shape == (512, 16)
    assert (wide.train.shape, wide.validation.shape, wide.test.shape) == ((2, 512), *[(2, 128)] * 2)
    for own, other in zip(ours, theirs, strict=True):
        logits = own.test_logits[:, :, : task.test.shape[1]]
        np.testing.assert_allclose(logits, other.test_logits, atol=2e-4)
        np.testing.assert_allclose(own.curve, other.curve)
    for name in ("plain", "gaussian-head", "calibrated", "label-shift"):
        i = WANTED.index(_run.wanted_of(METHODS[name]))
        got = score(wide, METHODS[name], ours[i])
        expected = score(task, METHODS[name], theirs[i])
        np.testing.assert_allclose(got.recall, expected.recall, err_msg=name)
        np.testing.assert_allclose(got.validation, expected.validation, atol=1e-6)
        np.testing.assert_allclose(got.scaling.class_bias, expected.scaling.class_bias, atol=1e-3)
        for metric, values in expected.values.items():
            np.testing.assert_allclose(
                got.values[metric], values, atol=1e-4, err_msg=f"{name} {metric}"
            )


def test_label_shift_of_a_filled_up_task_moves_it(both):
    """Or else the test above would say nothing of it."""
    (wide, ours), _, _ = both
    bias = score(wide, METHODS["label-shift"], ours[0]).scaling.class_bias
    assert np.ptp(bias) > 0.05


def test_smote_finds_the_same_neighbours_in_a_filled_up_task(both):
    """Drawn rows are those of the padding test, so that its points are the same too."""
    (wide, _), (task, _), _ = both
    ours, theirs = (np.asarray(_plan.make_shared(one, SMOTE).prepared) for one in (wide, task))
    number = len(task.labels)
    np.testing.assert_array_equal(ours[:, :number], theirs)
    assert (theirs >= 0).any()
    assert (ours[:, number:] == -1).all()


def test_programs_serve_data_sets_of_other_sizes(generator, both):
    for rows, columns in ((90, 3), (101, 16)):
        inputs, labels = two_classes(generator, rows=rows, columns=columns)
        task = make_task(data.from_arrays(inputs, labels), profile="natural", seeds=2)
        ready = _suite_padding.padded(task, columns=True)
        _, number = _sweep.train_group(ready, BUDGET, WANTED, lambda fraction: None, both[2])
        assert number == 0


@pytest.mark.parametrize("width", [3, 100])
def test_what_is_larger_than_usual_fits_and_images_stay(generator, width):
    inputs, labels = two_classes(generator, rows=2100, columns=width)
    tests = np.arange(600, 2100)
    dataset = data.from_arrays(inputs, labels, test_indices=tests)
    task = _suite_padding.padded(
        make_task(dataset, profile="natural", seeds=1), columns=width == 100
    )
    assert task.inputs.shape == (8192, width)
    assert task.test.shape == (1, 2048)
    assert set(tests) == set(task.test[0, :1500].tolist())
    assert (np.asarray(task.labels)[task.test[0, 1500:]] == -1).all()
    images = data.from_arrays(np.zeros((60, 4, 4), np.float32), np.arange(60) % 2)
    task = make_task(images, profile="natural", seeds=1)
    assert _suite_padding.padded(task, columns=True) is task
