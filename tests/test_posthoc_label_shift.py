"""Priors: adapted, estimated and taken out, against closed forms, NumPy twins and scikit-learn."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.metrics import confusion_matrix

from jaxbalance import metrics, posthoc

CENTRES = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.5]])
EM = jax.jit(posthoc.fit_target_prior, static_argnames="num_steps")
BBSE = jax.jit(posthoc.fit_target_prior_from_confusion)


def draw(generator, size, prior, source=(0.7, 0.2, 0.1)):
    """Unit Gaussians drawn under ``prior``; the logits are exact posteriors under ``source``."""
    labels = generator.choice(3, size=size, p=prior).astype(np.int32)
    points = CENTRES[labels] + generator.normal(size=(size, 2))
    distance = np.sum((points[:, None] - CENTRES) ** 2, axis=-1)
    return (np.log(source) - distance / 2).astype(np.float32), labels


def em_by_hand(logits, source, steps):
    p = scipy.special.softmax(logits.astype(np.float64), axis=1)
    q = np.array(source, np.float64)
    for _ in range(steps):
        mean = np.zeros_like(q)
        for row in p:
            joint = row * q / source
            mean += joint / joint.sum() / len(p)
        q = mean
    return q


def test_adapted_logits_are_bayes(generator):
    logits = generator.normal(size=(5, 6, 3)).astype(np.float32)
    sizes, prior = np.array([70, 20, 10]), np.array([0.1, 0.3, 0.6])
    expected = scipy.special.softmax(logits.astype(np.float64), axis=-1) * prior / (sizes / 100)
    expected /= expected.sum(axis=-1, keepdims=True)
    got = posthoc.adapt_logits(logits, class_counts=sizes, class_prior=prior)
    np.testing.assert_allclose(jax.nn.softmax(got), expected, rtol=1e-5)
    uniform = posthoc.adapt_logits(logits, class_counts=sizes, class_prior=np.ones(3))
    np.testing.assert_allclose(uniform, posthoc.adjust_logits(logits, class_counts=sizes))
    same = posthoc.adapt_logits(logits, class_counts=sizes, class_prior=sizes)
    np.testing.assert_allclose(jax.nn.softmax(same), jax.nn.softmax(logits), rtol=1e-6)
    gone = posthoc.adapt_logits(logits, class_counts=sizes, class_prior=np.array([0.5, 0.5, 0.0]))
    assert np.all(np.isfinite(gone))
    np.testing.assert_allclose(jax.nn.softmax(gone)[..., 2], 0, atol=1e-30)
    low = posthoc.adapt_logits(
        jnp.asarray(logits, jnp.float16), class_counts=sizes, class_prior=prior
    )
    assert low.dtype == jnp.float16


def test_em_is_the_slow_twins(generator):
    logits, _ = draw(generator, 60, (0.2, 0.3, 0.5))
    sizes = np.array([70, 20, 10])
    for steps in (1, 7):
        got = EM(logits, class_counts=sizes, num_steps=steps)
        np.testing.assert_allclose(got, em_by_hand(logits, sizes / 100, steps), rtol=1e-5)
    order = np.array([2, 0, 1])
    moved = EM(logits[:, order], class_counts=sizes[order], num_steps=7)
    np.testing.assert_allclose(moved, got[order], rtol=1e-5)
    shifted = EM(logits + np.float32(300), class_counts=7 * sizes, num_steps=7)
    np.testing.assert_allclose(shifted, got, rtol=1e-4)
    sequences = EM(logits.reshape(6, 10, 3), class_counts=sizes, num_steps=7)
    np.testing.assert_allclose(sequences, got, rtol=1e-5)


def test_em_reaches_the_maximum_of_the_likelihood(generator):
    """At the maximum over the simplex no derivative exceeds 1, and those of its support equal 1."""
    logits, _ = draw(generator, 400, (0.1, 0.0, 0.9))
    source = np.array([0.7, 0.2, 0.1])
    q = np.asarray(EM(logits, class_counts=1000 * source), np.float64)
    ratio = scipy.special.softmax(logits.astype(np.float64), axis=1) / source
    slope = np.mean(ratio / (ratio @ q)[:, None], axis=0)
    assert np.all(slope < 1 + 1e-3)
    np.testing.assert_allclose(slope[q > 0.05], 1, atol=1e-3)


def test_examples_that_are_left_out(generator):
    """Against the others alone; whatever is left out, even NaN, has no effect and no gradient."""
    logits, _ = draw(generator, 60, (0.2, 0.3, 0.5))
    sizes, mask = np.array([70, 20, 10]), np.arange(60) % 3 > 0
    fit = jax.jit(lambda z, there: posthoc.fit_target_prior(z, class_counts=sizes, mask=there))
    expected = EM(logits[mask], class_counts=sizes)
    assert np.abs(expected - EM(logits, class_counts=sizes)).max() > 1e-3
    for junk in (np.nan, np.inf, -1e30):
        other = np.where(mask[:, None], logits, np.float32(junk))
        np.testing.assert_allclose(fit(other, mask), expected, rtol=1e-4)
    np.testing.assert_array_equal(fit(logits, np.ones(60, bool)), EM(logits, class_counts=sizes))
    np.testing.assert_allclose(fit(np.full_like(logits, np.nan), ~mask & mask), sizes / 100)
    assert np.isnan(fit(np.where(mask[:, None], np.float32(np.nan), logits), mask)).all()
    slope = jax.jit(jax.grad(lambda z: fit(z, mask)[0]))(other)
    assert np.all(slope[~mask] == 0)
    assert np.all(np.isfinite(slope))
    both, masks = np.stack([logits, logits[::-1]]), np.stack([mask, ~mask])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(fit))(both, masks),
        [fit(*one) for one in zip(both, masks, strict=True)],
        rtol=1e-5,
    )
    sequences = EM(both, class_counts=sizes, mask=masks)
    flat = EM(both.reshape(-1, 3), class_counts=sizes, mask=masks.ravel())
    np.testing.assert_allclose(sequences, flat, rtol=1e-5)


def test_both_estimates_recover_a_shift_and_correcting_helps(generator):
    """Of 20,000 examples; over 40 other seeds the largest errors were 0.013 (EM) and 0.021."""
    source, target = (0.7, 0.2, 0.1), (0.1, 0.2, 0.7)
    logits, labels = draw(generator, 20_000, target)
    held_out, held_out_labels = draw(generator, 20_000, source)
    sizes = np.bincount(held_out_labels)
    by_em = EM(logits, class_counts=sizes)
    np.testing.assert_allclose(by_em, target, atol=0.03)
    hard = metrics.confusion_matrix(held_out_labels, held_out.argmax(axis=1), num_classes=3)
    reference = confusion_matrix(held_out_labels, held_out.argmax(axis=1))
    np.testing.assert_array_equal(hard, reference)
    predicted = np.bincount(logits.argmax(axis=1), minlength=3)
    got = BBSE(hard, predicted)
    joint = reference / len(held_out)
    weights = np.linalg.solve(joint.T, predicted / len(logits))
    np.testing.assert_allclose(got, weights * joint.sum(axis=1), rtol=1e-3)
    np.testing.assert_allclose(got, target, atol=0.05)
    p, held_out_p = (scipy.special.softmax(z, axis=1) for z in (logits, held_out))
    soft = BBSE(np.eye(3, dtype=np.float32)[held_out_labels].T @ held_out_p, p.sum(axis=0))
    np.testing.assert_allclose(soft, target, atol=0.05)
    before = np.mean(logits.argmax(axis=1) == labels)
    for prior in (by_em, got, soft):
        adapted = posthoc.adapt_logits(logits, class_counts=sizes, class_prior=prior)
        assert np.mean(np.argmax(adapted, axis=1) == labels) > before + 0.1


def test_no_shift_is_the_identity():
    sizes = np.array([50, 30, 20])
    # Posteriors whose mean is the prior: one step of EM, and any number of them, stays there.
    rows = np.array([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3]])
    assert np.allclose(rows.mean(axis=0), sizes / 100)
    got = EM(np.log(rows).astype(np.float32), class_counts=sizes)
    np.testing.assert_allclose(got, sizes / 100, rtol=1e-4)
    confusion = np.array([[40, 8, 2], [5, 20, 5], [1, 4, 15]])
    for scale in (1, 7):
        same = BBSE(confusion, scale * confusion.sum(axis=0))
        np.testing.assert_allclose(same, confusion.sum(axis=1) / 100, rtol=1e-5)


def test_unseen_classes_singular_matrices_and_nothing_at_all(generator):
    logits, _ = draw(generator, 100, (0.3, 0.4, 0.3))
    absent = EM(logits, class_counts=np.array([70, 0, 30]))
    two = EM(logits[:, [0, 2]], class_counts=np.array([70, 30]))
    assert absent[1] == 0
    np.testing.assert_allclose(absent[np.array([0, 2])], two, rtol=1e-4)
    empty = np.zeros((0, 3), np.float32)
    np.testing.assert_allclose(EM(empty, class_counts=np.array([1, 1, 2])), [0.25, 0.25, 0.5])
    assert np.all(np.isfinite(EM(logits, class_counts=np.zeros(3))))
    huge = EM(1e4 * logits, class_counts=np.array([7, 2, 1]))
    np.testing.assert_allclose(np.sum(huge), 1, rtol=1e-5)
    # A classifier that says class 0 and nothing else tells of no shift.
    blind = BBSE(np.array([[60, 0], [40, 0]]), np.array([9, 0]))
    np.testing.assert_allclose(blind, [0.6, 0.4], rtol=1e-5)
    # Two classes it cannot tell apart share their shift in proportion.
    confusion = np.array([[20, 0, 0], [0, 20, 20], [0, 20, 20]])
    merged = BBSE(confusion, np.array([10, 45, 45]))
    np.testing.assert_allclose(merged, [0.1, 0.45, 0.45], rtol=1e-4)
    unseen = BBSE(np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]]), np.array([8, 2, 5]))
    assert unseen[2] == 0
    assert np.all(np.isfinite(unseen))
    # More extreme than any shift can make it: clipped, not negative.
    np.testing.assert_allclose(BBSE(np.array([[8, 2], [2, 8]]), np.array([10, 0])), [1, 0])
    np.testing.assert_allclose(BBSE(np.array([[8, 2], [2, 8]]), np.zeros(2)), [0.5, 0.5])
    np.testing.assert_allclose(BBSE(np.zeros((2, 2)), np.array([3, 1])), [0.5, 0.5])


def test_an_injected_prior_is_recovered(generator):
    """Balanced examples, posteriors under 0.7, 0.2, 0.1; four standard errors, from 40 seeds."""
    source = np.array([0.7, 0.2, 0.1])
    logits, labels = draw(generator, 20_000, (1 / 3,) * 3, source=source)
    # The ridge is given, though it is the usual one, for one program to serve both.
    fit = partial(jax.jit(posthoc.fit_source_prior), ridge=1e-4)
    found = fit(logits, labels)
    np.testing.assert_allclose(found, source, atol=0.025)
    np.testing.assert_allclose(np.sum(found), 1, rtol=1e-5)
    # The balance of the examples is no matter, for they are weighed; the mean logit neither.
    tilted, tilted_labels = draw(generator, 20_000, (0.6, 0.3, 0.1), source=source)
    np.testing.assert_allclose(fit(tilted + 5, tilted_labels), source, atol=0.04)
    few, few_labels = logits[:500], labels[:500]

    def loss(bias):
        log_p = scipy.special.log_softmax(few.astype(np.float64) + bias, axis=1)
        worth = 1 / np.bincount(few_labels)[few_labels] / 3
        own = log_p[np.arange(500), few_labels]
        return -np.sum(worth * own) + 1e-4 / 2 * np.sum(bias**2)

    best = scipy.optimize.minimize(loss, np.zeros(3), method="BFGS", tol=1e-9).x
    np.testing.assert_allclose(
        posthoc.fit_source_prior(few, few_labels), scipy.special.softmax(-best), rtol=1e-3
    )
    weak = fit(logits, labels, ridge=1e7)
    np.testing.assert_allclose(weak, 1 / 3, rtol=1e-5)
    np.testing.assert_allclose(fit(logits, np.full(20_000, -1)), 1 / 3, rtol=1e-6)
    seen = fit(logits, np.where(labels == 2, -1, labels))
    assert seen[2] == min(seen[:2])


def test_debiased_logits(generator):
    logits = generator.normal(size=(8, 3)).astype(np.float32)
    prior, sizes = np.array([0.5, 0.4, 0.1]), np.array([90, 9, 1])
    got = posthoc.debias_logits(logits, source_prior=prior, class_counts=sizes)
    np.testing.assert_allclose(got, logits - np.log(prior) - np.log(sizes / 100), rtol=1e-4)
    none = posthoc.debias_logits(
        logits, source_prior=prior, class_counts=sizes, source_tau=0.0, tau=0.0
    )
    np.testing.assert_array_equal(none, logits)
    data = posthoc.debias_logits(logits, source_prior=prior, class_counts=sizes, source_tau=0.0)
    np.testing.assert_allclose(data, posthoc.adjust_logits(logits, class_counts=sizes))
    # Invariance: neither prior needs to add up to one to predict the same.
    scaled = posthoc.debias_logits(logits, source_prior=30 * prior, class_counts=5 * sizes)
    np.testing.assert_allclose(jax.nn.softmax(scaled), jax.nn.softmax(got), rtol=1e-4)
    zero = posthoc.debias_logits(logits, source_prior=np.array([1, 1, 0]), class_counts=sizes)
    assert np.all(np.isfinite(zero))


def test_backdoor_average_is_the_sum_over_the_confounder(generator):
    logits = generator.normal(size=(4, 6, 3)).astype(np.float32)
    weights = np.array([0.4, 0.3, 0.2, 0.1])
    p = scipy.special.softmax(logits.astype(np.float64), axis=-1)
    average = jax.jit(posthoc.backdoor_average)
    got = average(logits, weights=10 * weights)
    np.testing.assert_allclose(np.exp(got), np.einsum("c,cnk->nk", weights, p), rtol=1e-5)
    plain = np.exp(average(logits))
    np.testing.assert_allclose(plain, p.mean(axis=0), rtol=1e-5)
    for one in (average(logits[:1]), average(logits[[0, 0]])):
        np.testing.assert_allclose(one, jax.nn.log_softmax(logits[0]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(average(logits, weights=np.zeros(4)), np.log(plain), rtol=1e-5)
    # Invariance: a constant on the logits of one model is no matter to its probabilities.
    moved = logits + np.array([5, -3, 0, 9], np.float32)[:, None, None]
    np.testing.assert_allclose(average(moved), np.log(plain), rtol=1e-4)


def test_ensembled_logits(generator):
    first, second = generator.normal(size=(2, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(posthoc.ensemble_logits(first, second, alpha=0.0), first)
    np.testing.assert_allclose(
        posthoc.ensemble_logits(first, second, alpha=2.5),
        first + 2.5 * second,
        rtol=1e-6,
        atol=1e-6,
    )
    shifted = posthoc.ensemble_logits(first, second + 7, alpha=2.5)
    plain = posthoc.ensemble_logits(first, second, alpha=2.5)
    np.testing.assert_array_equal(np.argmax(shifted, axis=1), np.argmax(plain, axis=1))
    mixed = posthoc.ensemble_logits(jnp.asarray(first, jnp.bfloat16), second)
    assert mixed.dtype == jnp.bfloat16


def test_split_batches(generator):
    logits, labels = draw(generator, 160, (0.4, 0.3, 0.3))
    sizes = jnp.array([7, 2, 1])

    @jax.jit
    def everything(z, y):
        prior = posthoc.fit_target_prior(z, class_counts=sizes, num_steps=20)
        some = posthoc.fit_target_prior(z, class_counts=sizes, mask=y != 1, num_steps=20)
        scaling = posthoc.fit_vector_scaling(z, y)
        adapted = posthoc.adapt_logits(z, class_counts=sizes, class_prior=prior)
        scaled = posthoc.scale_logits(adapted, **scaling._asdict())
        return prior, some, scaled, posthoc.fit_source_prior(z, y)

    single = everything(logits, labels)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
        split = NamedSharding(mesh, PartitionSpec("batch"))
        with jax.set_mesh(mesh):
            got = everything(*(jax.device_put(jnp.asarray(a), split) for a in (logits, labels)))
        for one, other in zip(got, single, strict=True):
            np.testing.assert_allclose(
                np.asarray(one), other, rtol=1e-3, atol=1e-4, err_msg=str(axis_type)
            )


def test_bad_input_is_refused():
    logits = jnp.zeros((4, 3))
    with pytest.raises(ValueError, match=r"class_prior: got shape \(2,\), wanted shape \(3,\)"):
        posthoc.adapt_logits(logits, class_counts=jnp.ones(3), class_prior=jnp.ones(2))
    with pytest.raises(ValueError, match=r"class_counts: got shape \(2,\), wanted shape \(3,\)"):
        posthoc.fit_target_prior(logits, class_counts=jnp.ones(2))
    with pytest.raises(ValueError, match=r"mask: got shape \(3,\), wanted shape \(4,\)"):
        posthoc.fit_target_prior(logits, class_counts=jnp.ones(3), mask=jnp.ones(3, bool))
    with pytest.raises(ValueError, match="num_steps: got 0"):
        posthoc.fit_target_prior(logits, class_counts=jnp.ones(3), num_steps=0)
    with pytest.raises(ValueError, match=r"confusion: got shape \(4, 3\), wanted \[K, K\]"):
        posthoc.fit_target_prior_from_confusion(logits, jnp.ones(3))
    with pytest.raises(ValueError, match=r"predicted_counts: got shape \(2,\)"):
        posthoc.fit_target_prior_from_confusion(jnp.eye(3), jnp.ones(2))
    with pytest.raises(ValueError, match=r"source_prior: got shape \(2,\)"):
        posthoc.debias_logits(logits, source_prior=jnp.ones(2), class_counts=jnp.ones(3))
    with pytest.raises(
        ValueError, match=r"other_logits: got shape \(4, 2\), wanted shape \(4, 3\)"
    ):
        posthoc.ensemble_logits(logits, logits[:, :2])
    with pytest.raises(ValueError, match=r"logits: got shape \(3,\), wanted \[M, ..., K\]"):
        posthoc.backdoor_average(logits[0])
    with pytest.raises(ValueError, match=r"weights: got shape \(2,\), wanted shape \(4,\)"):
        posthoc.backdoor_average(logits, weights=jnp.ones(2))
