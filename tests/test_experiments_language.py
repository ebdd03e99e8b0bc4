"""Next words of a small transformer, at a tiny size: samples, frozen layers, checks that fail."""

import itertools
import zipfile
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbalance import experiments
from tests.experiment_helpers import assert_refused, kept

pytestmark = pytest.mark.usefixtures("as_users_do")


@pytest.fixture(scope="module")
def language():
    return experiments.load("heavy_tailed_language")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text of which every word is known: line i of 6 holds the words a .. f up to the i-th."""
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("\n".join(" ".join("abcdef"[: i + 1]) for i in range(6)) * 4)
    return path


@pytest.fixture(scope="module")
def small(language, text):
    sizes = {"vocabulary": 5, "examples": 20, "per_word": 4, "length": 2, "batch_size": 8}
    sizes |= {"width": 4, "hidden": 4, "heads": 1, "steps": 3, "seeds": 2}
    families = itertools.product(("", "head_"), ("sgd", "sign", "adam"))
    grids = {f"{prefix}{family}_sizes": (0.01, 0.1) for prefix, family in families}
    return language.Config(data=str(text), **sizes, **grids)


@pytest.fixture(scope="module")
def result(language, small, tmp_path_factory):
    """Of all parts, with SGD in the place of the other optimisers: two programs, and not six."""
    programs = language.programs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "programs", lambda *which: programs(*which[:2], "sgd"))
        return experiments.run(language, small, results=tmp_path_factory.mktemp("results"))


def good():
    """Numbers of the kind that a run of the usual size gives."""

    def row(frequent, rare):
        numbers = {"loss": (frequent + rare) / 2, "frequent": frequent, "rare": rare}
        ranges = {name: [value] * 3 for name, value in numbers.items()}
        grid = {"step sizes": [0.1, 1.0, 3.0], "worst seed": [4.0, 3.0, None]}
        ranges["lag"] = [rare - frequent] * 3
        return {"diverged": False, "inside the grid": True, **grid, **ranges}

    return {
        f"{kind}/{trained}/{method}": row(1.0, 6.0 if (kind, method) in FAR else 1.5)
        for kind, trained in itertools.product(("text", "equal"), ("all", "head"))
        for method in ("sgd", "weighted sgd", "sign", "adam")
        if kind == "text" or method in ("sgd", "adam")
    }


FAR = [("text", "sgd"), ("text", "sign")]


def test_words_are_numbered_by_frequency(language, small, text):
    tokens, groups = language.corpus(small)
    stream = text.read_text().replace("\n", " <eos> ").split()
    counts = sorted(Counter(stream).values(), reverse=True)
    assert len(tokens) == len(stream)
    assert np.bincount(tokens).tolist() == [*counts[:5], sum(counts[5:])]
    assert np.array_equal(np.unique(groups), np.arange(groups.max() + 1))
    assert np.all(np.diff(groups) >= 0)


def test_the_manual_of_python_has_a_heavy_tail(language):
    words = Counter(language.words("python"))
    counts = np.array(sorted(words.values())[::-1])
    assert len(words) > 2000
    assert words["the"] > 1000
    assert counts[0] > 100 * counts[499] > 500
    assert not any(word != word.lower() or " " in word for word in words)


def test_texts_are_read_from_folders(language, tmp_path):
    with zipfile.ZipFile(tmp_path / "ptb.zip", "w") as archive:
        archive.writestr("ptb/ptb.train.txt", " no it was n't \n black <unk> \n")
    expected = ["no", "it", "was", "n't", "<eos>", "black", "<unk>", "<eos>"]
    assert language.words(str(tmp_path)) == expected
    with pytest.raises(ValueError, match="data: got 'nowhere'"):
        language.words("nowhere")


def test_penn_treebank(language, shared_data):
    words = Counter(language.words(str(shared_data / "ptb")))
    assert (words["the"], words["<unk>"], words["<eos>"]) == (50770, 45020, 42068)


@pytest.mark.parametrize("kind", ["text", "equal"])
def test_samples_are_places_of_the_text(language, small, kind):
    tokens, _ = language.corpus(small)
    windows = {tuple(tokens[i : i + 3]) for i in range(len(tokens) - 2)}
    inputs, labels = language.draw(small, kind, 0)
    assert inputs.shape == (20, 2)
    assert {(*row, label) for row, label in zip(inputs, labels, strict=True)} <= windows
    counts = np.bincount(labels, minlength=5)
    assert len(counts) == 5
    assert (counts.tolist() == [4] * 5) == (kind == "equal")


def test_weights_are_one_on_average(language, small):
    labels = np.array([0] * 16 + [1] * 4 + [2])
    values = np.asarray(language.weights(small, "weighted sgd", labels))
    np.testing.assert_allclose(values[:3] / values[0], [1, 2, 4], rtol=1e-6)
    assert values[labels].mean() == pytest.approx(1)
    assert np.all(np.asarray(language.weights(small, "sgd", labels))[:3] == 1)


def test_frozen_layers_are_those_of_the_model(language, small):
    key = jax.random.key(3)
    inputs, _ = language.draw(small, "text", 0)
    features = language.frozen(small, key, inputs)
    params = language.init(small, "all", key)
    head = params["head"]
    logits = features @ head["kernel"][...] + head["bias"][...]
    apply = jax.jit(language.build(small, key).apply)
    np.testing.assert_allclose(logits, apply(params, jnp.asarray(inputs)), atol=1e-5)


def test_optimisers_are_told_apart_by_their_first_two_steps(language, small):
    grads = jnp.array([2.0, -0.5, 0.0])
    expected = {"sgd": [2.0, 1.9 * 2.0], "sign": [1.0, 1.9], "adam": [1.0, 1.0]}
    for family, moves in expected.items():
        chain = language.optimizer(small, family)(0.1)
        state = chain.init(grads)
        for move in moves:
            updates, state = chain.update(grads, state)
            sizes = [1, 0.25, 0] if family == "sgd" else [1, 1, 0]
            signs = np.array([-1, 1, 0])
            np.testing.assert_allclose(updates, 0.1 * move * signs * sizes, rtol=1e-4)


def test_every_part_leaves_a_finished_folder(language, small, result):
    assert len(result.numbers) == 12
    rows = result.numbers
    first = language.summary(rows).splitlines()[0]
    assert f"{rows['text/all/sgd']['lag'][0]:.1f} above" in first
    record = kept(result)
    losses, groups = (record[f"text/all/sgd/{what}"] for what in ("loss", "groups"))
    sizes = np.stack([np.bincount(language.draw(small, "text", s)[1], minlength=5) for s in (0, 1)])
    members = np.arange(groups.shape[-1])[:, None] == language.corpus(small)[1]
    # The groups' losses, by their sizes, add up to the loss.
    parts = np.einsum("sg,srg->sr", sizes @ members.T, groups)
    np.testing.assert_allclose(parts / sizes.sum(axis=1)[:, None], losses, rtol=1e-5)
    assert np.all(losses[:, -1] < losses[:, 0])


@pytest.mark.parametrize(
    ("name", "what", "value"),
    [
        ("text/all/sgd", "lag", [1.0, 0.9, 1.1]),
        ("text/all/adam", "lag", [4.5, 4.4, 4.6]),
        ("text/head/weighted sgd", "lag", [4.5, 4.4, 4.6]),
        ("text/all/adam", "rare", [5.5, 5.4, 5.6]),
        ("equal/all/sgd", "lag", [3.0, 2.9, 3.1]),
        ("equal/head/adam", "lag", [3.0, 2.9, 3.1]),
        ("text/all/sign", "inside the grid", False),
        ("text/all/sign", "diverged", True),
    ],
)
def test_the_check_can_fail(language, name, what, value):
    numbers = good()
    language.check(numbers)
    assert "signs do not catch up" in language.summary(numbers)
    assert_refused(language.check, numbers, (name, what), value)
