"""The recommended regression, saved in one file that reads back without unpickling anything."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import data
from jaxbalance._storage import from_npz, to_npz, write_atomically
from jaxbalance._types import Array, ArrayLike, HostArray
from jaxbalance.compare._model import Predictor
from jaxbalance.compare._model import load_model as load_classifier
from jaxbalance.compare._plan import Budget
from jaxbalance.compare._regression_score import RegressionScore
from jaxbalance.compare._regression_sweep import predict, regressor
from jaxbalance.compare._regression_task import RegressionTask


class TargetPredictor(NamedTuple):
    """A trained regression with its standardisation as one function."""

    targets: Callable[[ArrayLike], Array]
    """``targets(inputs [B, ...]) -> [B]`` in units of the target, for inputs as the data set gives
    them."""
    method: str


def save_regression(
    path: pathlib.Path, task: RegressionTask, budget: Budget, method: str, score: RegressionScore
) -> None:
    """Write the run of ``method`` that validation liked best."""
    standardizer = jax.tree.map(lambda leaf: leaf[score.seed], task.split.standardizer)
    about = {
        "task": "regression",
        "method": method,
        "model": budget.model,
        "input_shape": task.split.inputs.shape[1:],
        "feature_names": task.split.dataset.feature_names,
    }
    leaves = {f"params/{i:04d}": np.asarray(p) for i, p in enumerate(jax.tree.leaves(score.params))}
    fixed = {f"standardizer/{name}": value for name, value in standardizer._asdict().items()}
    units = {"center": task.center[score.seed], "scale": task.scale[score.seed]}
    described = {"about": np.asarray(json.dumps(about))}
    units = {name: np.asarray(value) for name, value in units.items()}
    write_atomically(path, to_npz({**described, **units, **fixed, **leaves}))


def load_model(path: str | pathlib.Path) -> Predictor | TargetPredictor:
    """Read the ``model.npz`` that a comparison saved.

    Args:
      path: the file.

    Returns:
      Of a classification a :class:`Predictor`; ``argmax`` of its logits is the predicted class. Of
      a regression a :class:`TargetPredictor`.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is damaged.
    """
    arrays = from_npz(pathlib.Path(path))
    about = json.loads(str(arrays["about"]))
    if about.get("task") != "regression":
        return load_classifier(path)
    return _regression(arrays, about)


def _regression(arrays: Mapping[str, HostArray], about: Mapping[str, Any]) -> TargetPredictor:
    network = regressor(tuple(about["input_shape"]), model=about["model"])
    leaves = [arrays[name] for name in sorted(arrays) if name.startswith("params/")]
    structure = jax.tree.structure(network.start(0))
    params = jax.tree.unflatten(structure, map(jnp.asarray, leaves))
    fields = {name: arrays[f"standardizer/{name}"] for name in data.Standardizer._fields}
    standardizer = data.Standardizer(**fields)
    center, scale = (jnp.asarray(arrays[name], jnp.float32) for name in ("center", "scale"))

    @jax.jit
    def targets(inputs: ArrayLike) -> Array:
        ready = data.standardize(standardizer, jnp.asarray(inputs))
        return center + scale * predict(network, params, ready)

    return TargetPredictor(targets, about["method"])
