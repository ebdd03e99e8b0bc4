"""Corrected class vectors and fitted factors against NumPy twins, SciPy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestCentroid

from jaxbalance import losses, posthoc

RIDGE = 1e-4
FACTORS = [
    losses.inverse_image_frequency,
    losses.smooth_inverse_image_frequency,
    losses.relative_inverse_image_frequency,
    losses.normit_inverse_image_frequency,
    losses.gombit_inverse_image_frequency,
]
FIT_FACTORS, FIT_VECTOR, FIT_BIAS = (
    jax.jit(fit)
    for fit in (posthoc.fit_class_factors, posthoc.fit_vector_scaling, posthoc.fit_bias_correction)
)


def draw(generator, size=300, share=(0.6, 0.3, 0.1), strength=1.5):
    labels = generator.choice(len(share), size=size, p=share)
    logits = generator.normal(size=(size, len(share))) + strength * np.eye(len(share))[labels]
    return (2 * logits + np.log(share)).astype(np.float32), labels.astype(np.int32)


def unit_rows(rows):
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def test_tau_normalized_rows(generator):
    rows = generator.normal(size=(5, 7)) * 10.0 ** generator.uniform(-3, 3, size=(5, 1))
    rows[2] = 0
    rows = rows.astype(np.float32)
    lengths = np.array([max(np.linalg.norm(row.astype(np.float64)), 1e-300) for row in rows])
    for tau in (0.5, 1.0, 2.0):
        expected = rows / np.where(lengths > 1e-200, lengths**tau, 1)[:, None]
        np.testing.assert_allclose(posthoc.tau_normalize(rows, tau=tau), expected, rtol=1e-5)
    np.testing.assert_array_equal(posthoc.tau_normalize(rows, tau=0.0), rows)
    # Invariance: at tau 1 the lengths a row came with are no matter, however large.
    scaled = (rows * np.array([[1e20], [3], [5], [0.1], [1e-20]])).astype(np.float32)
    np.testing.assert_allclose(
        posthoc.tau_normalize(scaled), posthoc.tau_normalize(rows), rtol=1e-5, atol=1e-7
    )
    assert posthoc.tau_normalize(jnp.asarray(rows, jnp.bfloat16)).dtype == jnp.bfloat16


def test_aligned_weights(generator):
    rows = generator.normal(size=(6, 4)).astype(np.float32)
    new = np.array([False, True, False, False, True, True])
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    aligned = np.asarray(posthoc.align_weights(rows, is_new=new))
    np.testing.assert_array_equal(aligned[~new], rows[~new])
    factor = lengths[~new].mean() / lengths[new].mean()
    np.testing.assert_allclose(aligned[new], factor * rows[new], rtol=1e-6)
    # Identity: applied again, for lack of a group, and where there is nothing to scale.
    np.testing.assert_allclose(posthoc.align_weights(aligned, is_new=new), aligned, rtol=1e-6)
    for nobody in (np.zeros(6, bool), np.ones(6, bool)):
        np.testing.assert_array_equal(posthoc.align_weights(rows, is_new=nobody), rows)
    flat = np.where(new[:, None], np.float32(0), rows)
    np.testing.assert_array_equal(posthoc.align_weights(flat, is_new=new), flat)
    # Invariance: the scale of the new rows is no matter.
    scaled = np.where(new[:, None], 50 * rows, rows)
    np.testing.assert_allclose(posthoc.align_weights(scaled, is_new=new), aligned, rtol=1e-5)


def test_scaled_logits(generator):
    logits = generator.normal(size=(4, 5, 3)).astype(np.float32)
    factors, bias = np.array([1.0, 2.0, 0.5]), np.array([0.0, -1.0, 3.0])
    got = posthoc.scale_logits(logits, class_factors=factors, class_bias=bias)
    np.testing.assert_allclose(got, logits * factors + bias, rtol=1e-6, atol=1e-6)
    same = posthoc.scale_logits(logits, class_factors=np.ones(3), class_bias=np.zeros(3))
    np.testing.assert_array_equal(same, logits)
    half = posthoc.scale_logits(jnp.asarray(logits, jnp.float16), class_factors=factors)
    assert half.dtype == jnp.float16


@pytest.mark.parametrize("factors", FACTORS, ids=lambda f: f.__name__)
def test_equal_counts_make_image_frequency_change_no_prediction(factors, generator):
    logits = generator.normal(size=(50, 4)).astype(np.float32)
    equal = posthoc.scale_logits(logits, class_factors=factors(jnp.full(4, 25)))
    np.testing.assert_array_equal(np.argmax(equal, axis=1), np.argmax(logits, axis=1))
    tail = posthoc.scale_logits(np.abs(logits), class_factors=factors(jnp.array([40, 40, 30, 2])))
    chosen = [np.sum(np.argmax(z, axis=1) == 3) for z in (tail, np.abs(logits))]
    assert chosen[0] > chosen[1]


def test_multiplied_logits(generator):
    logits = generator.normal(size=(6, 3)).astype(np.float32)
    got = posthoc.multiply_logits(logits, class_counts=np.array([400, 100, 0]), gamma=0.5)
    np.testing.assert_allclose(got, logits * np.array([1, 2, 2]), rtol=1e-6)
    for sizes, gamma in (([400, 100, 1], 0.0), ([7, 7, 7], 0.8)):
        same = posthoc.multiply_logits(logits, class_counts=np.array(sizes), gamma=gamma)
        np.testing.assert_array_equal(same, logits)
    # Invariance: only ratios of counts matter.
    tenfold = posthoc.multiply_logits(logits, class_counts=np.array([4000, 1000, 0]), gamma=0.5)
    np.testing.assert_allclose(tenfold, got, rtol=1e-6)


def test_nearest_means_of_three_transforms_are_scikit_learns(shared_data):
    with np.load(shared_data / "yeast" / "yeast.npz") as file:
        features, labels = file["X"].astype(np.float32), file["y"].astype(np.int32)
    center = features[::2].mean(axis=0)
    transforms = [
        (lambda x: x, lambda x: x),
        (posthoc.normalize_features, unit_rows),
        (lambda x: posthoc.normalize_features(x, center=center), lambda x: unit_rows(x - center)),
    ]
    for transform, twin in transforms:
        np.testing.assert_allclose(transform(features), twin(features), rtol=1e-4, atol=1e-6)
        moments = posthoc.class_moments(transform(features[::2]), labels[::2], num_classes=10)
        scores = posthoc.nearest_mean_scores(transform(features[1::2]), moments)
        wide = twin(features.astype(np.float64))
        reference = NearestCentroid().fit(wide[::2], labels[::2])
        agree = np.mean(np.argmax(scores, axis=1) == reference.predict(wide[1::2]))
        assert agree > 0.998  # Rounding may decide between two means at the same distance.


def test_normalized_features_at_the_centre_and_absent_classes():
    middle = jnp.array([1.0, 2.0])
    got = posthoc.normalize_features(jnp.array([[1.0, 2.0], [1.0, 5.0]]), center=middle)
    np.testing.assert_array_equal(got, [[0, 0], [0, 1]])
    np.testing.assert_allclose(posthoc.normalize_features(got), got)
    features, labels = jnp.array([[0.0], [2.0], [7.0]]), jnp.array([0, 0, 2])
    moments = posthoc.class_moments(features, labels, num_classes=3)
    scores = posthoc.nearest_mean_scores(jnp.array([[3.0], [1e4]]), moments)
    np.testing.assert_allclose(posthoc.class_means(moments), [[1], [3], [7]])
    assert np.all(np.isfinite(scores))
    assert np.argmax(scores, axis=1).tolist() == [0, 2]


def scipy_fit(logits, labels, worth, expand, size):
    """The penalised problem in float64, by quasi-Newton steps from the identity."""
    logits = logits.astype(np.float64)

    def objective(t):
        factors, bias = expand(t)
        log_p = scipy.special.log_softmax(logits * factors + bias, axis=1)
        loss = -np.sum(worth * log_p[np.arange(len(labels)), labels])
        return loss + RIDGE / 2 * np.sum(t**2)

    found = scipy.optimize.minimize(objective, np.zeros(size), method="BFGS", tol=1e-9)
    return expand(found.x)


def balanced(labels):
    sizes = np.bincount(labels)
    return 1 / sizes[labels] / np.sum(sizes > 0)


def test_class_factors_are_scipys(generator):
    logits, labels = draw(generator)
    expected, _ = scipy_fit(logits, labels, balanced(labels), lambda t: (1 + t, 0), 3)
    np.testing.assert_allclose(FIT_FACTORS(logits, labels), expected, atol=2e-4)
    weights = np.array([1.0, 2.0, 5.0])
    worth = weights[labels] / weights[labels].sum()
    expected, _ = scipy_fit(logits, labels, worth, lambda t: (1 + t, 0), 3)
    got = posthoc.fit_class_factors(logits, labels, class_weights=weights)
    np.testing.assert_allclose(got, expected, atol=2e-4)


def test_vector_scaling_is_scipys(generator):
    logits, labels = draw(generator)
    worth = np.full(len(labels), 1 / len(labels))
    factors, bias = scipy_fit(logits, labels, worth, lambda t: (1 + t[:3], t[3:]), 6)
    got = FIT_VECTOR(logits, labels)
    np.testing.assert_allclose(got.class_factors, factors, atol=3e-4)
    np.testing.assert_allclose(got.class_bias, bias, atol=3e-4)
    np.testing.assert_allclose(np.sum(got.class_bias), 0, atol=1e-4)


def test_bias_correction_is_scipys_and_undoes_what_was_done(generator):
    logits, labels = draw(generator, size=400)
    new = np.array([False, True, True])
    group = new.astype(np.float64)

    def expand(t):
        return 1 + t[0] * group, t[1] * group

    worth = balanced(labels)
    factors, bias = scipy_fit(logits, labels, worth, expand, 2)
    got = FIT_BIAS(logits, labels, is_new=new)
    np.testing.assert_allclose(got.class_factors, factors, atol=2e-4)
    np.testing.assert_allclose(got.class_bias, bias, atol=2e-4)
    # Scaled and shifted new logits are corrected to the same thing again.
    spoilt = np.where(new, 0.5 * logits - 3, logits).astype(np.float32)
    got = FIT_BIAS(logits, labels, is_new=new, ridge=1e-6)
    again = FIT_BIAS(spoilt, labels, is_new=new, ridge=1e-6)
    np.testing.assert_allclose(
        posthoc.scale_logits(spoilt, **again._asdict()),
        posthoc.scale_logits(logits, **got._asdict()),
        atol=2e-3,
    )
    corrected = posthoc.scale_logits(logits, **got._asdict())
    np.testing.assert_array_equal(corrected[:, 1] > corrected[:, 2], logits[:, 1] > logits[:, 2])


def test_a_large_ridge_and_missing_groups_are_the_identity(generator):
    logits, labels = draw(generator, size=60)
    new = np.array([False, True, True])
    ones, zeros = np.ones(3), np.zeros(3)
    for got in (
        FIT_VECTOR(logits, labels, ridge=1e7),
        FIT_BIAS(logits, labels, is_new=new, ridge=1e7),
        FIT_VECTOR(logits, np.full(60, -1)),
        FIT_BIAS(logits, np.where(labels == 0, -1, labels), is_new=new),
        FIT_BIAS(logits, labels, is_new=~(ones > 0)),
    ):
        np.testing.assert_allclose(got.class_factors, ones, atol=1e-6)
        np.testing.assert_allclose(got.class_bias, zeros, atol=1e-6)
    np.testing.assert_allclose(FIT_FACTORS(logits, labels, ridge=1e7), ones, atol=1e-6)


def test_fits_scale_with_the_logits(generator):
    """The loss sees only the product of factor and logit; the ridge is too weak to matter."""
    logits, labels = draw(generator)
    for scale in (1e-2, 1e3):
        tilted = FIT_FACTORS(np.float32(scale) * logits, labels, ridge=1e-7)
        plain = FIT_FACTORS(logits, labels, ridge=1e-7)
        np.testing.assert_allclose(scale * tilted, plain, rtol=0.02)


def test_padding_absent_classes_and_separable_examples(generator):
    logits, labels = draw(generator, size=80, share=(0.7, 0.3))
    wide = np.concatenate([logits, np.full((80, 1), 4, np.float32)], axis=1)
    padded = np.concatenate([wide, np.full((3, 3), np.nan, np.float32)])
    ids = np.concatenate([labels, [-1, 3, -7]])
    two, three = FIT_VECTOR(logits, labels), FIT_VECTOR(padded, ids)
    for short, long, neutral in zip(two, three, (1, 0), strict=True):
        np.testing.assert_allclose(long[:2], short, atol=1e-4)
        assert long[2] == neutral
    clear = 10 * np.eye(3, dtype=np.float32)[np.arange(9) % 3]
    for size in (clear, 1e4 * clear, np.zeros_like(clear)):
        found = FIT_VECTOR(size, np.arange(9) % 3)
        assert np.all(np.isfinite(found.class_factors) & np.isfinite(found.class_bias))
    new = np.array([False, True, True])
    shared = FIT_BIAS(padded, ids, is_new=new)
    np.testing.assert_array_equal(shared.class_factors[1], shared.class_factors[2])
    np.testing.assert_array_equal(shared.class_bias[1], shared.class_bias[2])


def test_fits_map_and_keep_precision(generator):
    pairs = [draw(generator, size=60) for _ in range(2)]
    logits, labels = np.stack([z for z, _ in pairs]), np.stack([y for _, y in pairs])
    mapped = jax.jit(jax.vmap(posthoc.fit_vector_scaling))(logits, labels)
    for i in range(2):
        single = FIT_VECTOR(logits[i], labels[i])
        np.testing.assert_allclose(mapped.class_factors[i], single.class_factors, atol=1e-4)
    with jax.enable_x64():
        double = posthoc.fit_class_factors(jnp.asarray(logits[0], jnp.float64), labels[0])
        assert double.dtype == jnp.float64
    exact, _ = scipy_fit(logits[0], labels[0], balanced(labels[0]), lambda t: (1 + t, 0), 3)
    np.testing.assert_allclose(double, exact, atol=1e-6)


def test_prior_division_keeps_auroc_until_it_is_renormalised(generator):
    """Each class's column is divided by one number; the sum that follows differs by example."""
    logits, labels = draw(generator, size=400)
    sizes = np.bincount(labels)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    divided = posthoc.adjust_logits(log_p, class_counts=sizes)
    renormalised = jax.nn.softmax(divided)

    def areas(scores):
        return [roc_auc_score(labels == k, np.asarray(scores)[:, k]) for k in range(3)]

    np.testing.assert_allclose(areas(divided), areas(log_p), atol=1e-12)
    assert max(np.abs(np.subtract(areas(renormalised), areas(log_p)))) > 1e-3


