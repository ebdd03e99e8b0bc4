"""The confusion matrix and the metrics that are functions of it.

Rows are true classes, columns predicted ones. Every function takes ``[..., K, K]``, any leading
axes, integer counts or non-negative floats (weighted or expected counts); sums of integers are
taken before anything is rounded to a float, so large counts lose nothing.
"""

import jax.numpy as jnp

from jaxbalance import _check, _sharding
from jaxbalance._types import Array, ArrayLike, Scalar


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, *, num_classes: int) -> Array:
    r"""Count the examples of each true class by predicted class.

    .. math:: C_{kj} = \sum_i [y_i = k]\,[\hat y_i = j]

    An example counts nowhere if its label is −1 or anything else outside ``0 .. K-1``, and equally
    if its *prediction* is (nothing can raise inside a compiled program): the entries sum to the
    number of pairs with both ids in range.

    Args:
      labels: integer class ids ``[...]``.
      predictions: integer class ids of the same shape.
      num_classes: K, static.

    Returns:
      ``[K, K]``, int32; rows true, columns predicted. Matrices of batches add up.

    Raises:
      ValueError: a dtype is not an integer one, shapes disagree, or ``num_classes`` is not an
        integer >= 1.

    >>> confusion_matrix(jnp.array([0, 0, 1, -1]), jnp.array([0, 1, 1, 1]), num_classes=2)
    Array([[1, 1],
           [0, 1]], dtype=int32)
    """
    _check.positive_integer(num_classes=num_classes)
    rows = _check.class_ids(labels)
    columns = _check.class_ids(predictions, name="predictions")
    columns = _check.same_shape("predictions", columns, "labels", rows)
    # Past the end, because a scatter drops what lies there but counts −1 from the back.
    rows, columns = (
        jnp.where((ids >= 0) & (ids < num_classes), ids, num_classes).astype(jnp.int32)
        for ids in (rows, columns)
    )
    rows, columns = _sharding.replicated(rows), _sharding.replicated(columns)
    empty = jnp.zeros((num_classes, num_classes), jnp.int32)
    return empty.at[rows.reshape(-1), columns.reshape(-1)].add(1, mode="drop")


def square(confusion: ArrayLike) -> Array:
    """Return a checked confusion matrix, in at least float32 if it is floating."""
    array = jnp.asarray(confusion)
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-1] < 1:
        raise ValueError(
            f"confusion: got shape {array.shape}, wanted [..., K, K] with K >= 1 classes"
        )
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(_check.working_dtype(array)) if floating else array


def diagonal(confusion: Array) -> Array:
    """Correctly predicted examples of each class, ``[..., K]``."""
    hits: Array = jnp.diagonal(confusion, axis1=-2, axis2=-1)
    return hits


def ratio(numerator: Array, denominator: Array, otherwise: float) -> Array:
    """``numerator / denominator``, or ``otherwise`` where the denominator is 0."""
    dtype = _check.working_dtype(denominator)
    numerator, denominator = numerator.astype(dtype), denominator.astype(dtype)
    defined = denominator > 0
    # Both branches finite, so that a gradient through the other one is not NaN either.
    quotient = numerator / jnp.where(defined, denominator, jnp.ones_like(denominator))
    return jnp.where(defined, quotient, jnp.full_like(quotient, otherwise))


def _of_present(values: Array, confusion: Array) -> Array:
    return jnp.where(present(confusion), values, jnp.full_like(values, jnp.nan))


def support(confusion: ArrayLike) -> Array:
    r"""Number of labelled examples of each class.

    .. math:: n_k = \textstyle\sum_j C_{kj}

    Args:
      confusion: ``[..., K, K]``.

    Returns:
      ``[..., K]``; integer counts stay integers, floats are at least float32. Absent classes: 0.

    Raises:
      ValueError: ``confusion`` is not ``[..., K, K]``.

    >>> support(jnp.array([[3, 1], [0, 2]]))
    Array([4, 2], dtype=int32)
    """
    return jnp.sum(square(confusion), axis=-1)


def present(confusion: ArrayLike) -> Array:
    r"""Which classes have a labelled example.

    .. math:: n_k > 0

    Args:
      confusion: ``[..., K, K]``.

    Returns:
      ``[..., K]``, bool.

    Raises:
      ValueError: ``confusion`` is not ``[..., K, K]``.

    >>> present(jnp.array([[3, 1], [0, 0]]))
    Array([ True, False], dtype=bool)
    """
    return support(confusion) > 0


