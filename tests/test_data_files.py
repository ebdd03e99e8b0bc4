"""Archives, folders and names: what is in the file arrives, what is wrong is said in one line."""

import gzip
import json
import lzma
import struct

import numpy as np
import pytest

from jaxbalance import data
from tests.data_helpers import one_hot_by_hand, refusal

X = np.array([[1.0, 0.0], [2.0, 1.0], [3.0, 0.0], [np.nan, 2.0]])
Y = np.array([4, 9, 9, 4])
IMAGES = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)


def saved(folder, name="sample", **arrays):
    np.savez(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.npz"


@pytest.mark.parametrize("keys", [("X", "y"), ("inputs", "labels")])
def test_npz_with_inputs_and_labels(tmp_path, keys):
    path = saved(tmp_path, **dict(zip(keys, (X, Y), strict=True)))
    for dataset in (data.read_npz(path), data.read_npz(str(path)), data.load(str(path))):
        np.testing.assert_array_equal(dataset.inputs, X.astype(np.float32))
        assert dataset.labels.tolist() == [0, 1, 1, 0]
        assert dataset.class_names == ("4", "9")
        assert dataset.name == "sample"
        assert dataset.test_indices is None


def test_npz_in_parts(tmp_path):
    path = saved(tmp_path, x_train=X[:3], y_train=Y[:3, None], x_test=X[3:], y_test=Y[3:, None])
    dataset = data.read_npz(path)
    np.testing.assert_array_equal(dataset.inputs, X.astype(np.float32))
    assert dataset.labels.tolist() == [0, 1, 1, 0]
    assert dataset.test_indices.tolist() == [3]


def test_npz_extras_and_compressed_images(tmp_path):
    path = tmp_path / "Images.NPZ"
    with open(path, "wb") as stream:
        np.savez_compressed(
            stream,
            X=IMAGES,
            y=[[0], [1], [1], [0]],
            class_names=["cat", "dog"],
            is_test=[0, 0, 1, 1],
        )
    dataset = data.load(str(path))
    assert dataset.inputs.shape == (4, 4, 4, 1)
    assert dataset.inputs.dtype == np.uint8
    assert dataset.class_names == ("cat", "dog")
    assert dataset.test_indices.tolist() == [2, 3]
    assert dataset.name == "Images"


def test_npz_target_names_another_key_whose_classes_name_themselves(tmp_path):
    path = saved(tmp_path, X=X, y=Y, colour=np.array(list("rgbr")), class_names=["a", "b"])
    dataset = data.load(str(path), target="colour")
    assert dataset.class_names == ("b", "g", "r")
    assert dataset.labels.tolist() == [2, 1, 0, 2]
    assert data.load(str(path)).class_names == ("a", "b")


def test_npz_categories_become_columns(tmp_path):
    levels = json.dumps({"kind": ["u", "v", "w"]})
    path = saved(
        tmp_path,
        X=X,
        y=Y,
        feature_names=["size", "kind"],
        is_categorical=[False, True],
        cat_levels_json=levels,
    )
    dataset = data.read_npz(path)
    assert dataset.feature_names == ("size", "kind=u", "kind=v", "kind=w")
    expected = np.column_stack([X[:, 0], one_hot_by_hand("uvuw")[1]])
    np.testing.assert_array_equal(dataset.inputs, expected.astype(np.float32))


def test_npz_codes_without_text_name_themselves_and_missing_is_a_level(tmp_path):
    path = saved(tmp_path, X=X, y=Y, is_categorical=np.array([1, 0]))
    dataset = data.read_npz(path)
    names, table = one_hot_by_hand(["1", "2", "3", "missing"])
    assert dataset.feature_names == (*(f"x0={name}" for name in names), "x1")
    np.testing.assert_array_equal(dataset.inputs, np.column_stack([table, X[:, 1]]))


def without_y(**arrays):
    return {"X": X, "y": Y} | arrays


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"A": X, "B": Y}, ["X and y", "it holds A, B"]),
        ({f"k{i}": Y for i in range(20)}, ["k11, ..."]),
        ({"X": X}, ["X and y", "it holds X"]),
        ({"x_train": X, "y_train": Y, "x_test": X}, ["y_test"]),
        (without_y(is_test=[0, 1]), ["is_test", "(2,)", "4 rows"]),
        (without_y(is_test=[0, 1, 2, 0]), ["is_test"]),
        (without_y(is_test=[1, 1, 1, 1]), ["every row"]),
        (without_y(is_categorical=[True]), ["is_categorical", "(1,)"]),
        (without_y(X=IMAGES, is_categorical=[True] * 4), ["is_categorical", "(4, 4, 4)"]),
        (without_y(is_categorical=[1, 0], feature_names=["a"]), ["1 feature_names"]),
        (without_y(is_categorical=[0, 1], cat_levels_json="{"), ["no JSON"]),
        (without_y(is_categorical=[0, 1], cat_levels_json="[1]"), ["cat_levels_json", "map"]),
        (without_y(is_categorical=[0, 1], cat_levels_json='{"x1": "ab"}'), ["list"]),
        (without_y(is_categorical=[0, 1], cat_levels_json='{"x1": ["a", "b"]}'), ["'x1'", "codes"]),
        (without_y(X=-X, is_categorical=[0, 1]), ["'x1'", "codes"]),
        (without_y(X=X / 4, is_categorical=[0, 1]), ["'x1'", "codes"]),
        (without_y(y=np.eye(4)), ["(4, 4)", "one class per row"]),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :1], "y_test": Y}, ["inputs", "(4, 1)"]),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y[:, None]}, ["labels", "(4, 1)"]),
        ({"x_train": 1.0, "y_train": Y, "x_test": 2.0, "y_test": Y}, ["inputs", "()"]),
        ({"x_train": X, "y_train": Y[:2], "x_test": X[:2], "y_test": Y}, ["train", "4", "2"]),
    ],
)
def test_npz_that_does_not_fit_is_refused(tmp_path, arrays, words):
    message = refusal(data.read_npz, saved(tmp_path, **arrays))
    for word in words:
        assert word in message


