"""Samplers: exact properties, and frequencies with stated false-alarm rates."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxbalance import samplers

LABELS = np.array([0] * 60 + [1] * 25 + [2] * 10 + [4] * 5 + [-1] * 3)
INDEX = samplers.class_index(LABELS, num_classes=5)
KEY = jax.random.key(42)
FALSE_ALARM = 1e-6
"""Every statistical test here fails by chance about once in a million seeds; seeds are fixed."""

SAMPLERS = {
    "shuffled_epochs": lambda key, steps, start=0: samplers.shuffled_epochs(
        key, num_examples=103, batch_size=8, steps=steps, start=start
    ),
    "class_balanced": lambda key, steps, start=0: samplers.class_balanced(
        key, INDEX, batch_size=8, steps=steps, start=start
    ),
    "stratified": lambda key, steps, start=0: samplers.stratified(
        key, INDEX, examples_per_class=3, steps=steps, start=start
    ),
    "resampled_epochs": lambda key, steps, start=0: samplers.resampled_epochs(
        key, INDEX, target_counts=[60, 30, 30, 0, 30], batch_size=8, steps=steps, start=start
    ),
}
HELPERS = {
    "ClassIndex",
    "Schedule",
    "apportioned_counts",
    "class_index",
    "constant_schedule",
    "effective_number_schedule",
    "multilabel_index",
    "oversampled_counts",
    "self_paced_factor",
    "self_paced_probabilities",
    "shard_rows",
    "statistic_bins",
    "switch_schedule",
    "temperature_schedule",
    "undersampled_counts",
}
TESTED_WITH_SCHEDULES = {"class_aware", "m_per_class", "scheduled"}
each = pytest.mark.parametrize("draw", SAMPLERS.values(), ids=SAMPLERS)


def test_every_public_sampler_has_a_row():
    public = {name for name in vars(samplers) if not name.startswith("_")}
    assert public == set(SAMPLERS) | HELPERS | TESTED_WITH_SCHEDULES


@each
def test_rows_depend_on_key_and_step_alone(draw):
    whole = draw(KEY, 30)
    np.testing.assert_array_equal(draw(KEY, 30), whole)
    np.testing.assert_array_equal(draw(KEY, 11, 19), whole[19:])
    np.testing.assert_array_equal(jax.jit(lambda s: draw(KEY, 1, s))(jnp.array(7))[0], whole[7])
    assert not np.array_equal(draw(jax.random.key(43), 30), whole)


@each
def test_jit_and_vmap_over_keys_agree_with_eager(draw):
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(lambda key: draw(key, 4)))(keys)
    for key, rows in zip(keys, together, strict=True):
        np.testing.assert_array_equal(draw(key, 4), rows)


@each
def test_indices_are_int32_and_in_range(draw):
    rows = np.asarray(draw(KEY, 40))
    assert rows.dtype == np.int32
    assert rows.min() >= -1
    assert rows.max() < len(LABELS)


@each
def test_late_steps_work_as_early_ones(draw):
    """Two million steps in: nothing has overflowed."""
    rows = np.asarray(draw(KEY, 40, 2_000_000))
    assert rows.min() >= -1
    assert len(np.unique(rows)) > 20


@pytest.mark.parametrize(
    ("num_examples", "batch_size"), [(1, 1), (1, 4), (7, 3), (10, 5), (40, 50), (13, 26)]
)
def test_shuffled_epochs_visit_every_example_once_per_epoch(num_examples, batch_size):
    epochs = 3
    steps = -(-epochs * num_examples // batch_size)
    rows = samplers.shuffled_epochs(
        KEY, num_examples=num_examples, batch_size=batch_size, steps=steps
    )
    flat = np.asarray(rows).reshape(-1)[: epochs * num_examples].reshape(epochs, num_examples)
    np.testing.assert_array_equal(
        np.sort(flat, axis=1), np.broadcast_to(np.arange(num_examples), flat.shape)
    )


def test_padded_epochs_end_with_minus_one():
    rows = samplers.shuffled_epochs(KEY, num_examples=10, batch_size=4, steps=6, pad_last=True)
    rows = np.asarray(rows)
    for epoch in rows.reshape(2, 12):
        assert sorted(epoch[:10].tolist()) == list(range(10))
        assert epoch[10:].tolist() == [-1, -1]
    assert not np.array_equal(rows[:3], rows[3:])


def test_class_index_groups_members_in_order():
    for k in range(5):
        first, number = int(INDEX.starts[k]), int(INDEX.class_counts[k])
        np.testing.assert_array_equal(
            INDEX.members[first : first + number], np.flatnonzero(k == LABELS)
        )


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, float("inf")])
def test_class_balanced_frequencies(temperature):
    rows = samplers.class_balanced(KEY, INDEX, batch_size=100, steps=400, temperature=temperature)
    drawn = LABELS[np.asarray(rows)].reshape(-1)
    assert drawn.min() >= 0
    n = np.array([60, 25, 10, 5])
    share = n ** (1 / temperature) / np.sum(n ** (1 / temperature))
    observed = np.bincount(drawn, minlength=5)[[0, 1, 2, 4]]
    assert stats.chisquare(observed, share * drawn.size).pvalue > FALSE_ALARM
    members = np.bincount(np.asarray(rows).reshape(-1), minlength=len(LABELS))[:60]
    assert stats.chisquare(members).pvalue > FALSE_ALARM


def test_class_balanced_follows_given_probabilities_and_skips_absent_classes():
    wanted = np.array([0.1, 0.2, 0.0, 5.0, 0.7])
    rows = samplers.class_balanced(
        KEY, INDEX, batch_size=100, steps=200, class_probabilities=wanted
    )
    drawn = np.bincount(LABELS[np.asarray(rows)].reshape(-1), minlength=5)
    assert drawn[2] == drawn[3] == 0
    share = wanted[[0, 1, 4]] / wanted[[0, 1, 4]].sum()
    assert stats.chisquare(drawn[[0, 1, 4]], share * drawn.sum()).pvalue > FALSE_ALARM


def test_stratified_batches_use_every_member_equally_often():
    rows = np.asarray(samplers.stratified(KEY, INDEX, examples_per_class=3, steps=40))
    assert rows.shape == (40, 5, 3)
    assert np.all(rows[:, 3] == -1)
    for k in (0, 1, 2, 4):
        assert np.all(LABELS[rows[:, k]] == k)
        uses = np.bincount(rows[:, k].reshape(-1), minlength=len(LABELS))[k == LABELS]
        assert uses.max() - uses.min() <= 1


def test_a_class_smaller_than_its_share_of_a_batch_repeats():
    index = samplers.class_index(np.array([0, 0, 0, 1]), num_classes=2)
    rows = np.asarray(samplers.stratified(KEY, index, examples_per_class=3, steps=2))
    assert rows[:, 1].tolist() == [[3, 3, 3], [3, 3, 3]]
    assert sorted(rows[0, 0].tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    "targets", [[60, 25, 10, 0, 5], [60, 60, 60, 0, 60], [5, 5, 5, 0, 5], [1, 26, 3, 0, 9]]
)
def test_resampled_epochs_hit_their_targets_exactly(targets):
    length, epochs = sum(targets), 12
    rows = samplers.resampled_epochs(
        KEY, INDEX, target_counts=targets, batch_size=length, steps=epochs
    )
    uses = np.zeros(len(LABELS), int)
    for row in np.asarray(rows):
        assert np.bincount(LABELS[row], minlength=5).tolist() == targets
        uses += np.bincount(row, minlength=len(LABELS))
    for k in (0, 1, 2, 4):
        assert uses[k == LABELS].max() - uses[k == LABELS].min() <= 1


def test_a_target_for_an_absent_class_is_padding():
    rows = samplers.resampled_epochs(
        KEY, INDEX, target_counts=[2, 2, 2, 3, 2], batch_size=11, steps=1
    )
    assert np.sum(np.asarray(rows) == -1) == 3


def test_target_counts_by_arithmetic():
    sizes = [100, 40, 10, 0]
    assert samplers.oversampled_counts(sizes).tolist() == [100, 100, 100, 0]
    assert samplers.oversampled_counts(sizes, ratio=4).tolist() == [100, 40, 25, 0]
    assert samplers.oversampled_counts(sizes, ratio=math.inf).tolist() == sizes
    assert samplers.undersampled_counts(sizes).tolist() == [10, 10, 10, 0]
    assert samplers.undersampled_counts(sizes, ratio=2.5).tolist() == [25, 25, 10, 0]
    assert samplers.undersampled_counts(sizes, ratio=math.inf).tolist() == sizes


def test_targets_equal_imbalanced_learn():
    from imblearn.over_sampling import RandomOverSampler
    from imblearn.under_sampling import RandomUnderSampler

    labels = np.repeat(np.arange(3), [50, 20, 5])
    features = np.arange(75.0)[:, None]
    for resampler, targets in (
        (RandomOverSampler(random_state=0), samplers.oversampled_counts),
        (RandomUnderSampler(random_state=0), samplers.undersampled_counts),
    ):
        _, theirs = resampler.fit_resample(features, labels)
        assert targets([50, 20, 5]).tolist() == np.bincount(theirs).tolist()


def test_grain_reads_the_rows_as_they_are():
    """Feed a sampler to real grain: an index matrix is a random-access source."""
    import grain

    data = np.arange(103) * 10
    rows = np.asarray(SAMPLERS["shuffled_epochs"](KEY, 6))
    batches = grain.MapDataset.source(list(rows)).map(lambda row: data[row])
    np.testing.assert_array_equal(np.stack(list(batches)), data[rows])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="batch_size: got 0"):
        samplers.shuffled_epochs(KEY, num_examples=3, batch_size=0, steps=1)
    with pytest.raises(ValueError, match=r"steps: got 1.5"):
        samplers.shuffled_epochs(KEY, num_examples=3, batch_size=1, steps=1.5)
    with pytest.raises(ValueError, match="temperature: got 0"):
        samplers.class_balanced(KEY, INDEX, batch_size=2, steps=1, temperature=0)
    with pytest.raises(ValueError, match=r"class_probabilities: got shape \(2,\)"):
        samplers.class_balanced(KEY, INDEX, batch_size=2, steps=1, class_probabilities=jnp.ones(2))
    with pytest.raises(ValueError, match="examples_per_class: got 0"):
        samplers.stratified(KEY, INDEX, examples_per_class=0, steps=1)
    with pytest.raises(ValueError, match=r"target_counts: got \[1, 2\], wanted 5 counts"):
        samplers.resampled_epochs(KEY, INDEX, target_counts=[1, 2], batch_size=2, steps=1)
    with pytest.raises(ValueError, match=r"target_counts: got .*no negative"):
        samplers.resampled_epochs(KEY, INDEX, target_counts=[-1] * 5, batch_size=2, steps=1)
    with pytest.raises(ValueError, match=r"labels: got shape \(2, 1\)"):
        samplers.class_index(np.zeros((2, 1), int), num_classes=2)
    with pytest.raises(ValueError, match="labels: got no id"):
        samplers.class_index(np.array([-1]), num_classes=2)
    with pytest.raises(ValueError, match=r"ratio: got 0.5"):
        samplers.oversampled_counts([3, 1], ratio=0.5)
    with pytest.raises(ValueError, match="at least one present class"):
        samplers.undersampled_counts([0, 0])
