"""Detached classes: values stay, gradients below stop for the chosen examples and for no others."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxbalance import losses, training, transforms

K = 3
TAIL = np.array([False, False, True])
LABELS = jnp.array([0, 1, 2, 2, -1, 7, 0, 1])


def draw(generator, *shape):
    return jnp.asarray(generator.normal(size=(len(LABELS), *shape)), jnp.float32)


def start(generator):
    normal = partial(generator.normal, size=(4, 4))
    return {
        "body": jnp.asarray(normal(), jnp.float32),
        "head": jnp.asarray(normal()[:, :K], jnp.float32),
    }


def network(params, inputs, labels=None, detached=None):
    features = jnp.tanh(inputs @ params["body"])
    if detached is not None:
        features = training.detach_classes(features, labels, detached=detached)
    return features @ params["head"]


def loss(params, inputs, labels, detached=TAIL):
    return losses.weighted_cross_entropy(network(params, inputs, labels, detached), labels)


@jax.jit
def gradient(params, inputs, labels, detached=None):
    return jax.grad(lambda p: jnp.sum(loss(p, inputs, labels, detached)))(params)


def class_gradient(params, inputs, k, detached=None):
    """Of the summed loss of one class, by its own backward pass."""
    return gradient(params, inputs, jnp.where(k == LABELS, LABELS, -1), detached)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 5)])
def test_values_are_the_same_bits(dtype, shape, generator):
    features = draw(generator, *shape).astype(dtype).at[0].set(jnp.nan).at[1].set(jnp.inf)
    out = jax.jit(training.detach_classes)(features, LABELS, detached=np.array([0.3, 1, 0]))
    assert out.dtype == dtype
    np.testing.assert_array_equal(
        np.asarray(out, np.float32), np.asarray(features.astype(jnp.float32))
    )


def test_each_gradient_is_multiplied_by_what_is_kept(generator):
    features, weights = draw(generator, 2, 3), draw(generator, 2, 3)
    detached = jnp.array([0.0, 0.25, 1.0])

    @jax.jit
    def both(detached):
        def total(features, detached):
            return jnp.sum(weights * training.detach_classes(features, LABELS, detached=detached))

        return jax.grad(total, argnums=(0, 1))(features, detached)

    found, of_detached = both(detached)
    kept = np.array([1, 0.75, 0, 0, 1, 1, 1, 0.75], np.float32)
    np.testing.assert_array_equal(found, np.asarray(weights) * kept[:, None, None])
    np.testing.assert_array_equal(of_detached, 0)


@pytest.mark.parametrize("nothing", [np.zeros(K), np.zeros(K, bool)], ids=["zeros", "False"])
def test_nothing_detached_is_the_identity(nothing, generator):
    params, inputs = start(generator), draw(generator, 4)
    plain = gradient(params, inputs, LABELS)
    found = gradient(params, inputs, LABELS, nothing)
    jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_the_backbone_learns_nothing_from_detached_classes_and_the_head_does(generator):
    params, inputs = start(generator), draw(generator, 4)
    for k in range(K):
        found = class_gradient(params, inputs, k, TAIL)
        whole = class_gradient(params, inputs, k)
        np.testing.assert_array_equal(found["head"], whole["head"])
        assert np.abs(np.asarray(whole["body"])).max() > 0.01
        np.testing.assert_array_equal(found["body"], 0 if TAIL[k] else whole["body"])


def test_a_stopped_gradient_is_zero_even_if_it_is_broken():
    def broken(features):
        out = training.detach_classes(features, jnp.array([0, 2]), detached=TAIL)
        return jnp.sum(jnp.sqrt(out))

    np.testing.assert_array_equal(
        jax.jit(jax.grad(broken))(jnp.array([[4.0], [0.0]])), [[0.25], [0.0]]
    )


def test_a_class_step_sees_it(generator):
    """The whole gradient of a detached class is that of its head, whatever finds it."""
    params, inputs = start(generator), draw(generator, 4)
    tx = optax.chain(transforms.sum_classes(), optax.sgd(1.0))
    step = training.make_class_step(loss, tx, num_classes=K)
    state = training.init_state(params, tx)
    state, record = jax.jit(step)(state, inputs, LABELS)
    for k in range(K):
        own = class_gradient(params, inputs, k, TAIL)
        norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in own.values())) / 6
        np.testing.assert_allclose(record.class_gradient_norm[k], norm, rtol=1e-5)
    frequent = sum(class_gradient(params, inputs, k, TAIL)["body"] for k in range(2)) / 6
    np.testing.assert_allclose(state.params["body"], params["body"] - frequent, atol=1e-6)


def test_a_schedule_counts_steps_in_one_program(generator):
    """Two steps detached, then a ramp of two: the share is that of the step."""
    params, inputs = start(generator), draw(generator, 4)
    only_tail = jnp.where(LABELS == 2, LABELS, -1)

    def scheduled(params, number, key, inputs, labels):
        del key
        rate = optax.linear_schedule(1.0, 0.0, 2, transition_begin=1)(number)
        share = rate * jnp.asarray(TAIL, jnp.float32)
        return loss(params, inputs, labels, share), number + 1

    tx = optax.sgd(0.1)
    step = jax.jit(training.make_stateful_step(scheduled, tx, num_classes=K))
    state = training.init_state(params, tx, model_state=jnp.zeros((), jnp.int32))
    for kept in (0, 0, 0.5, 1):
        before = state.params
        state, _ = step(state, inputs, only_tail)
        whole = class_gradient(before, inputs, 2)["body"] / 2
        moved = (np.asarray(before["body"]) - np.asarray(state.params["body"])) / 0.1
        np.testing.assert_allclose(moved, kept * whole, atol=2e-6)
    assert step._cache_size() == 1


def test_under_vmap_and_with_labels_of_more_axes(generator):
    features = draw(generator, 2, 3)
    labels = jnp.stack([LABELS, LABELS[::-1]], axis=1)

    @jax.jit
    def kept(features, labels):
        def total(features):
            return jnp.sum(training.detach_classes(features, labels, detached=TAIL))

        return jax.grad(total)(features)

    both = kept(features, labels)
    np.testing.assert_array_equal(both, np.where(labels == 2, 0, 1)[..., None] * np.ones(3))
    np.testing.assert_array_equal(both, jax.vmap(kept)(features, labels))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_split_batches(axis_type, generator):
    params, inputs = start(generator), draw(generator, 4)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    split = NamedSharding(mesh, PartitionSpec("batch"))

    @jax.jit
    def below(inputs, labels):
        def total(inputs):
            features = training.detach_classes(inputs, labels, detached=TAIL)
            return jnp.sum(jnp.tanh(features @ params["body"]))

        return jax.grad(total)(inputs)

    with jax.set_mesh(mesh):
        found = below(jax.device_put(inputs, split), jax.device_put(LABELS, split))
    np.testing.assert_allclose(found, below(inputs, LABELS), atol=1e-6)
    assert found.sharding.is_equivalent_to(split, 2)


def test_bad_input_is_refused():
    features = jnp.ones((2, 3))
    detach = training.detach_classes
    with pytest.raises(ValueError, match=r"labels: got shape \(3,\), wanted the leading axes"):
        detach(features, jnp.zeros(3, int), detached=TAIL)
    with pytest.raises(ValueError, match="features: got dtype int32"):
        detach(jnp.ones((2, 3), int), jnp.zeros(2, int), detached=TAIL)
    with pytest.raises(ValueError, match="labels: got dtype float32"):
        detach(features, jnp.zeros(2), detached=TAIL)
    with pytest.raises(ValueError, match="detached: got shape"):
        detach(features, jnp.zeros(2, int), detached=np.zeros((2, 3)))
    for wrong in (-0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match=r"detached: got .* wanted numbers in"):
            detach(features, jnp.zeros(2, int), detached=np.array([0.0, wrong]))