def test_lexicographic_choice(generator):
    values = np.round(generator.random((30, 3)), 1)
    expected = max(range(30), key=lambda m: (*values[m], -m))
    assert posthoc.lexicographic_choice(values.astype(np.float32)) == expected
    column = values[:, :1].astype(np.float32)
    assert posthoc.lexicographic_choice(column) == np.argmax(column)
    table = jnp.array([[0.9, 0.1, 0.0], [0.85, 0.5, 0.2], [0.86, 0.5, 0.9], [jnp.nan, 1.0, 1.0]])
    choose = jax.jit(posthoc.lexicographic_choice)
    assert choose(table, tolerance=0.0) == 0
    assert choose(table, tolerance=jnp.array([0.1, 0.0, 0.0])) == 2
    assert choose(table, tolerance=jnp.array([jnp.inf, jnp.inf, 0.0])) == 2
    assert posthoc.lexicographic_choice(jnp.full((2, 2), jnp.nan)) == 0
    assert posthoc.lexicographic_choice(jnp.array([[jnp.nan, 0.1], [jnp.nan, 0.2]])) == 1
    # Invariance: with no tolerance any increasing function of a metric chooses the same.
    assert posthoc.lexicographic_choice(np.exp(values).astype(np.float32)) == expected


def test_bad_input_is_refused():
    rows, logits, labels = jnp.ones((3, 2)), jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32)
    with pytest.raises(ValueError, match=r"class_vectors: got shape \(2,\), wanted shape \[N, D\]"):
        posthoc.tau_normalize(rows[0])
    with pytest.raises(ValueError, match=r"is_new: got dtype int32 .* wanted bool \(3,\)"):
        posthoc.align_weights(rows, is_new=jnp.ones(3, jnp.int32))
    with pytest.raises(ValueError, match=r"is_new: .*shape \(2,\), wanted bool \(3,\)"):
        posthoc.fit_bias_correction(logits, labels, is_new=np.ones(2, bool))
    with pytest.raises(ValueError, match=r"class_factors: got shape \(2,\), wanted shape \(3,\)"):
        posthoc.scale_logits(logits, class_factors=jnp.ones(2))
    with pytest.raises(ValueError, match=r"class_bias: got shape \(2,\), wanted shape \(3,\)"):
        posthoc.scale_logits(logits, class_factors=jnp.ones(3), class_bias=jnp.ones(2))
    with pytest.raises(ValueError, match=r"class_counts: got shape \(2,\), wanted shape \(3,\)"):
        posthoc.multiply_logits(logits, class_counts=jnp.ones(2), gamma=1.0)
    with pytest.raises(ValueError, match=r"center: got shape \(3,\), wanted shape \(2,\)"):
        posthoc.normalize_features(rows, center=jnp.ones(3))
    with pytest.raises(ValueError, match="features: got dtype int32"):
        posthoc.normalize_features(labels)
    for fit in (posthoc.fit_class_factors, posthoc.fit_vector_scaling, posthoc.fit_source_prior):
        with pytest.raises(ValueError, match="ridge: got 0, wanted a number > 0"):
            fit(logits, labels, ridge=0)
        with pytest.raises(ValueError, match="logits: got dtype int32"):
            fit(labels, labels)
    with pytest.raises(ValueError, match=r"values: got shape \(4,\)"):
        posthoc.lexicographic_choice(jnp.zeros(4))
    with pytest.raises(ValueError, match=r"values: got shape \(0, 2\)"):
        posthoc.lexicographic_choice(jnp.zeros((0, 2)))
    with pytest.raises(ValueError, match=r"tolerance: got -1\.0, wanted a number >= 0"):
        posthoc.lexicographic_choice(logits, tolerance=-1.0)
    with pytest.raises(ValueError, match=r"tolerance: got shape \(2,\)"):
        posthoc.lexicographic_choice(logits, tolerance=jnp.zeros(2))