def test_npz_with_python_objects_is_never_unpickled(tmp_path):
    path = saved(tmp_path, X=X, y=Y.astype(object))
    message = refusal(data.read_npz, path)
    assert "'y'" in message
    assert "Object arrays" in message


def test_npz_target_must_be_there(tmp_path):
    path = saved(tmp_path, X=X, y=Y, quality=Y)
    assert "did you mean quality?" in refusal(data.read_npz, path, target="qualty")
    parts = saved(tmp_path, "parts", x_train=X, y_train=Y, x_test=X, y_test=Y)
    assert "keys X or inputs" in refusal(data.read_npz, parts, target="y_train")


def test_npz_identifier_column_is_refused(tmp_path):
    table = np.arange(202.0).reshape(101, 2)
    path = saved(tmp_path, X=table, y=np.arange(101) % 2, is_categorical=[1, 0])
    message = refusal(data.read_npz, path)
    assert "'x0' has 101 different levels" in message
    assert "drop" in message


@pytest.mark.parametrize("damage", ["text", "cut", "flipped", "npy", "empty"])
def test_npz_that_is_damaged_is_refused(tmp_path, damage):
    path = tmp_path / "broken.npz"
    np.savez_compressed(
        path, X=np.random.default_rng(0).normal(size=(500, 4)), y=np.arange(500) % 2
    )
    content = bytearray(path.read_bytes())
    if damage == "text":
        path.write_text("size,class\n1,2\n")
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[300:340] = bytes(40)
        path.write_bytes(content)
    elif damage == "npy":
        with open(path, "wb") as stream:
            np.save(stream, X)
    else:
        path.write_bytes(b"")
    assert "broken.npz" in refusal(data.read_npz, path)


