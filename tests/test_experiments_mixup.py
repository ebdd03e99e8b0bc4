"""Mixup and rare features, at a small size: the model is the one described, and checks can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbalance import experiments
from tests.experiment_helpers import assert_refused, kept

pytestmark = pytest.mark.usefixtures("as_users_do")


@pytest.fixture(scope="module")
def mixup():
    return experiments.load("mixup_rare_features")


@pytest.fixture(scope="module")
def small(mixup):
    return mixup.Config(
        dimension=30,
        examples=24,
        filters=2,
        noises=(0.0, 0.3),
        initial=0.05,
        steps=60,
        stop=1,
        test_examples=8,
        seeds=2,
    )


@pytest.fixture(scope="module")
def result(mixup, small, tmp_path_factory):
    return experiments.run(mixup, small, results=tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def good(mixup):
    """Numbers of the kind that a run of the usual size gives."""

    def row(rare, alignment):
        ranges = {"rare accuracy": rare, "rare alignment": alignment, "training loss": 0.01}
        ranges |= {"common accuracy": 1.0, "common alignment": 1.5}
        return {"diverged": 0} | {name: [value] * 3 for name, value in ranges.items()}

    methods = mixup.METHODS
    return {
        "0.08": {method: row(1.0, 0.9) for method in methods},
        "0.12": {
            m: row(0.6 if m == "plain" else 0.99, 0.2 if m == "plain" else 0.9) for m in methods
        },
    }


def logits_by_hand(config, filters, noise, feature, weak_copy):
    """One example, with its patches written out in full."""
    patches = np.zeros((2, config.dimension))
    patches[0, feature], patches[1, weak_copy] = 1, config.weak
    patches = np.concatenate([patches, noise])
    squares = [[(patch @ column) ** 2 for column in filters.T] for patch in patches]
    by_filter = np.sum(squares, axis=0)
    return [by_filter[: config.filters].sum(), by_filter[config.filters :].sum()]


def test_responses_are_those_of_patches_written_out(mixup, small, generator):
    is_rare = np.array([False, True, True])
    data = mixup.draw(small, 0.5, 0, is_rare)
    assert data.labels.tolist() == [0, 1, 0]
    assert data.feature.tolist() == [0, 3, 2]
    assert data.noise.std() == pytest.approx(0.5, rel=0.15)
    filters = generator.normal(size=(small.dimension, 2 * small.filters))
    responses = mixup.responses(small, jnp.asarray(filters, jnp.float32), data)
    rows = zip(data.noise, data.feature, data.copy, strict=True)
    expected = [logits_by_hand(small, filters, *row) for row in rows]
    np.testing.assert_allclose(mixup.logits(responses), expected, rtol=1e-4)


def test_every_part_leaves_a_finished_folder(mixup, small, result):
    assert list(result.numbers) == ["0", "0.3"]
    first = mixup.summary(result.numbers).splitlines()[0]
    assert f"{result.numbers['0.3']['mixup']['rare accuracy'][0]:.3f}" in first
    record = kept(result)
    assert record["0/accuracy"].shape == (4, 2, 16, 2)
    # Stopped after its first step, mixup goes on as plain training does.
    final = record["0/loss"][:, :, -1]
    np.testing.assert_allclose(final[2], final[0], rtol=0.1)
    assert np.all(np.abs(final[1] / final[0] - 1) > 0.2), "mixup trained on plain examples"


def test_the_first_step_is_plain_gradient_descent(mixup, small):
    start, step, _ = mixup.programs(small)
    data = mixup.draw(small, 0.3, 0, np.arange(small.examples) < 4)
    seed = mixup.Seed(jax.random.key(0), data, data)
    plain = {name: values[0] for name, values in mixup.settings(small).items()}
    filters = jax.jit(start)(plain, seed)

    @jax.jit
    @jax.grad
    def gradient(filters):
        scores = mixup.logits(mixup.responses(small, filters, data))
        chosen = jax.nn.log_softmax(scores)[np.arange(small.examples), data.labels]
        return -chosen.mean()

    moved = jax.jit(step)(filters, plain, seed, jnp.int32(0))
    expected = filters - small.step_size * gradient(filters)
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    assert np.abs(np.asarray(moved - filters)).max() > 1e-3


def test_diverged_runs_are_counted_and_left_out(mixup, result):
    record = kept(result)
    record["0.3/diverged"][1] = [True, False]
    record["0.3/diverged"][3] = True
    numbers = mixup.measure(record)["0.3"]
    assert [row["diverged"] for row in numbers.values()] == [0, 1, 0, 2]
    left = record["0.3/accuracy"][1, 1, -1, 1]
    assert numbers["mixup"]["rare accuracy"] == pytest.approx([left] * 3, abs=1e-4)
    assert numbers["two weights"]["rare accuracy"] is None
    assert "diverged" in mixup.summary({"0.3": numbers})


@pytest.mark.parametrize(
    ("noise", "method", "what", "values"),
    [
        ("0.12", "mixup", "rare accuracy", [0.65, 0.6, 0.7]),
        ("0.12", "stopped mixup", "rare alignment", [0.2, 0.2, 0.2]),
        ("0.12", "plain", "training loss", [0.4, 0.4, 0.4]),
        ("0.12", "plain", "common accuracy", [0.8, 0.7, 0.9]),
        ("0.08", "plain", "rare accuracy", [0.8, 0.7, 0.9]),
        ("0.08", "mixup", "rare accuracy", [0.9, 0.9, 0.9]),
        ("0.08", "two weights", "diverged", 1),
    ],
)
def test_the_check_can_fail(mixup, good, noise, method, what, values):
    mixup.check(good)
    assert_refused(mixup.check, good, (noise, method, what), values)
