"""Reading numbers to predict, binning, weighing and measuring them, against NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxbalance import compare, data, losses, samplers
from jaxbalance.compare import (
    REGRESSION_METHODS as METHODS,
)
from jaxbalance.compare import (
    _figures,
    _files,
    _regression_methods,
    _regression_network,
    _regression_report,
    _regression_score,
    _regression_sweep,
    _regression_task,
    _report,
    _statistics,
)
from jaxbalance.compare._plan import Budget
from tests.data_helpers import refusal
from tests.regression_helpers import dataset, written


def balanced(errors, bins):
    return np.mean([errors[bins == b].mean() for b in np.unique(bins)])


# Reading


def test_targets_are_read_from_tables_archives_and_folders(tmp_path):
    path = written(tmp_path, "x,kind,price\n1,a,10.5\n,b,-2\n3,a,4e3\n")
    got = data.load_targets(str(path), target="price")
    assert got.targets.tolist() == [10.5, -2.0, 4000.0]
    assert got.feature_names == ("x", "kind=a", "kind=b")
    assert (got.name, got.test_indices) == ("table", None)
    (tmp_path / "set").mkdir()
    arrays = {"X": np.ones((3, 2)) * [[1], [2], [3]], "y": [0, 1, 1], "length": [1, 5, 2]}
    mask = np.array([False, False, True])
    np.savez(tmp_path / "set" / "set.npz", **arrays, class_names=["a", "b"], is_test=mask)
    for source in (tmp_path / "set", tmp_path / "set" / "set.npz"):
        got = data.load_targets(str(source), target="length")
        assert got.targets.tolist() == [1.0, 5.0, 2.0]
        assert got.test_indices.tolist() == [2]
    assert "say which key" in refusal(data.load_targets, str(tmp_path / "set"))
    np.savez(tmp_path / "plain.npz", X=arrays["X"], y=np.array([[0.5], [1.5], [2.0]]))
    assert data.load_targets(str(tmp_path / "plain.npz")).targets.tolist() == [0.5, 1.5, 2.0]


BAD_TARGETS = {
    "text": (["a", "b", "c"], "not numbers"),
    "booleans": ([True, False, True], "not numbers"),
    "missing": ([1.0, np.nan, 2.0], "1 of 3 targets are missing or infinite, the first in row 1"),
    "infinite": ([1.0, 2.0, np.inf], "row 2"),
    "constant": ([2.0, 2.0, 2.0], "every target is 2"),
    "too few": ([1.0, 2.0], "3 rows of inputs and 2 targets"),
    "a matrix": ([[1.0], [2.0], [3.0]], r"shape (3, 1)"),
}


@pytest.mark.parametrize(("targets", "message"), BAD_TARGETS.values(), ids=BAD_TARGETS)
def test_bad_targets_are_refused(targets, message):
    assert message in refusal(data.from_target_arrays, np.ones((3, 1)), targets)


# Bins and splits


def test_bins_are_one_per_whole_number_or_twenty_or_what_is_said(generator):
    inputs = np.ones((200, 1))
    whole = generator.integers(3, 12, size=200).astype(float)
    whole[:2] = 3, 11
    wide = whole * 10
    for targets, bins, number in ((whole, None, 9), (whole, 4, 4), (wide, None, 20)):
        task = _regression_task.make_regression_task(
            data.from_target_arrays(inputs, targets), bins=bins, seeds=1
        )
        ids, edges = task.split.dataset.labels, task.edges
        assert task.num_bins == number == len(task.split.dataset.class_names)
        np.testing.assert_array_equal(ids, samplers.statistic_bins(targets, num_bins=number))
        inside = (targets >= edges[ids]) & ((targets < edges[ids + 1]) | (ids == number - 1))
        assert inside.all()
        np.testing.assert_allclose(np.diff(edges), edges[1] - edges[0])
    task = _regression_task.make_regression_task(
        data.from_target_arrays(inputs, whole), bins=None, seeds=1
    )
    named = [float(task.split.dataset.class_names[b]) for b in task.split.dataset.labels]
    assert named == whole.tolist()


def test_splits_share_bins_do_not_leak_and_scale_by_training_rows():
    task = _regression_task.make_regression_task(dataset(), bins=6, seeds=3)
    labels = task.split.dataset.labels
    parts = zip(task.split.train, task.split.validation, task.split.test, strict=True)
    for seed, (train, validation, test) in enumerate(parts):
        assert len({*train, *validation, *test}) == 400 == len(train) + len(validation) + len(test)
        counts = np.bincount(labels[train], minlength=6)
        np.testing.assert_array_equal(counts, task.split.class_counts)
        ours = task.standardized[seed, train].astype(np.float64)
        assert ours.mean() == pytest.approx(0, abs=1e-5)
        assert ours.std() == pytest.approx(1, abs=1e-5)
        back = task.center[seed] + task.scale[seed] * task.standardized_edges[seed]
        np.testing.assert_allclose(back, task.edges, atol=1e-5)
    assert len({data.fingerprint(rows) for rows in task.split.train}) == 3


def test_coarse_bins_are_named(generator):
    targets = np.repeat([0.0, 1.0, 2.0, 5.0], [40, 10, 2, 1])
    inputs = generator.normal(size=(53, 2))
    task = _regression_task.make_regression_task(
        data.from_target_arrays(inputs, targets), bins=None, seeds=2
    )
    assert task.notes == (
        "bins of the target without any example: 2 of 6",
        "targets 5 (1): too few to test on: left out of every number",
        "targets 1 (10), 2 (2): fewer than 5 test examples: their errors are coarse",
        "targets 2 (2): no validation example: nothing is chosen by them",
    )


# What methods weigh


def test_weights_are_those_of_their_formulas():
    task = _regression_task.make_regression_task(dataset(), bins=8, seeds=2)
    names = ["plain", "lds", "lds-inverse", "dense-loss", "mdi"]
    budget = Budget(20, 16, (0.01,), "mlp")
    shared = _regression_sweep.share(task, budget, [METHODS[name] for name in names])
    found = dict(zip(names, np.asarray(shared.weights, np.float64), strict=True))
    kernel = np.exp(-((np.arange(5) - 2) ** 2) / 8)
    density = np.convolve(task.split.class_counts, kernel / kernel.sum(), mode="full")[2:-2]
    for seed, rows in enumerate(task.split.train):
        ids, values = task.split.dataset.labels[rows], task.targets[rows]
        spread = stats.gaussian_kde(values)(values)
        share = spread / (1.001 * spread.max())
        low, high = spread.min(), spread.max()
        raw = {
            "plain": np.ones(len(rows)),
            "lds": density[ids] ** -0.5,
            "lds-inverse": 1 / density[ids],
            "dense-loss": np.maximum(1 - (spread - low) / (high - low), 1e-6),
            "mdi": np.sqrt(1 - share**2),
        }
        outside = np.setdiff1d(np.arange(400), rows)
        for name, wanted in raw.items():
            np.testing.assert_allclose(
                found[name][seed, rows], wanted / wanted.mean(), rtol=0.02, atol=0.02, err_msg=name
            )
            assert not found[name][seed, outside].any()
            assert found[name][seed, rows].mean() == pytest.approx(1, abs=2e-3)


def test_one_bin_makes_density_weights_equal():
    bins = _regression_methods.Bins(jnp.array([-1.0, 1.0]), jnp.array([9.0]), *[jnp.zeros(1)] * 2)
    for name in ("lds", "lds-inverse"):
        weights = jax.jit(METHODS[name].weigh)(jnp.linspace(-1, 1, 9), jnp.zeros(9, int), bins)
        np.testing.assert_allclose(weights, 1, rtol=1e-6)


# Choosing and measuring


def test_scores_are_those_of_loops_over_bins(generator):
    """Predictions made up, one run diverged: the choice and every number by NumPy."""
    task = _regression_task.make_regression_task(dataset(), bins=6, seeds=2)
    split, rates = task.split, 3
    truth = {"v": split.validation, "t": split.test}
    guesses = {
        name: np.take_along_axis(task.standardized, rows, axis=1)[:, None]
        + generator.normal(size=(2, rates, rows.shape[1])).astype(np.float32)
        for name, rows in truth.items()
    }
    guesses["t"][0, 1, 4] = np.nan
    guesses["v"][0, 1] = np.take_along_axis(task.standardized, split.validation, axis=1)[0]
    curve = generator.uniform(size=(2, rates, 20, 6))
    outcome = _regression_sweep.RegressionOutcome(
        guesses["v"], guesses["t"], curve, {"w": np.arange(6.0).reshape(2, 3)}
    )
    score = _regression_score.score_regression(task, outcome)
    assert score.diverged == 1
    shots = {"many": (101, 10**9), "medium": (20, 100), "few": (0, 19)}
    for seed in range(2):
        units = task.center[seed] + task.scale[seed] * guesses["v"][seed].astype(np.float64)
        held = np.abs(units - task.targets[split.validation[seed]])
        bins = split.dataset.labels[split.validation[seed]]
        judged = [np.inf if (seed, i) == (0, 1) else balanced(held[i], bins) for i in range(rates)]
        best = int(np.argmin(judged))
        assert score.chosen[seed] == best
        np.testing.assert_allclose(score.curve[seed], task.scale[seed] * curve[seed, best])
        assert score.validation[seed] == pytest.approx(judged[best], rel=1e-5)
        guess = task.center[seed] + task.scale[seed] * guesses["t"][seed, best].astype(np.float64)
        target, bins = task.targets[split.test[seed]], split.dataset.labels[split.test[seed]]
        error = np.abs(guess - target)
        wanted = {
            "balanced_mae": balanced(error, bins),
            "mae": error.mean(),
            "rmse": np.sqrt((error**2).mean()),
            "geometric_mean": stats.gmean(error),
            "pearson": stats.pearsonr(guess, target)[0],
        }
        for name, (low, high) in shots.items():
            of_group = (split.class_counts >= low) & (split.class_counts <= high)
            wanted[name] = error[of_group[bins]].mean() if of_group[bins].any() else np.nan
        got = {name: values[seed] for name, values in score.values.items()}
        assert got == pytest.approx(wanted, rel=1e-4, nan_ok=True)
        np.testing.assert_allclose(score.absolute[seed], error, atol=1e-5)
    best = int(np.argmin(score.validation / task.scale))
    assert (score.seed, score.params["w"]) == (best, 3.0 * best + score.chosen[best])


def test_a_lone_example_is_as_uncertain_as_the_others():
    errors, bins = np.array([1.0, 3.0, 9.0]), np.array([0, 0, 1])
    # Two examples have variance 2, over 2 examples 1; the lone one is given 2.
    assert _regression_report.absolute_variance(errors, bins, 2) == pytest.approx((1 + 2) / 4)
    assert _statistics.balanced_variance(errors, bins, 2) == pytest.approx((1 + 0.25) / 4)
    alone = _regression_report.absolute_variance(errors, np.arange(3), 3)
    assert alone == pytest.approx(3 * errors.var() / 9)


def test_padding_and_neighbours_in_objectives():
    """A padded place adds nothing; ConR's window reaches the next whole number and no further."""
    edges = jnp.arange(5.0) / 3
    bins = _regression_methods.Bins(edges, jnp.ones(4), edges[:4], jnp.linspace(0, 1, 11))
    targets = jnp.array([0.0, 1 / 3, 2 / 3, jnp.nan])
    features = jnp.eye(4)
    guess = _regression_methods.Guess(jnp.zeros(4), features, jnp.zeros((4, 10)), jnp.float32(0.1))
    truth = _regression_methods.Truth(targets, jnp.ones(4))
    for objective in {method.objective for method in METHODS.values()}:
        value = jax.jit(objective)(guess, truth, bins)
        assert value.shape == (4,)
        assert value[3] == 0
        assert np.isfinite(value).all()
    apart = jax.jit(METHODS["conr"].objective)(guess, truth, bins) - targets**2
    # Orthogonal features: log(positives + weighed negatives); the middle one has no negative.
    pushed = np.log(1 + np.exp(0.2 * 2 / 3))
    np.testing.assert_allclose(apart[:3], [0.2 * pushed, 0, 0.2 * pushed], rtol=1e-5)


