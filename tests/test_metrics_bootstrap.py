"""Bootstrap intervals against closed forms, SciPy and resamples that cannot differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import stats

from jaxbalance import metrics

KEY = jax.random.key(5)


def mean(values):
    return jnp.mean(values)


def draw(generator, size=120, positives=6):
    labels = (np.arange(size) < positives).astype(np.int32)
    return (generator.normal(size=size) + labels).astype(np.float32), labels


def test_an_interval_of_a_mean_is_the_normal_one(generator):
    """4000 resamples: an end's deviation is 0.037 standard errors, so 0.2 is more than 5 of it."""
    values = generator.normal(size=400).astype(np.float32)
    got = metrics.bootstrap_interval(mean, values, key=KEY, num_resamples=4000, confidence=0.9)
    centre, error = values.mean(), values.std() / np.sqrt(400)
    np.testing.assert_allclose(got.value, centre, rtol=1e-4, atol=1e-6)
    for end, z in ((got.low, -1.645), (got.high, 1.645)):
        assert abs((float(end) - centre) / error - z) < 0.2
    wanted = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, confidence_level=0.9, method="percentile", rng=1
    ).confidence_interval
    assert abs(float(got.low) - wanted.low) < 0.3 * error
    assert abs(float(got.high) - wanted.high) < 0.3 * error
    assert int(got.undefined) == 0


def test_coverage_of_the_mean():
    """Of 200 intervals at 80 % at least 136 and at most 184 hold 0: false alarms below 1e-4."""
    keys = jax.random.split(jax.random.key(1), 200)

    def covers(key):
        values = jax.random.normal(key, (60,))
        got = metrics.bootstrap_interval(
            mean, values, key=jax.random.fold_in(key, 1), num_resamples=200, confidence=0.8
        )
        return (got.low <= 0) & (got.high >= 0)

    assert 136 <= int(jnp.sum(jax.jit(jax.vmap(covers))(keys))) <= 184


def test_strata_of_one_example_make_every_resample_the_data(generator):
    scores, labels = draw(generator)
    for strata in (np.arange(len(scores)), np.full(len(scores), -1)):
        got = metrics.bootstrap_interval(
            metrics.auroc, scores, labels, key=KEY, strata=strata, num_resamples=7
        )
        for end in (got.low, got.high):
            np.testing.assert_allclose(end, got.value, rtol=1e-6)


def test_strata_keep_the_count_of_each_class_and_stay_apart(generator):
    labels = generator.choice([0, 1, 2, -1], size=60, p=[0.7, 0.15, 0.05, 0.1]).astype(np.int32)
    places = np.arange(60, dtype=np.int32)

    def drawn(labels, places):
        own = [jnp.sum(labels == k) for k in (0, 1, 2, -1)]
        still = jnp.sum(jnp.where((labels == -1) & (places == jnp.arange(60)), 1, 0))
        return jnp.stack([*own, still, jnp.sum(places)])

    got = metrics.bootstrap_interval(
        drawn, labels, places, key=KEY, strata=labels, num_resamples=50, confidence=1.0
    )
    wanted = [np.sum(labels == k) for k in (0, 1, 2, -1, -1)]
    np.testing.assert_array_equal(got.low[:5], wanted)
    np.testing.assert_array_equal(got.high[:5], wanted)
    assert float(got.low[5]) < places.sum() < float(got.high[5])


def test_a_lost_class_is_counted_and_strata_never_lose_one(generator):
    """Of 300 resamples a share of (1 - 2/30)^30 = 0.126 has no positive: 5 deviations are 29."""
    scores, labels = draw(generator, size=30, positives=2)
    free = metrics.bootstrap_interval(metrics.auroc, scores, labels, key=KEY, num_resamples=300)
    assert 38 - 29 < int(free.undefined) < 38 + 29
    assert 0 <= float(free.low) <= float(free.value) <= float(free.high) <= 1
    kept = metrics.bootstrap_interval(
        metrics.auroc, scores, labels, key=KEY, strata=labels, num_resamples=300
    )
    assert int(kept.undefined) == 0
    never = metrics.bootstrap_interval(
        metrics.auroc, scores, np.zeros_like(labels), key=KEY, num_resamples=3
    )
    assert np.isnan(never.low)
    assert np.isnan(never.high)
    assert int(never.undefined) == 3


def test_settings_and_shapes(generator):
    scores, labels = draw(generator)

    def recalls(scores, labels):
        predictions = (scores > 0).astype(jnp.int32)
        return metrics.recall(metrics.confusion_matrix(labels, predictions, num_classes=2))

    def interval(**settings):
        return metrics.bootstrap_interval(
            recalls, scores, labels, key=KEY, strata=labels, num_resamples=64, **settings
        )

    whole, parts = interval(), interval(batch_size=16)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), parts, whole)
    assert whole.low.shape == whole.undefined.shape == (2,)
    assert np.all(whole.low <= whole.value)
    assert np.all(whole.high >= whole.value)
    none = interval(confidence=0.0)
    np.testing.assert_allclose(none.low, none.high, rtol=1e-6)
    assert np.all(none.low >= whole.low)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_split_batch_is_resampled_as_a_whole(axis_type, generator):
    scores, labels = draw(generator, size=48)

    def interval(scores, labels):
        return metrics.bootstrap_interval(
            metrics.auroc, scores, labels, key=KEY, strata=labels, num_resamples=20
        )

    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("batch"))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(jnp.asarray(array), split) for array in (scores, labels)]
        got = jax.jit(interval)(*placed)
    wanted = interval(scores, labels)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, wanted)


def test_bad_input_is_refused():
    values = jnp.zeros(3)

    def refused(message, *data, **settings):
        with pytest.raises(ValueError, match=message):
            metrics.bootstrap_interval(lambda *_: jnp.zeros(()), *data, key=KEY, **settings)

    refused(r"data: got shapes \[\]")
    refused(r"data: got shapes \[\(3,\), \(2,\)\]", values, values[:2])
    refused(r"data: got shapes \[\(0,\)\]", values[:0])
    refused(r"data: got shapes \[\(\)\]", values[0])
    refused("num_resamples: got 0", values, num_resamples=0)
    refused("batch_size: got 0", values, batch_size=0)
    refused("confidence: got 95", values, confidence=95)
    refused("strata: got dtype float32", values, strata=values)
    refused(r"strata: got shape \(2,\), wanted shape \(3,\)", values, strata=jnp.zeros(2, int))
