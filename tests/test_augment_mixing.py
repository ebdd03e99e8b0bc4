"""Mixtures of examples against loops and arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxbalance import augment, losses
from tests.layouts import mesh_of

KEY = jax.random.key(5)


def batch(generator, size=64, classes=4):
    inputs = generator.normal(size=(size, 3, 2)).astype(np.float32)
    labels = generator.integers(-1, classes, size=size).astype(np.int32)
    return jnp.asarray(inputs), jnp.asarray(labels)


def recovered(mixed, inputs, partners):
    """The weight of every first example, by least squares over its inputs."""
    first, second = np.asarray(inputs, float), np.asarray(inputs, float)[partners]
    way = (first - second).reshape(len(first), -1)
    went = (np.asarray(mixed.inputs, float) - second).reshape(len(first), -1)
    return (way * went).sum(1) / (way * way).sum(1)


def test_mixup_mixes_inputs_and_labels_alike(generator):
    inputs, labels = batch(generator)
    partners = np.roll(np.arange(64), 1)
    mixed = jax.jit(lambda k: augment.mixup(k, inputs, labels, num_classes=4, partners=partners))(
        KEY
    )
    weights = recovered(mixed, inputs, partners)
    assert weights.min() >= 0
    assert weights.max() <= 1
    for i, weight in enumerate(weights):
        wanted = np.zeros(4)
        for label, share in ((labels[i], weight), (labels[partners[i]], 1 - weight)):
            if label >= 0:
                wanted[label] += share
        np.testing.assert_allclose(mixed.labels[i], wanted, atol=2e-5)


@pytest.mark.parametrize("alpha", [0.2, 3.0])
def test_weights_follow_their_beta_distribution(alpha):
    inputs = jnp.arange(4000.0)[:, None]
    partners = np.roll(np.arange(4000), 1)
    mixed = augment.mixup(
        KEY, inputs, jnp.zeros(4000, int), num_classes=2, alpha=alpha, partners=partners
    )
    weights = recovered(mixed, inputs, partners)[1:]
    # Variance of Beta(a, a) is 1 / (4 (2a + 1)); six standard errors on either side.
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(weights.mean() - 0.5) < 6 * np.sqrt(variance / 4000)
    assert abs(weights.var() / variance - 1) < 0.15


def test_labels_may_have_weights_of_their_own(generator):
    inputs, labels = batch(generator)
    labels = jnp.abs(labels)
    partners = np.roll(np.arange(64), 1)
    mixed = augment.mixup(
        KEY, inputs, labels, num_classes=4, label_alpha=1.0, partners=partners, alpha=1.0
    )
    weights = recovered(mixed, inputs, partners)
    differ = np.asarray(labels) != np.asarray(labels)[partners]
    shares = np.asarray(mixed.labels)[np.arange(64), labels][differ]
    assert weights.min() >= 0.5 - 1e-5
    assert shares.min() >= 0.5
    assert np.abs(shares - weights[differ]).max() > 0.1


def test_the_identity_is_to_be_inactive(generator):
    inputs, labels = batch(generator)

    @jax.jit
    def mix(step):
        return augment.mixup(KEY, inputs, labels, num_classes=4, active=step < 3)

    off = mix(jnp.int32(3))
    np.testing.assert_array_equal(off.inputs, inputs)
    np.testing.assert_array_equal(off.labels, jax.nn.one_hot(labels, 4))
    assert np.abs(mix(jnp.int32(2)).inputs - inputs).max() > 0.1
    counts = jnp.array([9, 5, 3, 1])
    off = augment.remix(KEY, inputs, labels, class_counts=counts, active=False)
    np.testing.assert_array_equal(off.inputs, inputs)


def test_remix_with_no_limit_is_mixup(generator):
    inputs, labels = batch(generator)
    counts, wanted = jnp.array([90, 5, 30, 1]), augment.mixup(KEY, inputs, labels, num_classes=4)
    for knobs in ({"kappa": jnp.inf}, {"tau": 0.0}):
        came = augment.remix(KEY, inputs, labels, class_counts=counts, **knobs)
        jax.tree.map(np.testing.assert_array_equal, came, wanted)
    absent = augment.remix(KEY, inputs, labels, class_counts=jnp.zeros(4), kappa=1.0)
    jax.tree.map(np.testing.assert_array_equal, absent, wanted)


@pytest.mark.parametrize(("kappa", "tau"), [(3.0, 0.5), (10.0, 0.8)])
def test_remix_against_its_rule(generator, kappa, tau):
    inputs, labels = batch(generator, size=200)
    partners = np.roll(np.arange(200), 7)
    counts = np.array([100, 30, 9, 1])
    mixed = augment.remix(
        KEY, inputs, labels, class_counts=counts, kappa=kappa, tau=tau, partners=partners
    )
    weights = recovered(mixed, inputs, partners)
    seen = set()
    for i, weight in enumerate(weights):
        own, other = int(labels[i]), int(labels[partners[i]])
        share, case = weight, "kept"
        if own >= 0 and other >= 0:
            if counts[own] / counts[other] >= kappa and weight < tau:
                share, case = 0, "other"
            elif counts[own] / counts[other] <= 1 / kappa and 1 - weight < tau:
                share, case = 1, "own"
        seen.add(case)
        wanted = np.zeros(4)
        wanted[own] += share if own >= 0 else 0
        wanted[other] += 1 - share if other >= 0 else 0
        np.testing.assert_allclose(mixed.labels[i], wanted, atol=2e-5)
    assert seen == {"kept", "other", "own"}


def test_balanced_partners_have_all_classes_alike():
    labels = jnp.array([0] * 3000 + [1] * 300 + [2] * 30 + [-1] * 670)
    drawn = jax.jit(lambda k: augment.balanced_partners(k, labels, num_classes=4))(KEY)
    counts = np.bincount(np.asarray(labels)[drawn], minlength=4)
    # Three classes, 4000 draws: six standard errors are 179.
    np.testing.assert_allclose(counts[:3], 4000 / 3, atol=179)
    assert len(set(np.asarray(drawn).tolist())) > 1000
    alone = augment.balanced_partners(KEY, jnp.array([-1, -1, -1]), num_classes=2)
    np.testing.assert_array_equal(alone, [0, 1, 2])


def test_mixtures_feed_the_losses(generator):
    inputs, labels = batch(generator)
    mixed = augment.mixup(KEY, inputs, labels, num_classes=4)
    logits = jnp.asarray(generator.normal(size=(64, 4)), jnp.float32)
    values = losses.weighted_cross_entropy(logits, mixed.labels)
    wanted = -np.sum(np.asarray(mixed.labels) * jax.nn.log_softmax(logits), axis=1)
    np.testing.assert_allclose(values, wanted, atol=1e-5)


def test_probabilities_integers_and_small_floats(generator):
    inputs, labels = batch(generator)
    soft = jax.nn.one_hot(labels, 4)
    by_id = augment.mixup(KEY, inputs, labels, num_classes=4)
    by_share = augment.mixup(KEY, inputs, soft, num_classes=4)
    np.testing.assert_allclose(by_id.labels, by_share.labels, atol=1e-6)
    pixels = augment.mixup(KEY, (inputs * 10).astype(jnp.uint8), labels, num_classes=4)
    assert pixels.inputs.dtype == jnp.float32
    half = augment.mixup(KEY, inputs.astype(jnp.bfloat16), labels, num_classes=4)
    assert half.inputs.dtype == jnp.bfloat16
    broken = inputs.at[3].set(jnp.inf)
    kept = augment.mixup(KEY, broken, labels, num_classes=4, active=False)
    np.testing.assert_array_equal(kept.inputs, broken)


def test_batches_split_over_devices(generator):
    inputs, labels = batch(generator)
    counts = jnp.array([100, 30, 9, 1])

    def both(inputs, labels):
        partners = augment.balanced_partners(KEY, labels, num_classes=4)
        mixed = augment.mixup(KEY, inputs, labels, num_classes=4, partners=partners)
        return mixed, augment.remix(KEY, inputs, labels, class_counts=counts)

    wanted = jax.jit(both)(inputs, labels)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        split = NamedSharding(mesh_of(axis_type), P("batch"))
        came = jax.jit(both)(*jax.device_put((inputs, labels), split))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), came, wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(3, int)}, "labels: got shape"),
        ({"labels": np.zeros((4, 3), np.float32)}, "labels: got shape"),
        ({"labels": np.zeros(4, bool)}, "labels: got dtype bool"),
        ({"alpha": 0.0}, "alpha: got 0.0"),
        ({"label_alpha": -1.0}, "label_alpha: got -1.0"),
        ({"num_classes": 0}, "num_classes: got 0"),
        ({"partners": np.zeros(3, int)}, "partners: got shape"),
        ({"partners": np.zeros(4)}, "partners: got dtype"),
        ({"active": np.ones(4, bool)}, "active: got bool of shape"),
        ({"active": 1.0}, "active: got"),
    ],
)
def test_mixup_refuses(change, message):
    given = {"labels": np.zeros(4, int), "num_classes": 2} | change
    with pytest.raises(ValueError, match=message):
        augment.mixup(KEY, np.zeros((4, 2), np.float32), given.pop("labels"), **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kappa": 0.5}, "kappa: got 0.5"),
        ({"tau": 1.5}, "tau: got 1.5"),
        ({"labels": np.zeros((4, 2), np.float32)}, "labels: got dtype float32"),
        ({"class_counts": np.zeros((2, 2))}, "class_counts: got shape"),
    ],
)
def test_remix_refuses(change, message):
    given = {"labels": np.zeros(4, int), "class_counts": np.ones(2)} | change
    with pytest.raises(ValueError, match=message):
        augment.remix(KEY, np.zeros((4, 2), np.float32), given.pop("labels"), **given)


def test_balanced_partners_refuse():
    with pytest.raises(ValueError, match="labels: got shape"):
        augment.balanced_partners(KEY, np.zeros((2, 2), int), num_classes=2)