def accuracy(confusion: ArrayLike) -> Array:
    r"""Share of the examples predicted correctly.

    .. math:: \frac{\sum_k C_{kk}}{\sum_{kj} C_{kj}}

    Args:
      confusion: ``[..., K, K]``.

    Returns:
      ``[...]``, at least float32; NaN without any example.

    Raises:
      ValueError: ``confusion`` is not ``[..., K, K]``.

    >>> accuracy(jnp.array([[3, 1], [0, 4]]))
    Array(0.875, dtype=float32)
    """
    matrix = square(confusion)
    hits = jnp.sum(diagonal(matrix), axis=-1)
    return ratio(hits, jnp.sum(matrix, axis=(-2, -1)), jnp.nan)


def recall(confusion: ArrayLike) -> Array:
    r"""Share of each class's examples that are predicted as that class.

    .. math:: r_k = C_{kk} / \textstyle\sum_j C_{kj}

    Args:
      confusion: ``[..., K, K]``.

    Returns:
      ``[..., K]``, at least float32; NaN for an absent class.

    Raises:
      ValueError: ``confusion`` is not ``[..., K, K]``.

    >>> recall(jnp.array([[3, 1], [0, 4]]))
    Array([0.75, 1. ], dtype=float32)
    """
    matrix = square(confusion)
    return ratio(diagonal(matrix), jnp.sum(matrix, axis=-1), jnp.nan)


def precision(confusion: ArrayLike) -> Array:
    r"""Share of the predictions of each class that are correct.

    .. math:: C_{kk} / \textstyle\sum_j C_{jk}

    Args:
      confusion: ``[..., K, K]``.

    Returns:
      ``[..., K]``, at least float32. A present class that is never predicted has precision 0
      (scikit-learn's ``zero_division=0``); an absent class is NaN, whether predicted or not.

    Raises:
      ValueError: ``confusion`` is not ``[..., K, K]``.

    >>> precision(jnp.array([[3, 1], [0, 4]]))
    Array([1. , 0.8], dtype=float32)
    """
    matrix = square(confusion)
    return _of_present(ratio(diagonal(matrix), jnp.sum(matrix, axis=-2), 0.0), matrix)


def f_beta(confusion: ArrayLike, *, beta: Scalar = 1.0) -> Array:
    r"""Weighted harmonic mean of precision and recall of each class.

    .. math:: F_\beta = \frac{(1 + \beta^2)\, TP}{(1 + \beta^2)\, TP + \beta^2\, FN + FP}

    Args:
      confusion: ``[..., K, K]``.
      beta: how many times as much recall matters as precision; 0 is precision, 1 the F1 score,
        infinity recall.

    Returns:
      ``[..., K]``, at least float32; 0 for a present class without a hit, NaN for an absent one.

    Raises:
      ValueError: ``confusion`` is not ``[..., K, K]`` or ``beta`` is negative.

    Source: van Rijsbergen 1979, Information Retrieval, chapter 7.

    >>> f_beta(jnp.array([[3, 1], [0, 4]]))
    Array([0.857..., 0.888...], dtype=float32)
    """
    _check.at_least(0.0, beta=beta)
    matrix = square(confusion)
    dtype = _check.working_dtype(matrix)
    hits, true, predicted = diagonal(matrix), jnp.sum(matrix, axis=-1), jnp.sum(matrix, axis=-2)
    # Divided through by 1 + beta**2, the formula has a finite limit at beta = infinity.
    share = 1 / (1 + jnp.asarray(beta, dtype) ** 2)
    mixed = (1 - share) * true.astype(dtype) + share * predicted.astype(dtype)
    return _of_present(ratio(hits, mixed, 0.0), matrix)


def jaccard_index(confusion: ArrayLike) -> Array:
    r"""Overlap of true and predicted examples of each class (intersection over union).

    .. math:: \frac{TP}{TP + FN + FP}

    Args:
      confusion: ``[..., K, K]``; of a multi-label problem ``[..., L, 2, 2]``, where entry 1 of each
        result is the label's.

    Returns:
      ``[..., K]``, at least float32; 0 for a present class without a hit, NaN for an absent one.

    Raises:
      ValueError: ``confusion`` is not ``[..., K, K]``.

    Source: Jaccard 1901; scikit-learn's ``jaccard_score``, which gives an absent class 0.

    >>> jaccard_index(jnp.array([[3, 1], [0, 4]]))
    Array([0.75, 0.8 ], dtype=float32)
    """
    matrix = square(confusion)
    hits, true, predicted = diagonal(matrix), jnp.sum(matrix, axis=-1), jnp.sum(matrix, axis=-2)
    # Sums of int32 are int64 where x64 is enabled.
    union = true + predicted - hits.astype(true.dtype)
    return _of_present(ratio(hits, union, 0.0), matrix)