def idx(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def mnist_layout(folder, **contents):
    """The four files, one of them plain, one .gz and two .xz; None leaves one out."""
    files = {
        "train-images-idx3-ubyte": idx(IMAGES),
        "train-labels-idx1-ubyte.gz": gzip.compress(idx(np.array([0, 7, 7, 0]))),
        "t10k-images-idx3-ubyte.xz": lzma.compress(idx(IMAGES[::-1])),
        "t10k-labels-idx1-ubyte.xz": lzma.compress(idx(np.array([7, 0, 3, 7]))),
    } | contents
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return str(folder)


def test_folder_in_the_mnist_layout(tmp_path):
    dataset = data.load(mnist_layout(tmp_path))
    assert dataset.inputs.shape == (8, 4, 4, 1)
    assert dataset.inputs.dtype == np.uint8
    np.testing.assert_array_equal(dataset.inputs[..., 0], np.concatenate([IMAGES, IMAGES[::-1]]))
    assert dataset.class_names == ("0", "3", "7")
    assert dataset.labels.tolist() == [0, 2, 2, 0, 2, 0, 1, 2]
    assert dataset.test_indices.tolist() == [4, 5, 6, 7]
    assert dataset.name == tmp_path.name


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({"train-images-idx3-ubyte": idx(IMAGES)[:-1]}, ["train-images", "cannot be read"]),
        ({"train-images-idx3-ubyte": b"\0"}, ["train-images", "cannot be read"]),
        ({"train-images-idx3-ubyte": b"GIF89a" * 9}, ["not start like an idx"]),
        ({"train-labels-idx1-ubyte.gz": b"plain"}, ["train-labels", "cannot be read"]),
        ({"t10k-images-idx3-ubyte.xz": b"plain"}, ["t10k-images", "cannot be read"]),
        ({"t10k-images-idx3-ubyte.xz": lzma.compress(idx(IMAGES))[:-20]}, ["t10k-images"]),
        ({"t10k-images-idx3-ubyte.xz": lzma.compress(idx(IMAGES[:, 1:]))}, ["(4, 3, 4)"]),
        ({"t10k-images-idx3-ubyte.xz": None}, ["four files", "it holds t10k-labels"]),
    ],
)
def test_folder_in_the_mnist_layout_that_is_damaged(tmp_path, contents, words):
    message = refusal(data.load, mnist_layout(tmp_path, **contents))
    for word in words:
        assert word in message


def test_folder_stands_for_the_archive_of_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "little"
    folder.mkdir()
    saved(folder, "little", X=X, y=Y, other=np.array([0, 1, 2, 2]))
    saved(folder, "another", X=X, y=Y)
    assert data.load(f"{folder}/").name == "little"
    assert len(data.load(str(folder), target="other").class_names) == 3
    monkeypatch.chdir(folder)
    assert data.load(".").name == "little"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.load("~/little").name == "little"


def test_folder_without_data_says_what_it_holds(tmp_path):
    assert "it holds nothing" in refusal(data.load, str(tmp_path))
    (tmp_path / "notes.txt").write_text("")
    message = refusal(data.load, str(tmp_path))
    assert f"must hold {tmp_path.name}.npz" in message
    assert "it holds notes.txt" in message


def test_load_names_what_may_have_been_meant(tmp_path):
    saved(tmp_path, "mammography", X=X, y=Y)
    message = refusal(data.load, str(tmp_path / "mamography.npz"))
    assert "did you mean mammography.npz?" in message
    assert "no such file, nor" in refusal(data.load, str(tmp_path / "nowhere" / "a.npz"))
    assert "did you mean digits" in refusal(data.load, "digit")


def test_load_refuses_other_endings(tmp_path):
    path = tmp_path / "table.parquet"
    path.write_bytes(b"PAR1")
    message = refusal(data.load, str(path))
    for ending in (".npz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", "digits", "tfds:NAME"):
        assert ending in message


def test_load_refuses_a_target_where_there_is_nothing_to_choose(tmp_path):
    for source in ("digits", "tfds:mnist", mnist_layout(tmp_path)):
        assert "leave out the target 'kind'" in refusal(data.load, source, target="kind")


