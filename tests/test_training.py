"""Steps and runs against optax by hand, on one device and on eight."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxbalance import losses, models, samplers, training


def linear(params, inputs):
    bias = jnp.broadcast_to(params["bias"], (inputs.shape[0], params["bias"].shape[0]))
    return inputs @ params["kernel"] + bias


PARAMS = {"kernel": jnp.ones((3, 4)) * 0.1, "bias": jnp.arange(4.0)}
LOSS = training.example_loss(linear, losses.weighted_cross_entropy)


def draw(generator, size=16):
    inputs = jnp.asarray(generator.normal(size=(size, 3)), jnp.float32)
    return inputs, jnp.asarray(generator.integers(-1, 4, size=size))


def by_hand(tx, state, inputs, labels):
    """The same step with optax's own loss and loops a reader can check."""
    keep = np.flatnonzero(np.asarray(labels) >= 0)

    def mean_loss(params):
        values = optax.softmax_cross_entropy_with_integer_labels(
            linear(params, inputs[keep]), labels[keep]
        )
        return values.mean(), values

    (mean, values), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
    kept = np.asarray(labels)[keep]
    per_class = [float(np.asarray(values)[kept == k].sum()) for k in range(4)]
    params = optax.apply_updates(state.params, updates)
    return state._replace(params=params, opt_state=opt_state), mean, per_class, grads


