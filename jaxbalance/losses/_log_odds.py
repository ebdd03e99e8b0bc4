r"""What every softmax loss here is made of: the log odds of a class against all the others.

.. math:: d_k = z_k - \log \textstyle\sum_{j \ne k} e^{z_j}
          \qquad\Longrightarrow\qquad
          p_k = \sigma(d_k), \quad -\log p_k = \operatorname{softplus}(-d_k), \quad
          -\log (1 - p_k) = \operatorname{softplus}(d_k)

One number per label says everything a loss needs to know about the logits, it costs one
log-sum-exp like cross entropy itself, and every power of p or 1 − p is an exponential of a
softplus: nothing to clip, nothing that divides, finite value and gradient at any finite logits.

Class-id labels are treated at the labelled class alone (``[...]``), class probabilities at all
classes (``[..., K]``); :func:`at_labels` and :func:`expected` hide the difference.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbalance import _check
from jaxbalance._types import Array, ArrayLike


class Problem(NamedTuple):
    """Checked logits and labels, ready to compute with."""

    scores: Array
    """``[..., K]`` in the working dtype, zero wherever nothing is labelled."""
    labels: Array
    """Class ids ``[...]`` or, in the working dtype, class probabilities ``[..., K]``."""
    dtype: jnp.dtype
    """What came in, and so what goes out."""

    @property
    def num_classes(self) -> int:
        """K."""
        return self.scores.shape[-1]


def prepare(logits: ArrayLike, labels: ArrayLike) -> Problem:
    """Check the pair and bring it into the form every softmax loss computes with."""
    scores = _check.logits(logits)
    targets = _check.labels(labels, scores)
    dtype, working = scores.dtype, _check.working_dtype(scores)
    if _check.is_class_ids(targets):
        labelled = (targets >= 0) & (targets < scores.shape[-1])
    else:
        labelled = jnp.any(targets != 0, axis=-1)
        targets = targets.astype(working)
    # Zeroed before use rather than masked after: a padding row may hold anything, even NaN.
    scores = jnp.where(labelled[..., None], scores.astype(working), jnp.zeros((), working))
    return Problem(scores, targets, dtype)


def class_vector(name: str, values: ArrayLike, problem: Problem) -> Array:
    """One number per class ``[K]``, checked against the problem's number of classes."""
    return _check.class_vector(name, values, problem.num_classes)


def over_classes(vector: Array, scores: Array) -> Array:
    """One number per class, ``[K]``, spread over ``scores [..., K]``."""
    # Adding zeros, which costs nothing once compiled, gives the copy the sharding of the scores.
    return jnp.broadcast_to(vector.astype(scores.dtype), scores.shape) + jnp.zeros_like(scores)


def _is_class(ids: Array, scores: Array) -> Array:
    classes = jnp.arange(scores.shape[-1], dtype=ids.dtype)
    return jnp.broadcast_to(classes, scores.shape) == ids[..., None]


def at_labels(values: Array, problem: Problem) -> Array:
    """``values [..., K]`` at the labelled class; all of them if labels are probabilities."""
    if not _check.is_class_ids(problem.labels):
        return values
    # A select and a sum where one expects a gather: it fuses, its gradient is no scatter, and it
    # needs no sharding rule when the batch is split over devices.
    chosen = jnp.where(_is_class(problem.labels, values), values, jnp.zeros_like(values))
    return jnp.sum(chosen, axis=-1)


def log_odds(problem: Problem) -> Array:
    """Log odds of the labelled class, ``[...]``, or of every class, ``[..., K]``."""
    scores = problem.scores
    if _check.is_class_ids(problem.labels):
        others = ~_is_class(problem.labels, scores)
        return at_labels(scores, problem) - jax.nn.logsumexp(scores, axis=-1, where=others)
    is_top = _is_class(jnp.argmax(scores, axis=-1), scores)
    without_top = jax.nn.logsumexp(scores, axis=-1, where=~is_top, keepdims=True)
    total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    # Only the largest class can exceed probability 1/2, so for the rest log1p(-p) keeps all digits.
    share = jnp.exp(jnp.where(is_top, jnp.full_like(scores, -jnp.inf), scores - total))
    return scores - jnp.where(is_top, without_top, total + jnp.log1p(-share))


def expected(values: Array, problem: Problem, *, class_weights: ArrayLike | None) -> Array:
    """Weigh ``values`` (shaped as by :func:`at_labels`) by class and average over the labels."""
    labels = problem.labels
    if class_weights is not None:
        weights = class_vector("class_weights", class_weights, problem)
        values = values * at_labels(over_classes(weights, problem.scores), problem)
    if _check.is_class_ids(labels):
        labelled = (labels >= 0) & (labels < problem.num_classes)
        return jnp.where(labelled, values, jnp.zeros_like(values)).astype(problem.dtype)
    return jnp.sum(labels * values, axis=-1).astype(problem.dtype)


def cross_entropy(problem: Problem, *, class_weights: ArrayLike | None) -> Array:
    """Class-weighted cross entropy of a prepared problem."""
    values = jax.nn.softplus(-log_odds(problem))
    return expected(values, problem, class_weights=class_weights)
