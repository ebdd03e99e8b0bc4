"""A head trained on balanced virtual features, in turn with the encoder below it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbalance import losses, posthoc, samplers, training

K, BATCH = 3, 32
CENTRES = np.array([[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0]])
ADAM = optax.adam(0.02)


def draw(counts, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(K), counts)
    inputs = CENTRES[labels] + generator.normal(size=(len(labels), 4))
    return jnp.asarray(inputs, jnp.float32), jnp.asarray(labels, jnp.int32)


def encode(encoder, inputs):
    return inputs @ encoder


def classify(head, features):
    return features @ head["kernel"] + head["bias"][None]


HEAD_LOSS = training.example_loss(classify, losses.weighted_cross_entropy)


def encoder_loss(encoder, head, key, inputs, labels):
    del key
    return HEAD_LOSS(head, encode(encoder, inputs), labels), head


HEAD_STEP = training.make_step(HEAD_LOSS, ADAM, num_classes=K)
ENCODER_STEP = training.make_stateful_step(encoder_loss, optax.sgd(0.01), num_classes=K)


def start(seed=0):
    encoder, head = jax.random.split(jax.random.key(seed))
    params = {"kernel": jax.random.normal(head, (3, K)) / 4, "bias": jnp.zeros(K)}
    kernel = jax.random.normal(encoder, (4, 3)) / 2
    return {
        "head": training.init_state(params, ADAM),
        "encoder": training.init_state(kernel, optax.sgd(0.01), model_state=params),
    }


def parts(inputs, labels, rounds, borrowed_examples=10.0):
    """The three functions, of mini-batches of real examples and of whole sets of virtual ones."""
    rows = samplers.shuffled_epochs(
        jax.random.key(1), num_examples=len(labels), batch_size=BATCH, steps=4 * rounds
    ).reshape(rounds, 4, BATCH)

    @jax.jit
    def fit_gaussians(state):
        features = encode(state["encoder"].params, inputs)
        moments = posthoc.class_moments(features, labels, num_classes=K, own_covariances=True)
        return posthoc.fit_class_gaussians(moments, borrowed_examples=borrowed_examples)

    def head_update(state, features, labels):
        whole = jnp.broadcast_to(jnp.arange(len(labels)), (4, len(labels)))
        head, _ = training.run_steps(HEAD_STEP, state["head"], features, labels, whole)
        return state | {"head": head}

    def encoder_update(state, number):
        encoder = state["encoder"]._replace(model_state=state["head"].params)
        encoder, _ = training.run_steps(ENCODER_STEP, encoder, inputs, labels, rows[number])
        return state | {"encoder": encoder}

    return {
        "fit_gaussians": fit_gaussians,
        "head_update": head_update,
        "encoder_update": encoder_update,
    }


@functools.partial(jax.jit, static_argnames=("rounds", "examples_per_class"))
def calibrate(key, state, inputs, labels, *, rounds, examples_per_class, borrowed_examples=10.0):
    """All rounds in one compiled program."""
    functions = parts(inputs, labels, max(rounds, 1), borrowed_examples)
    sizes = {"rounds": rounds, "examples_per_class": examples_per_class}
    return training.iterative_calibration(jax.random.key(key), state, **functions, **sizes)


def network_loss(params, inputs, labels):
    return HEAD_LOSS(params["head"], encode(params["encoder"], inputs), labels)


PLAIN_STEP = training.make_step(network_loss, ADAM, num_classes=K)


def trained(inputs, labels, seed, steps=120):
    """Encoder and head together on the examples as they come: the plain model."""
    state = start(seed)
    params = {"head": state["head"].params, "encoder": state["encoder"].params}
    rows = samplers.shuffled_epochs(
        jax.random.key(seed), num_examples=len(labels), batch_size=BATCH, steps=steps
    )
    plain, _ = training.run_steps(
        PLAIN_STEP, training.init_state(params, ADAM), inputs, labels, rows
    )
    params = plain.params
    return {
        "head": training.init_state(params["head"], ADAM),
        "encoder": training.init_state(
            params["encoder"], optax.sgd(0.01), model_state=params["head"]
        ),
    }


def recalls(state, inputs, labels):
    scores = classify(state["head"].params, encode(state["encoder"].params, inputs))
    hits = np.asarray(scores.argmax(axis=-1) == labels)
    return np.array([hits[np.asarray(labels) == k].mean() for k in range(K)])


def test_no_round_is_the_identity():
    state = start()
    inputs, labels = draw((20, 5, 2))
    end = calibrate(0, state, inputs, labels, rounds=0, examples_per_class=8)
    for name in ("head", "encoder"):
        jax.tree.map(np.testing.assert_array_equal, end[name][:4], state[name][:4])


def test_every_round_draws_as_many_features_of_every_class_and_new_ones():
    inputs, labels = draw((300, 60, 8))
    seen = []

    def look(state, features, labels):
        seen.append((np.asarray(features), np.asarray(labels)))
        return state

    functions = parts(inputs, labels, 3) | {"head_update": look}
    functions["encoder_update"] = lambda state, number: state
    settings = functions | {"rounds": 3, "examples_per_class": 40, "scan": False}
    training.iterative_calibration(jax.random.key(0), start(), **settings)
    assert len(seen) == 3
    for features, drawn in seen:
        assert features.shape == (120, 3)
        assert np.bincount(drawn, minlength=K).tolist() == [40] * K
    assert np.abs(seen[0][0] - seen[1][0]).min() > 0


def test_it_is_the_loop_it_says_it_is():
    """Against the rounds written out, and with rounds from Python instead of a scan."""
    inputs, labels = draw((60, 20, 4))
    functions, state = parts(inputs, labels, 2), start()
    sizes = {"rounds": 2, "examples_per_class": 16}
    found = calibrate(5, state, inputs, labels, **sizes)
    again = training.iterative_calibration(
        jax.random.key(5), state, **functions, **sizes, scan=False
    )
    for number in range(2):
        gaussians = functions["fit_gaussians"](state)
        key = jax.random.fold_in(jax.random.key(5), number)
        drawn = posthoc.virtual_features(key, gaussians, examples_per_class=16)
        flat = drawn.features.reshape(48, 3), drawn.labels.reshape(48)
        state = functions["head_update"](state, *flat)
        state = functions["encoder_update"](state, jnp.int32(number))
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
    for other in (found, again):
        for name in ("head", "encoder"):
            jax.tree.map(close, other[name].params, state[name].params)
            assert int(other[name].step) == 8


def test_the_worst_recall_of_a_long_tail_rises():
    """Over three seeds of data, weights and draws."""
    test, gains = draw((400, 400, 400), seed=99), []
    for seed in range(3):
        inputs, labels = draw((300, 60, 8), seed=seed)
        plain = trained(inputs, labels, seed)
        after = calibrate(seed, plain, inputs, labels, rounds=10, examples_per_class=64)
        gains.append(recalls(after, *test).min() - recalls(plain, *test).min())
        moved = np.asarray(after["encoder"].params) - np.asarray(plain["encoder"].params)
        assert np.abs(moved).max() > 0.01
    assert np.mean(gains) > 0.2, gains
    assert np.min(gains) > 0.1, gains


@pytest.mark.parametrize("borrowed_examples", [0.0, 10.0])
@pytest.mark.parametrize("case", ["one example", "none", "constant feature", "duplicates"])
def test_poor_classes_leave_everything_finite(case, borrowed_examples):
    inputs, labels = draw((40, 20, 6))
    if case == "one example":
        labels = labels.at[-5:].set(-1)
    elif case == "none":
        labels = labels.at[-6:].set(-1)
    elif case == "constant feature":
        inputs = inputs.at[:, 1:].set(1.0)
    else:
        inputs = inputs.at[-6:].set(inputs[-1])
    sizes = {"rounds": 2, "examples_per_class": 8}
    state = start()
    end = calibrate(0, state, inputs, labels, borrowed_examples=borrowed_examples, **sizes)
    for leaf in jax.tree.leaves((end["head"].params, end["encoder"].params)):
        assert np.isfinite(leaf).all()
    # Nothing is drawn of a class that is not there, so its score can only have been pushed down.
    if case == "none":
        assert end["head"].params["bias"][2] < state["head"].params["bias"][2]


def test_bad_settings_are_refused():
    inputs, labels = draw((9, 9, 9))
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match=r"rounds: got .* wanted an integer >= 0"):
            training.iterative_calibration(
                jax.random.key(0),
                start(),
                **parts(inputs, labels, 1),
                rounds=wrong,
                examples_per_class=8,
            )
    with pytest.raises(ValueError, match="examples_per_class: got 0"):
        calibrate(0, start(), inputs, labels, rounds=1, examples_per_class=0)
