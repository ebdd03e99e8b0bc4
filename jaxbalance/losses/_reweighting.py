"""Losses that change how much an example counts."""

from jaxbalance._types import Array, ArrayLike
from jaxbalance.losses import _log_odds


def weighted_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, class_weights: ArrayLike | None = None
) -> Array:
    r"""Softmax cross entropy with one weight per class.

    .. math:: \ell(z, q) = -\sum_k w_k\, q_k \log \operatorname{softmax}(z)_k

    Identity: ``class_weights=None`` (or all ones) is plain cross entropy.

    Weights come from :func:`jaxbalance.counts.inverse_frequency_weights` or
    :func:`jaxbalance.counts.effective_number_weights`; they scale the loss, and a mean over a batch
    divides by the number of labelled examples. (PyTorch's ``CrossEntropyLoss(weight=w)`` divides by
    the sum of the weights instead: ``sum(loss) / sum(w[labels])``.)

    Args:
      logits: ``[..., K]``, floating.
      labels: class ids ``[...]`` or class probabilities ``[..., K]``. A −1 (or any id outside
        ``0 .. K-1``, or an all-zero row) is unlabelled: loss and gradient exactly 0, whatever its
        logits hold.
      class_weights: ``[K]``; an absent class conventionally has weight 0.

    Returns:
      ``[...]`` in the dtype of ``logits``; computed in at least float32.

    Raises:
      ValueError: shapes or dtypes disagree.

    Source: the usual cost-sensitive cross entropy; weights of Cui et al. 2019, arXiv:1901.05555.

    >>> import jax.numpy as jnp
    >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0]])
    >>> weighted_cross_entropy(logits, jnp.array([0, 1]), class_weights=jnp.array([0.5, 1.5]))
    Array([0.0634..., 3.1903...], dtype=float32)
    """
    problem = _log_odds.prepare(logits, labels)
    return _log_odds.cross_entropy(problem, class_weights=class_weights)