@pytest.mark.parametrize(
    "tx",
    [
        optax.sgd(0.1, momentum=0.9),
        optax.adam(optax.cosine_decay_schedule(0.1, 10)),
        optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.1)),
        optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
        optax.masked(optax.sgd(0.1), {"kernel": True, "bias": False}),
    ],
    ids=["sgd", "adam", "chain", "multi-steps", "inject", "masked"],
)
def test_steps_equal_optax_by_hand(tx, generator):
    step = training.make_step(LOSS, tx, num_classes=4)
    ours = theirs = training.init_state(PARAMS, tx)
    for t in range(3):
        inputs, labels = draw(generator)
        ours, record = jax.jit(step)(ours, inputs, labels)
        theirs, mean, per_class, grads = by_hand(tx, theirs, inputs, labels)
        assert int(ours.step) == t + 1
        np.testing.assert_allclose(record.loss, mean, rtol=1e-5)
        np.testing.assert_allclose(record.class_loss, per_class, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(
            record.class_count, [np.sum(np.asarray(labels) == k) for k in range(4)]
        )
        np.testing.assert_allclose(record.gradient_norm, optax.tree.norm(grads), rtol=1e-5)
        chex.assert_trees_all_close(ours.params, theirs.params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_eight_devices_give_the_numbers_of_one(axis_type, generator):
    tx = optax.adam(0.1)
    loss = training.example_loss(
        linear, partial(losses.weighted_cross_entropy, class_weights=jnp.arange(1.0, 5.0))
    )
    step = training.make_step(loss, tx, num_classes=4)
    inputs, labels = draw(generator, 64)
    labels = jnp.sort(labels)  # so that the shards see different classes
    expected = jax.jit(step)(training.init_state(PARAMS, tx), inputs, labels)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("batch"))
    whole = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        state = jax.device_put(training.init_state(PARAMS, tx), whole)
        got = jax.jit(step)(state, jax.device_put(inputs, split), jax.device_put(labels, split))
    chex.assert_trees_all_close(
        jax.device_get((got[0].params, got[1])),
        jax.device_get((expected[0].params, expected[1])),
        rtol=1e-5,
        atol=1e-6,
    )


def test_jit_step_compiles_once_and_donates_the_state(generator):
    traces = []

    def loss(params, inputs, labels):
        traces.append(1)
        return LOSS(params, inputs, labels)

    tx = optax.sgd(0.1)
    step = training.jit_step(training.make_step(loss, tx, num_classes=4))
    state = training.init_state(jax.tree.map(jnp.copy, PARAMS), tx)
    for _ in range(4):
        before = state
        state, _ = step(state, *draw(generator))
    assert len(traces) == 1
    assert before.params["kernel"].is_deleted()


def test_a_batch_without_labels_changes_nothing():
    tx = optax.sgd(0.1)
    step = training.make_step(LOSS, tx, num_classes=4)
    state, record = step(
        training.init_state(PARAMS, tx), jnp.full((2, 3), jnp.nan), jnp.array([-1, -1])
    )
    assert float(record.loss) == 0
    assert np.asarray(record.class_count).tolist() == [0, 0, 0, 0]
    # An input that is not a number reaches the kernel's gradient through the chain rule of the
    # model; the loss itself sends back exactly zero, as the bias shows.
    np.testing.assert_array_equal(state.params["bias"], PARAMS["bias"])


def test_class_probabilities_are_recorded_in_proportion(generator):
    inputs = jnp.asarray(generator.normal(size=(5, 3)), jnp.float32)
    shares = generator.dirichlet(np.ones(4), size=5)
    shares[4] = 0
    step = training.make_step(LOSS, optax.sgd(0.1), num_classes=4)
    _, record = step(
        training.init_state(PARAMS, optax.sgd(0.1)), inputs, jnp.asarray(shares, jnp.float32)
    )
    values = np.asarray(LOSS(PARAMS, inputs, jnp.asarray(shares, jnp.float32)))
    np.testing.assert_allclose(record.class_count, shares.sum(0), rtol=1e-5)
    np.testing.assert_allclose(record.class_loss, values @ shares, rtol=1e-5)
    np.testing.assert_allclose(record.loss, values.sum() / 4, rtol=1e-5)


def test_multi_label_targets(generator):
    def loss(params, inputs, labels):
        return losses.sigmoid_focal_loss(linear(params, inputs), labels).sum(axis=-1)

    inputs = jnp.asarray(generator.normal(size=(6, 3)), jnp.float32)
    labels = generator.integers(0, 2, size=(6, 4))
    labels[0], labels[5] = 0, -1
    step = training.make_step(loss, optax.sgd(0.1), num_classes=4)
    state = training.init_state(PARAMS, optax.sgd(0.1))
    _, record = step(state, inputs, jnp.asarray(labels))
    values = np.asarray(loss(PARAMS, inputs, jnp.asarray(labels)))
    np.testing.assert_allclose(record.loss, values.sum() / 5, rtol=1e-5)
    np.testing.assert_array_equal(record.class_count, (labels == 1).sum(0))


def test_stateful_models_train_through_the_step(generator):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(3, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)
            self.head = nnx.Linear(3, 4, rngs=rngs)

        def __call__(self, inputs):
            return self.head(self.dropout(self.norm(inputs)))

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = models.functional(Net(nnx.Rngs(0)))

        def loss(params, model_state, key, inputs, labels):
            logits, model_state = model.train(params, model_state, key, inputs)
            return losses.weighted_cross_entropy(logits, labels), model_state

        tx = optax.adam(0.05)
        step = training.make_stateful_step(loss, tx, num_classes=4)
        state = training.init_state(model.params, tx, model_state=model.model_state)
        inputs = jnp.asarray(generator.normal(size=(64, 3)) * 2 + 5, jnp.float32)
        labels = jnp.argmax(inputs @ jnp.asarray(generator.normal(size=(3, 4)), jnp.float32), -1)
        rows = jnp.tile(jnp.arange(64)[None], (60, 1))
        state, record = training.run_steps(step, state, inputs, labels, rows)
    assert record.loss[-1] < 0.7 * record.loss[0]
    expected = (1 - 0.99**60) * inputs.mean(0)
    np.testing.assert_allclose(state.model_state["norm"]["mean"][...], expected, rtol=1e-3)


def assert_same_run(one, other):
    def numbers(run):
        state, record = run
        return state.params, state.opt_state, record

    chex.assert_trees_all_close(numbers(one), numbers(other), rtol=1e-5, atol=1e-6)


def rows_of(steps, start=0):
    return samplers.shuffled_epochs(
        jax.random.key(3), num_examples=16, batch_size=6, steps=steps, start=start, pad_last=True
    )


def test_scan_loop_and_step_by_step_agree(generator):
    tx = optax.adam(0.1)
    step = training.make_step(LOSS, tx, num_classes=4)
    inputs, labels = draw(generator)
    start = training.init_state(PARAMS, tx)
    scanned = training.run_steps(step, start, inputs, labels, rows_of(9), scan=True)
    looped = training.run_steps(step, start, inputs, labels, rows_of(9), scan=False)
    assert_same_run(scanned, looped)
    state = start
    for row in np.asarray(rows_of(9)):
        real = row >= 0
        state, _ = step(state, inputs[row[real]], labels[row[real]])
    chex.assert_trees_all_close(scanned[0].params, state.params, rtol=1e-5, atol=1e-6)
    assert scanned[1].class_count.shape == (9, 4)


def test_a_resumed_run_equals_an_uninterrupted_one(generator):
    tx = optax.adam(0.1)
    step = training.make_step(LOSS, tx, num_classes=4)
    inputs, labels = draw(generator)
    start = training.init_state(PARAMS, tx)
    whole, _ = training.run_steps(step, start, inputs, labels, rows_of(12))
    half, _ = training.run_steps(step, start, inputs, labels, rows_of(5))
    rest, _ = training.run_steps(step, half, inputs, labels, rows_of(7, start=5))
    chex.assert_trees_all_equal(rest.params, whole.params)


def test_runs_vmap_over_seeds_and_step_sizes(generator):
    inputs, labels = draw(generator)

    def final(rate, key):
        tx = optax.sgd(rate)
        params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(key, p.shape), PARAMS)
        step = training.make_step(LOSS, tx, num_classes=4)
        state = training.init_state(params, tx)
        return training.run_steps(step, state, inputs, labels, rows_of(4))[0].params

    rates, keys = jnp.array([0.1, 1.0]), jax.random.split(jax.random.key(0), 2)
    together = jax.jit(jax.vmap(final))(rates, keys)
    for i in range(2):
        alone = final(rates[i], keys[i])
        chex.assert_trees_all_close(jax.tree.map(lambda p, i=i: p[i], together), alone, rtol=1e-5)


