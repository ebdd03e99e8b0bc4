"""The recommended model, saved in one file that reads back without unpickling anything."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import data, posthoc
from jaxbalance._storage import to_npz, write_atomically
from jaxbalance._types import Array, ArrayLike, HostArray, Params
from jaxbalance.compare._methods import METHODS
from jaxbalance.compare._plan import Budget, model_builder
from jaxbalance.compare._regression_score import RegressionScore
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
    about = {"class_names": task.dataset.class_names}
    write_model(path, task, budget, method, score, about, score.scaling._asdict())


def write_model(
    path: pathlib.Path,
    task: Task,
    budget: Budget,
    method: str,
    score: Score | RegressionScore,
    about: Mapping[str, Any],
    arrays: Mapping[str, Any],
) -> None:
    """Write the run that a score kept, what it needs to read inputs, and what else is given."""
    standardizer = jax.tree.map(lambda leaf: leaf[score.seed], task.standardizer)
    described = {
        "method": method,
        "model": budget.model,
        "input_shape": task.inputs.shape[1:],
        "feature_names": task.dataset.feature_names,
        **about,
    }
    leaves = {f"params/{i:04d}": np.asarray(p) for i, p in enumerate(jax.tree.leaves(score.params))}
    fixed = {f"standardizer/{name}": value for name, value in standardizer._asdict().items()}
    others = {name: np.asarray(value) for name, value in arrays.items()}
    text = {"about": np.asarray(json.dumps(described))}
    write_atomically(path, to_npz({**text, **others, **fixed, **leaves}))


def read_classifier(arrays: Mapping[str, HostArray], about: Mapping[str, Any]) -> Predictor:
    """The model of a classification, from what :func:`write_model` wrote."""
    method, names = about["method"], tuple(about["class_names"])
    build = model_builder(
        about["input_shape"], len(names), model=about["model"], head=METHODS[method].training.head
    )
    model = build(jax.random.key(0))
    params, standardize = parameters(arrays, model.params), standardization(arrays)
    scaling = _scaling(arrays)

    @jax.jit
    def logits(inputs: ArrayLike) -> Array:
        return posthoc.scale_logits(model.apply(params, standardize(inputs)), **scaling._asdict())

    return Predictor(logits, names, method)


def parameters(arrays: Mapping[str, HostArray], like: Params) -> Params:
    """Those of a file, in the structure of ``like``."""
    leaves = [jnp.asarray(arrays[name]) for name in sorted(arrays) if name.startswith("params/")]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def standardization(arrays: Mapping[str, HostArray]) -> Callable[[ArrayLike], Array]:
    """That of a file, as a function of inputs."""
    fields = {name: arrays[f"standardizer/{name}"] for name in data.Standardizer._fields}
    standardizer = data.Standardizer(**fields)
    return lambda inputs: data.standardize(standardizer, jnp.asarray(inputs))


def _scaling(arrays: Mapping[str, HostArray]) -> posthoc.LogitScaling:
    if "bias" in arrays:  # A file from before there were factors.
        return posthoc.LogitScaling(jnp.ones_like(arrays["bias"]), jnp.asarray(arrays["bias"]))
    fields = posthoc.LogitScaling._fields
    return posthoc.LogitScaling(*(jnp.asarray(arrays[name]) for name in fields))
