"""Metrics of examples that have any number of labels: additive tables, and functions of them."""

from typing import NamedTuple

import jax.numpy as jnp

from jaxbalance import _check, _sharding
from jaxbalance._types import Array, ArrayLike
from jaxbalance.metrics import _confusion


class LabelSetAgreement(NamedTuple):
    """Sums over examples with at least one known label; all of them add up."""

    examples: Array
    """How many there are ``[]``, int32."""
    exact: Array
    """How many have every known label predicted correctly ``[]``, int32."""
    overlap: Array
    """Sum of their shared labels over their labels on either side ``[]``."""


def multilabel_confusion(labels: ArrayLike, predictions: ArrayLike) -> Array:
    r"""Count each label's examples by truth and prediction.

    .. math:: C_{kab} = \sum_i [y_{ik} = a]\,[\hat y_{ik} = b], \qquad a, b \in \{0, 1\}

    A stack of 2 × 2 confusion matrices, so their metrics apply, with entry 1 the label itself:
    ``f_beta(confusion)[..., 1]`` is the F1 score of each label, and ``macro`` of that the mean over
    the labels that occur. scikit-learn's macro averages include a number for the others.

    Args:
      labels: ``[..., K]``, integer or bool: 1 on, 0 off; an entry of −1 (or anything else) is
        unknown and counts nowhere.
      predictions: 0 or 1, or bool, of the same shape; an entry that is neither counts nowhere.

    Returns:
      ``[K, 2, 2]``, int32; rows true, columns predicted. Those of batches add up.

    Raises:
      ValueError: a dtype is neither integer nor bool, shapes disagree, or there is no label axis.

    Source: the layout of scikit-learn's ``multilabel_confusion_matrix``.

    >>> multilabel_confusion(jnp.array([[1, 0], [1, -1]]), jnp.array([[1, 1], [0, 1]]))
    Array([[[0, 0],
            [1, 1]],
           [[0, 1],
            [0, 0]]], dtype=int32)
    """
    truth, predicted = _entries(labels, predictions)
    number = truth.shape[-1]
    cells = [[(truth == a) & (predicted == b) for b in (0, 1)] for a in (0, 1)]
    sums = [[jnp.sum(c.reshape(-1, number), axis=0, dtype=jnp.int32) for c in row] for row in cells]
    return jnp.stack([jnp.stack(row, axis=-1) for row in sums], axis=-2)


def hamming_loss(confusion: ArrayLike) -> Array:
    r"""Share of all known labels of all examples that are predicted wrongly.

    .. math:: \frac{\sum_k (C_{k01} + C_{k10})}{\sum_{kab} C_{kab}}

    Args:
      confusion: ``[..., K, 2, 2]``, of :func:`multilabel_confusion`.

    Returns:
      ``[...]`` in [0, 1], at least float32; NaN without any known label.

    Raises:
      ValueError: ``confusion`` is not ``[..., K, 2, 2]``.

    Source: Schapire and Singer 2000, Machine Learning 39(2/3), 135-168.

    >>> hamming_loss(jnp.array([[[0, 0], [1, 1]], [[0, 1], [0, 0]]]))
    Array(0.666..., dtype=float32)
    """
    pooled = _pooled(confusion)
    wrong = pooled[..., 0, 1] + pooled[..., 1, 0]
    return _confusion.ratio(wrong, jnp.sum(pooled, axis=(-2, -1)), jnp.nan)


def micro_f1(confusion: ArrayLike) -> Array:
    r"""F1 score of all labels in one pot: frequent labels weigh most.

    .. math:: \frac{2 \sum_k C_{k11}}{\sum_k (2\, C_{k11} + C_{k10} + C_{k01})}

    The counterpart in which every label weighs the same is ``macro(f_beta(confusion)[..., 1])``.

    Args:
      confusion: ``[..., K, 2, 2]``, of :func:`multilabel_confusion`.

    Returns:
      ``[...]`` in [0, 1], at least float32; NaN if no example has any label.

    Raises:
      ValueError: ``confusion`` is not ``[..., K, 2, 2]``.

    >>> micro_f1(jnp.array([[[0, 0], [1, 1]], [[0, 1], [0, 0]]]))
    Array(0.5, dtype=float32)
    """
    return _confusion.f_beta(_pooled(confusion))[..., 1]


