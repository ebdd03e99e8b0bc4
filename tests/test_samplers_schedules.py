"""Schedules and batches of a given make-up: exact properties, stated false-alarm rates."""

import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxbalance import samplers
from jaxbalance.samplers import _batches, _draws

LABELS = np.array([0] * 60 + [1] * 25 + [2] * 10 + [4] * 5 + [-1] * 3)
INDEX = samplers.class_index(LABELS, num_classes=5)
SIZES = np.array([60, 25, 10, 0, 5])
PRESENT = [0, 1, 2, 4]
KEY = jax.random.key(42)
FALSE_ALARM = 1e-6
"""Every statistical test here fails by chance about once in a million seeds; seeds are fixed."""

PROPORTIONAL = samplers.temperature_schedule(SIZES)
BALANCED = samplers.temperature_schedule(SIZES, tau=math.inf)
LATE = samplers.switch_schedule(PROPORTIONAL, BALANCED, begin=10, end=20)
SAMPLERS = {
    "scheduled": lambda key, steps, start=0: samplers.scheduled(
        key, INDEX, schedule=LATE, batch_size=8, steps=steps, start=start
    ),
    "class_aware": lambda key, steps, start=0: samplers.class_aware(
        key, INDEX, batch_size=8, steps=steps, start=start
    ),
    "m_per_class": lambda key, steps, start=0: samplers.m_per_class(
        key, INDEX, classes_per_batch=3, examples_per_class=8, steps=steps, start=start
    ),
}
each = pytest.mark.parametrize("draw", SAMPLERS.values(), ids=SAMPLERS)


def at(schedule, step):
    return np.asarray(schedule(jnp.array(step)), np.float64)


def power(sizes, tau):
    """A loop in Python floats."""
    raw = [n ** (1 / tau) if n else 0.0 for n in np.asarray(sizes).tolist()]
    return np.array(raw) / sum(raw)


# Schedules.


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0, 5.0, 100.0, math.inf])
def test_temperature_against_a_loop(tau):
    got = at(samplers.temperature_schedule(SIZES, tau=tau), 3)
    np.testing.assert_allclose(got, power(SIZES, tau), rtol=2e-6)


def test_plain_sampling_is_the_identity_of_every_schedule():
    plain = SIZES / SIZES.sum()
    for schedule in (
        samplers.temperature_schedule(SIZES, tau=1.0),
        samplers.effective_number_schedule(SIZES, beta=0.0),
        samplers.constant_schedule(SIZES),
        samplers.switch_schedule(PROPORTIONAL, PROPORTIONAL, begin=3, end=9),
    ):
        for step in (0, 5, 50):
            np.testing.assert_allclose(at(schedule, step), plain, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 1.0])
def test_effective_number_against_a_loop(beta):
    raw = []
    for n in SIZES.tolist():
        effective = sum(beta**j for j in range(n))
        raw.append(n / effective if n else 0.0)
    got = at(samplers.effective_number_schedule(SIZES, beta=beta), 0)
    np.testing.assert_allclose(got, np.array(raw) / sum(raw), rtol=2e-5)


def test_progressively_balanced_is_a_passage_between_two():
    schedule = samplers.switch_schedule(PROPORTIONAL, BALANCED, begin=0, end=8)
    for step in range(12):
        part = min(step / 8, 1)
        expected = (1 - part) * power(SIZES, 1.0) + part * power(SIZES, math.inf)
        np.testing.assert_allclose(at(schedule, step), expected, rtol=2e-6)


def test_late_upsampling_and_high_then_mix_change_at_their_step():
    mixture, high = [0.2, 0.2, 0.2, 0.2, 0.2], [1, 1, 0, 0, 0]
    late = samplers.switch_schedule(
        PROPORTIONAL, samplers.constant_schedule(mixture), begin=round(0.8 * 50)
    )
    order = samplers.switch_schedule(
        samplers.constant_schedule(high), samplers.constant_schedule(mixture), begin=40
    )
    np.testing.assert_allclose(at(late, 39), SIZES / 100, rtol=1e-6)
    np.testing.assert_allclose(at(order, 39), [0.5, 0.5, 0, 0, 0], rtol=1e-6)
    for schedule in (late, order):
        np.testing.assert_allclose(at(schedule, 40), mixture, rtol=1e-6)


def test_cooldown_is_a_falling_temperature_however_written():
    stepped = samplers.temperature_schedule(SIZES, tau=lambda step: jnp.where(step < 20, 5.0, 1.0))
    switched = samplers.switch_schedule(
        samplers.temperature_schedule(SIZES, tau=5.0), PROPORTIONAL, begin=20
    )
    smooth = samplers.temperature_schedule(SIZES, tau=optax.linear_schedule(5.0, 1.0, 40))
    for step in (0, 19, 20, 40):
        np.testing.assert_allclose(at(stepped, step), at(switched, step), rtol=2e-6)
        np.testing.assert_allclose(at(smooth, step), power(SIZES, 5 - step / 10), rtol=2e-6)


