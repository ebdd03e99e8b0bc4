"""Methods of the comparison that train in ways of their own do what their summaries say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbalance import data, training
from jaxbalance.compare import _draws, _plan, _sweep
from jaxbalance.compare._augmentations import SMOTE, Batch
from jaxbalance.compare._methods import METHODS
from jaxbalance.compare._task import make_task

pytestmark = pytest.mark.usefixtures("as_users_do")

BUDGET = _plan.Budget(40, 32, (0.003, 0.01), "mlp")
STILL = BUDGET._replace(step_sizes=(0.0,), model="linear")


@pytest.fixture(scope="module")
def task(as_users_do):
    return make_task(data.digits(), profile="exponential:20", seeds=2)


def test_smote_moves_along_segments_between_training_neighbours(task):
    """Frequencies are within five standard errors: a false alarm once in 100,000 seeds."""
    seed = 1
    shared = _plan.make_shared(task, SMOTE)
    read = _plan.reader(shared, jnp.asarray(seed))
    rows = np.tile(task.train[seed], 2)
    labels = task.dataset.labels[rows]
    counts = jnp.asarray(task.class_counts, jnp.float32)
    batch = Batch(read(rows), jnp.asarray(labels, jnp.int32), jnp.asarray(rows), counts, read)
    change = jax.jit(lambda key: SMOTE.change(key, batch, shared.prepared[seed])[0])
    old, new = np.asarray(batch.inputs, np.float64), np.asarray(change(jax.random.key(0)))
    old, new = old.reshape(len(rows), -1), new.reshape(len(rows), -1).astype(np.float64)
    moved = np.any(old != new, axis=1)
    chance = 1 - task.class_counts / task.class_counts.max()
    for k in np.unique(labels):
        of_class = moved[labels == k]
        assert abs(of_class.mean() - chance[k]) <= 5 * np.sqrt(0.25 / of_class.size) * (
            chance[k] > 0
        )
    pool = np.asarray(read(task.train[seed]), np.float64).reshape(task.train.shape[1], -1)
    of_pool = task.dataset.labels[task.train[seed]]
    for i in np.flatnonzero(moved):
        same = pool[of_pool == labels[i]]
        distance = np.linalg.norm(same - old[i], axis=1)
        # Pixels are whole numbers, so distances tie, and any of the tied may be the fifth.
        reach = np.sort(distance)[1:6][-1]
        near = same[(distance > 0) & (distance <= reach * (1 + 1e-5))]
        step = new[i] - old[i]
        share = (near - old[i]) @ step / np.maximum(((near - old[i]) ** 2).sum(axis=1), 1e-12)
        off = np.linalg.norm(share[:, None] * (near - old[i]) - step, axis=1)
        best = np.argmin(off)
        assert off[best] < 1e-4
        assert 0 <= share[best] < 1 + 1e-6
    again = np.asarray(change(jax.random.key(1))).reshape(len(rows), -1)
    assert not np.array_equal(again, new)


def test_smote_leaves_a_class_of_one_example_alone(generator):
    labels = np.repeat([0, 1], [30, 12])
    inputs = generator.normal(size=(42, 2)).astype(np.float32)
    neighbors = jax.jit(SMOTE.prepare)(
        jnp.asarray(inputs),
        jnp.asarray(np.where(np.arange(42) < 31, labels, -1), jnp.int32),
        jnp.array([30.0, 1.0]),
    )
    assert np.all(np.asarray(neighbors) == -1)
    batch = Batch(
        jnp.asarray(inputs[25:31]),
        jnp.asarray(labels[25:31], jnp.int32),
        jnp.arange(25, 31),
        jnp.array([30.0, 1.0]),
        lambda rows: jnp.asarray(inputs)[rows],
    )
    change = jax.jit(lambda key: SMOTE.change(key, batch, neighbors)[0])
    for seed in range(5):
        np.testing.assert_array_equal(change(jax.random.key(seed)), batch.inputs)


def test_losses_know_the_class_counts(generator):
    class_counts, labels = np.array([60.0, 30.0, 10.0]), np.arange(12) % 3
    z = generator.normal(size=(12, 3))
    factors = {"logit-adjustment": np.ones(3), "vector-scaling": (class_counts / 60) ** 0.3}
    for name, factor in factors.items():
        made = METHODS[name].training
        for late in (False, True):
            given = made.arguments(jnp.asarray(class_counts, jnp.float32), late)
            got = made.loss(jnp.asarray(z, jnp.float32), jnp.asarray(labels), **given)
            moved = factor * z + np.log(class_counts / 100)
            wanted = np.log(np.exp(moved).sum(axis=1)) - moved[np.arange(12), labels]
            np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_links_combine_the_classes_gradients(generator):
    """Of losses that are squared distances to a point for each class, by hand."""
    points, params = generator.normal(size=(3, 4)), generator.normal(size=4)
    own = params - points
    shifted = [own + 0.05 * one / np.linalg.norm(one) for one in (own.sum(axis=0), own[1:].sum(0))]
    wanted = {
        "pcnsgd": (own / np.linalg.norm(own, axis=1, keepdims=True)).sum(axis=0),
        "sam": shifted[0].sum(axis=0),
        "imbsam": own[0] + shifted[1][1:].sum(axis=0),
    }
    class_counts, given = jnp.array([60.0, 30.0, 10.0]), jnp.asarray(params, jnp.float32)

    def grad_fn(params, class_weights):
        return class_weights @ (params - jnp.asarray(points, jnp.float32))

    for name, expected in wanted.items():
        link = METHODS[name].training.link(class_counts)
        stacked, state = jnp.asarray(own, jnp.float32), link.init(given)
        got, _ = link.update(stacked, state, given, grad_fn=grad_fn)
        np.testing.assert_allclose(got, expected, rtol=1e-4, err_msg=name)
    link = METHODS["mgda"].training.link(class_counts)
    got, _ = link.update(jnp.array([[2.0, 0.0], [0.0, 1.0]]), link.init(given[:2]), given[:2])
    assert 2 * float(got[0]) == pytest.approx(float(got[1]), rel=1e-3)


@pytest.mark.parametrize("name", ["mixup", "remix"])
def test_mixtures_and_their_labels(name, generator):
    """Partner and weight are found again from the inputs; the labels follow from them."""
    class_counts = np.array([90.0, 40.0, 30.0, 10.0])
    labels = np.arange(24) % 4
    inputs = generator.normal(size=(24, 6))
    batch = Batch(
        jnp.asarray(inputs, jnp.float32),
        jnp.asarray(labels, jnp.int32),
        jnp.arange(24),
        jnp.asarray(class_counts, jnp.float32),
        lambda rows: rows,
    )
    augmentation = METHODS[name].training.augmentation
    change = jax.jit(lambda key: augmentation.change(key, batch, ()))
    mixed, got = (np.asarray(part, np.float64) for part in change(jax.random.key(3)))
    assert not np.array_equal(change(jax.random.key(4))[0], mixed)
    whole = 0
    for i in range(24):
        others = inputs - inputs[i]
        share = others @ (mixed[i] - inputs[i]) / np.maximum((others**2).sum(axis=1), 1e-12)
        off = np.linalg.norm(mixed[i] - inputs[i] - share[:, None] * others, axis=1)
        j = int(np.argmin(off))
        assert off[j] < 1e-5
        own = 1 - share[j]
        if name == "remix":
            ratio = class_counts[labels[i]] / class_counts[labels[j]]
            if (ratio >= 3 and own < 0.5) or (ratio <= 1 / 3 and 1 - own < 0.5):
                own, whole = float(ratio < 1), whole + 1
        expected = own * np.eye(4)[labels[i]] + (1 - own) * np.eye(4)[labels[j]]
        np.testing.assert_allclose(got[i], expected, atol=1e-4)
    assert (whole > 0) == (name == "remix")


def test_a_link_and_an_augmentation_do_not_go_together(task):
    both = METHODS["smote"].training._replace(link=METHODS["pcnsgd"].training.link)
    with pytest.raises(ValueError, match="training: got a link and an augmentation"):
        _plan.make_plan(task, BUDGET, both)


@pytest.mark.parametrize("name", ["plain", "mixup"])
def test_augmentation_is_fresh_at_every_step(task, name):
    """The same rows twice, at a step size of zero: the loss tells augmented batches apart.

    Every augmentation is given its key by the same step; that each makes something else of another
    key is tested with what it makes.
    """
    made = METHODS[name].training
    plan = _plan.make_plan(task, STILL, made)
    shared = _plan.make_shared(task, made.augmentation)
    runs = _plan.make_runs(task, STILL, [made])
    run = jax.tree.map(lambda leaf: leaf[0], runs)
    step = _sweep._step(plan, run, shared, jnp.asarray(False))
    tx = _sweep._optimizer(plan, run, jnp.asarray(False))
    state = training.init_state(
        plan.network.build(jax.random.key(0)).params, tx, key=jax.random.key(0)
    )
    rows = jnp.tile(run.rows[0, :1], (2, 1))
    places = jnp.arange(shared.labels.size)
    _, record = training.run_steps(step, state, places, shared.labels, rows, scan=True)
    first, second = record.loss.tolist()
    assert (first == second) == (name == "plain")


def test_crt_trains_a_new_head_alone_at_the_end(task):
    made = METHODS["crt"].training
    plan, runs = _plan.make_plan(task, BUDGET, made), _plan.make_runs(task, BUDGET, [made])
    shared, seen = _plan.make_shared(task, made.augmentation), []
    traces, segment = _sweep.compile_segment(plan)
    for states, _ in _sweep.run_segments(plan, runs, shared, segment):
        seen.append(jax.tree.map(np.array, (states.params, states.opt_state[0])))
    assert len(traces) == 1
    at_late, end = seen[_draws.LATE - 1], seen[-1]
    for name in ("kernel", "bias"):
        early, still = (part[0]["layers"][0][name][...] for part in (seen[0], at_late))
        assert not np.array_equal(early, still)
        np.testing.assert_array_equal(end[0]["layers"][0][name][...], still)
    heads = [part[0]["head"]["kernel"][...] for part in (at_late, seen[_draws.LATE], end)]
    fresh = plan.network.build(jax.random.fold_in(jax.random.key(1), 1)).params["head"]["kernel"][
        ...
    ]
    assert np.abs(heads[1][-1] - fresh).max() < 0.05 < np.abs(heads[0][-1] - fresh).max()
    assert not np.array_equal(heads[1], heads[2])
    early, late = plan.phases
    assert (early, late) == (32, 8)
    assert set(at_late[1][0].count.tolist()) == {early}
    assert set(end[1][0].count.tolist()) == {late}


def test_crt_draws_as_plain_first_and_by_class_at_the_end(task):
    plain, crt = (
        _plan.make_runs(task, BUDGET, [METHODS[name].training]).rows[::2]
        for name in ("plain", "crt")
    )
    np.testing.assert_array_equal(crt[:, : _draws.LATE], plain[:, : _draws.LATE])
    labels = task.dataset.labels[np.asarray(crt[:, _draws.LATE :]).ravel()]
    shares = np.bincount(labels, minlength=10) / labels.size
    # 512 draws: six standard errors, exceeded once in about 10^8 seeds.
    np.testing.assert_allclose(shares, 0.1, atol=6 * np.sqrt(0.09 / labels.size))
