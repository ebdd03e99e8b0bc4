"""Neighbours and synthetic examples against brute force and imbalanced-learn's neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.neighbors import NearestNeighbors

from jaxbalance import augment
from jaxbalance.augment import _neighbors
from tests.layouts import mesh_of

KEY = jax.random.key(3)


def blobs(generator, counts=(40, 12, 6, 1), width=3):
    labels = generator.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    centres = 3 * np.eye(len(counts), width)
    inputs = centres[labels] + generator.normal(size=(len(labels), width))
    return inputs.astype(np.float32), labels


def brute_force(inputs, labels, k):
    inputs = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
    found = np.full((len(inputs), k), np.inf)
    for i, label in enumerate(labels):
        if label >= 0:
            others = [j for j in range(len(inputs)) if j != i and labels[j] == label]
            distances = sorted(((inputs[i] - inputs[j]) ** 2).sum() for j in others)[:k]
            found[i, : len(distances)] = distances
    return found


def check_neighbours(inputs, labels, num_classes, k):
    near = augment.nearest_neighbors(inputs, labels, num_classes=num_classes, k=k)
    wanted = brute_force(inputs, labels, k)
    np.testing.assert_allclose(near.squared_distances, wanted, rtol=1e-4, atol=1e-5)
    for i, row in enumerate(np.asarray(near.indices)):
        there = row[row >= 0]
        assert len(there) == np.isfinite(wanted[i]).sum()
        assert len(set(there.tolist())) == len(there)
        assert i not in there
        assert np.all(labels[there] == labels[i])
        distances = ((inputs[there] - inputs[i]) ** 2).sum(1)
        np.testing.assert_allclose(distances, wanted[i][: len(there)], rtol=1e-4, atol=1e-5)


def test_neighbours_within_classes(generator):
    inputs, labels = blobs(generator)
    labels[[3, 20]] = -1
    check_neighbours(inputs, labels, 4, 5)


def test_neighbours_over_many_tiles_and_pieces(generator, monkeypatch):
    monkeypatch.setattr(_neighbors, "_ROWS", 32)
    monkeypatch.setattr(_neighbors, "_COLUMNS", 128)
    inputs, labels = blobs(generator, counts=(301, 70, 2, 9), width=5)
    check_neighbours(inputs, labels, 4, 4)


def test_neighbours_equal_those_of_scikit_learn_on_real_data(generator, shared_data):
    with np.load(shared_data / "mammography" / "mammography.npz") as data:
        inputs = data["X"].astype(np.float32)[:3000]
    inputs = inputs + generator.normal(size=inputs.shape).astype(np.float32) * 1e-3
    near = augment.nearest_neighbors(inputs, np.zeros(3000, int), num_classes=1, k=5)
    distances, _ = NearestNeighbors(n_neighbors=6).fit(inputs).kneighbors(inputs)
    ours = np.sqrt(np.asarray(near.squared_distances))
    np.testing.assert_allclose(ours, distances[:, 1:], atol=5e-3)


def test_duplicates_and_constant_inputs_are_neighbours_at_distance_zero():
    near = augment.nearest_neighbors(jnp.ones((7, 2)), jnp.zeros(7, int), num_classes=1, k=3)
    np.testing.assert_array_equal(near.squared_distances, 0)
    assert all(i not in row for i, row in enumerate(np.asarray(near.indices).tolist()))


def test_examples_that_are_not_finite_are_nobodys(generator):
    inputs, labels = blobs(generator, counts=(20, 8))
    inputs[3, 1], inputs[5, 0] = np.nan, np.inf
    near = augment.nearest_neighbors(inputs, labels, num_classes=2, k=3)
    assert not np.isin(near.indices, [3, 5]).any()
    np.testing.assert_array_equal(near.indices[jnp.array([3, 5])], -1)
    new = resample(inputs, labels, (12, 12))
    assert np.all(np.isfinite(new.inputs))
    assert not np.isin(new.seeds, [3, 5]).any()


def resample(inputs, labels, targets, **knobs):
    return jax.jit(lambda key, x, y: augment.smote(key, x, y, target_counts=targets, **knobs))(
        KEY, inputs, labels
    )


def test_counts_are_exact_and_rows_lie_between_neighbours(generator):
    inputs, labels = blobs(generator)
    targets = (25, 30, 20, 4)
    new = resample(inputs, labels, targets, k=3)
    np.testing.assert_array_equal(np.bincount(new.labels), targets)
    near = np.asarray(augment.nearest_neighbors(inputs, labels, num_classes=4, k=3).indices)
    for row, label, seed, partner, weight in zip(*map(np.asarray, new), strict=True):
        assert labels[seed] == labels[partner] == label
        assert 0 <= weight < 1
        assert partner in near[seed] or (partner == seed and weight == 0)
        wanted = inputs[seed] + weight * (inputs[partner] - inputs[seed])
        np.testing.assert_allclose(row, wanted, rtol=1e-5, atol=1e-5)


def test_every_original_is_kept_once_and_every_one_is_a_seed_in_turn(generator):
    inputs, labels = blobs(generator)
    new = resample(inputs, labels, (40, 40, 40, 40))
    seeds, originals = np.asarray(new.seeds), np.asarray(new.seeds == new.partners)
    for label, count in enumerate((40, 12, 6)):
        rows = np.asarray(new.labels) == label
        assert sorted(seeds[rows & originals]) == np.flatnonzero(labels == label).tolist()
        times = np.bincount(seeds[rows & ~originals], minlength=len(labels))[labels == label]
        assert times.max() - times.min() <= 1
        assert times.sum() == 40 - count
    # The only example of the last class has no neighbour: it is repeated.
    assert set(seeds[np.asarray(new.labels) == 3]) == set(np.flatnonzero(labels == 3))


def test_targets_of_the_counts_are_the_identity(generator):
    inputs, labels = blobs(generator)
    new = resample(inputs, labels, np.bincount(labels))
    assert sorted(new.seeds.tolist()) == list(range(len(labels)))
    np.testing.assert_array_equal(new.inputs, inputs[new.seeds])
    np.testing.assert_array_equal(new.labels, labels[new.seeds])


def test_classes_shrink_at_random_without_replacement():
    labels = np.repeat([0, 1], [60, 3])
    inputs = np.arange(63, dtype=np.float32)[:, None]
    times = np.zeros(63)
    draw = jax.jit(lambda key: augment.smote(key, inputs, labels, target_counts=(20, 3)).seeds)
    for key in jax.random.split(KEY, 150):
        seeds = np.asarray(draw(key))
        assert len(set(seeds)) == 23
        times[seeds] += 1
    # Each of 60 is kept 50 of 150 times; six standard errors are 35.
    assert np.abs(times[:60] - 50).max() < 35
    np.testing.assert_array_equal(times[60:], 150)


def test_weights_and_partners_are_uniform(generator):
    inputs, labels = blobs(generator, counts=(2000, 6))
    new = resample(inputs, labels, (1, 2006), k=5)
    synthetic = np.asarray(new.seeds != new.partners)
    weights = np.asarray(new.weights)[synthetic]
    assert len(weights) == 2000
    assert abs(weights.mean() - 0.5) < 6 * np.sqrt(1 / 12 / 2000)
    pairs = np.stack([new.seeds, new.partners])[:, synthetic]
    _, times = np.unique(pairs, axis=1, return_counts=True)
    # 6 seeds with 5 partners each, 2000 draws: 66.7 a pair; six standard errors are 48.
    assert len(times) == 30
    assert np.abs(times - 2000 / 30).max() < 48


def test_images_keep_their_shape_and_integers_become_floating(generator):
    images = generator.integers(256, size=(12, 4, 4, 1)).astype(np.uint8)
    labels = np.repeat([0, 1], [9, 3])
    new = resample(images, labels, (9, 9))
    assert new.inputs.shape == (18, 4, 4, 1)
    assert new.inputs.dtype == jnp.float32
    flat = resample(images.reshape(12, -1), labels, (9, 9))
    np.testing.assert_array_equal(new.inputs.reshape(18, -1), flat.inputs)
    half = resample(jnp.asarray(images, jnp.bfloat16), labels, (9, 9))
    assert half.inputs.dtype == jnp.bfloat16


def test_a_class_without_examples_leaves_unlabelled_zeros(generator):
    inputs, labels = blobs(generator, counts=(5, 0, 3))
    new = resample(inputs, labels, (5, 4, 5))
    np.testing.assert_array_equal(new.labels, [0] * 5 + [-1] * 4 + [2] * 5)
    np.testing.assert_array_equal(new.inputs[5:9], 0)
    assert np.all(np.isfinite(new.inputs))


def test_borderline_by_counting(generator):
    inputs, labels = blobs(generator, counts=(60, 25), width=2)
    inputs[labels == 1] += np.float32([2, -2])
    labels[[0, 9]] = -1
    danger = np.asarray(augment.borderline(inputs, labels, num_classes=2, m=10))
    known = labels >= 0
    for i in range(len(labels)):
        distances = np.where(known, ((inputs - inputs[i]) ** 2).sum(1), np.inf)
        distances[i] = np.inf
        foreign = np.sum(labels[np.argsort(distances)[:10]] != labels[i])
        assert danger[i] == (known[i] and 5 <= foreign < 10)
    assert 3 < danger[labels == 1].sum() < (labels == 1).sum()
    new = resample(inputs, labels, (0, 60), eligible=danger)
    synthetic = np.asarray(new.seeds != new.partners)
    assert set(np.asarray(new.seeds)[synthetic]) == set(np.flatnonzero(danger & (labels == 1)))
    safe = resample(inputs, labels, (0, 60), eligible=np.zeros(len(labels), bool))
    seeds = np.asarray(safe.seeds)[np.asarray(safe.seeds != safe.partners)]
    assert set(seeds) == set(np.flatnonzero(labels == 1))


def test_examples_split_over_devices(generator):
    inputs, labels = blobs(generator, counts=(40, 16, 8))
    call = jax.jit(lambda x, y: augment.smote(KEY, x, y, target_counts=(20, 30, 20)))
    wanted = call(inputs, labels)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        split = NamedSharding(mesh_of(axis_type), P("batch"))
        came = call(*jax.device_put((inputs, labels), split))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), came, wanted)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"target_counts": (3, -1)}, "no negative count"),
        ({"target_counts": (3.5, 1)}, "target_counts: got dtype float64"),
        ({"target_counts": (0, 0)}, "wanted at least one example"),
        ({"k": 0}, "k: got 0"),
        ({"eligible": np.ones(3, bool)}, "eligible: got bool of shape"),
        ({"eligible": np.ones(4)}, "eligible: got float"),
        ({"labels": np.zeros(3, int)}, "labels: got shape"),
        ({"labels": np.zeros(4)}, "labels: got dtype"),
    ],
)
def test_smote_refuses(knobs, message):
    given = {"labels": np.array([0, 0, 1, 1]), "target_counts": (2, 3)} | knobs
    with pytest.raises(ValueError, match=message):
        augment.smote(KEY, np.zeros((4, 2), np.float32), given.pop("labels"), **given)


def test_neighbours_and_borderline_refuse():
    inputs, labels = np.zeros((4, 2), np.float32), np.zeros(4, int)
    for knobs in ({"num_classes": 0}, {"num_classes": 1, "k": 0}):
        with pytest.raises(ValueError, match=r"(num_classes|k): got 0"):
            augment.nearest_neighbors(inputs, labels, **knobs)
    with pytest.raises(ValueError, match="m: got 0"):
        augment.borderline(inputs, labels, num_classes=1, m=0)