def test_schedules_compile_map_and_differentiate():
    steps = jnp.arange(30)
    together = jax.jit(jax.vmap(LATE))(steps)
    for step in (0, 15, 29):
        np.testing.assert_allclose(together[step], at(LATE, step), rtol=1e-6)

    def rare(tau):
        return samplers.temperature_schedule(SIZES, tau=tau)(jnp.array(0))[4]

    slope = (power(SIZES, 2.01)[4] - power(SIZES, 1.99)[4]) / 0.02
    np.testing.assert_allclose(jax.grad(rare)(2.0), slope, rtol=1e-3)


@pytest.mark.parametrize("tau", [1e-30, 1e-3, 1e30])
def test_extreme_temperatures_and_counts_are_finite(tau):
    got = at(samplers.temperature_schedule(np.array([1e30, 1.0, 0.0, 1e-30]), tau=tau), 0)
    assert np.all(np.isfinite(got))
    np.testing.assert_allclose(got.sum(), 1, rtol=1e-6)
    assert got[2] == 0


def test_no_examples_at_all_is_zero_everywhere():
    for make in (samplers.temperature_schedule, samplers.effective_number_schedule):
        np.testing.assert_array_equal(at(make(jnp.zeros(3)), 0), np.zeros(3))


def test_an_absent_class_does_not_change_the_others():
    for make in (samplers.temperature_schedule, samplers.effective_number_schedule):
        np.testing.assert_allclose(
            at(make(SIZES), 0)[PRESENT], at(make(SIZES[PRESENT]), 0), rtol=1e-6
        )


# Rows.


@each
def test_rows_depend_on_key_and_step_alone(draw):
    whole = draw(KEY, 30)
    assert whole.dtype == jnp.int32
    np.testing.assert_array_equal(draw(KEY, 30, 11)[:19], whole[11:])
    one = jax.jit(lambda step: draw(KEY, 1, step)[0])
    for step in (0, 7, 29):
        np.testing.assert_array_equal(one(jnp.array(step)), whole[step])
    assert not np.array_equal(draw(jax.random.key(43), 30), whole)


@each
def test_jit_and_vmap_over_keys_agree_with_eager(draw):
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(lambda key: draw(key, 30)))(keys)
    for key, rows in zip(keys, together, strict=True):
        np.testing.assert_array_equal(draw(key, 30), rows)


@each
def test_only_labelled_examples_are_drawn_late_too(draw):
    for start in (0, 2_000_000):
        rows = np.asarray(draw(KEY, 30, start))
        assert np.all((rows >= 0) & (rows < 100))
        assert len(np.unique(rows)) > 50


# Scheduled draws.


def test_any_function_of_the_step_is_a_schedule():
    def alternating(step):
        return jnp.where(jnp.arange(5) == 2 * (step % 2), 1, 0)

    rows = samplers.scheduled(KEY, INDEX, schedule=alternating, batch_size=3, steps=4)
    assert LABELS[np.asarray(rows)].tolist() == [[0] * 3, [2] * 3] * 2


def test_a_constant_schedule_draws_what_class_balanced_draws():
    wanted = np.array([0.1, 0.2, 0.0, 5.0, 0.7], np.float32)
    schedule = samplers.constant_schedule(wanted)
    for steps in (30, 100):
        rows = samplers.scheduled(KEY, INDEX, schedule=schedule, batch_size=8, steps=steps, start=3)
        expected = samplers.class_balanced(
            KEY, INDEX, batch_size=8, steps=steps, start=3, class_probabilities=wanted
        )
        np.testing.assert_array_equal(rows, expected)


def test_frequencies_follow_the_schedule():
    """Chi-square of the classes in each phase, and of the members in the first."""
    schedule = samplers.switch_schedule(PROPORTIONAL, BALANCED, begin=100)
    rows = samplers.scheduled(KEY, INDEX, schedule=schedule, batch_size=100, steps=200)
    for part, tau in ((rows[:100], 1.0), (rows[100:], math.inf)):
        drawn = np.bincount(LABELS[np.asarray(part)].reshape(-1), minlength=5)
        assert drawn[3] == 0
        share = power(SIZES, tau)[PRESENT]
        assert stats.chisquare(drawn[PRESENT], share * drawn.sum()).pvalue > FALSE_ALARM
    uses = np.bincount(np.asarray(rows[:100]).reshape(-1), minlength=len(LABELS))
    assert uses[100:].sum() == 0
    # Class counts as probabilities are plain sampling.
    assert stats.chisquare(uses[:100]).pvalue > FALSE_ALARM