def macro(values: ArrayLike) -> Array:
    r"""Mean of a per-class vector over the classes that have a value.

    .. math:: \frac{1}{K'} \sum_{k:\, v_k \text{ is not NaN}} v_k

    Args:
      values: ``[..., K]``, NaN where a class has none.

    Returns:
      ``[...]``, at least float32; NaN if every entry is.

    Raises:
      ValueError: ``values`` has no class axis.

    >>> macro(jnp.array([0.5, jnp.nan, 1.0]))
    Array(0.75, dtype=float32)
    """
    array = jnp.asarray(values)
    if array.ndim < 1:
        raise ValueError(f"values: got shape {array.shape}, wanted [..., K]")
    array = array.astype(_check.working_dtype(array))
    known = ~jnp.isnan(array)
    total = jnp.sum(jnp.where(known, array, jnp.zeros_like(array)), axis=-1)
    return ratio(total, jnp.sum(known, axis=-1).astype(array.dtype), jnp.nan)


def macro_f1(confusion: ArrayLike) -> Array:
    r"""Mean F1 score over the present classes.

    .. math:: \frac{1}{K'} \sum_{k:\, n_k > 0} \frac{2\, TP_k}{2\, TP_k + FN_k + FP_k}

    scikit-learn's ``f1_score(average="macro")`` also averages in a 0 for each class that is only
    ever predicted; it agrees when given ``labels=`` the present classes.

    Args:
      confusion: ``[..., K, K]``.

    Returns:
      ``[...]``, at least float32; NaN without any example.

    Raises:
      ValueError: ``confusion`` is not ``[..., K, K]``.

    >>> macro_f1(jnp.array([[3, 1], [0, 4]]))
    Array(0.873..., dtype=float32)
    """
    return macro(f_beta(confusion))


def balanced_accuracy(confusion: ArrayLike) -> Array:
    r"""Mean recall over the present classes.

    .. math:: \frac{1}{K'} \sum_{k:\, n_k > 0} r_k

    Args:
      confusion: ``[..., K, K]``.

    Returns:
      ``[...]``, at least float32; NaN without any example.

    Raises:
      ValueError: ``confusion`` is not ``[..., K, K]``.

    >>> balanced_accuracy(jnp.array([[3, 1], [0, 4]]))
    Array(0.875, dtype=float32)
    """
    return macro(recall(confusion))


def geometric_mean(confusion: ArrayLike) -> Array:
    r"""Geometric mean of the recalls of the present classes (G-mean).

    .. math:: \Bigl( \prod_{k:\, n_k > 0} r_k \Bigr)^{1/K'}

    Computed in logarithms, so that a thousand classes do not underflow; exactly 0 (with gradient
    0) as soon as one present class has recall 0.

    Args:
      confusion: ``[..., K, K]``.

    Returns:
      ``[...]``, at least float32; NaN without any example.

    Raises:
      ValueError: ``confusion`` is not ``[..., K, K]``.

    Source: Kubat and Matwin 1997, ICML, for two classes; Sun et al. 2006, ICDM, for K.

    >>> geometric_mean(jnp.array([[1, 3], [0, 4]]))
    Array(0.5, dtype=float32)
    """
    recalls = recall(confusion)
    missed = recalls == 0
    mean_log = macro(jnp.log(jnp.where(missed, jnp.ones_like(recalls), recalls)))
    some_missed = jnp.any(missed, axis=-1)
    return jnp.where(some_missed, jnp.zeros_like(mean_log), jnp.exp(mean_log))


def worst_class_recall(confusion: ArrayLike) -> Array:
    r"""Lowest recall among the present classes.

    .. math:: \min_{k:\, n_k > 0} r_k

    Args:
      confusion: ``[..., K, K]``.

    Returns:
      ``[...]``, at least float32; NaN without any example.

    Raises:
      ValueError: ``confusion`` is not ``[..., K, K]``.

    >>> worst_class_recall(jnp.array([[3, 1], [0, 4]]))
    Array(0.75, dtype=float32)
    """
    return jnp.nanmin(recall(confusion), axis=-1)
