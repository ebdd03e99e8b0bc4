"""Grids of runs in one program: recorded, diverging, mini-batched, called from Python."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbalance.dynamics import _sweep
from jaxbalance.dynamics._sweep import (
    Sweep,
    choose_step_size,
    descent,
    log_spaced_steps,
    sweep,
)


def test_log_spaced_steps_are_rising_and_reach_both_ends():
    for steps, number in ((1, 1), (1, 9), (7, 100), (1000, 1), (10_000, 40)):
        marks = log_spaced_steps(steps, num_records=number)
        assert marks[0] == 0
        assert marks[-1] == steps
        assert np.all(np.diff(marks) > 0)
        assert len(marks) <= number + 2
    ratios = np.diff(np.log(log_spaced_steps(10**6, num_records=7)[1:]))
    np.testing.assert_allclose(ratios, np.log(10), rtol=1e-5)


def memory(steps):
    runs = descent(lambda seed: seed, lambda p, size, seed, number: 2.0 * p, optax.adam)
    marks = _sweep.record_steps(steps, [0, 3])
    arguments = runs.start, runs.step, lambda state, size, seed: (jnp.sum(state.params**2), {})
    lowered = _sweep._compiled.lower(*arguments, marks, True, jnp.ones(3), jnp.ones((2, 50)))
    account = lowered.compile().memory_analysis()
    return account.temp_size_in_bytes + account.output_size_in_bytes


def test_memory_depends_on_the_records_not_on_the_steps():
    assert memory(10_000) == memory(10)


QUADRATIC = descent(lambda seed: seed, lambda p, size, seed, number: 2.0 * p, optax.sgd)


def quadratic_measure(state, size, seed):
    return state.params**2, {"where": state.params}


def test_a_diverging_run_is_flagged_and_never_nan():
    """p -> (1 - 2 lr) p: shrinks, stands, grows but below 1.5, grows beyond it, overflows."""
    sizes = jnp.array([0.25, 1.0, 1.02, 1.2, 1e30])
    result = sweep(*QUADRATIC, quadratic_measure, sizes, jnp.array([2.0, -3.0]), steps=4)
    factors = (1 - 2 * np.array([0.25, 1.0, 1.02, 1.2])) ** 2
    expected = factors[:, None, None] ** np.arange(5) * np.array([4.0, 9.0])[None, :, None]
    np.testing.assert_allclose(result.loss[:4], expected, rtol=1e-5)
    assert result.diverged.tolist() == [[False] * 2] * 3 + [[True] * 2] * 2
    np.testing.assert_array_equal(result.loss[4], [[4.0] * 5, [9.0] * 5])
    np.testing.assert_array_equal(result.record["where"][4], [[2.0] * 5, [-3.0] * 5])
    np.testing.assert_array_equal(result.state.params[4], [2.0, -3.0])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result))
    choice = choose_step_size(result)
    assert int(choice.position) == 0
    np.testing.assert_allclose(choice.scores, [9 / 256, 9.0, 9 * 1.04**8, 9.0, 9.0], rtol=1e-4)
    assert choice.diverged.tolist() == [False, False, False, True, True]


def test_a_run_that_blows_up_midway_goes_back_to_its_start():
    """Finite records before the blow-up stay; the worst seed decides, wherever it is."""

    def step(state, setting, seed, number):
        broken = (number >= 3) & (seed > 0) & (setting > 1)
        return jnp.where(broken, jnp.full_like(state, jnp.nan), state / (1 + setting))

    result = sweep(
        lambda setting, seed: jnp.float32(8.0),
        step,
        lambda state, setting, seed: (state, {"it": jnp.stack([state, -state]), "number": seed}),
        jnp.array([1.0, 3.0]),
        jnp.arange(2),
        steps=5,
        record_at=[0, 2, 4],
    )
    np.testing.assert_array_equal(result.loss[1], [[8, 0.5, 0.03125, 0.0078125], [8, 0.5, 8, 8]])
    np.testing.assert_array_equal(result.record["it"][1, 1, :, 1], [-8, -0.5, -8, -8])
    assert result.diverged.tolist() == [[False, False], [False, True]]
    assert result.state.tolist() == [[0.25, 0.25], [0.0078125, 8.0]]
    choice = choose_step_size(result)
    assert (int(choice.position), choice.scores.tolist()) == (0, [0.25, 8.0])


def test_a_start_that_is_not_finite_scores_infinity():
    result = sweep(
        *QUADRATIC, quadratic_measure, jnp.array([0.25]), jnp.array([1.0, jnp.nan]), steps=2
    )
    assert result.diverged.tolist() == [[False, True]]
    np.testing.assert_array_equal(result.loss[0, 1], [np.inf] * 3)
    assert choose_step_size(result).scores.tolist() == [np.inf]


def test_mini_batches_of_each_seed(generator):
    """Least squares in one dimension, where the step's number picks the batch."""
    points = generator.normal(size=9).astype(np.float32)
    rows = generator.integers(0, 9, size=(2, 15, 4)).astype(np.int32)
    runs = descent(
        lambda seed: jnp.float32(5.0),
        lambda p, setting, seed, number: jnp.mean(p - jnp.asarray(points)[seed["rows"][number]]),
        lambda setting: optax.sgd(setting["size"], momentum=setting["momentum"]),
    )
    grid = {"size": jnp.array([0.1, 0.2, 0.1]), "momentum": jnp.array([0.0, 0.0, 0.5])}
    result = sweep(
        *runs,
        lambda state, setting, seed: (jnp.mean((state.params - points) ** 2), state.params),
        grid,
        {"rows": jnp.asarray(rows)},
        steps=15,
    )
    for g in range(3):
        for s in range(2):
            p, m, seen = 5.0, 0.0, [5.0]
            for batch in rows[s]:
                m = float(grid["momentum"][g]) * m + np.mean(p - points[batch])
                p -= float(grid["size"][g]) * m
                seen.append(p)
            np.testing.assert_allclose(result.record[g, s], seen, rtol=1e-4, atol=1e-5)


