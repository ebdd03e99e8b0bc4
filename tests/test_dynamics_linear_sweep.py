"""Linear sweeps against slow NumPy loops, against the general sweep, and thinned."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbalance import counts
from jaxbalance.dynamics import _linear_sweep
from jaxbalance.dynamics._linear_sweep import linear_sweep, normalized_descent, sign_descent
from jaxbalance.dynamics._sweep import (
    choose_step_size,
    descent,
    log_spaced_steps,
    sweep,
)

COUNTS = [20, 9, 4, 2, 0]
STEPS, MARKS = 12, [0, 3, 7, 12]
SIZES = np.array([0.02, 0.1, 0.5])


def problem(generator, width=6, seeds=2):
    """Heavy-tailed labels, inputs with a common mean; one row without a label, one class empty."""
    labels = np.repeat(np.arange(len(COUNTS)), COUNTS)
    labels = np.append(generator.permutation(labels), -1).astype(np.int32)
    inputs = generator.uniform(size=(len(labels), width))
    inputs[-1] = np.inf
    starts = generator.uniform(-0.4, 0.4, size=(seeds, width, len(COUNTS)))
    return inputs, labels, starts


def twin_gradient(inputs, labels, weights, class_weights):
    total, gradient = 0.0, np.zeros_like(weights)
    for x, y in zip(inputs, labels, strict=True):
        if y >= 0:
            logits = x @ weights
            p = np.exp(logits - logits.max())
            p /= p.sum()
            p[y] -= 1
            gradient += class_weights[y] * np.outer(x, p)
            total += class_weights[y]
    return gradient / total


def twin_losses(inputs, labels, weights):
    losses = [[] for _ in range(weights.shape[1])]
    for x, y in zip(inputs, labels, strict=True):
        if y >= 0:
            logits = x @ weights
            losses[y].append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[y])
    return np.mean(np.concatenate(losses)), np.array(
        [np.mean(part) if part else 0.0 for part in losses]
    )


def twin_run(inputs, labels, weights, size, rule, class_weights):
    """One run, one step after the other; ``rule`` is (how the gradient is reshaped, momentum)."""
    shape, momentum = rule
    m, v, seen = np.zeros_like(weights), np.zeros_like(weights), []
    for t in range(STEPS + 1):
        if t in MARKS:
            seen.append(twin_losses(inputs, labels, weights))
        g = twin_gradient(inputs, labels, weights, class_weights)
        if shape == "adam":
            m, v = momentum * m + (1 - momentum) * g, 0.999 * v + 0.001 * g * g
            corrected = m / (1 - momentum ** (t + 1)), v / (1 - 0.999 ** (t + 1))
            change = corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
        else:
            if shape == "unit":
                g = g / np.sqrt(np.sum(g * g))
            elif shape == "sign":
                g = np.sign(g)
            change = m = momentum * m + g
        weights, last = weights - size * change, weights
    losses, class_losses = zip(*seen, strict=True)
    return np.array(losses), np.array(class_losses), last


OPTIMIZERS = {
    "gd": (optax.sgd, ("plain", 0.0), None),
    "gd_momentum": (partial(optax.sgd, momentum=0.9), ("plain", 0.9), None),
    "normalized": (normalized_descent, ("unit", 0.0), None),
    "normalized_momentum": (partial(normalized_descent, momentum=0.9), ("unit", 0.9), None),
    "sign": (sign_descent, ("sign", 0.0), None),
    "sign_momentum": (partial(sign_descent, momentum=0.9), ("sign", 0.9), None),
    "adam": (optax.adam, ("adam", 0.9), None),
    "adam_without_momentum": (partial(optax.adam, b1=0.0), ("adam", 0.0), None),
    "gd_inverse": (optax.sgd, ("plain", 0.0), 1.0),
    "gd_inverse_root": (optax.sgd, ("plain", 0.0), 0.5),
}
LAYOUTS = [(name, True) for name in OPTIMIZERS] + [
    (name, False) for name in ("gd_inverse", "normalized_momentum", "adam")
]


@pytest.mark.parametrize(("name", "folded"), LAYOUTS)
def test_every_optimizer_equals_a_slow_loop(name, folded, generator):
    optimizer, rule, power = OPTIMIZERS[name]
    inputs, labels, starts = problem(generator)
    frequencies = np.array(COUNTS) / sum(COUNTS)
    with np.errstate(divide="ignore"):
        weights = np.ones(5) if power is None else np.array(COUNTS, float) ** -power
    with jax.enable_x64(True):
        given = None if power is None else jnp.where(frequencies > 0, weights, 0.0)
        result = linear_sweep(
            optimizer,
            jnp.asarray(inputs),
            labels,
            jnp.asarray(starts),
            jnp.asarray(SIZES),
            steps=STEPS,
            class_weights=given,
            record_at=MARKS,
            folded=folded,
        )
        assert {leaf.dtype for leaf in jax.tree.leaves((result.loss, result.record))} == {
            jnp.dtype(jnp.float64)
        }
    assert result.loss.shape == (3, 2, 4)
    assert result.record.class_loss.shape == (3, 2, 4, 5)
    for g, size in enumerate(SIZES):
        for s, start in enumerate(starts):
            expected = twin_run(inputs, labels, start, size, rule, weights)
            np.testing.assert_allclose(result.loss[g, s], expected[0], rtol=1e-9)
            np.testing.assert_allclose(result.record.class_loss[g, s], expected[1], rtol=1e-9)
            np.testing.assert_allclose(result.state[g, s], expected[2], rtol=1e-8, atol=1e-10)


def test_library_weights_are_a_reweighting(generator):
    inputs, labels, starts = (jnp.asarray(x) for x in problem(generator))
    run = partial(linear_sweep, optax.sgd, inputs, labels, starts, jnp.array([0.3]), steps=5)
    tuned = counts.inverse_frequency_weights(jnp.array(COUNTS), power=0.5)
    plain = jnp.where(jnp.array(COUNTS) > 0, jnp.maximum(jnp.array(COUNTS, float), 1) ** -0.5, 0.0)
    assert run().loss.dtype == jnp.float32
    chex.assert_trees_all_close(
        run(class_weights=tuned), run(class_weights=plain), rtol=1e-4, atol=1e-6
    )
    assert not np.allclose(run(class_weights=tuned).loss[..., -1], run().loss[..., -1], rtol=1e-3)


def test_the_layouts_agree_and_are_chosen_by_size(generator):
    inputs, labels, starts = (jnp.asarray(x) for x in problem(generator))
    run = partial(linear_sweep, optax.adam, inputs, labels, starts, jnp.array([0.01, 0.1]), steps=6)
    chex.assert_trees_all_close(run(folded=True), run(folded=False), rtol=2e-4, atol=1e-5)
    for examples, folded in ((500, True), (10_000, False)):
        rows = jnp.broadcast_to(jnp.float32(0), (examples, 1000 if examples > 500 else 50))
        begin = jax.ShapeDtypeStruct((1, rows.shape[1], rows.shape[1]), jnp.float32)
        shapes = _linear_sweep._Problem(rows, None, None, None, None)
        assert _linear_sweep._fold(shapes, begin, 32) is folded


def linear_runs(inputs, labels):
    """The same problem for the general engine."""
    keep = np.flatnonzero(labels >= 0)
    inputs, labels = jnp.asarray(inputs[keep]), jnp.asarray(labels[keep])

    def loss(weights):
        each = optax.losses.softmax_cross_entropy_with_integer_labels(inputs @ weights, labels)
        return jnp.mean(each)

    runs = descent(
        lambda seed: seed, lambda weights, size, seed, number: jax.grad(loss)(weights), optax.adam
    )
    return runs, lambda state, size, seed: (loss(state.params), {"norm": jnp.sum(state.params**2)})


def test_a_sweep_equals_single_runs_in_either_layout(generator):
    inputs, labels, starts = problem(generator)
    with jax.enable_x64(True):
        runs, measure = linear_runs(inputs, labels)
        arguments = runs.start, runs.step, measure, jnp.asarray(SIZES), jnp.asarray(starts)
        results = [
            sweep(*arguments, steps=STEPS, record_at=MARKS, batched=batched)
            for batched in (True, False, None)
        ]
        special = linear_sweep(
            optax.adam,
            jnp.asarray(inputs),
            labels,
            jnp.asarray(starts),
            jnp.asarray(SIZES),
            steps=STEPS,
            record_at=MARKS,
        )
        chex.assert_trees_all_close(results[0], results[1], rtol=1e-10, atol=1e-12)
        chex.assert_trees_all_equal(results[0], results[2])
        np.testing.assert_allclose(results[0].loss, special.loss, rtol=1e-9)
        np.testing.assert_allclose(results[0].state.params, special.state, rtol=1e-8, atol=1e-10)
        assert results[0].steps.tolist() == MARKS
        step = jax.jit(runs.step)
        for g, s in ((0, 1), (2, 0)):
            setting, seed = jnp.asarray(SIZES[g]), jnp.asarray(starts[s])
            state = runs.start(setting, seed)
            for number in range(STEPS):
                state = step(state, setting, seed, jnp.int32(number))
            runs_only = results[0]._replace(steps=results[0].loss)
            chosen = jax.tree.map(lambda leaf, g=g, s=s: leaf[g, s], runs_only)
            chex.assert_trees_all_close(chosen.state, state, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(chosen.record["norm"][-1], np.sum(state.params**2))


def test_thinned_records_are_those_of_all_steps(generator):
    inputs, labels, starts = (jnp.asarray(x) for x in problem(generator))
    run = partial(linear_sweep, optax.sgd, inputs, labels, starts, jnp.array([0.3]), steps=20)
    full = run()
    assert full.steps.tolist() == list(range(21))
    for chosen in (log_spaced_steps(20, num_records=4), range(0, 20, 5)):
        thin = run(record_at=chosen)
        where = np.asarray(thin.steps)
        assert {0, 20, *np.asarray(chosen).tolist()} == set(where.tolist())
        np.testing.assert_allclose(thin.loss, full.loss[..., where], rtol=1e-6)
        np.testing.assert_allclose(
            thin.record.class_loss, full.record.class_loss[:, :, where], rtol=1e-5
        )


def test_a_linear_run_that_overflows_is_flagged(generator):
    inputs, labels, starts = (jnp.asarray(x) for x in problem(generator))
    sizes = jnp.array([0.1, 3e38])
    for folded in (True, False):
        result = linear_sweep(
            optax.sgd, inputs, labels, starts, sizes, steps=6, record_at=[3], folded=folded
        )
        assert result.diverged.tolist() == [[False] * 2, [True] * 2]
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result))
        np.testing.assert_array_equal(result.state[1], starts)
        assert int(choose_step_size(result).position) == 0


def test_normalized_descent_is_stable_at_any_scale():
    for scale in (1e-30, 1.0, 1e30):
        grads = {"w": scale * jnp.array([2.0, 0.0]), "b": scale * jnp.array(-1.0)}
        tx = normalized_descent(1.0)
        step, _ = tx.update(grads, tx.init(grads))
        np.testing.assert_allclose(step["w"], [-2 / 5**0.5, 0], rtol=1e-6)
        np.testing.assert_allclose(step["b"], 1 / 5**0.5, rtol=1e-6)
    step, _ = tx.update(jax.tree.map(jnp.zeros_like, grads), tx.init(grads))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(step))


def test_bad_input_is_named(generator):
    sizes = jnp.array([0.1, 0.2])
    inputs, labels, starts = (jnp.asarray(x) for x in problem(generator))
    linear = partial(linear_sweep, optax.sgd, steps=2)
    with pytest.raises(ValueError, match="weights: got shape"):
        linear(inputs, labels, starts[0], sizes)
    with pytest.raises(ValueError, match="weights: got dtype float16, wanted float32"):
        linear(inputs, labels, starts.astype(jnp.float16), sizes)
    with pytest.raises(ValueError, match="labels: got shape"):
        linear(inputs, labels[:-1], starts, sizes)
    with pytest.raises(ValueError, match="step_sizes: got shape"):
        linear(inputs, labels, starts, sizes[:, None])
    with pytest.raises(ValueError, match="step_sizes: got dtype"):
        linear(inputs, labels, starts, jnp.array([1, 2]))
    with pytest.raises(ValueError, match="class_weights: got shape"):
        linear(inputs, labels, starts, sizes, class_weights=jnp.ones(4))