def test_one_bin_makes_smoothed_features_plain():
    """Losses and gradients, before and after statistics of features were folded."""
    task = _regression_task.make_regression_task(dataset(rows=60), bins=1, seeds=1)
    budget = Budget(20, 8, (0.01,), "linear")
    shared = _regression_sweep.share(task, budget, [METHODS["plain"]])
    run = _regression_sweep._Runs(jnp.float32(0.01), jnp.int32(0), jnp.int32(0))
    rows, bins = shared.rows[0, 0, 0, 0], jnp.zeros(8, jnp.int32)
    params = _regression_network.regressor((3,), model="linear").start(0)
    losses_of = {}
    for name in ("plain", "fds"):
        plan = _regression_sweep._plan(task, budget, METHODS[name])
        loss = _regression_sweep._loss(plan, run, shared)

        @jax.jit
        def both(params, state, loss=loss):
            def total(params):
                values, after = loss(params, state, jax.random.key(0), rows, bins)
                return jnp.sum(values), after

            return jax.value_and_grad(total, has_aux=True)(params)

        state = ()
        if name == "fds":
            state = losses.init_feature_smoothing_state(num_buckets=1, num_features=3)
        first = both(params, state)
        if name == "fds":
            state = losses.fold_feature_statistics(first[0][1], window=losses.gaussian_window())
        second = both(params, state)
        losses_of[name] = [(value, gradient) for (value, _), gradient in (first, second)]
    for ours, theirs in zip(
        jax.tree.leaves(losses_of["fds"]), jax.tree.leaves(losses_of["plain"]), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_networks_for_images_guess_one_number_each(generator):
    network = _regression_network.regressor((4, 4, 1), model="cnn")
    assert network.one_by_one == (jax.default_backend() == "cpu")
    images = jnp.asarray(generator.normal(size=(3, 4, 4, 1)), jnp.float32)
    guesses = _regression_network.predict(network, network.start(0), images)
    assert guesses.shape == (3,)
    assert np.isfinite(guesses).all()
    for one_by_one in (False, True):
        switched = network._replace(one_by_one=one_by_one)
        found = _regression_network.over_runs(switched, lambda run: run[0] * run[1], (guesses,) * 2)
        np.testing.assert_allclose(found, guesses**2)


def test_no_target_lies_beyond_the_centres_of_the_bins():
    """So that balanced MSE is bounded: far out it is at least the log of the rarest bin's share."""
    task = _regression_task.make_regression_task(dataset(), bins=8, seeds=2)
    shared = _regression_sweep.share(task, Budget(20, 16, (0.01,), "mlp"), [METHODS["plain"]])
    for seed, rows in enumerate(task.split.train):
        targets, ids = task.standardized[seed, rows], task.split.dataset.labels[rows]
        centers, sizes = np.asarray(shared.statistics.centers[seed]), task.split.class_counts
        wanted = [targets[ids == b].mean() if sizes[b] else 0.0 for b in range(8)]
        occupied = np.flatnonzero(sizes)
        wanted[occupied[0]], wanted[occupied[-1]] = targets.min(), targets.max()
        np.testing.assert_allclose(centers, wanted, atol=1e-5)
    bins = jax.tree.map(lambda leaf: leaf[1], shared.statistics)
    top = jnp.full(3, targets.max())
    far = jnp.array([1.0, 10.0, 100.0]) * top
    guess = _regression_methods.Guess(far, far[:, None], jnp.zeros((3, 10)), jnp.float32(0.5))
    truth = _regression_methods.Truth(top, jnp.ones(3))
    values = jax.jit(METHODS["balanced-mse"].objective)(guess, truth, bins)
    least = np.log(sizes[sizes > 0].min() / sizes.sum())
    assert np.all(np.asarray(values) >= least - 1e-3)


def test_step_sizes_at_the_end_of_the_grid_are_named():
    row = _regression_report.RegressionRow("lds", None, None, None, {}, [0.1, 0.1, 0.01], 0.0)
    rows = [row, row._replace(method="mdi", step_sizes=[0.01, 0.03, 0.03])]
    (note,) = _regression_report.step_size_notes(rows, (0.01, 0.03, 0.1))
    assert note.startswith("most seeds chose the largest step size tried, 0.1, for lds:")
    (note,) = _regression_report.step_size_notes(rows, (0.03, 0.1, 0.3))
    assert note.startswith("most seeds chose the smallest step size tried, 0.03, for mdi:")
    assert _regression_report.step_size_notes(rows, (0.1,)) == []


@pytest.mark.parametrize("places", [range(12), (0, 6), (1, 7, 13)])
def test_no_two_methods_of_a_picture_share_a_colour(places):
    names = ["plain", *(f"m{i}" for i in range(20))]
    row = _report.Row("", None, None, None, {}, [], 0.0)
    rows = [row._replace(method=name) for name in names]
    hidden = {name for i, name in enumerate(names) if name != "plain" and i not in places}
    report = _report.Report(rows, names[max(places)], [], [], {}, {})
    styles = _figures._styles(report, hidden)
    bold = [style for style in styles if style.emphasis]
    assert len({style.colour for style in bold}) == len(bold)
    assert {style.method for style in styles} == set(names) - hidden


def test_a_damaged_finished_group_is_trained_again(tmp_path):
    path = tmp_path / "kept.npz"
    path.write_bytes(b"PK\x03\x04 not a zip file")
    kind = _regression_sweep.RegressionOutcome
    assert _files.load_outcomes(path, {"w": 0}, 1, kind) is None
    outcome = kind(np.zeros(2), np.ones(2), np.full(2, 3.0), {"w": np.ones(3)})
    _files.save_outcomes(path, [outcome])
    assert _files.load_outcomes(path, {"w": 0}, 2, kind) is None
    (back,) = _files.load_outcomes(path, {"w": 0}, 1, kind)
    assert isinstance(back, kind)
    np.testing.assert_array_equal(back.curve, np.full(2, 3.0))
    np.testing.assert_array_equal(back.params["w"], np.ones(3))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"kept\.npz' is damaged"):
        compare.load_model(path)
