"""Fitted biases and temperatures against brute force, SciPy and scikit-learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from jaxbalance import posthoc


class GivenLogits(ClassifierMixin, BaseEstimator):
    """A classifier whose inputs are its logits."""

    def fit(self, inputs, labels):
        self.classes_ = np.unique(labels)
        return self

    def decision_function(self, inputs):
        return inputs

    def predict(self, inputs):
        return self.classes_[np.argmax(inputs, axis=1)]


FIT = jax.jit(posthoc.fit_class_bias)


def draw(generator, size=300, share=(0.7, 0.2, 0.1), strength=1.5):
    """Float32 logits of a network that has learned the prior, and their labels."""
    labels = generator.choice(len(share), size=size, p=share)
    logits = generator.normal(size=(size, len(share))) + strength * np.eye(len(share))[labels]
    return (logits + np.log(share)).astype(np.float32), labels.astype(np.int32)


def objective(logits, labels, bias, class_weights=None):
    """Share of the weight predicted right, in float64; None weighs to balanced accuracy."""
    seen = (labels >= 0) & (labels < len(bias))
    if class_weights is None:
        sizes = np.bincount(labels[seen], minlength=len(bias))
        class_weights = 1 / np.maximum(sizes, 1)
    worth = np.asarray(class_weights, np.float64)[labels[seen]]
    shifted = logits[seen].astype(np.float64) + np.asarray(bias, np.float64)
    return np.sum(worth * (shifted.argmax(axis=1) == labels[seen])) / worth.sum()


def best_single_change(logits, labels, bias, class_weights=None):
    """The best objective any change of any one bias can reach: every interval is tried."""
    best = objective(logits, labels, bias, class_weights)
    for k in range(len(bias)):
        shifted = logits.astype(np.float64) + np.asarray(bias, np.float64)
        others = np.delete(shifted, k, axis=1).max(axis=1)
        ends = np.unique(others - shifted[:, k])
        middles = (ends[1:] + ends[:-1]) / 2
        for change in [ends[0] - 1, *middles, ends[-1] + 1]:
            moved = np.array(bias, np.float64)
            moved[k] += change
            best = max(best, objective(logits, labels, moved, class_weights))
    return best


@pytest.mark.parametrize("class_weights", [None, (1.0, 1.0), (0.2, 3.0)], ids=str)
def test_bias_of_two_classes_is_the_global_optimum(class_weights, generator):
    for _ in range(5):
        logits, labels = draw(generator, size=60, share=(0.8, 0.2))
        labels[::9] = -1
        weights = None if class_weights is None else np.array(class_weights)
        bias = FIT(logits, labels, class_weights=weights)
        everywhere = best_single_change(logits, labels, np.zeros(2), weights)
        np.testing.assert_allclose(objective(logits, labels, bias, weights), everywhere, atol=2e-6)


@pytest.mark.parametrize("class_weights", [None, (1.0, 1.0, 1.0), (0.2, 3.0, 1.0)], ids=str)
def test_no_single_change_improves_the_bias(class_weights, generator):
    weights = None if class_weights is None else np.array(class_weights)
    fit = jax.jit(functools.partial(posthoc.fit_class_bias, num_passes=20))
    for _ in range(5):
        logits, labels = draw(generator, size=40)
        labels[::7] = 5
        bias = fit(logits, labels, class_weights=weights)
        reached = objective(logits, labels, bias, weights)
        assert reached >= best_single_change(logits, labels, bias, weights) - 2e-6
        assert reached >= objective(logits, labels, np.zeros(3), weights)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(-3, 3)] * 3, st.integers(-1, 2)), min_size=12, max_size=12),
    st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=3, max_size=3),
)
def test_bias_never_makes_tied_logits_worse(rows, class_weights):
    table = np.array(rows)
    logits, labels = table[:, :3].astype(np.float32), table[:, 3]
    weights = np.array(class_weights)
    if not np.any(weights[labels[labels >= 0]]):
        return
    bias = FIT(logits, labels, class_weights=weights.astype(np.float32))
    assert np.all(np.isfinite(bias))
    after, before = (objective(logits, labels, b, weights) for b in (bias, np.zeros(3)))
    assert after >= before - 1e-9


def test_bias_improves_balanced_accuracy_on_unseen_examples(generator):
    """A long-tailed mixture of Gaussians whose logits are the exact log posteriors."""
    sizes = np.array([1000, 400, 160, 64, 26])
    centres = 1.2 * generator.normal(size=(5, 4))

    def sample(number):
        labels = generator.choice(5, size=number, p=sizes / sizes.sum()).astype(np.int32)
        points = centres[labels] + 1.5 * generator.normal(size=(number, 4))
        distance = np.sum((points[:, None] - centres[None]) ** 2, axis=-1) / (2 * 1.5**2)
        return (np.log(sizes) - distance).astype(np.float32), labels

    (fit_logits, fit_labels), (logits, labels) = sample(4000), sample(20_000)
    bias = posthoc.fit_class_bias(fit_logits, fit_labels)
    plain = objective(logits, labels, np.zeros(5))
    ideal = objective(logits, labels, -np.log(sizes))
    assert ideal > plain + 0.03
    assert objective(logits, labels, bias) > plain + 0.7 * (ideal - plain)


def test_bias_is_centred_and_blind_to_shifts(generator):
    logits, labels = draw(generator, size=80)
    bias = posthoc.fit_class_bias(logits, labels)
    assert np.any(np.abs(bias) > 0.1)
    np.testing.assert_allclose(np.sum(bias), 0.0, atol=1e-6)
    for shift in (8.0, generator.normal(size=(80, 1))):
        moved = posthoc.fit_class_bias((logits + shift).astype(np.float32), labels)
        np.testing.assert_allclose(moved, bias, atol=1e-5)
    np.testing.assert_allclose(posthoc.fit_class_bias(4 * logits, labels), 4 * bias, rtol=1e-6)


def test_bias_leaves_what_cannot_improve_alone(generator):
    logits, labels = draw(generator, size=50, strength=30.0)
    np.testing.assert_array_equal(posthoc.fit_class_bias(logits, labels), 0.0)
    nobody = np.full(50, -1)
    np.testing.assert_array_equal(posthoc.fit_class_bias(logits, nobody), 0.0)
    np.testing.assert_array_equal(
        posthoc.fit_class_bias(jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32)), 0.0
    )


def test_bias_of_an_absent_class_is_not_fitted(generator):
    logits, labels = draw(generator, size=80, share=(0.7, 0.3))
    wide = np.concatenate([logits, np.full((80, 1), -50, np.float32)], axis=1)
    two, three = posthoc.fit_class_bias(logits, labels), posthoc.fit_class_bias(wide, labels)
    np.testing.assert_allclose(three[0] - three[1], two[0] - two[1], rtol=1e-5)
    raw = three - three[2]
    assert raw[2] == 0
    assert objective(wide, labels, three) == objective(logits, labels, two)


def test_bias_is_the_middle_of_its_interval():
    """By hand: 3 and 4 ahead must stay class 0, 2 and 1 ahead become class 1, so 2.5 apart.

    The last example is of weight 0: its own boundary at 2.6 must not cut the interval in two.
    """
    lead = jnp.array([3.0, 2.0, 1.0, 4.0, 2.6])
    logits = jnp.stack([lead, jnp.zeros(5), jnp.full(5, -99.0)], axis=-1)
    weights = jnp.array([1.0, 1.0, 0.0])
    bias = posthoc.fit_class_bias(logits, jnp.array([0, 1, 1, 0, 2]), class_weights=weights)
    np.testing.assert_allclose(bias[1] - bias[0], 2.5, rtol=1e-6)


def test_bias_goes_as_far_past_a_single_end_as_it_came():
    """Class 1 must gain more than 3 and nothing says how much more: 3 + 3, centred."""
    logits = jnp.array([[3.0, 0.0], [2.0, 0.0]])
    np.testing.assert_array_equal(posthoc.fit_class_bias(logits, jnp.array([1, 1])), [-3.0, 3.0])


def test_bias_of_an_absent_class_stays_even_where_lowering_it_would_help():
    logits = jnp.array([[0.0, -10.0, 5.0], [3.0, 4.0, 0.0]])
    np.testing.assert_array_equal(posthoc.fit_class_bias(logits, jnp.array([0, 1])), 0.0)


def test_padding_is_no_matter_to_any_fit(generator):
    logits, labels = draw(generator, size=60)
    padded = np.concatenate([logits, np.full((7, 3), np.nan, np.float32)])
    ids = np.concatenate([labels, [-1, 3, -9, 100, -1, -1, 4]])
    for fit in (posthoc.fit_class_bias, posthoc.fit_temperature):
        np.testing.assert_allclose(fit(padded, ids), fit(logits, labels), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fit", [posthoc.fit_class_bias, posthoc.fit_temperature])
def test_fits_map_over_runs_compile_and_keep_precision(fit, generator):
    pairs = [draw(generator, size=70) for _ in range(3)]
    logits, labels = np.stack([z for z, _ in pairs]), np.stack([y for _, y in pairs])
    one_by_one = np.stack([fit(z, y) for z, y in pairs])
    mapped = jax.jit(jax.vmap(fit))(logits, labels)
    np.testing.assert_allclose(mapped, one_by_one, rtol=1e-5, atol=1e-6)
    assert fit(jnp.asarray(logits[0], jnp.bfloat16), labels[0]).dtype == jnp.float32
    with jax.enable_x64():
        double = fit(jnp.asarray(logits[0], jnp.float64), jnp.asarray(labels[0], jnp.int64))
        single = fit(jnp.asarray(logits[0]), jnp.asarray(labels[0]))
        assert (double.dtype, single.dtype) == (jnp.float64, jnp.float32)
    np.testing.assert_allclose(double, one_by_one[0], rtol=1e-4, atol=1e-5)


def scipy_temperature(logits, labels):
    logits = np.asarray(logits, np.float64)

    def loss(log_inverse):
        log_p = scipy.special.log_softmax(np.exp(log_inverse) * logits, axis=1)
        return -np.mean(log_p[np.arange(len(labels)), labels])

    found = scipy.optimize.minimize_scalar(
        loss, bounds=(-7, 7), method="bounded", options={"xatol": 1e-10}
    )
    return np.exp(-found.x)


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_temperature_is_scipys(scale, generator):
    logits, labels = draw(generator, size=400)
    wanted = scipy_temperature(logits * scale, labels)
    np.testing.assert_allclose(posthoc.fit_temperature(logits * scale, labels), wanted, rtol=1e-4)
    with jax.enable_x64():
        exact = posthoc.fit_temperature(jnp.asarray(logits * scale, jnp.float64), labels)
    np.testing.assert_allclose(exact, wanted, rtol=1e-6)


def test_temperature_is_scikit_learns(generator):
    logits, labels = draw(generator, size=400)
    temperature = float(posthoc.fit_temperature(3 * logits, labels))
    logits = 3 * logits.astype(np.float64)
    frozen = FrozenEstimator(GivenLogits().fit(logits, labels))
    fitted = CalibratedClassifierCV(frozen, method="temperature").fit(logits, labels)
    np.testing.assert_allclose(
        scipy.special.softmax(logits / temperature, axis=1),
        fitted.predict_proba(logits),
        rtol=1e-4,
    )


def test_temperature_undoes_a_known_scale(generator):
    """Labels drawn from the softmax itself: the right temperature is the scale put on top."""
    logits = (2 * generator.normal(size=(20_000, 4))).astype(np.float32)
    cumulative = np.cumsum(scipy.special.softmax(logits, axis=1), axis=1)
    labels = np.sum(generator.random((20_000, 1)) > cumulative, axis=1).clip(0, 3)
    # Four standard errors: over 60 seeds the estimates had standard deviation 0.061 around 5.00.
    np.testing.assert_allclose(posthoc.fit_temperature(5 * logits, labels), 5.0, rtol=0.05)


def test_temperature_scales_with_the_logits_and_keeps_the_prediction(generator):
    logits, labels = draw(generator, size=200)
    temperature = posthoc.fit_temperature(logits, labels)
    for scale in (0.1, 4.0):
        scaled = posthoc.fit_temperature(np.float32(scale) * logits, labels)
        np.testing.assert_allclose(scaled, scale * temperature, rtol=1e-5)
    shifted = logits + generator.normal(size=(200, 1)).astype(np.float32)
    np.testing.assert_allclose(posthoc.fit_temperature(shifted, labels), temperature, rtol=1e-4)
    np.testing.assert_array_equal(
        np.argmax(logits / np.float32(temperature), axis=1), np.argmax(logits, axis=1)
    )
    sequences = posthoc.fit_temperature(logits.reshape(20, 10, 3), labels.reshape(20, 10))
    np.testing.assert_allclose(sequences, temperature, rtol=1e-5)


def test_temperature_at_its_limits():
    logits = jnp.array([[1.0, -1.0], [-2.0, 1.0]])
    np.testing.assert_allclose(posthoc.fit_temperature(logits, jnp.array([0, 1])), 1e-3, rtol=1e-4)
    np.testing.assert_allclose(posthoc.fit_temperature(logits, jnp.array([1, 0])), 1e3, rtol=1e-4)
    assert posthoc.fit_temperature(logits, jnp.array([-1, 2])) == 1.0
    assert posthoc.fit_temperature(jnp.full((3, 4), 2.5), jnp.array([0, 1, 3])) == 1.0
    huge = posthoc.fit_temperature(
        1e4 * jnp.array([[2.0, 0], [1, 0], [1, 0]]), jnp.array([0, 0, 1])
    )
    assert 1.0 < huge <= 1001.0


def test_bad_input_is_refused():
    logits, labels = jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32)
    for fit in (posthoc.fit_class_bias, posthoc.fit_temperature):
        with pytest.raises(ValueError, match="logits: got dtype int32"):
            fit(labels, labels)
        with pytest.raises(ValueError, match=r"labels: .*shape \(3,\).*wanted shape \(4,\)"):
            fit(logits, labels[:3])
        with pytest.raises(ValueError, match="labels: got dtype float32"):
            fit(logits, logits)
    with pytest.raises(ValueError, match=r"logits: got shape \(2, 2, 3\), wanted \[N, K\]"):
        posthoc.fit_class_bias(logits.reshape(2, 2, 3), labels.reshape(2, 2))
    with pytest.raises(ValueError, match="num_passes: got 0"):
        posthoc.fit_class_bias(logits, labels, num_passes=0)
    with pytest.raises(ValueError, match=r"class_weights: got shape \(2,\), wanted shape \(3,\)"):
        posthoc.fit_class_bias(logits, labels, class_weights=jnp.ones(2))