def test_load_finds_the_digits():
    np.testing.assert_array_equal(data.load("digits").inputs, data.digits().inputs)


# The real sets: shapes and counts as their authors publish them.


def test_real_mammography(shared_data):
    dataset = data.load(str(shared_data / "mammography"))
    assert dataset.inputs.shape == (11183, 6)
    assert dataset.class_names == ("-1", "1")
    assert np.bincount(dataset.labels).tolist() == [10923, 260]
    message = refusal(data.load, str(shared_data / "mammography" / "mammography.csv.gz"))
    assert "is the header line missing?" in message


def test_real_yeast(shared_data):
    dataset = data.load(str(shared_data / "yeast" / "yeast.npz"))
    assert dataset.inputs.shape == (1484, 8)
    counts = dict(zip(dataset.class_names, np.bincount(dataset.labels).tolist(), strict=True))
    assert counts["CYT"] == 463
    assert counts["ERL"] == 5
    assert len(counts) == 10


def test_real_adult(shared_data):
    dataset = data.load(str(shared_data / "adult"))
    with np.load(shared_data / "adult" / "adult.npz") as raw:
        table, names = raw["X"], raw["feature_names"].tolist()
        levels = json.loads(str(raw["cat_levels_json"]))
    assert dataset.inputs.shape == (48842, 6 + sum(map(len, levels.values())))
    assert len(dataset.test_indices) == 16281
    assert dataset.class_names == ("<=50K", ">50K")
    widow = dataset.feature_names.index("marital_status=Widowed")
    codes = table[:, names.index("marital_status")]
    widowed = codes == levels["marital_status"].index("Widowed")
    np.testing.assert_array_equal(dataset.inputs[:, widow], widowed)
    age = dataset.inputs[:, dataset.feature_names.index("age")]
    np.testing.assert_array_equal(age, table[:, names.index("age")])


def test_real_shuttle(shared_data):
    dataset = data.load(str(shared_data / "shuttle"))
    assert dataset.inputs.shape == (58000, 9)
    assert np.bincount(dataset.labels).tolist() == [45586, 50, 171, 8903, 3267, 10, 13]


def test_real_fashion_mnist(shared_data):
    dataset = data.load(str(shared_data / "fashion_mnist"))
    assert dataset.inputs.shape == (70000, 28, 28, 1)
    assert np.bincount(dataset.labels).tolist() == [7000] * 10
    assert dataset.test_indices.tolist() == list(range(60000, 70000))
    # The mean brightness of the training images, as everybody normalises with it.
    assert dataset.inputs[:60000].mean() / 255 == pytest.approx(0.2860, abs=5e-5)


def test_real_archives_with_other_keys_list_them(shared_data):
    message = refusal(data.load, str(shared_data / "keel" / "keel_imbalanced.npz"))
    assert "it holds names, X__abalone_17_vs_7_8_9_10" in message
    assert message.endswith(", ...")


def test_parts_as_medmnist_names_them(tmp_path):
    parts = {"train": slice(0, 2), "val": slice(2, 3), "test": slice(3, 4)}
    arrays = {f"{part}_images": X[rows] for part, rows in parts.items()}
    arrays |= {f"{part}_labels": Y[rows, None] for part, rows in parts.items()}
    dataset = data.read_npz(saved(tmp_path, **arrays))
    np.testing.assert_array_equal(dataset.inputs, X)
    assert [dataset.class_names[k] for k in dataset.labels] == [str(y) for y in Y]
    assert dataset.test_indices.tolist() == [3]


def test_real_medical_images(shared_data):
    dataset = data.load(str(shared_data / "pneumonia_mnist" / "pneumoniamnist.npz"))
    assert dataset.inputs.shape == (4708 + 524 + 624, 28, 28, 1)
    labels = dataset.labels[dataset.test_indices]
    assert np.bincount(labels, minlength=2).tolist() == [234, 390]


def test_real_regression_target(shared_data):
    assert "regression target" in refusal(data.load, str(shared_data / "concrete"))
