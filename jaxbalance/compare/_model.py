"""The recommended model, saved in one file that reads back without unpickling anything."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import data, posthoc
from jaxbalance._storage import from_npz, to_npz, write_atomically
from jaxbalance._types import Array, ArrayLike, HostArray
from jaxbalance.compare._methods import METHODS
from jaxbalance.compare._plan import Budget, model_builder
from jaxbalance.compare._score import Score
from jaxbalance.compare._task import Task


class Predictor(NamedTuple):
    """A trained model, its standardisation and its correction, as one function."""

    logits: Callable[[ArrayLike], Array]
    """``logits(inputs [B, ...]) -> [B, K]`` for inputs as the data set gives them."""
    class_names: tuple[str, ...]
    method: str


def save_model(path: pathlib.Path, task: Task, budget: Budget, method: str, score: Score) -> None:
    """Write the run of ``method`` that validation liked best."""
    standardizer = jax.tree.map(lambda leaf: leaf[score.seed], task.standardizer)
    about = {
        "method": method,
        "model": budget.model,
        "input_shape": task.inputs.shape[1:],
        "class_names": task.dataset.class_names,
        "feature_names": task.dataset.feature_names,
    }
    leaves = {f"params/{i:04d}": np.asarray(p) for i, p in enumerate(jax.tree.leaves(score.params))}
    fixed = {f"standardizer/{name}": value for name, value in standardizer._asdict().items()}
    described = {"about": np.asarray(json.dumps(about)), **score.scaling._asdict()}
    write_atomically(path, to_npz({**described, **fixed, **leaves}))


def load_model(path: str | pathlib.Path) -> Predictor:
    """Read the ``model.npz`` that a comparison saved.

    Args:
      path: the file.

    Returns:
      A :class:`Predictor`; ``argmax`` of its logits is the predicted class.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is damaged.
    """
    arrays = from_npz(pathlib.Path(path))
    about = json.loads(str(arrays["about"]))
    method, names = about["method"], tuple(about["class_names"])
    build = model_builder(
        about["input_shape"],
        len(names),
        model=about["model"],
        head=METHODS[method].training.head,
    )
    model = build(jax.random.key(0))
    leaves = [arrays[name] for name in sorted(arrays) if name.startswith("params/")]
    params = jax.tree.unflatten(jax.tree.structure(model.params), map(jnp.asarray, leaves))
    fields = {name: arrays[f"standardizer/{name}"] for name in data.Standardizer._fields}
    standardizer = data.Standardizer(**fields)
    scaling = _scaling(arrays)

    @jax.jit
    def logits(inputs: ArrayLike) -> Array:
        scores = model.apply(params, data.standardize(standardizer, jnp.asarray(inputs)))
        return posthoc.scale_logits(scores, **scaling._asdict())

    return Predictor(logits, names, method)


def _scaling(arrays: Mapping[str, HostArray]) -> posthoc.LogitScaling:
    if "bias" in arrays:  # A file from before there were factors.
        return posthoc.LogitScaling(jnp.ones_like(arrays["bias"]), jnp.asarray(arrays["bias"]))
    fields = posthoc.LogitScaling._fields
    return posthoc.LogitScaling(*(jnp.asarray(arrays[name]) for name in fields))
