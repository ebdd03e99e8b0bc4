"""The last layer of a network, in and out of its parameters."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxbalance import posthoc
from jaxbalance._types import Params


def in_head(path: Any) -> bool:
    """Whether the path of a leaf of the parameters leads into the head."""
    return path[0] == jax.tree_util.DictKey("head")


def linear_head(params: Params) -> posthoc.LinearHead | None:
    """Class vectors and bias, with the parameters' leading axes; None if that is not all it has."""
    tree: Any = params
    head = tree["head"]
    if set(head) != {"kernel", "bias"}:
        return None
    return posthoc.LinearHead(head["kernel"][...].swapaxes(-1, -2), head["bias"][...])


def with_head(params: Params, head: posthoc.LinearHead) -> Params:
    """The parameters with another linear head."""
    leaves = {"kernel": head.class_vectors.swapaxes(-1, -2), "bias": head.bias}
    replaced: Params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaves[path[1].key] if in_head(path) else leaf, params
    )
    return replaced


def join(body: Params, head: Params) -> Params:
    """The body of some parameters and the head of others."""
    joined: Params = jax.tree_util.tree_map_with_path(
        lambda path, own, other: other if in_head(path) else own, body, head
    )
    return joined


def without_body(updates: Params, still: jax.Array) -> Params:
    """Updates of the head alone, where ``still`` is true."""
    kept: Params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if in_head(path) else jnp.where(still, jnp.zeros_like(leaf), leaf),
        updates,
    )
    return kept
