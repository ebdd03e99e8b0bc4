"""Methods of the comparison that correct plain training do what their summaries say."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from imblearn.metrics import geometric_mean_score
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from jaxbalance import _storage, compare, data, models, posthoc
from jaxbalance.compare import _corrections, _evaluate, _heads, _model, _plan, _sweep
from jaxbalance.compare._methods import METHODS
from jaxbalance.compare._score import BINARY_METRICS, score
from jaxbalance.compare._task import make_task

pytestmark = pytest.mark.usefixtures("as_users_do")

BUDGET = _plan.Budget(40, 32, (0.003, 0.01), "mlp")


@pytest.fixture(scope="module")
def task(as_users_do):
    return make_task(data.digits(), profile="exponential:20", seeds=2)


@pytest.fixture(scope="module")
def outcomes(task):
    """Plain training, as it is and with a Gaussian head."""
    wanted = [(METHODS[name].training, METHODS[name].refit) for name in ("plain", "gaussian-head")]
    return _sweep.train_group(task, BUDGET, wanted, lambda fraction: None)[0]


def evidence(task, outcome, *, seed=1, rate=1, labels=None):
    head = _heads.linear_head(outcome.params)
    if labels is None:
        labels = task.dataset.labels[task.validation[seed]]
    return _corrections.Evidence(
        logits=jnp.asarray(outcome.validation_logits[seed, rate]),
        labels=jnp.asarray(labels, jnp.int32),
        class_counts=jnp.asarray(task.class_counts, jnp.float32),
        head=jax.tree.map(lambda leaf: jnp.asarray(leaf[seed, rate]), head),
        target_logits=jnp.asarray(outcome.test_logits[seed, rate]),
        target_mask=jnp.ones(task.test.shape[1], bool),
    )


def features_of(task, outcome, rows, *, seed=1, rate=1):
    """Standardised by hand, through the body of the network by hand."""
    x = task.dataset.inputs[rows].reshape(len(rows), -1).astype(np.float64)
    fitted = jax.tree.map(lambda leaf: np.asarray(leaf[seed], np.float64), task.standardizer)
    x = (x - fitted.center) * fitted.inverse_scale
    params = jax.tree.map(lambda leaf: np.asarray(leaf[seed, rate], np.float64), outcome.params)
    layer = params["layers"][0]
    return np.maximum(x @ layer["kernel"][...] + layer["bias"][...], 0)


def test_features_are_what_enters_the_head(generator):
    network = models.MLP(6, 3, hidden=(5,), rngs=nnx.Rngs(0))
    model = models.functional(network)
    x = jnp.asarray(generator.normal(size=(4, 6)), jnp.float32)
    features = model.features(model.params, x)
    np.testing.assert_allclose(network.head(features), model.apply(model.params, x), rtol=1e-6)
    headless = models.functional(nnx.Linear(6, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="module: got Linear, which has no attribute head"):
        headless.features(headless.params, x)


def test_a_method_without_correction_changes_nothing(task, outcomes):
    scaling = METHODS["plain"].correction(evidence(task, outcomes[0]))
    np.testing.assert_array_equal(scaling.class_factors, np.ones(10))
    np.testing.assert_array_equal(scaling.class_bias, np.zeros(10))


def test_tau_norm_is_the_formula_on_the_saved_head(task, outcomes):
    given = evidence(task, outcomes[0])
    scaling = METHODS["tau-norm"].correction(given)
    lengths = np.linalg.norm(given.head.class_vectors, axis=1)
    grid = np.linspace(0, 2, 21)
    rows = task.validation[1]
    features, truth = features_of(task, outcomes[0], rows), task.dataset.labels[rows]

    def logits(tau, rows_features):
        return (
            rows_features @ np.asarray(posthoc.tau_normalize(given.head.class_vectors, tau=tau)).T
        )

    quality = [balanced_accuracy_score(truth, logits(tau, features).argmax(axis=1)) for tau in grid]
    tau = grid[int(np.argmax(np.round(quality, 9)))]
    np.testing.assert_allclose(scaling.class_factors, lengths**-tau, rtol=1e-4)
    tested = features_of(task, outcomes[0], task.test[1])
    got = posthoc.scale_logits(given.target_logits, **scaling._asdict())
    np.testing.assert_allclose(got, logits(tau, tested), rtol=2e-3, atol=2e-3)
    with pytest.raises(ValueError, match="head: got None"):
        METHODS["tau-norm"].correction(given._replace(head=None))


def balanced_loss(given, scaling):
    scores = np.asarray(posthoc.scale_logits(given.logits, **scaling._asdict()), np.float64)
    p = np.asarray(jax.nn.softmax(scores))
    weights = 1 / np.bincount(given.labels, minlength=10)[np.asarray(given.labels)]
    return log_loss(given.labels, p, sample_weight=weights, labels=np.arange(10))


def test_bias_correction_and_learned_scaling_lower_the_balanced_loss(task, outcomes):
    given = evidence(task, outcomes[0])
    before = balanced_loss(given, _corrections.unchanged(given))
    few = jax.jit(METHODS["bias-correction"].correction)(given)
    rare = task.class_counts < task.class_counts.mean()
    assert 0 < rare.sum() < 10
    for numbers, neutral in zip(few, (1.0, 0.0), strict=True):
        assert np.all(np.asarray(numbers)[~rare] == neutral)
        assert len(set(np.asarray(numbers)[rare].tolist())) == 1
    many = jax.jit(METHODS["learned-scaling"].correction)(given)
    np.testing.assert_array_equal(many.class_bias, np.zeros(10))
    for scaling in (few, many):
        best = balanced_loss(given, scaling)
        assert best < 0.95 * before
        for step in (0.95, 1.05):
            moved = np.where(np.asarray(scaling.class_factors) == 1, 1, step)
            other = scaling._replace(class_factors=scaling.class_factors * moved)
            assert best < balanced_loss(given, other) + 1e-5


def test_label_shift_is_expectation_maximisation_on_test_logits_alone(task, outcomes):
    given = evidence(task, outcomes[0])
    correction = jax.jit(METHODS["label-shift"].correction)
    scaling = correction(given)
    unlabelled = evidence(task, outcomes[0], labels=np.full(len(task.validation[1]), -1))
    np.testing.assert_array_equal(scaling.class_bias, correction(unlabelled).class_bias)
    filled = given._replace(
        target_logits=jnp.pad(given.target_logits, ((3, 9), (0, 0)), constant_values=jnp.nan),
        target_mask=jnp.pad(given.target_mask, (3, 9)),
    )
    np.testing.assert_allclose(correction(filled).class_bias, scaling.class_bias, atol=1e-4)
    pi = task.class_counts / task.class_counts.sum()
    z = np.asarray(given.target_logits, np.float64)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    q = pi.copy()
    for _ in range(500):
        joint = p / pi * q
        q = (joint / joint.sum(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_array_equal(scaling.class_factors, np.ones(10))
    known = q > 1e-4
    got, wanted = np.asarray(scaling.class_bias)[known], np.log(q[known] / pi[known])
    np.testing.assert_allclose(got - got[0], wanted - wanted[0], atol=0.02)


def test_a_gaussian_head_is_discriminant_analysis_of_the_training_features(task, outcomes):
    plain, fitted = outcomes
    rows = task.train[1]
    features, truth = features_of(task, plain, rows), task.dataset.labels[rows]
    number, size = features.shape
    theirs = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage=size / (number - 1 + size), priors=np.bincount(truth) / number
    ).fit(features, truth)
    tested = features_of(task, plain, task.test[1])
    scores = tested @ theirs.coef_.T + theirs.intercept_ - np.log(theirs.priors_)
    got = fitted.test_logits[1, 1].astype(np.float64)
    np.testing.assert_allclose(
        got - got.mean(axis=1, keepdims=True),
        scores - scores.mean(axis=1, keepdims=True),
        atol=2e-3 * np.abs(scores).max(),
    )
    np.testing.assert_array_equal(fitted.curve, plain.curve)
    np.testing.assert_array_equal(
        fitted.params["layers"][0]["kernel"][...], plain.params["layers"][0]["kernel"][...]
    )


def best_threshold(scores, is_rare, metric):
    """The lower median of the best of all thresholds between neighbouring scores."""
    levels = np.unique(scores)
    middles = levels[1:] / 2 + levels[:-1] / 2
    middles = np.where(middles > levels[:-1], middles, levels[1:])
    tried = np.array([-np.inf, *middles, np.inf])
    quality = np.array([metric(is_rare, scores >= t) for t in tried])
    best = np.flatnonzero(quality >= quality.max() - 1e-6)
    return tried[best[(len(best) - 1) // 2]]


def without_network(validation_logits, test_logits):
    """An outcome of one step size whose logits ``[S, n, 2]`` come from elsewhere."""
    seeds = len(test_logits)
    params = {"head": {"kernel": np.zeros((seeds, 1, 3, 2))}}
    curve = np.zeros((seeds, 1, 20, 2))
    return _sweep.Outcome(validation_logits[:, None], test_logits[:, None], curve, params)


def check_thresholds(task, outcome, rare):
    result = score(task, METHODS["plain"], outcome)
    f1 = partial(f1_score, zero_division=0)
    for seed, rate in enumerate(result.chosen):
        parts = []
        for rows, logits in (
            (task.validation[seed], outcome.validation_logits[seed, rate]),
            (task.test[seed], outcome.test_logits[seed, rate]),
        ):
            parts.append(logits[:, rare] - logits[:, 1 - rare])
            parts.append(task.dataset.labels[rows] == rare)
        held_out, known, scores, truth = parts
        wanted = (
            f1(truth, scores >= 0),
            f1(truth, scores >= best_threshold(held_out, known, f1)),
            geometric_mean_score(
                truth, scores >= best_threshold(held_out, known, geometric_mean_score)
            ),
        )
        got = [result.values[name][seed] for name in BINARY_METRICS]
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_two_classes_are_measured_at_calibrated_thresholds(generator):
    """Here the first class is the rare one, in the real data below the second."""
    rare = 0
    labels = np.where(np.arange(400) % 10 == 0, rare, 1 - rare)
    inputs = generator.normal(size=(400, 2)).astype(np.float32)
    task = make_task(data.from_arrays(inputs, labels), profile="natural", seeds=2)

    def logits(rows):
        is_rare = task.dataset.labels[rows] == rare
        values = generator.normal(size=(*rows.shape, 2)).astype(np.float32)
        values[..., rare] += 1.5 * is_rare - 1
        return values

    check_thresholds(task, without_network(logits(task.validation), logits(task.test)), rare)


def test_thresholds_on_real_data(shared_data):
    """Mammography, 260 rare of 11,183, by discriminant analysis."""
    source = shared_data / "mammography" / "mammography.npz"
    task = make_task(data.load(str(source)), profile="natural", seeds=1)
    inputs, known = task.dataset.inputs, task.dataset.labels
    fitted = LinearDiscriminantAnalysis().fit(inputs[task.train[0]], known[task.train[0]])

    def logits(rows):
        scores = fitted.decision_function(inputs[rows[0]]).astype(np.float32)
        return np.stack([np.zeros_like(scores), scores], axis=-1)[None]

    # A few of the frequent class on validation, for the search by brute force.
    labels = task.dataset.labels[task.validation[0]]
    kept = np.flatnonzero((labels == 1) | (np.arange(labels.size) % 20 == 0))
    task = task._replace(validation=task.validation[:, kept])
    check_thresholds(task, without_network(logits(task.validation), logits(task.test)), 1)


def test_a_saved_model_applies_factors_and_reads_older_files(task, outcomes, tmp_path):
    scored = score(task, METHODS["tau-norm"], outcomes[0])
    path = tmp_path / "model.npz"
    _model.save_model(path, task, BUDGET, "tau-norm", scored)
    inputs = task.dataset.inputs[task.test[scored.seed]]
    raw = outcomes[0].test_logits[scored.seed, scored.chosen[scored.seed]]
    factors, bias = scored.scaling
    assert np.ptp(factors) > 0
    got = compare.load_model(path).logits(inputs)
    np.testing.assert_allclose(got, raw * factors + bias, rtol=1e-3, atol=1e-3)
    arrays = dict(_storage.from_npz(path))
    del arrays["class_factors"]
    older = tmp_path / "older.npz"
    older.write_bytes(_storage.to_npz({**arrays, "bias": arrays.pop("class_bias")}))
    got = compare.load_model(older).logits(inputs)
    np.testing.assert_allclose(got, raw + bias, rtol=1e-3, atol=1e-3)


def test_a_refit_takes_the_features_of_its_own_training_rows(task, outcomes):
    """The new head is made of what the compiled network gives for them, nothing else."""
    plan = _plan.make_plan(task, BUDGET, METHODS["plain"].training)
    shared = _plan.make_shared(task, plan.training.augmentation)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf[:, 0]), outcomes[0].params)
    seeds = jnp.arange(2)

    def count(features, labels, num_classes):
        number = jnp.bincount(labels, length=num_classes).astype(jnp.float32)
        return posthoc.LinearHead(jnp.tile(jnp.mean(features, axis=0), (num_classes, 1)), number)

    new = _evaluate.refitted(plan, count, params, seeds, shared)
    for seed in range(2):
        np.testing.assert_array_equal(new["head"]["bias"][...][seed], task.class_counts)
        expected = features_of(task, outcomes[0], task.train[seed], seed=seed, rate=0).mean(axis=0)
        got = new["head"]["kernel"][...][seed][:, 3]
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
