"""Data sets prepared by TensorFlow Datasets, read without TensorFlow."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxbalance._check import InputError
from jaxbalance._types import HostArray
from jaxbalance.data import _columns, _wording
from jaxbalance.data._dataset import Dataset, from_arrays


def read_tfds(name: str, *, data_dir: str | None = None) -> Dataset:
    """Read a data set that TensorFlow Datasets has prepared as array_record; nothing is downloaded.

    Inputs and label are the builder's ``supervised_keys``. Where it names none, the label is its
    one class label, and the input its one image or else a table of all other features. In a table,
    features stand in sorted order; scalars and vectors of numbers are columns, and text and class
    labels become one column "name=level" for each level, as in :func:`read_csv`.

    Args:
      name: ``NAME``, ``NAME/CONFIG`` or ``NAME:VERSION`` as in ``tfds.data_source``.
      data_dir: the folder of prepared data sets; None takes ``TFDS_DATA_DIR`` or else
        ``~/tensorflow_datasets``.

    Returns:
      The :class:`Dataset` named ``name``: the splits train and test where there are both (test is
      the test split), else train or the only one. Other splits are not read.

    Raises:
      InputError: (a ValueError) in one line: tensorflow-datasets is missing, an unknown name, a
        data set that is not prepared (with the recipe), images of different sizes, features that
        make neither a table nor an image, or whatever :func:`from_arrays` refuses.

    >>> read_tfds("mnist").inputs.shape  # doctest: +SKIP
    (70000, 28, 28, 1)
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            f'tfds:{name}: needs TensorFlow Datasets; pip install "jaxbalance[data]"'
        ) from error
    info, splits = _read(tfds, name, data_dir)
    rows = [row for split in splits for row in split]
    if not rows:
        raise InputError(f"tfds:{name}: the prepared data set has no examples; prepare it again")
    label, features = _roles(tfds, name, info)
    inputs, feature_names = _inputs(tfds, name, features, rows)
    labels, class_names = _labels(tfds, name, label, info.features[label], rows)
    return from_arrays(
        inputs,
        labels,
        name=name,
        class_names=class_names,
        feature_names=feature_names,
        test_indices=np.arange(len(splits[0]), len(rows)),
    )


def _read(tfds: Any, name: str, data_dir: str | None) -> tuple[Any, list[list[dict[str, Any]]]]:
    """What is known of the data set, and the rows of the splits to read."""
    # Depending on what is missing TFDS raises quite different exceptions, assertions among them.
    try:
        sources = tfds.data_source(name, data_dir=data_dir, download=False)
        if not sources:
            # Without a list of splits (nothing prepared, or mocked data) train is all to ask for.
            train = tfds.data_source(name, split="train", data_dir=data_dir, download=False)
            sources = {"train": train}
        splits = [list(sources[split]) for split in _splits_to_read(name, list(sources))]
        return next(iter(sources.values())).dataset_info, splits
    except InputError:
        raise
    except Exception as error:
        raise InputError(_advice(tfds, name, error)) from error


def _splits_to_read(name: str, there: Sequence[str]) -> list[str]:
    if "train" in there:
        return ["train", "test"] if "test" in there else ["train"]
    if len(there) == 1:
        return list(there)
    raise InputError(
        f"tfds:{name}: has no split called train but {_wording.listed(there)}; only a data set "
        "with a train split or a single one can be read"
    )


def _advice(tfds: Any, name: str, error: Exception) -> str:
    base = re.split("[/:]", name)[0]
    known = tfds.list_builders(with_community_datasets=False)
    if base not in known:
        close = _wording.suggestion(base, known)
        return f"tfds:{name}: TFDS has no such data set, nor is one prepared{close}; check the name"
    because = _wording.reason(error)
    if isinstance(error, ImportError) and "tensorflow" not in because.lower():
        return f'tfds:{name}: cannot be read ({because}); pip install "jaxbalance[data]"'
    version = ""
    if isinstance(error, ImportError) and ":" not in name:
        version = f", and read tfds:{name}:VERSION, since without one its builder needs TensorFlow"
    return (
        f"tfds:{name}: is not prepared for reading here ({because}); run once, where TensorFlow is "
        f"installed, tfds.builder({name!r}, file_format='array_record').download_and_prepare()"
        f"{version}"
    )