@pytest.mark.parametrize("num_classes", [1, 2, 5, 10, 11, 101, 1001])
def test_the_class_of_a_uniform_number_is_numpys(num_classes, generator):
    share = generator.random(num_classes) * (generator.random(num_classes) < 0.7)
    share[0] += 0.01
    edges = np.cumsum((share / share.sum()).astype(np.float32), dtype=np.float32)
    uniform = np.concatenate([generator.random(500, np.float32), edges[edges < 1]])
    got = np.asarray(_draws._class_of(jnp.asarray(edges), jnp.asarray(uniform)))
    expected = np.minimum(np.searchsorted(edges, uniform, "right"), np.argmax(edges >= edges[-1]))
    np.testing.assert_array_equal(got, expected)


def test_classes_without_a_share_are_never_drawn_and_rows_without_any_are_padding():
    schedule = samplers.switch_schedule(
        samplers.constant_schedule([0, 0, 0, 1, 0]),
        samplers.constant_schedule([1, 1, 0, 1, 0]),
        begin=2,
    )
    rows = np.asarray(samplers.scheduled(KEY, INDEX, schedule=schedule, batch_size=50, steps=40))
    assert np.all(rows[:2] == -1)
    assert set(LABELS[rows[2:]].reshape(-1).tolist()) == {0, 1}
    none = samplers.class_balanced(
        KEY, INDEX, batch_size=3, steps=2, class_probabilities=np.array([0.0, 0, 0, 1, 0])
    )
    assert np.all(np.asarray(none) == -1)


def test_other_counts_and_temperatures_run_the_same_program():
    def draw(sizes, tau, begin):
        hot = samplers.temperature_schedule(sizes, tau=tau)
        schedule = samplers.switch_schedule(hot, PROPORTIONAL, begin=begin)
        return samplers.scheduled(KEY, INDEX, schedule=schedule, batch_size=7, steps=3)

    draw(SIZES, 5.0, 1)
    before = _batches._scheduled._cache_size()
    draw(SIZES[::-1], 2.0, 2)
    assert _batches._scheduled._cache_size() == before


def test_memory_does_not_hold_the_probabilities_of_all_steps():
    steps, classes = 4096, 500
    index = samplers.class_index(np.arange(classes), num_classes=classes)
    schedule = samplers.temperature_schedule(jnp.ones(classes))

    def draw(key):
        return samplers.scheduled(key, index, schedule=schedule, batch_size=4, steps=steps)

    memory = jax.jit(draw).lower(KEY).compile().memory_analysis()
    assert memory.temp_size_in_bytes < steps * classes * 4 / 8


# Batches of a given make-up.


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=7).filter(any),
    st.sampled_from([3, 11]),
    st.integers(0, 50),
)
@settings(deadline=None, max_examples=30)
def test_class_aware_batches_are_as_even_as_can_be(sizes, batch_size, start):
    sizes = np.pad(sizes, (0, 7 - len(sizes)))
    labels = np.repeat(np.arange(7), sizes)
    # Padded to one size, so that every example Hypothesis draws runs few programs.
    labels = np.pad(labels, (0, 42 - labels.size), constant_values=-1)
    index = samplers.ClassIndex(
        jnp.asarray(np.pad(np.argsort(labels[labels >= 0]), (0, 42 - sizes.sum())), jnp.int32),
        jnp.asarray(np.cumsum(sizes) - sizes, jnp.int32),
        jnp.asarray(sizes, jnp.int32),
    )
    rows = np.asarray(samplers.class_aware(KEY, index, batch_size=batch_size, steps=9, start=start))
    present = np.flatnonzero(sizes)
    for part in (rows, *rows):
        uses = np.bincount(labels[part].reshape(-1), minlength=7)
        assert uses[sizes == 0].sum() == 0
        assert np.ptp(uses[present]) <= 1
        if batch_size >= present.size:
            assert uses[present].min() >= 1


def test_class_aware_uses_every_member_equally_often():
    rows = np.asarray(samplers.class_aware(KEY, INDEX, batch_size=7, steps=60))
    for k in PRESENT:
        uses = np.bincount(rows.reshape(-1), minlength=len(LABELS))[k == LABELS]
        assert np.ptp(uses) <= 1


def test_places_in_a_class_aware_batch_are_alike():
    rows = np.asarray(samplers.class_aware(KEY, INDEX, batch_size=8, steps=2000))
    for place in (0, 3, 7):
        drawn = np.bincount(LABELS[rows[:, place]], minlength=5)[PRESENT]
        assert stats.chisquare(drawn).pvalue > FALSE_ALARM


