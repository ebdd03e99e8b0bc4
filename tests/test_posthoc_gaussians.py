"""Class Gaussians and what they serve, against scikit-learn, SciPy and NumPy twins."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from jaxbalance import posthoc

MOMENTS = jax.jit(posthoc.class_moments, static_argnames=("num_classes", "own_covariances"))
FIT = jax.jit(posthoc.fit_class_gaussians)


def draw(generator, sizes=(60, 30, 8), width=4, spread=1.0):
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    mixing = generator.normal(size=(width, width))
    centres = 2 * generator.normal(size=(len(sizes), width))
    noise = generator.normal(size=(labels.size, width)) @ mixing * spread
    order = generator.permutation(labels.size)
    return (centres[labels] + noise).astype(np.float32)[order], labels[order]


def covariances(features, labels, number):
    """Shared and own covariances, class by class in float64, dividing by the count."""
    features = features.astype(np.float64)
    own, shared = [], 0
    for k in range(number):
        rows = features[labels == k]
        gaps = rows - rows.mean(axis=0)
        own.append(gaps.T @ gaps / len(rows))
        shared = shared + gaps.T @ gaps
    return shared / np.sum((labels >= 0) & (labels < number)), np.stack(own)


def covariance(gaussians):
    axes, variances = np.asarray(gaussians.axes), np.asarray(gaussians.variances)
    return np.einsum("cde,ce,cfe->cdf", axes, variances, axes)


def test_moments_are_sums_that_add_up(generator):
    features, labels = draw(generator)
    features[::10] = np.nan
    labels[::20], labels[10::20] = -1, 3
    whole = MOMENTS(features, labels, num_classes=3, own_covariances=True)
    for k in range(3):
        rows = features[labels == k].astype(np.float64)
        assert whole.class_counts[k] == len(rows)
        np.testing.assert_allclose(whole.totals[k], rows.sum(axis=0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(whole.squares[k], rows.T @ rows, rtol=1e-5, atol=1e-4)
    parts = [
        MOMENTS(features[half], labels[half], num_classes=3, own_covariances=True)
        for half in (slice(0, 49), slice(49, 98))
    ]
    merged = jax.tree.map(jnp.add, *parts)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4), merged, whole)
    together = MOMENTS(features, labels, num_classes=3)
    assert together.squares.shape == (1, 4, 4)
    np.testing.assert_allclose(together.squares[0], whole.squares.sum(axis=0), rtol=1e-5, atol=1e-4)


def test_covariances_shared_own_and_borrowed(generator):
    features, labels = draw(generator)
    moments = MOMENTS(features, labels, num_classes=3, own_covariances=True)
    shared, own = covariances(features, labels, 3)
    scale = {"rtol": 1e-4, "atol": 1e-4 * np.abs(own).max()}
    np.testing.assert_allclose(covariance(FIT(moments))[0], shared, **scale)
    np.testing.assert_allclose(covariance(FIT(moments, borrowed_examples=0.0)), own, **scale)
    everyone = covariance(FIT(moments, borrowed_examples=jnp.inf))
    np.testing.assert_allclose(everyone, np.broadcast_to(shared, own.shape), **scale)
    sizes = np.bincount(labels)[:, None, None]
    mixed = (sizes * own + 5 * shared) / (sizes + 5)
    np.testing.assert_allclose(covariance(FIT(moments, borrowed_examples=5)), mixed, **scale)
    shrunk = 0.7 * shared + 0.3 * np.trace(shared) / 4 * np.eye(4)
    np.testing.assert_allclose(covariance(FIT(moments, shrinkage=0.3))[0], shrunk, **scale)
    ball = FIT(moments, shrinkage=1.0).variances
    np.testing.assert_allclose(ball, np.trace(shared) / 4, rtol=1e-4)


def assert_is_lda(head, reference, features):
    got = features @ np.asarray(head.class_vectors, np.float64).T + np.asarray(head.bias)
    expected = features @ reference.coef_.T + reference.intercept_
    got, expected = (scores - scores[:, :1] for scores in (got, expected))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("shrinkage", [0.0, 0.2])
def test_discriminant_is_scikit_learns_on_real_data(shrinkage, shared_data):
    """Yeast has five examples of its rarest class and a feature that is nearly constant."""
    with np.load(shared_data / "yeast" / "yeast.npz") as file:
        features, labels = file["X"], file["y"].astype(np.int32)
    features = features - features.mean(axis=0)
    gaussians = FIT(
        MOMENTS(features.astype(np.float32), labels, num_classes=10), shrinkage=shrinkage
    )
    scikit = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage or None)
    reference = scikit.fit(features, labels)
    sizes = np.bincount(labels)
    head = posthoc.gaussian_discriminant(gaussians, class_prior=sizes)
    assert_is_lda(head, reference, features)
    uniform = posthoc.gaussian_discriminant(gaussians)
    reference.intercept_ = reference.intercept_ - np.log(sizes / sizes.sum())
    assert_is_lda(uniform, reference, features)


def test_discriminant_is_bayes_and_its_prior_moves_the_bias_alone(generator):
    """Moments of a population without sampling noise: the log posterior itself comes out."""
    means = np.array([[0.0, 0.0], [2.0, 1.0], [-1.0, 3.0]])
    sigma = np.array([[2.0, 0.6], [0.6, 1.0]])
    sizes = np.array([900, 90, 10])
    squares = sizes[:, None, None] * (sigma + means[:, :, None] * means[:, None, :])
    moments = posthoc.ClassMoments(
        jnp.asarray(sizes, jnp.int32),
        jnp.asarray(sizes[:, None] * means, jnp.float32),
        jnp.asarray(squares.sum(axis=0, keepdims=True), jnp.float32),
    )
    points = generator.normal(size=(20, 2)) * 3
    gaps = points[:, None] - means
    quadratic = -0.5 * np.einsum("nkd,de,nke->nk", gaps, np.linalg.inv(sigma), gaps)
    for prior, log_prior in ((None, 0), (sizes, np.log(sizes))):
        head = posthoc.gaussian_discriminant(FIT(moments), class_prior=prior)
        got = jax.nn.log_softmax(points.astype(np.float32) @ head.class_vectors.T + head.bias[None])
        expected = jax.nn.log_softmax((quadratic + log_prior).astype(np.float32))
        np.testing.assert_allclose(got, expected, atol=2e-4)
    plain = posthoc.gaussian_discriminant(FIT(moments))
    equal = posthoc.gaussian_discriminant(FIT(moments), class_prior=np.full(3, 0.2))
    np.testing.assert_array_equal(equal.class_vectors, plain.class_vectors)
    np.testing.assert_allclose(equal.bias - plain.bias, np.log(0.2), atol=1e-4)


def test_mahalanobis_is_scipys_and_blind_to_linear_maps(generator):
    features, labels = draw(generator)
    moments = MOMENTS(features, labels, num_classes=3, own_covariances=True)
    shared, own = covariances(features, labels, 3)
    points = features[:6].reshape(2, 3, 4)
    score = jax.jit(posthoc.mahalanobis_scores)
    for gaussians, matrices in (
        (FIT(moments), [shared] * 3),
        (FIT(moments, borrowed_examples=0.0), own),
    ):
        got = np.asarray(score(points, gaussians)).reshape(6, 3)
        for i, k in np.ndindex(6, 3):
            mean = features[labels == k].astype(np.float64).mean(axis=0)
            distance = scipy.spatial.distance.mahalanobis(
                features[i], mean, np.linalg.inv(matrices[k])
            )
            np.testing.assert_allclose(got[i, k], -(distance**2), rtol=2e-3, atol=1e-3)
    turn = (np.eye(4) + 0.3 * generator.normal(size=(4, 4))).astype(np.float32)
    turned = MOMENTS(features @ turn, labels, num_classes=3)
    np.testing.assert_allclose(
        score(points @ turn, FIT(turned)), score(points, FIT(moments)), rtol=1e-2, atol=1e-2
    )


def test_singular_covariances_single_examples_and_absent_classes(generator):
    """A constant feature, a copied one, one example of class 1 and none of class 2."""
    features = generator.normal(size=(30, 4)).astype(np.float32)
    features[:, 2], features[:, 3] = 0.1, features[:, 0]
    labels = np.zeros(30, np.int32)
    labels[7] = 1
    moments = MOMENTS(features, labels, num_classes=3, own_covariances=True)
    gaussians = FIT(moments)
    assert np.sum(np.asarray(gaussians.variances) == 0) == 2
    head = posthoc.gaussian_discriminant(gaussians)
    np.testing.assert_allclose(head.class_vectors[:, 2], 0, atol=1e-5)
    np.testing.assert_allclose(head.class_vectors[:, 0], head.class_vectors[:, 3], atol=1e-5)
    scores = features @ head.class_vectors.T + head.bias[None]
    assert np.all(np.isfinite(scores))
    assert not np.any(np.argmax(scores, axis=1) == 2)
    lonely = FIT(moments, borrowed_examples=0.0)
    np.testing.assert_allclose(lonely.variances[1], 0, atol=1e-6)
    np.testing.assert_allclose(covariance(lonely)[2], covariance(gaussians)[0], atol=1e-5)
    np.testing.assert_allclose(lonely.means[2], features.mean(axis=0), atol=1e-6)
    distances = posthoc.mahalanobis_scores(features, lonely)
    assert np.all(np.isfinite(distances))
    assert not np.any(np.argmax(distances, axis=1) == 2)
    nothing = FIT(MOMENTS(features, np.full(30, -1), num_classes=3))
    for leaf in jax.tree.leaves((nothing, posthoc.gaussian_discriminant(nothing))):
        assert np.all(np.isfinite(leaf))
    excluded = posthoc.gaussian_discriminant(gaussians, class_prior=np.array([1.0, 0.0, 1.0]))
    assert not np.any(np.argmax(features @ excluded.class_vectors.T + excluded.bias[None], 1) > 0)


def test_virtual_features_are_balanced_and_gaussian(generator):
    """4,000 draws: means within 5 standard errors fail once in 10^5 runs, covariances in 10^4."""
    features, labels = draw(generator, sizes=(200, 40, 1))
    moments = MOMENTS(features, labels, num_classes=4, own_covariances=True)
    gaussians = FIT(moments, borrowed_examples=10)
    sample = jax.jit(posthoc.virtual_features, static_argnames="examples_per_class")
    drawn = sample(jax.random.key(0), gaussians, examples_per_class=4000)
    assert drawn.features.shape == (4, 4000, 4)
    np.testing.assert_array_equal(drawn.labels[:, 0], [0, 1, 2, -1])
    np.testing.assert_array_equal(drawn.labels, np.tile(drawn.labels[:, :1], (1, 4000)))
    for k, wanted in enumerate(covariance(gaussians)):
        rows = np.asarray(drawn.features[k], np.float64)
        spread = np.sqrt(np.diagonal(wanted))
        error = 5 * spread / np.sqrt(4000)
        assert np.all(np.abs(rows.mean(axis=0) - gaussians.means[k]) < error)
        deviation = np.cov(rows.T, ddof=0) - wanted
        assert np.all(np.abs(deviation) < 5 * np.sqrt(2 / 4000) * np.outer(spread, spread))
    again = sample(jax.random.key(0), gaussians, examples_per_class=4000)
    np.testing.assert_array_equal(again.features, drawn.features)
    point = FIT(moments, borrowed_examples=0.0)
    lonely = sample(jax.random.key(1), point, examples_per_class=3).features[2]
    np.testing.assert_allclose(lonely, np.tile(features[labels == 2], (3, 1)), atol=0.02)


def trimmed_by_hand(features, labels, number, trim):
    kept = labels.copy()
    for k in range(number):
        members = np.flatnonzero(labels == k)
        size = len(members) - int(np.floor(trim * len(members) + 1e-9))
        centre = np.median(features[members], axis=0)
        for _ in range(4):
            distance = np.sum((features[members] - centre) ** 2, axis=1)
            order = members[np.argsort(distance, kind="stable")]
            centre = features[order[:size]].mean(axis=0)
        kept[order[size:]] = -1
    return kept


TRIM = jax.jit(posthoc.trim_outliers, static_argnames="num_classes")


def test_trimming_is_the_slow_twins(generator):
    features, labels = draw(generator, sizes=(50, 31, 1))
    wide = features.astype(np.float64)
    for trim in (0.1, 0.3, 0.99):
        got = TRIM(features, labels, num_classes=3, trim=trim)
        expected = trimmed_by_hand(wide, labels, 3, trim)
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(TRIM(features, labels, num_classes=3, trim=0.0), labels)
    # Invariance: a constant on all features and the order of the examples are no matter.
    order = generator.permutation(len(labels))
    kept = np.asarray(TRIM(features, labels, num_classes=3, trim=0.2))
    moved = TRIM((features + 3)[order], labels[order], num_classes=3, trim=0.2)
    np.testing.assert_array_equal(moved, kept[order])
    padded = TRIM(
        np.concatenate([features, np.full((2, 4), np.nan, np.float32)]),
        np.concatenate([labels, [-1, 9]]),
        num_classes=3,
        trim=0.2,
    )
    np.testing.assert_array_equal(padded, [*kept, -1, -1])
    nobody = TRIM(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), num_classes=3, trim=0.2)
    assert nobody.shape == (0,)


def test_trimming_saves_a_tail_from_mistakes_that_are_a_minority(generator):
    """2000 against 200 examples, 5 % of labels flipped: a third of the tail is of the head."""
    truth = np.repeat([0, 1], [2000, 200])
    centres = np.array([[0.0, 0.0, 0.0], [4.0, 4.0, 0.0]])
    features = (centres[truth] + generator.normal(size=(2200, 3))).astype(np.float32)
    labels = np.where(generator.random(2200) < 0.05, 1 - truth, truth).astype(np.int32)

    def error(kept):
        means = posthoc.class_means(MOMENTS(features, kept, num_classes=2))
        return np.linalg.norm(np.asarray(means)[1] - centres[1])

    trimmed = error(TRIM(features, labels, num_classes=2, trim=0.4))
    assert error(labels) > 1.2
    assert trimmed < 0.4


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_split_batches(axis_type, generator):
    features, labels = draw(generator, sizes=(40, 20, 4))
    moments = MOMENTS(features, labels, num_classes=3)
    scores = posthoc.mahalanobis_scores(features, FIT(moments))
    kept = TRIM(features, labels, num_classes=3, trim=0.2)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("batch"))

    @jax.jit
    def everything(x, y):
        found = posthoc.class_moments(x, y, num_classes=3)
        gaussians = posthoc.fit_class_gaussians(found)
        distances = posthoc.mahalanobis_scores(x, gaussians)
        near = posthoc.nearest_mean_scores(x, found)
        return found, distances, near, posthoc.trim_outliers(x, y, num_classes=3, trim=0.2)

    with jax.set_mesh(mesh):
        got = everything(*(jax.device_put(jnp.asarray(a), split) for a in (features, labels)))
    np.testing.assert_allclose(np.asarray(got[0].squares), moments.squares, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(np.asarray(got[1]), scores, rtol=1e-2, atol=1e-2)
    plain = posthoc.nearest_mean_scores(features, moments)
    np.testing.assert_allclose(np.asarray(got[2]), plain, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(got[3]), kept)


def test_dtypes(generator):
    features, labels = draw(generator)
    half = posthoc.class_moments(jnp.asarray(features, jnp.bfloat16), labels, num_classes=3)
    assert (half.totals.dtype, half.squares.dtype) == (jnp.float32, jnp.float32)
    with jax.enable_x64():
        moments = posthoc.class_moments(features.astype(np.float64), labels, num_classes=3)
        gaussians = posthoc.fit_class_gaussians(moments)
        assert gaussians.variances.dtype == jnp.float64
        scores = posthoc.mahalanobis_scores(features, gaussians)
        assert scores.dtype == jnp.float64
    shared, _ = covariances(features, labels, 3)
    np.testing.assert_allclose(covariance(gaussians)[0], shared, rtol=1e-9, atol=1e-9)


def test_bad_input_is_refused():
    features, labels = jnp.ones((4, 2)), jnp.array([0, 0, 1, 1])
    moments = posthoc.class_moments(features, labels, num_classes=2)
    full = posthoc.class_moments(features, labels, num_classes=2, own_covariances=True)
    with pytest.raises(ValueError, match=r"features: got shape \(4,\), wanted shape \[N, D\]"):
        posthoc.class_moments(features[:, 0], labels, num_classes=2)
    with pytest.raises(ValueError, match=r"labels: got shape \(3,\), wanted shape \(4,\)"):
        posthoc.trim_outliers(features, labels[:3], num_classes=2, trim=0.1)
    with pytest.raises(ValueError, match="num_classes: got 0"):
        posthoc.class_moments(features, labels, num_classes=0)
    with pytest.raises(ValueError, match="labels: got dtype float32"):
        posthoc.class_moments(features, features[:, 0], num_classes=2)
    with pytest.raises(ValueError, match=r"trim: got 1\.5"):
        posthoc.trim_outliers(features, labels, num_classes=2, trim=1.5)
    with pytest.raises(ValueError, match="shrinkage: got 2"):
        posthoc.fit_class_gaussians(moments, shrinkage=2)
    with pytest.raises(ValueError, match="borrowed_examples: got -1"):
        posthoc.fit_class_gaussians(full, borrowed_examples=-1)
    with pytest.raises(ValueError, match=r"borrowed_examples: got 3 .*own_covariances=True"):
        posthoc.fit_class_gaussians(moments, borrowed_examples=3)
    with pytest.raises(ValueError, match="gaussians: got 2 covariances, wanted one"):
        posthoc.gaussian_discriminant(posthoc.fit_class_gaussians(full, borrowed_examples=3))
    gaussians = posthoc.fit_class_gaussians(moments)
    with pytest.raises(ValueError, match=r"class_prior: got shape \(3,\), wanted shape \(2,\)"):
        posthoc.gaussian_discriminant(gaussians, class_prior=jnp.ones(3))
    with pytest.raises(ValueError, match=r"features: got shape \(3,\), wanted \[..., 2\]"):
        posthoc.mahalanobis_scores(jnp.ones(3), gaussians)
    with pytest.raises(ValueError, match="features: got dtype int32"):
        posthoc.nearest_mean_scores(labels, moments)
    with pytest.raises(ValueError, match="examples_per_class: got 0"):
        posthoc.virtual_features(jax.random.key(0), gaussians, examples_per_class=0)
