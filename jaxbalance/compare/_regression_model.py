"""The recommended regression, saved in one file that reads back without unpickling anything."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbalance._storage import from_npz
from jaxbalance._types import Array, ArrayLike, HostArray
from jaxbalance.compare._model import (
    Predictor,
    parameters,
    read_classifier,
    standardization,
    write_model,
)
from jaxbalance.compare._plan import Budget
from jaxbalance.compare._regression_network import predict, regressor
from jaxbalance.compare._regression_score import RegressionScore
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
    units = {"center": task.center[score.seed], "scale": task.scale[score.seed]}
    write_model(path, task.split, budget, method, score, {"task": "regression"}, units)


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
    read = _read_regression if about.get("task") == "regression" else read_classifier
    return read(arrays, about)


def _read_regression(arrays: Mapping[str, HostArray], about: Mapping[str, Any]) -> TargetPredictor:
    network = regressor(tuple(about["input_shape"]), model=about["model"])
    params, standardize = parameters(arrays, network.start(0)), standardization(arrays)
    center, scale = (jnp.asarray(arrays[name], jnp.float32) for name in ("center", "scale"))

    @jax.jit
    def targets(inputs: ArrayLike) -> Array:
        return center + scale * predict(network, params, standardize(inputs))

    return TargetPredictor(targets, about["method"])
