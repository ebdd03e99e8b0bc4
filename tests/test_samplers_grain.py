"""Shards of every sampler, and the recipe for grain: a dataset of steps mapped to their rows."""

import functools

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from jaxbalance import losses, samplers, training

LABELS = np.array([0] * 60 + [1] * 25 + [2] * 10 + [3] * 5, np.int32)
INPUTS = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
INDEX = samplers.class_index(LABELS, num_classes=4)
KEY = jax.random.key(8)
STEPS, BATCH = 12, 8


def scheduled(*, steps, start):
    schedule = samplers.switch_schedule(
        samplers.temperature_schedule(INDEX.class_counts, tau=5.0),
        samplers.temperature_schedule(INDEX.class_counts),
        begin=6,
    )
    return samplers.scheduled(
        KEY, INDEX, schedule=schedule, batch_size=BATCH, steps=steps, start=start
    )


DRAWS = {
    "scheduled": scheduled,
    "class_aware": functools.partial(samplers.class_aware, KEY, INDEX, batch_size=BATCH),
    "shuffled_epochs": functools.partial(
        samplers.shuffled_epochs, KEY, num_examples=100, batch_size=BATCH, pad_last=True
    ),
}
ALL = {
    **DRAWS,
    "class_balanced": functools.partial(samplers.class_balanced, KEY, INDEX, batch_size=BATCH),
    "stratified": functools.partial(samplers.stratified, KEY, INDEX, examples_per_class=BATCH),
    "resampled_epochs": functools.partial(
        samplers.resampled_epochs, KEY, INDEX, target_counts=[60, 30, 30, 30], batch_size=BATCH
    ),
    "m_per_class": functools.partial(
        samplers.m_per_class, KEY, INDEX, classes_per_batch=3, examples_per_class=BATCH
    ),
}
each = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


@given(st.sampled_from(sorted(ALL)), st.sampled_from([1, 2, 4, 8]), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_shards_partition_the_global_batch(name, num_shards, start):
    """Any shard computes its part alone; side by side the parts are the batch, none twice."""
    whole = np.asarray(ALL[name](steps=1, start=start))
    parts = [
        samplers.shard_rows(ALL[name](steps=1, start=start), shard=shard, num_shards=num_shards)
        for shard in range(num_shards)
    ]
    assert {part.shape[-1] for part in parts} == {BATCH // num_shards}
    np.testing.assert_array_equal(np.concatenate(parts, axis=-1), whole)


def test_one_shard_is_the_identity_and_a_shard_may_be_traced():
    draw = functools.partial(DRAWS["class_aware"], steps=2, start=3)
    np.testing.assert_array_equal(samplers.shard_rows(draw(), shard=0, num_shards=1), draw())
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))

    def own():
        return samplers.shard_rows(draw(), shard=jax.lax.axis_index("batch"), num_shards=8)

    split = jax.shard_map(
        own, mesh=mesh, in_specs=(), out_specs=PartitionSpec(None, "batch"), check_vma=False
    )
    np.testing.assert_array_equal(jax.jit(split)(), draw())


def test_bad_shards_are_named():
    rows = np.zeros((2, 6), np.int32)
    with pytest.raises(ValueError, match=r"rows: got shape \(2, 6\), wanted .* 4 shards divide"):
        samplers.shard_rows(rows, shard=0, num_shards=4)
    with pytest.raises(ValueError, match=r"shard: got 3, wanted a number in \[0, 2\]"):
        samplers.shard_rows(rows, shard=3, num_shards=3)
    with pytest.raises(ValueError, match="num_shards: got 0"):
        samplers.shard_rows(rows, shard=0, num_shards=0)
    with pytest.raises(ValueError, match="rows: got dtype float32"):
        samplers.shard_rows(rows.astype(np.float32), shard=0, num_shards=2)


def rows_of(draw, shard=0, num_shards=1):
    """A dataset of index rows: nothing is stored, grain asks for step t and gets its row."""

    @jax.jit
    def row(step):
        return samplers.shard_rows(draw(steps=1, start=step)[0], shard=shard, num_shards=num_shards)

    return grain.MapDataset.range(STEPS).map(lambda step: np.asarray(row(step)))


def read(row):
    """The examples of a row; padding keeps its place and has no label."""
    labels = np.where(row >= 0, LABELS[row], -1)
    return INPUTS[row], labels.astype(np.int32)


@each
def test_grain_sees_the_rows_that_run_steps_sees(draw):
    expected = np.asarray(draw(steps=STEPS, start=0))
    dataset = rows_of(draw)
    assert len(dataset) == STEPS
    np.testing.assert_array_equal(np.stack(list(dataset)), expected)
    # Random access, in any order.
    for step in (7, 0, 11):
        np.testing.assert_array_equal(dataset[step], expected[step])


@each
def test_grain_resumes_exactly(draw):
    """Stopped after five batches and restored elsewhere: the very batches still to come."""
    expected = [read(row) for row in np.asarray(draw(steps=STEPS, start=0))]
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    iterator = iter(rows_of(draw).map(read).to_iter_dataset(options))
    for _ in range(5):
        next(iterator)
    state = iterator.get_state()
    resumed = iter(rows_of(draw).map(read).to_iter_dataset(options))
    resumed.set_state(state)
    for got, wanted in zip(resumed, expected[5:], strict=True):
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(one, other)


def test_grain_pipelines_of_all_shards_partition_the_global_batch():
    draw = DRAWS["class_aware"]
    parts = [list(rows_of(draw, shard=shard, num_shards=4)) for shard in range(4)]
    assert {part.shape for shard in parts for part in shard} == {(BATCH // 4,)}
    whole = np.concatenate([np.stack(part) for part in parts], axis=1)
    np.testing.assert_array_equal(whole, draw(steps=STEPS, start=0))


def test_training_from_grain_is_training_from_the_rows():
    draw = DRAWS["scheduled"]
    per_example = training.example_loss(lambda w, x: x @ w, losses.weighted_cross_entropy)
    step = training.make_step(per_example, optax.sgd(0.5), num_classes=4)
    state = training.init_state(jnp.zeros((3, 4)), optax.sgd(0.5))
    expected, _ = training.run_steps(step, state, INPUTS, LABELS, draw(steps=STEPS, start=0))
    compiled = jax.jit(step)
    for inputs, labels in rows_of(draw).map(read):
        state, _ = compiled(state, inputs, labels)
    np.testing.assert_allclose(state.params, expected.params, rtol=1e-5, atol=1e-6)
