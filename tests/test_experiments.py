"""The experiments run at a tiny size, and what they conclude from can be trusted."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxbalance import experiments, models
from tests.experiment_helpers import kept

pytestmark = pytest.mark.usefixtures("as_users_do")


@pytest.fixture(scope="module")
def vision():
    return experiments.load("long_tailed_vision")


@pytest.fixture(scope="module")
def tiny(vision):
    sizes = {"width": 4, "shrink": 1, "batch_size": 16, "steps": 3, "seeds": 1}
    return vision.Config(step_sizes=(0.1,), dtype="float64", **sizes)


@pytest.fixture(scope="module", autouse=True)
def float64():
    """All steps are taken in float64, so that they can share what was compiled."""
    with jax.enable_x64(True):
        yield


def layer(shape, num_classes, *, depth, width, rngs):
    """In place of the ResNet: compiling is nearly all the time that a few steps take."""
    assert (depth, width) == (8, 4)
    return models.MLP(int(np.prod(shape)), num_classes, hidden=(width,), rngs=rngs)


@pytest.fixture(scope="module")
def trainer(vision, tiny):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "ResNet", layer)
        return vision.Trainer(tiny, vision.load("digits"))


@pytest.fixture
def compiled_once(vision, trainer, monkeypatch):
    """Every test that trains takes the same compiled steps."""

    def same(config, dataset):
        assert (config, dataset.name) == (trainer.config, "digits")
        return trainer

    monkeypatch.setattr(vision, "Trainer", same)


@pytest.mark.usefixtures("compiled_once")
def test_devices_agree(vision, tiny, monkeypatch):
    devices_agree = experiments.load("devices_agree")
    assert jax.device_count() == 8
    monkeypatch.setattr(devices_agree, "METHODS", ("pcnsgd",))
    monkeypatch.setattr(devices_agree, "training", lambda config: tiny)
    found = devices_agree.parts(devices_agree.Config())["pcnsgd"]()
    assert set(found) == {"jit", "sharded", "pmap", "devices"}
    assert max(found[devices] for devices in vision.DEVICES) < 1e-9
    means = devices_agree.parts(devices_agree.Config())["means of means"]()
    record = {f"pcnsgd/{name}": value for name, value in found.items()}
    record |= {f"means of means/{name}": value for name, value in means.items()}
    numbers = devices_agree.measure(record | {"sgd/devices": np.array(8)})
    devices_agree.check(numbers)
    assert devices_agree.summary(numbers).startswith("On 8 devices")
    for wrong in ({"pcnsgd": {"pmap": 1e-6}}, {"mean of means, off by": 0.0}):
        with pytest.raises(AssertionError):
            devices_agree.check(numbers | wrong)


@pytest.mark.usefixtures("compiled_once")
def test_vision_runs_and_keeps_its_results(vision, tiny, tmp_path):
    result = experiments.run(vision, tiny, results=tmp_path)
    assert result.numbers["early step"] == 1
    assert result.numbers["sum of classes, first losses off by"] < 1e-4
    assert "PCNSGD" in vision.summary(result.numbers)
    record = kept(result)
    moments = record["long tail/pcnsgd/moments"]
    assert record["long tail/pcnsgd/test"].shape == (1, len(moments), 10)


def test_vision_draws_disjoint_rows_of_the_wanted_classes(vision, tiny):
    data = vision.load("digits")
    sample = vision.draw(dataclasses.replace(tiny, ratio=20.0), data, balanced=False)
    counts = np.bincount(sample.train[1])
    pool = int(np.floor(0.6 * np.sum(data.labels == 0)))
    assert abs(counts[0] - pool) <= 1
    np.testing.assert_allclose(counts, counts[0] * 20.0 ** -(np.arange(10) / 9), atol=1)
    for _, labels in (sample.validation, sample.test):
        assert len(set(np.bincount(labels))) == 1
    rows = [set(map(bytes, images)) for images, _ in sample]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    even = np.bincount(vision.draw(tiny, data, balanced=True).train[1])
    tail = np.bincount(vision.draw(tiny, data, balanced=False).train[1])
    np.testing.assert_array_equal(even, np.full(10, tail.sum() // 10))


def test_vision_measures_what_it_says(vision):
    recall = np.zeros((2, 3, 4))
    recall[0, 1], recall[1, 1] = [1, 0.5, 0.25, 0], [1, 1, 0.5, 0.5]
    recall[0, 2], recall[1, 2] = [1, 1, 1, 0.5], [1, 1, 1, 1]
    curves = {"test": recall, "size": np.array(0.1), "grid": np.array([0.2, 0.3])}
    loss = np.linspace(2, 1, 5)
    record = {"sum of classes/losses": np.stack([loss, loss + 0.25])}
    curves["moments"] = np.array([1, 2, 16])
    for kind in ("long tail", "balanced"):
        for method in ("sgd", "pcnsgd"):
            record |= {f"{kind}/{method}/{name}": value for name, value in curves.items()}
    numbers = vision.measure(record)
    assert numbers["early step"] == 2
    assert numbers["sum of classes, first losses off by"] == pytest.approx(0.25)
    summary = numbers["long tail/pcnsgd"]
    # The three last classes: means .25 and 2/3 early, 5/6 and 1 at the end.
    assert summary["rare, early"] == pytest.approx([0.458, 0.25, 0.667], abs=1e-3)
    assert summary["rare, end"] == pytest.approx([0.917, 0.833, 1.0], abs=1e-3)
    assert summary["lowest, early"] == [0.25, 0.0, 0.5]
    assert summary["mean, early"] == pytest.approx([0.594, 0.438, 0.75], abs=1e-3)


def outcome(tail_gain, balanced_gain, off=0.0):
    numbers = {"sum of classes, first losses off by": off}
    for kind, gain in (("long tail", tail_gain), ("balanced", balanced_gain)):
        for method, value in (("sgd", 0.2), ("pcnsgd", 0.2 + gain)):
            names = ("rare, early", "rare, end", "lowest, end", "mean, end")
            numbers[f"{kind}/{method}"] = dict.fromkeys(names, [value] * 3)
    return numbers


def test_vision_refuses_what_does_not_support_its_claim(vision):
    vision.check(outcome(0.3, 0.0))
    for bad in (outcome(0.0, 0.0), outcome(0.3, 0.3), outcome(0.3, 0.0, off=0.1)):
        with pytest.raises(AssertionError):
            vision.check(bad)


def test_vision_halves_images_by_the_mean_of_squares(vision, generator):
    images = generator.integers(256, size=(2, 5, 4, 3)).astype(np.uint8)
    small = vision._shrunk(images, 2)
    assert small.shape == (2, 2, 2, 3)
    assert small[1, 0, 1, 2] == images[1, 0:2, 2:4, 2].mean()


def test_cifar_from_jpeg_coefficients(vision, shared_data, tmp_path):
    """Some images, whose coefficients do not all fit eight bits, summed one cosine at a time."""
    with np.load(shared_data / "cifar10_jpeg" / "cifar10_dct.npz") as stored:
        known = {name: stored[name] for name in ("By", "Bc", "coef", "exc", "is_test", "y")}
    assert np.bincount(known["y"][known["is_test"].astype(bool)]).tolist() == [1000] * 10
    beyond = known["exc"][:, np.isin(known["exc"][2], known["exc"][2, [0, -1]])]
    first = np.unique(known["y"], return_index=True)[1]
    rows = np.union1d([*first, known["coef"].shape[-1] - 1], beyond[2])
    beyond = np.stack([*beyond[:2], np.searchsorted(rows, beyond[2]), beyond[3]])
    coefficients = known["coef"][..., rows]
    some = known | {name: known[name][rows] for name in ("is_test", "y")}
    np.savez(tmp_path / "cifar10_dct.npz", **some | {"coef": coefficients, "exc": beyond})
    data = vision.load(str(tmp_path))
    np.testing.assert_array_equal(data.labels, known["y"][rows])
    np.testing.assert_array_equal(data.test_indices, np.flatnonzero(known["is_test"][rows]))
    coefficients = coefficients.astype(int)
    for block, place, image, value in beyond.T:
        coefficients[block, place, image] = value
    for image in range(len(rows)):
        for tile, (top, left) in enumerate(((0, 0), (0, 16), (16, 0), (16, 16))):
            blocks = coefficients[6 * tile : 6 * tile + 6, :, image]
            came = data.inputs[image, top : top + 16, left : left + 16]
            wanted = tile_of(blocks, known["By"].astype(float), known["Bc"].astype(float))
            np.testing.assert_allclose(came, wanted, atol=0.51)


def tile_of(blocks, luma, chroma):
    """16 x 16 pixels: blocks of luma by rows, then Cb, then Cr."""
    rows = [
        [sum(blocks[2 * i + j, k] * luma[k] for k in range(64)) for j in (0, 1)] for i in (0, 1)
    ]
    light = np.block(rows) + 128
    blue, red = (
        np.kron(sum(blocks[c, k] * chroma[k] for k in range(64)), np.ones((2, 2))) for c in (4, 5)
    )
    green = light - 0.344136 * blue - 0.714136 * red
    return np.clip(np.stack([light + 1.402 * red, green, light + 1.772 * blue], axis=-1), 0, 255)
