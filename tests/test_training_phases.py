"""Phases are runs one after the other, and their compositions do what their names say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbalance import losses, samplers, training
from jaxbalance.training import Phase

CENTRES = np.array([[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0]])


def data(counts, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), counts)
    inputs = CENTRES[labels] + generator.normal(size=(len(labels), 4))
    return jnp.asarray(inputs, jnp.float32), jnp.asarray(labels)


INPUTS, LABELS = data((300, 60, 8))
TEST_INPUTS, TEST_LABELS = data((200, 200, 200), seed=1)


def features(params, inputs):
    return jnp.tanh(inputs @ params["body"])


def network(params, inputs):
    logits = features(params, inputs) @ params["head"]
    return logits * params["scale"][None]


def start(seed=0):
    body, head = jax.random.split(jax.random.key(seed))
    return {
        "body": jax.random.normal(body, (4, 16)) / 2,
        "head": jax.random.normal(head, (16, 3)) / 4,
        "scale": jnp.ones(3),
    }


def only(name, tx):
    mask = dict.fromkeys(("body", "head", "scale"), True) | {name: False}
    return optax.transforms.selective_transform(tx, freeze_mask=mask)


def make(tx, loss=losses.weighted_cross_entropy, apply=network):
    return training.make_step(training.example_loss(apply, loss), tx, num_classes=3)


def plain_rows(steps, key=0):
    key = jax.random.key(key)
    return samplers.shuffled_epochs(key, num_examples=len(LABELS), batch_size=32, steps=steps)


def even_rows(steps):
    index = samplers.class_index(LABELS, num_classes=3)
    return samplers.class_balanced(jax.random.key(9), index, batch_size=32, steps=steps)


def recall(params):
    hits = network(params, TEST_INPUTS).argmax(1) == TEST_LABELS
    return np.array([np.mean(np.asarray(hits)[np.asarray(TEST_LABELS) == k]) for k in range(3)])


ADAM = optax.adam(0.01)
WHOLE = make(ADAM)


def trained(steps=60):
    return training.init_state(start(), ADAM), Phase(WHOLE, plain_rows(steps))


def test_phases_of_one_step_are_one_run():
    state, _ = trained()
    rows = plain_rows(60)
    one, record = training.run_steps(WHOLE, state, INPUTS, LABELS, rows)
    phases = [Phase(WHOLE, rows[:25]), Phase(WHOLE, rows[25:])]
    two, records = training.run_phases(phases, state, INPUTS, LABELS)
    jax.tree.map(
        np.testing.assert_array_equal, (two.params, two.opt_state), (one.params, one.opt_state)
    )
    assert int(two.step) == 60
    np.testing.assert_array_equal(jnp.concatenate([r.loss for r in records]), record.loss)


def test_classifier_retraining_moves_the_new_head_alone_and_helps_the_rare():
    state, first = trained()
    tx = only("head", ADAM)
    fresh = start(seed=5)
    again = Phase(
        make(tx), even_rows(80), restart=tx, prepare=lambda params: params | {"head": fresh["head"]}
    )
    before, _ = training.run_phases([first], state, INPUTS, LABELS)
    after, (_, record) = training.run_phases([first, again], state, INPUTS, LABELS)
    for name in ("body", "scale"):
        np.testing.assert_array_equal(after.params[name], before.params[name])
    renewed = network(before.params | {"head": fresh["head"]}, INPUTS[np.asarray(again.indices)[0]])
    labels = LABELS[np.asarray(again.indices)[0]]
    wanted = np.mean(losses.weighted_cross_entropy(renewed, labels))
    np.testing.assert_allclose(record.loss[0], wanted, rtol=1e-5)
    assert recall(after.params)[2] > recall(before.params)[2] + 0.1


def test_learnable_weight_scaling_moves_one_factor_per_class():
    state, first = trained()
    tx = only("scale", optax.adam(0.05))
    after, _ = training.run_phases(
        [first, Phase(make(tx), even_rows(80), restart=tx)], state, INPUTS, LABELS
    )
    before, _ = training.run_phases([first], state, INPUTS, LABELS)
    np.testing.assert_array_equal(after.params["head"], before.params["head"])
    assert after.params["scale"][2] > after.params["scale"][0]


def test_deferred_reweighting_goes_on_with_the_optimiser():
    state, first = trained()
    weighted = functools.partial(
        losses.weighted_cross_entropy, class_weights=jnp.array([0.2, 1.0, 9.0])
    )
    later = Phase(make(ADAM, weighted), plain_rows(30, key=3))
    after, _ = training.run_phases([first, later], state, INPUTS, LABELS)
    before, _ = training.run_phases([first], state, INPUTS, LABELS)
    assert int(after.opt_state[0].count) == 90
    assert recall(after.params)[2] > recall(before.params)[2]


def test_contrast_before_cross_entropy():
    state, _ = trained()
    contrast = functools.partial(losses.supervised_contrastive_loss, temperature=0.5)
    phases = [
        Phase(make(ADAM, contrast, features), plain_rows(40)),
        Phase(WHOLE, plain_rows(40, key=1), restart=ADAM),
    ]
    after, (first, _) = training.run_phases(phases, state, INPUTS, LABELS)
    np.testing.assert_array_equal(after.opt_state[0].count, 40)
    assert np.mean(first.loss[-5:]) < np.mean(first.loss[:5])
    assert recall(after.params)[:2].min() > 0.5


def test_a_loss_with_running_statistics_goes_through_the_model_state():
    def seesaw(params, model_state, key, inputs, labels):
        del key
        values, model_state = losses.seesaw_loss(network(params, inputs), labels, model_state)
        return values, model_state

    step = training.make_stateful_step(seesaw, ADAM, num_classes=3)
    state = training.init_state(start(), ADAM, model_state=losses.init_seesaw_state(num_classes=3))
    phases = [Phase(step, plain_rows(10)), Phase(step, even_rows(10))]
    state, _ = training.run_phases(phases, state, INPUTS, LABELS)
    seen = np.concatenate([plain_rows(10), even_rows(10)]).reshape(-1)
    np.testing.assert_allclose(
        jax.tree.leaves(state.model_state)[0], np.bincount(np.asarray(LABELS)[seen]), rtol=1e-6
    )


def test_phases_are_vmapped_over_seeds():
    tx = only("head", ADAM)
    phases = [Phase(WHOLE, plain_rows(5)), Phase(make(tx), even_rows(5), restart=tx)]

    def run(params):
        return training.run_phases(phases, training.init_state(params, ADAM), INPUTS, LABELS)[
            0
        ].params

    seeds = jax.tree.map(lambda *leaves: jnp.stack(leaves), start(0), start(1))
    both = jax.jit(jax.vmap(run))(seeds)
    alone = run(start(1))
    jax.tree.map(lambda b, a: np.testing.assert_allclose(b[1], a, atol=1e-5), both, alone)


def test_no_phases_and_bad_rows_are_refused():
    state, _ = trained()
    with pytest.raises(ValueError, match="phases: got none"):
        training.run_phases([], state, INPUTS, LABELS)
    with pytest.raises(ValueError, match="indices: got shape"):
        training.run_phases([Phase(WHOLE, jnp.zeros(3, int))], state, INPUTS, LABELS)