def test_m_per_class_groups_are_distinct_members_of_distinct_classes():
    rows = np.asarray(
        samplers.m_per_class(KEY, INDEX, classes_per_batch=3, examples_per_class=5, steps=50)
    )
    assert rows.shape == (50, 3, 5)
    for batch in rows:
        classes = LABELS[batch]
        assert np.all(classes == classes[:, :1])
        assert len(set(classes[:, 0])) == 3
        assert all(len(set(group)) == 5 for group in batch.tolist())


def test_m_per_class_frequencies():
    """Chi-square of the classes at each place and of the members; the latter is conservative.

    Members are drawn without replacement in a batch, which spreads them more evenly than
    independent draws, so that chance exceeds the threshold even less often.
    """
    rows = np.asarray(
        samplers.m_per_class(KEY, INDEX, classes_per_batch=2, examples_per_class=3, steps=4000)
    )
    for place in (0, 1):
        drawn = np.bincount(LABELS[rows[:, place, 0]], minlength=5)
        assert drawn[3] == 0
        assert stats.chisquare(drawn[PRESENT]).pvalue > FALSE_ALARM
    for k in PRESENT:
        uses = np.bincount(rows.reshape(-1), minlength=len(LABELS))[k == LABELS]
        assert stats.chisquare(uses).pvalue > FALSE_ALARM
    pairs = Counter(map(tuple, np.sort(LABELS[rows[:, :, 0]], axis=1).tolist()))
    assert len(pairs) == 6
    assert stats.chisquare(list(pairs.values())).pvalue > FALSE_ALARM


def test_a_class_smaller_than_m_repeats_evenly_and_missing_classes_are_padding():
    labels = np.array([0, 0, 0, 1, 3, 3])
    index = samplers.class_index(labels, num_classes=4)
    rows = samplers.m_per_class(KEY, index, classes_per_batch=4, examples_per_class=4, steps=6)
    for batch in np.asarray(rows):
        assert np.all(batch[3] == -1)
        for group in batch[:3]:
            uses = np.bincount(group, minlength=6)[labels == labels[group[0]]]
            assert uses.sum() == 4
            assert np.ptp(uses) <= 1


# Bad input.


def test_bad_schedules_are_named():
    with pytest.raises(ValueError, match=r"tau: got 0.0, wanted a number > 0"):
        samplers.temperature_schedule(SIZES, tau=0.0)
    with pytest.raises(ValueError, match=r"class_counts: got shape \(1, 5\)"):
        samplers.temperature_schedule(SIZES[None])
    with pytest.raises(ValueError, match=r"class_counts: got shape \(\)"):
        samplers.effective_number_schedule(np.array(3))
    with pytest.raises(ValueError, match=r"beta: got 1.5"):
        samplers.effective_number_schedule(SIZES, beta=1.5)
    with pytest.raises(ValueError, match=r"class_probabilities: got .*no negative count"):
        samplers.constant_schedule([0.5, -0.5])
    with pytest.raises(ValueError, match=r"class_probabilities: got .*finite"):
        samplers.constant_schedule([0.5, math.nan])
    with pytest.raises(ValueError, match=r"class_probabilities: got \[0.0, 0.0\]"):
        samplers.constant_schedule([0, 0])
    with pytest.raises(ValueError, match=r"class_probabilities: got shape \(1, 2\)"):
        samplers.constant_schedule([[1, 0]])
    with pytest.raises(ValueError, match="end: got 3, wanted a number >= 5"):
        samplers.switch_schedule(PROPORTIONAL, BALANCED, begin=5, end=3)
    three = samplers.constant_schedule([1, 1, 1])
    with pytest.raises(ValueError, match=r"after\(step\): got shape \(3,\), wanted shape \(5,\)"):
        samplers.switch_schedule(PROPORTIONAL, three, begin=5)(jnp.array(0))
    with pytest.raises(
        ValueError, match=r"schedule\(step\): got shape \(3,\), wanted shape \(5,\)"
    ):
        samplers.scheduled(KEY, INDEX, schedule=three, batch_size=2, steps=2)


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="batch_size: got 0"):
        samplers.scheduled(KEY, INDEX, schedule=LATE, batch_size=0, steps=1)
    with pytest.raises(ValueError, match="steps: got 0"):
        samplers.class_aware(KEY, INDEX, batch_size=2, steps=0)
    with pytest.raises(ValueError, match="batch_size: got True"):
        samplers.class_aware(KEY, INDEX, batch_size=True, steps=1)
    with pytest.raises(ValueError, match="examples_per_class: got 0"):
        samplers.m_per_class(KEY, INDEX, classes_per_batch=2, examples_per_class=0, steps=1)
    with pytest.raises(ValueError, match="classes_per_batch: got 6, wanted at most the 5 classes"):
        samplers.m_per_class(KEY, INDEX, classes_per_batch=6, examples_per_class=2, steps=1)