def _roles(tfds: Any, name: str, info: Any) -> tuple[str, dict[str, Any]]:
    """The key of the label, and the input features by their keys."""
    every = dict(info.features.items())
    if info.supervised_keys is not None:
        inputs, label = info.supervised_keys[:2]
        chosen = _flat(inputs)
    else:
        classes = [key for key, one in every.items() if isinstance(one, tfds.features.ClassLabel)]
        images = [key for key, one in every.items() if _is_image(tfds, one)]
        label = classes[0] if len(classes) == 1 else None
        chosen = images if len(images) == 1 else [key for key in every if key != label]
    if label not in every or every[label].shape != ():
        raise InputError(
            f"tfds:{name}: it is not clear which feature is the class; its features are "
            f"{_described(every)}; save inputs and labels as .npz instead"
        )
    return label, {key: every[key] for key in chosen}


def _flat(keys: Any) -> list[str]:
    if isinstance(keys, str):
        return [keys]
    parts = keys.values() if isinstance(keys, Mapping) else keys
    return [key for part in parts for key in _flat(part)]


def _described(features: Mapping[str, Any]) -> str:
    return _wording.listed(f"{key} ({type(one).__name__})" for key, one in features.items())


def _kind(feature: Any) -> str:
    """NumPy's letter for a feature of known shape, "" for nested features and sequences."""
    shape = feature.shape
    if not isinstance(shape, tuple) or not isinstance(feature.np_dtype, type | np.dtype):
        return ""
    return np.dtype(feature.np_dtype).kind


def _is_image(tfds: Any, feature: Any) -> bool:
    if isinstance(feature, tfds.features.Image):
        return True
    return _kind(feature) in tuple("biuf") and len(feature.shape) in (2, 3)


def _labels(
    tfds: Any, name: str, key: str, feature: Any, rows: Sequence[Mapping[str, Any]]
) -> tuple[HostArray | list[object], list[str] | None]:
    values = np.asarray([row[key] for row in rows])
    if not isinstance(feature, tfds.features.ClassLabel):
        return values.tolist(), None
    unknown = int(np.sum(values < 0))
    if unknown:
        raise InputError(
            f"tfds:{name}: {unknown} of {len(rows)} examples in train and test have no label (-1); "
            "save those that have one as .npz instead"
        )
    return values, feature.names


def _inputs(
    tfds: Any, name: str, features: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> tuple[HostArray, tuple[str, ...] | None]:
    key = next(iter(features), "")
    if len(features) == 1 and _is_image(tfds, features[key]):
        return _images(name, key, rows), None
    table = _table(tfds, name, features, rows)
    return table.values, table.names


def _images(name: str, key: str, rows: Sequence[Mapping[str, Any]]) -> HostArray:
    shapes = sorted({row[key].shape for row in rows})
    if len(shapes) > 1:
        raise InputError(
            f"tfds:{name}: images have {len(shapes)} different sizes, from {shapes[0]} to "
            f"{shapes[-1]}; resize them to one and save them as .npz"
        )
    return np.stack([row[key] for row in rows])


def _table(
    tfds: Any, name: str, features: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> _columns.Columns:
    parts = []
    for key, feature in sorted(features.items()):
        values = [row[key] for row in rows]
        if isinstance(feature, tfds.features.FeaturesDict):
            parts.append(_table(tfds, name, dict(feature.items()), values))
        else:
            parts.extend(_column(tfds, name, key, feature, values))
    return _columns.joined(f"tfds:{name}", parts)


def _column(
    tfds: Any, name: str, key: str, feature: Any, values: Sequence[Any]
) -> list[_columns.Columns]:
    if isinstance(feature, tfds.features.ClassLabel):
        texts = ["missing" if value < 0 else feature.int2str(int(value)) for value in values]
        return [_columns.categorical(f"tfds:{name}", key, texts)]
    if _kind(feature) == "O" and feature.shape == ():
        return [_columns.categorical(f"tfds:{name}", key, values)]
    if _kind(feature) in tuple("biuf") and feature.shape == ():
        return [_columns.numeric(key, np.asarray(values))]
    if _kind(feature) in tuple("biuf") and len(feature.shape) == 1 and None not in feature.shape:
        return [_columns.numeric(f"{key}[{i}]", one) for i, one in enumerate(np.stack(values).T)]
    raise InputError(
        f"tfds:{name}: the feature {key} ({type(feature).__name__}) of shape {feature.shape} is "
        "neither numbers nor text of a table; save inputs and labels as .npz instead"
    )
