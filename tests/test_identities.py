"""Every knob has a value at which the method is plain training; this file holds them to it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbalance import counts, losses, metrics, posthoc, samplers
from tests.test_losses import CASES, SIGMOID, draw

WITH_IDENTITY = [case for case in CASES if case.identity is not None]
COUNTS = jnp.array([500, 100, 20, 3])
INDEX = samplers.class_index(np.repeat(np.arange(3), [30, 9, 3]), num_classes=3)


@pytest.mark.parametrize("case", WITH_IDENTITY, ids=lambda case: case.name)
def test_losses_become_cross_entropy(case, generator):
    """optax's own cross entropies are the reference."""
    logits, labels = draw(case, generator, size=20)
    logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels)
    got = case(logits, labels, **case.identity)
    if case in SIGMOID:
        plain = optax.sigmoid_binary_cross_entropy(logits, labels.astype(jnp.float32))
    else:
        plain = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    np.testing.assert_allclose(got, jnp.where(labels >= 0, plain, 0), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", [c for c in WITH_IDENTITY if c.takes_counts], ids=lambda c: c.name)
def test_equal_counts_make_adjustments_disappear(case, generator):
    """With nothing to correct, counts have no effect (the margin of LDAM is the same for all)."""
    logits, labels = draw(case, generator)
    logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels)
    knobs = {"max_margin": 0.0, "scale": 1.0} if "margin" in case.name else {}
    got = case.loss(logits, labels, class_counts=jnp.full(4, 7), **knobs)
    plain = losses.weighted_cross_entropy(logits, labels)
    np.testing.assert_allclose(got, plain, rtol=1e-5, atol=1e-6)


def test_focal_alpha_of_one_half_halves_the_plain_loss():
    logits, labels = jnp.array([[1.0, -2.0]]), jnp.array([[1, 0]])
    half = losses.sigmoid_focal_loss(logits, labels, alpha=0.5)
    np.testing.assert_allclose(2 * half, losses.sigmoid_focal_loss(logits, labels), rtol=1e-6)


@pytest.mark.parametrize(
    "weights",
    [
        counts.inverse_frequency_weights(COUNTS, power=0.0),
        counts.effective_number_weights(COUNTS, beta=0.0),
    ],
    ids=["power", "beta"],
)
def test_weights_become_one(weights):
    np.testing.assert_allclose(weights, np.ones(4), rtol=1e-6)


def test_the_effective_number_becomes_the_count():
    np.testing.assert_allclose(counts.effective_number(COUNTS, beta=1.0), COUNTS)


@pytest.mark.parametrize(
    "sizes",
    [
        counts.exponential(4, largest=9, ratio=1),
        counts.step(4, largest=9, ratio=1),
        counts.step(4, largest=9, ratio=5, minority_fraction=0.0),
        counts.linear(4, largest=9, ratio=1),
        counts.zipf(4, largest=9, exponent=0.0),
    ],
    ids=["exponential", "step-ratio", "step-fraction", "linear", "zipf"],
)
def test_profiles_become_balanced(sizes):
    assert sizes.tolist() == [9] * 4


def test_resampling_to_the_counts_is_a_shuffle():
    natural = [30, 9, 3]
    for targets in (
        natural,
        samplers.oversampled_counts(natural, ratio=math.inf),
        samplers.undersampled_counts(natural, ratio=math.inf),
    ):
        rows = samplers.resampled_epochs(
            jax.random.key(0), INDEX, target_counts=targets, batch_size=42, steps=3
        )
        np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(42), (3, 1)))


def test_temperature_one_draws_classes_as_they_come():
    """The share of class 0 is 30/42; its standard error here is 0.0032, so 0.016 is 5 sigma."""
    rows = samplers.class_balanced(
        jax.random.key(0), INDEX, batch_size=100, steps=200, temperature=1.0
    )
    assert np.mean(np.asarray(rows) < 30) == pytest.approx(30 / 42, abs=0.016)


def test_corrections_that_change_nothing(generator):
    logits = jnp.asarray(generator.normal(size=(50, 4)), jnp.float32)
    np.testing.assert_array_equal(
        posthoc.adjust_logits(logits, class_counts=COUNTS, tau=0.0), logits
    )
    shifted = posthoc.adjust_logits(logits, class_counts=jnp.full(4, 5))
    np.testing.assert_allclose(
        shifted - shifted[:, :1], logits - logits[:, :1], rtol=1e-4, atol=1e-5
    )


def test_adding_in_training_and_subtracting_afterwards_are_inverse(generator):
    """The sign, held by both sides: adjusting corrected logits gives plain cross entropy again."""
    logits = jnp.asarray(generator.normal(size=(30, 4)) * 3, jnp.float32)
    labels = jnp.asarray(generator.integers(0, 4, size=30))
    for tau in (0.5, 1.0, 2.0):
        corrected = posthoc.adjust_logits(logits, class_counts=COUNTS, tau=tau)
        again = losses.logit_adjusted_cross_entropy(corrected, labels, class_counts=COUNTS, tau=tau)
        plain = losses.weighted_cross_entropy(logits, labels)
        np.testing.assert_allclose(again, plain, rtol=1e-4, atol=1e-5)


def test_beta_ends_are_precision_and_recall():
    matrix = jnp.array([[5, 2, 0], [1, 3, 1], [0, 2, 6]])
    np.testing.assert_allclose(metrics.f_beta(matrix, beta=0.0), metrics.precision(matrix))
    np.testing.assert_allclose(metrics.f_beta(matrix, beta=math.inf), metrics.recall(matrix))