def test_the_setting_reaches_gradient_optimiser_and_measure():
    """Weight decay is a part of the loss: p -> p - size (decay p + 2 p), recorded with its loss."""

    def loss(p, setting, seed, number):
        return p**2 + setting["decay"] / 2 * p**2

    def measure(state, setting, seed):
        return loss(state.params, setting, seed, None), setting

    runs = descent(lambda seed: seed, jax.grad(loss), lambda setting: optax.sgd(setting["size"]))
    grid = {"size": jnp.array([0.25, 0.125, 0.125]), "decay": jnp.array([0.0, 0.0, 4.0])}
    result = sweep(*runs, measure, grid, jnp.array([8.0]), steps=2)
    wanted = [[64, 16, 4], [64, 36, 20.25], [192, 12, 0.75]]
    np.testing.assert_array_equal(result.loss[:, 0], wanted)
    for name, values in grid.items():
        np.testing.assert_array_equal(result.record[name][:, 0], values[:, None].repeat(3, axis=1))


def test_convolutions_are_called_from_python_on_cpu_with_the_same_numbers(generator):
    image = jnp.asarray(generator.normal(size=(1, 6, 6, 1)), jnp.float32)

    def loss(kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=dimensions
        )
        return jnp.mean((out - 1.0) ** 2)

    runs = descent(
        lambda seed: jax.random.normal(seed, (3, 3, 1, 2)),
        lambda kernel, size, seed, number: jax.grad(loss)(kernel),
        optax.sgd,
    )
    keys, sizes = jax.random.split(jax.random.key(3), 2), jnp.array([0.01, 0.1, 1e30])

    def measure(state, size, seed):
        return loss(state.params), {"size": size}

    arguments = runs.start, runs.step, measure, sizes, keys
    assert _sweep._from_python(runs.start, runs.step, sizes, keys)
    alone = sweep(*arguments, steps=4, record_at=[1])
    together = sweep(*arguments, steps=4, record_at=[1], batched=True)
    chex.assert_trees_all_close(alone, together, rtol=1e-4, atol=1e-6)
    assert alone.diverged.tolist() == [[False] * 2] * 2 + [[True] * 2]
    np.testing.assert_array_equal(alone.record["size"][..., 0], sizes[:, None].repeat(2, 1))


def test_it_is_compiled_once_and_nests_in_jit():
    before = _sweep._compiled._cache_size()
    for scale in (1.0, 2.0):
        sizes = scale * jnp.array([0.1, 0.2, 0.3, 0.4])
        sweep(*QUADRATIC, quadratic_measure, sizes, jnp.array([2.0]), steps=3)
    assert _sweep._compiled._cache_size() == before + 1

    @jax.jit
    def best(sizes):
        result = sweep(*QUADRATIC, quadratic_measure, sizes, jnp.array([2.0]), steps=3)
        return choose_step_size(result).position

    assert int(best(jnp.array([0.1, 0.2, 0.5, 0.4]))) == 2


def test_work_per_step_decides_whether_a_cpu_batches():
    def start(setting, seed):
        return jnp.zeros((seed.shape[0], seed.shape[0]))

    for width, light in ((50, True), (500, False)):
        seeds = jax.ShapeDtypeStruct((2, width), jnp.float32)
        grid = jax.ShapeDtypeStruct((3,), jnp.float32)
        got = _sweep._light(start, lambda state, *_: state @ state, grid, seeds)
        assert got is light


def test_bad_input_is_named():
    run = partial(sweep, *QUADRATIC, quadratic_measure)
    sizes, seeds = jnp.array([0.1, 0.2]), jnp.array([2.0])
    for marks in ([0, 5], [-1], [2, 2], [2, 1], [0.5], [[1]]):
        with pytest.raises(ValueError, match=r"record_at: got .*, wanted rising"):
            run(sizes, seeds, steps=4, record_at=marks)
    with pytest.raises(ValueError, match="steps: got 0"):
        run(sizes, seeds, steps=0)
    for bad in (jnp.float32(0.1), {}, {"a": sizes, "b": seeds}, jnp.zeros((0,))):
        with pytest.raises(ValueError, match="grid: got leaves"):
            run(bad, seeds, steps=4)
        with pytest.raises(ValueError, match="seeds: got leaves"):
            run(sizes, bad, steps=4)
    with pytest.raises(ValueError, match=r"measure: got a loss of shape \(2,\)"):
        sweep(*QUADRATIC, lambda state, size, seed: (sizes, {}), sizes, seeds, steps=4)
    with pytest.raises(ValueError, match="num_records: got 0"):
        log_spaced_steps(5, num_records=0)


def test_equal_scores_choose_the_first():
    loss = jnp.array([[[2.0, 1.0]], [[2.0, 1.0]]])
    runs = Sweep(jnp.array([0, 1]), loss, {}, jnp.zeros((2, 1), bool), {})
    assert int(choose_step_size(runs).position) == 0
