"""Attacks against the optimum of linear models, and what training against them reduces to."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxbalance import adversarial, losses, metrics, models, training
from tests.layouts import mesh_of

NORMS = [2, math.inf]
INPUTS = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
LABELS = np.array([0, 0, 0, 1, 2, 1, 0, -1, 0, 1, 2, 0, 0, -1, 1, 0])
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)), jnp.float32)


def plain(params, inputs, labels):
    return losses.weighted_cross_entropy(inputs @ params, labels)


def attack(norm=math.inf, radius=0.3, **knobs):
    given = {"step_size": 0.1, "steps": 8, **knobs}
    return partial(adversarial.projected_gradient_attack, plain, radius=radius, norm=norm, **given)


def lengths(moves, norm):
    return np.linalg.norm(np.asarray(moves, float).reshape(len(moves), -1), norm, axis=1)


@pytest.mark.parametrize("norm", NORMS)
def test_two_classes_of_a_linear_model_are_attacked_best(norm):
    """With two classes the worst move is along the difference of their weights."""
    weights = WEIGHTS[:, :2]
    labels = np.array([0, 1] * 8)
    moved = jax.jit(attack(norm))(weights, INPUTS, labels) - INPUTS
    way = np.asarray(weights)[:, 1 - labels].T - np.asarray(weights)[:, labels].T
    best = np.sign(way) if norm == math.inf else way / np.linalg.norm(way, axis=1, keepdims=True)
    np.testing.assert_allclose(moved, 0.3 * best, atol=2e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_attacks_stay_in_the_ball_and_the_range_and_raise_the_loss(norm):
    for key in (None, jax.random.key(1)):
        call = jax.jit(attack(norm, key=key, lowest=-1.0, highest=0.5))
        start = np.clip(INPUTS, -1, 0.5)
        moved = call(WEIGHTS, start, LABELS)
        assert lengths(moved - start, norm).max() <= 0.3 + 1e-6
        assert moved.min() >= -1
        assert moved.max() <= 0.5
        labelled = LABELS >= 0
        gained = plain(WEIGHTS, moved, LABELS) - plain(WEIGHTS, start, LABELS)
        assert np.all(np.asarray(gained)[labelled] >= -1e-6)
        assert np.mean(np.asarray(gained)[labelled]) > 0.05
        if key is None:
            np.testing.assert_array_equal(moved[~labelled], start[~labelled])


@pytest.mark.parametrize("norm", NORMS)
def test_radius_zero_is_the_identity_and_radii_share_a_program(norm):
    calls = jax.jit(
        lambda radius: attack(norm, radius, key=jax.random.key(0))(WEIGHTS, INPUTS, LABELS)
    )
    np.testing.assert_array_equal(calls(0.0), INPUTS)
    assert lengths(calls(0.2) - INPUTS, norm).max() == pytest.approx(0.2, rel=1e-4)
    assert calls._cache_size() == 1


def test_one_long_step_is_the_fast_gradient_sign_method():
    moved = attack(step_size=0.3, steps=1)(WEIGHTS, INPUTS, LABELS)
    gradient = jax.grad(lambda x: plain(WEIGHTS, x, LABELS).sum())(INPUTS)
    np.testing.assert_allclose(moved, INPUTS + 0.3 * np.sign(gradient), rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_fill_the_ball(norm):
    def still(params, inputs, labels):
        return 0 * inputs[:, 0]

    moved = adversarial.projected_gradient_attack(
        still,
        (),
        jnp.zeros((4000, 3)),
        jnp.zeros(4000, int),
        radius=2.0,
        step_size=1.0,
        steps=1,
        norm=norm,
        key=jax.random.key(2),
    )
    inside = lengths(moved, norm)
    assert inside.max() <= 2
    # A uniform point of a ball in three dimensions is within half its radius with chance 1/8; six
    # standard errors of 4000 draws are .031.
    assert abs(np.mean(inside < 1) - 1 / 8) < 0.031
    assert np.abs(np.mean(moved, axis=0)).max() < 0.12


def test_losses_that_are_not_finite_do_not_make_nan():
    def wild(params, inputs, labels):
        return jnp.log(inputs[:, 0] * 0)

    for norm in NORMS:
        moved = adversarial.projected_gradient_attack(
            wild, (), jnp.asarray(INPUTS), LABELS, radius=0.1, step_size=0.1, steps=2, norm=norm
        )
        assert np.all(np.isfinite(moved))


def test_convolutions_are_attacked_the_same_way():
    network = models.SmallCNN((8, 8, 1), 3, rngs=nnx.Rngs(0))
    network = models.functional(network)
    loss = training.example_loss(network.apply, losses.weighted_cross_entropy)
    images = np.random.default_rng(3).normal(size=(4, 8, 8, 1)).astype(np.float32)
    labels = np.array([0, 1, 2, -1])
    moved = jax.jit(
        partial(adversarial.projected_gradient_attack, loss, radius=0.2, step_size=0.1, steps=3)
    )(network.params, images, labels)
    assert moved.shape == images.shape
    assert np.abs(moved - images).max() == pytest.approx(0.2, rel=1e-4)
    np.testing.assert_array_equal(moved[3], images[3])


def test_margins_by_hand_and_where_cross_entropy_is_blind():
    logits = np.random.default_rng(2).normal(size=(16, 3)).astype(np.float32)
    came = adversarial.logit_margin(logits, LABELS)
    for row, label, value in zip(logits, LABELS, np.asarray(came), strict=True):
        wanted = 0 if label < 0 else max(np.delete(row, label)) - row[label]
        assert value == pytest.approx(wanted, abs=1e-6)
    broken = jnp.asarray(logits).at[7].set(jnp.nan)
    slopes = jax.grad(lambda z: adversarial.logit_margin(z, LABELS).sum())(broken)
    np.testing.assert_array_equal(slopes[7], 0)
    sure, labels = 1000.0 * WEIGHTS, np.argmax(INPUTS @ WEIGHTS, axis=1)
    margin = training.example_loss(lambda w, x: x @ w, adversarial.logit_margin)
    climb = partial(adversarial.projected_gradient_attack, radius=0.3, step_size=0.3, steps=1)
    assert np.mean(climb(plain, sure, INPUTS, labels) != INPUTS) < 0.5
    assert np.all(climb(margin, sure, INPUTS, labels) != INPUTS)
    with pytest.raises(ValueError, match="labels: got"):
        adversarial.logit_margin(logits, LABELS[:3])


def test_training_against_an_attack_of_radius_zero_is_training():
    with_attack = adversarial.adversarial_loss(plain, attack(radius=0.0))
    for loss in (with_attack, plain):
        values = loss(WEIGHTS, jnp.asarray(INPUTS), LABELS)
        np.testing.assert_array_equal(values, plain(WEIGHTS, INPUTS, LABELS))


def test_no_gradient_flows_through_the_attack():
    loss = adversarial.adversarial_loss(plain, attack())
    moved = attack()(WEIGHTS, INPUTS, LABELS)
    came = jax.grad(lambda w: loss(w, jnp.asarray(INPUTS), LABELS).sum())(WEIGHTS)
    wanted = jax.grad(lambda w: plain(w, moved, LABELS).sum())(WEIGHTS)
    np.testing.assert_allclose(came, wanted, rtol=1e-6)


def test_separation_zero_is_weighted_adversarial_cross_entropy_to_the_last_bit():
    weights = jnp.array([1.0, 2.0, 5.0])
    srat = adversarial.separable_reweighted_loss(
        lambda w, x: (x, x @ w), attack(), class_weights=weights, separation=0.0
    )
    weighted = partial(losses.weighted_cross_entropy, class_weights=weights)
    wanted = adversarial.adversarial_loss(lambda w, x, y: weighted(x @ w, y), attack())
    batch = WEIGHTS, jnp.asarray(INPUTS), LABELS
    np.testing.assert_array_equal(srat(*batch), wanted(*batch))


def test_separation_is_supervised_contrast_of_attacked_features():
    srat = adversarial.separable_reweighted_loss(
        lambda w, x: (jnp.tanh(x), x @ w), attack(), separation=0.7, temperature=0.5
    )
    moved = attack()(WEIGHTS, INPUTS, LABELS)
    apart = losses.supervised_contrastive_loss(jnp.tanh(moved), LABELS, temperature=0.5)
    wanted = plain(WEIGHTS, moved, LABELS) + 0.7 * apart
    came = srat(WEIGHTS, jnp.asarray(INPUTS), LABELS)
    np.testing.assert_allclose(came, wanted, rtol=1e-5)
    np.testing.assert_array_equal(came[LABELS < 0], 0)


def test_robust_confusion_by_counting():
    call = partial(adversarial.robust_confusion_matrix, lambda w, x: x @ w, WEIGHTS, INPUTS, LABELS)
    came = call(attack=attack(radius=0.5), num_classes=3)
    moved = attack(radius=0.5)(WEIGHTS, INPUTS, LABELS)
    wanted = np.zeros((3, 3))
    for row, label in zip(np.asarray(moved @ WEIGHTS), LABELS, strict=True):
        if label >= 0:
            wanted[label, row.argmax()] += 1
    np.testing.assert_array_equal(came, wanted)
    still = call(attack=attack(radius=0.0), num_classes=3)
    predicted = np.argmax(INPUTS @ WEIGHTS, axis=1)
    plain_matrix = metrics.confusion_matrix(LABELS, predicted, num_classes=3)
    np.testing.assert_array_equal(still, plain_matrix)
    assert np.trace(came) < np.trace(still)


def test_a_step_against_the_attack_is_the_same_on_all_devices():
    loss = adversarial.separable_reweighted_loss(lambda w, x: (x, x @ w), attack(2))
    step = training.make_step(loss, optax.sgd(0.1), num_classes=3)
    state = training.init_state(WEIGHTS, optax.sgd(0.1))
    wanted, _ = jax.jit(step)(state, jnp.asarray(INPUTS), jnp.asarray(LABELS))
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = mesh_of(axis_type)
        batch = jax.device_put((INPUTS, LABELS), NamedSharding(mesh, P("batch")))
        came, _ = training.sharded_step(step, mesh)(jax.tree.map(jnp.copy, state), *batch)
        np.testing.assert_allclose(came.params, wanted.params, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": 1}, "norm: got 1, wanted 2 or infinity"),
        ({"steps": 0}, "steps: got 0"),
        ({"radius": -0.1}, "radius: got -0.1"),
        ({"step_size": -0.1}, "step_size: got -0.1"),
        ({"lowest": 1.0, "highest": 0.0}, "lowest: got 1.0"),
    ],
)
def test_attacks_refuse(change, message):
    with pytest.raises(ValueError, match=message):
        attack(**change)(WEIGHTS, INPUTS, LABELS)


def test_other_refusals():
    with pytest.raises(ValueError, match="inputs: got dtype int32"):
        attack()(WEIGHTS, INPUTS.astype(np.int32), LABELS)

    def apply(w, x):
        return (x, x @ w)

    for knobs in ({"separation": -1.0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=next(iter(knobs))):
            adversarial.separable_reweighted_loss(apply, attack(), **knobs)