@pytest.mark.parametrize(
    "wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["plain", "jit", "remat"]
)
def test_convolutions_are_found_however_deep(wrap):
    def convolve(params, images):
        return jax.lax.conv(images, params, (1, 1), "SAME").mean((2, 3))

    def loss(params, images, labels):
        return losses.weighted_cross_entropy(wrap(convolve)(params, images), labels)

    from jaxbalance.training import _run

    tx = optax.sgd(0.1)
    data = (jnp.ones((4, 1, 5, 5)), jnp.zeros(4, jnp.int32), jnp.zeros((2, 3), jnp.int32))
    step = training.make_step(loss, tx, num_classes=2)
    state = training.init_state(jnp.ones((2, 1, 3, 3)), tx)
    assert _run._slow_in_loops(step, state, *data)
    plain = training.make_step(LOSS, tx, num_classes=4)
    state_of_plain = training.init_state(PARAMS, tx)
    assert not _run._slow_in_loops(plain, state_of_plain, jnp.ones((4, 3)), *data[1:])
    looped = training.run_steps(step, state, *data)
    scanned = training.run_steps(step, state, *data, scan=True)
    assert_same_run(looped, scanned)


def test_updates_stacked_over_classes_are_refused():
    stack = optax.stateless(
        lambda updates, params: jax.tree.map(lambda u: jnp.stack([u, u]), updates)
    )
    step = training.make_step(LOSS, optax.chain(stack, optax.sgd(0.1)), num_classes=4)
    state = training.init_state(PARAMS, optax.chain(stack, optax.sgd(0.1)))
    message = r"tx: got an update of shape \(2, 4\).*'bias'.*shape \(4,\).*combines the classes"
    with pytest.raises(ValueError, match=message):
        jax.jit(step)(state, jnp.ones((2, 3)), jnp.array([0, 1]))


def test_bad_input_is_named():
    tx = optax.sgd(0.1)
    state = training.init_state(PARAMS, tx)

    def averaged(params, inputs, labels):
        return LOSS(params, inputs, labels).mean()

    step = training.make_step(averaged, tx, num_classes=4)
    with pytest.raises(ValueError, match=r"loss: got values of shape \(\).*do not average"):
        step(state, jnp.ones((2, 3)), jnp.array([0, 1]))
    with pytest.raises(ValueError, match="num_classes: got 0"):
        training.make_step(LOSS, tx, num_classes=0)
    good = training.make_step(LOSS, tx, num_classes=4)
    with pytest.raises(ValueError, match=r"indices: got shape \(3,\)"):
        training.run_steps(
            good, state, jnp.ones((2, 3)), jnp.array([0, 1]), jnp.zeros(3, jnp.int32)
        )
    with pytest.raises(ValueError, match="indices: got dtype float32"):
        training.run_steps(good, state, jnp.ones((2, 3)), jnp.array([0, 1]), jnp.zeros((1, 3)))