def label_set_agreement(labels: ArrayLike, predictions: ArrayLike) -> LabelSetAgreement:
    r"""Compare each example's set of labels with the predicted one.

    .. math:: \sum_i [Y_i = \hat Y_i], \qquad
              \sum_i \frac{|Y_i \cap \hat Y_i|}{|Y_i \cup \hat Y_i|}

    Args:
      labels: ``[..., K]``, integer or bool, as in :func:`multilabel_confusion`; unknown entries are
        in neither set, and an example without a known one counts nowhere.
      predictions: 0 or 1, or bool, of the same shape.

    Returns:
      :class:`LabelSetAgreement`, floats float32 (float64 where x64 is enabled). Those of batches
      add up. Two empty sets agree: the second fraction is 1 (scikit-learn's ``zero_division=1``).

    Raises:
      ValueError: a dtype is neither integer nor bool, shapes disagree, or there is no label axis.

    >>> label_set_agreement(jnp.array([[1, 0], [1, 1]]), jnp.array([[1, 0], [1, 0]]))
    LabelSetAgreement(examples=Array(2, dtype=int32), exact=Array(1, dtype=int32),
                      overlap=Array(1.5, dtype=float32))
    """
    truth, predicted = _entries(labels, predictions)
    known = (truth >= 0) & (predicted >= 0)
    counts = jnp.any(known, axis=-1)
    both = jnp.sum((truth == 1) & (predicted == 1), axis=-1, dtype=jnp.int32)
    either = jnp.sum(known & ((truth == 1) | (predicted == 1)), axis=-1, dtype=jnp.int32)
    overlap = _confusion.ratio(both, either, 1.0)
    return LabelSetAgreement(
        examples=jnp.sum(counts, dtype=jnp.int32),
        exact=jnp.sum(counts & jnp.all(~known | (truth == predicted), axis=-1), dtype=jnp.int32),
        overlap=jnp.sum(jnp.where(counts, overlap, jnp.zeros_like(overlap))),
    )


def subset_accuracy(agreement: LabelSetAgreement) -> Array:
    r"""Share of the examples whose known labels are all predicted correctly.

    .. math:: \frac1n \sum_i [Y_i = \hat Y_i]

    Args:
      agreement: ``[...]`` (leading axes as from ``vmap``).

    Returns:
      ``[...]`` in [0, 1]; NaN without an example.

    Source: scikit-learn's ``accuracy_score`` of label matrices.

    >>> labels, predictions = jnp.array([[1, 0], [1, 1]]), jnp.array([[1, 0], [1, 0]])
    >>> subset_accuracy(label_set_agreement(labels, predictions))
    Array(0.5, dtype=float32)
    """
    return _confusion.ratio(agreement.exact, agreement.examples, jnp.nan)


def label_set_overlap(agreement: LabelSetAgreement) -> Array:
    r"""Mean overlap of true and predicted sets of labels (Jaccard index by example).

    .. math:: \frac1n \sum_i \frac{|Y_i \cap \hat Y_i|}{|Y_i \cup \hat Y_i|}

    By label instead of by example it is :func:`jaccard_index` of :func:`multilabel_confusion`.

    Args:
      agreement: ``[...]`` (leading axes as from ``vmap``).

    Returns:
      ``[...]`` in [0, 1]; NaN without an example.

    Source: scikit-learn's ``jaccard_score(average="samples", zero_division=1)``.

    >>> labels, predictions = jnp.array([[1, 0], [1, 1]]), jnp.array([[1, 0], [1, 0]])
    >>> label_set_overlap(label_set_agreement(labels, predictions))
    Array(0.75, dtype=float32)
    """
    number = agreement.examples.astype(agreement.overlap.dtype)
    return _confusion.ratio(agreement.overlap, number, jnp.nan)


def _entries(labels: ArrayLike, predictions: ArrayLike) -> tuple[Array, Array]:
    """Both as int32 in {0, 1, −1}; an entry unknown in one is so in the other."""
    truth, predicted = _on_off("labels", labels), _on_off("predictions", predictions)
    predicted = _check.same_shape("predictions", predicted, "labels", truth)
    if truth.ndim < 1 or truth.shape[-1] < 1:
        raise ValueError(f"labels: got shape {truth.shape}, wanted [..., K] with K >= 1 labels")
    truth, predicted = _sharding.replicated(truth), _sharding.replicated(predicted)
    known = (truth == 0) | (truth == 1)
    known = known & ((predicted == 0) | (predicted == 1))
    unknown = jnp.full_like(truth, -1)
    return jnp.where(known, truth, unknown), jnp.where(
        known, predicted.astype(truth.dtype), unknown
    )


def _on_off(name: str, value: ArrayLike) -> Array:
    array = jnp.asarray(value)
    return array.astype(jnp.int32) if array.dtype == bool else _check.class_ids(array, name=name)


def _pooled(confusion: ArrayLike) -> Array:
    matrix = _confusion.square(confusion)
    if matrix.ndim < 3 or matrix.shape[-1] != 2:
        raise ValueError(f"confusion: got shape {matrix.shape}, wanted [..., K, 2, 2]")
    return jnp.sum(matrix, axis=-3)
