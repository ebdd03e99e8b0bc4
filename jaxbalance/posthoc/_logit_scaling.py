"""Factors and biases per class, fitted by cross entropy on held-out examples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbalance import _check, _sharding, counts
from jaxbalance._types import Array, ArrayLike, Scalar
from jaxbalance.posthoc._affine_fit import AffineProblem, fit_affine
from jaxbalance.posthoc._heads import new_classes
from jaxbalance.posthoc._held_out import class_shares, held_out


class LogitScaling(NamedTuple):
    """Numbers for :func:`scale_logits`: ``scale_logits(logits, **scaling._asdict())``."""

    class_factors: Array
    """What each class's logit is multiplied by, ``[K]``."""
    class_bias: Array
    """What is added to it, ``[K]``."""


def _prepare(
    logits: ArrayLike, labels: ArrayLike, class_weights: ArrayLike | None, ridge: Scalar
) -> AffineProblem:
    """The examples as rows on every device, with no parameter as yet."""
    _check.more_than(0.0, ridge=ridge)
    scores, ids = held_out(logits, labels)
    scores, ids = _sharding.replicated(scores), _sharding.replicated(ids)
    num_classes = scores.shape[-1]
    number = counts.class_counts(ids, num_classes=num_classes)
    return AffineProblem(
        scores=scores.reshape(-1, num_classes),
        ids=ids.reshape(-1),
        shares=class_shares(class_weights, number, scores.dtype),
        present=number > 0,
        basis=jnp.zeros((2 * num_classes, 0), scores.dtype),
        ridge=jnp.asarray(ridge, scores.dtype),
    )


def _solve(problem: AffineProblem, basis: Array) -> LogitScaling:
    """The fit along ``basis``, of the present classes alone."""
    seen = problem.present
    allowed = jnp.broadcast_to(jnp.concatenate([seen, seen])[:, None], basis.shape)
    basis = jnp.where(allowed, basis.astype(problem.scores.dtype), 0)
    # With nothing but absent classes there is no softmax, and no example to need one.
    present = seen | ~jnp.any(seen)
    return LogitScaling(*fit_affine(problem._replace(basis=basis, present=present)))


def fit_class_factors(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    ridge: Scalar = 1e-4,
) -> Array:
    r"""Learnable weight scaling: one factor per class that makes class-balanced loss lowest.

    .. math:: \min_f \sum_i w_{y_i} \, {-\log} \operatorname{softmax}(f z_i)_{y_i}
              + \frac{\lambda}{2} \lVert f - 1 \rVert^2, \qquad (f z)_k = f_k z_k

    with w scaled to add up to one over the examples. The directions of the class vectors stay and
    their lengths are learned again. Convex: Newton's method with damping, a fixed number of steps.

    Identity: a large ``ridge`` gives all ones.

    Args:
      logits: ``[..., K]``, floating; W f without the bias, if the bias is not to be scaled.
      labels: integer class ids ``[...]``; −1 and any id outside ``0 .. K-1`` counts nowhere.
      class_weights: ``[K]``, non-negative. None weighs by inverse frequency in ``labels``, the
        expectation of class-balanced sampling.
      ridge: lambda > 0, in nats: keeps the answer finite where the examples are separable.

    Returns:
      f, ``[K]``, at least float32, for :func:`scale_logits`. The fit is that of the present classes
      alone; an absent one keeps 1. All ones without a labelled example.

    Raises:
      ValueError: shapes or dtypes disagree, or ``ridge`` is not positive.

    Source: Kang et al. 2020, arXiv:1910.09217, section 4, which trains f by gradient descent. (Its
    code and that of MiSLAS multiply the bias too.)

    >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> factors = fit_class_factors(logits, jnp.array([0, 0, 1, 1, 0]))
    >>> [f"{factor:.2f}" for factor in factors]
    ['0.14', '0.41']
    """
    problem = _prepare(logits, labels, class_weights, ridge)
    size = problem.present.size
    return _solve(problem, jnp.eye(2 * size, size)).class_factors


def fit_vector_scaling(
    logits: ArrayLike, labels: ArrayLike, *, ridge: Scalar = 1e-4
) -> LogitScaling:
    r"""Find the factor and the bias of each class that make the cross entropy lowest.

    .. math:: \min_{f, b} \frac{1}{n} \sum_i -\log \operatorname{softmax}(f z_i + b)_{y_i}
              + \frac{\lambda}{2} \bigl( \lVert f - 1 \rVert^2 + \lVert b \rVert^2 \bigr)

    Calibration with 2K parameters in place of the one of :func:`fit_temperature`: it can correct
    each class's confidence, changes the ``argmax``, and needs more examples than classes. Convex:
    Newton's method with damping, a fixed number of steps, each solving a system of size 2K.

    Identity: a large ``ridge`` gives factors 1 and biases 0.

    Args:
      logits: ``[..., K]``, floating.
      labels: integer class ids ``[...]``; −1 and any id outside ``0 .. K-1`` counts nowhere.
      ridge: lambda > 0, in nats: keeps the answer finite where the examples are separable.

    Returns:
      :class:`LogitScaling`, at least float32. Biases of present classes add up to zero. The fit is
      that of the present classes alone; an absent one keeps factor 1 and bias 0.

    Raises:
      ValueError: shapes or dtypes disagree, or ``ridge`` is not positive.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2, without the ridge.

    >>> logits = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]))
    >>> scaling = fit_vector_scaling(logits, jnp.array([0, 0, 0, 1]))
    >>> calibrated = jax.nn.softmax(scaling.class_factors * logits[0] + scaling.class_bias)
    >>> [f"{p:.2f}" for p in calibrated]
    ['0.75', '0.25']
    """
    size = _check.logits(logits).shape[-1]
    problem = _prepare(logits, labels, jnp.ones(size), ridge)
    factors, bias = _solve(problem, jnp.eye(2 * size))
    # A constant on all biases changes no probability, so rounding could leave one behind.
    number = jnp.maximum(jnp.sum(problem.present), 1).astype(bias.dtype)
    centred = jnp.where(problem.present, bias - jnp.sum(bias) / number, 0)
    return LogitScaling(class_factors=factors, class_bias=centred)


def fit_bias_correction(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    is_new: ArrayLike,
    class_weights: ArrayLike | None = None,
    ridge: Scalar = 1e-4,
) -> LogitScaling:
    r"""Find one factor and one bias for all new classes together (BiC).

    .. math:: z'_k = \begin{cases} \alpha z_k + \beta & k \text{ new} \\ z_k & \text{else,}
              \end{cases} \qquad \min_{\alpha, \beta}
              \sum_i w_{y_i} \, {-\log} \operatorname{softmax}(z'_i)_{y_i}
              + \frac{\lambda}{2} \bigl( (\alpha - 1)^2 + \beta^2 \bigr)

    with w scaled to add up to one over the examples. Two numbers against the preference of a
    class-incremental model for what it saw last, or of a long-tailed one for its head: the order
    among the new and among the old classes stays as it is wherever alpha is positive. Convex:
    Newton's method with damping, a fixed number of steps.

    Identity: a large ``ridge`` gives factors 1 and biases 0, and so do groups of which one has no
    labelled example.

    Args:
      logits: ``[..., K]``, floating.
      labels: integer class ids ``[...]``; −1 and any id outside ``0 .. K-1`` counts nowhere.
      is_new: bool ``[K]``.
      class_weights: ``[K]``, non-negative. None weighs by inverse frequency in ``labels``, which
        stands in for the paper's balanced validation set.
      ridge: lambda > 0, in nats: keeps the answer finite where the examples are separable.

    Returns:
      :class:`LogitScaling`, at least float32: alpha and beta at the new classes, absent ones too,
      1 and 0 at the old. Absent classes are left out of the softmax.

    Raises:
      ValueError: shapes or dtypes disagree, ``is_new`` is not a bool ``[K]``, or ``ridge`` is not
        positive.

    Source: Wu et al. 2019, arXiv:1905.13260, fitted there by gradient descent without the
    ridge. (A well-known re-implementation, PyCIL, applies the softmax twice.)

    >>> logits = jnp.log(jnp.array([[1.0, 4.0], [1.0, 4.0], [1.0, 4.0], [4.0, 1.0]]))
    >>> labels = jnp.array([0, 1, 1, 0])
    >>> scaling = fit_bias_correction(logits, labels, is_new=jnp.array([False, True]))
    >>> bool(scaling.class_bias[1] < 0) and float(scaling.class_factors[0]) == 1.0
    True
    """
    problem = _prepare(logits, labels, class_weights, ridge)
    new = new_classes(is_new, problem.present.size)
    both = jnp.any(problem.present & new) & jnp.any(problem.present & ~new)
    column = (new & both).astype(problem.scores.dtype)
    nothing = jnp.zeros_like(column)
    basis = jnp.stack(
        [jnp.concatenate([column, nothing]), jnp.concatenate([nothing, column])], axis=1
    )
    found = _solve(problem, basis)
    # Absent new classes were left out of the fit, but not out of its answer.
    seen = jnp.argmax(new & problem.present)
    use = new & both
    return LogitScaling(
        class_factors=jnp.where(use, found.class_factors[seen], jnp.ones_like(column)),
        class_bias=jnp.where(use, found.class_bias[seen], nothing),
    )


def fit_source_prior(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    ridge: Scalar = 1e-4,
) -> Array:
    r"""Estimate the class prior a model has inherited from data nobody can count any more.

    .. math:: q = \operatorname{softmax}(-b^*), \qquad b^* = \arg\min_b
              \sum_i w_{y_i} \, {-\log} \operatorname{softmax}(z_i + b)_{y_i}
              + \frac{\lambda}{2} \lVert b \rVert^2

    Balanced examples need no prior, so the bias that makes a model's loss on them lowest is minus
    the logarithm of the prior in the model: exactly so, as the examples become many, if its
    softmax is the posterior under that prior. Convex: Newton's method with damping, a fixed number
    of steps.

    Identity: a large ``ridge`` gives the uniform prior.

    Args:
      logits: ``[..., K]``, floating, of the model whose prior is sought, such as the zero-shot
        logits of a foundation model.
      labels: integer class ids ``[...]``; −1 and any id outside ``0 .. K-1`` counts nowhere.
      class_weights: ``[K]``, non-negative. None weighs by inverse frequency in ``labels``, which
        balances them.
      ridge: lambda > 0, in nats: keeps the answer finite where the examples are separable.

    Returns:
      q, ``[K]``, at least float32, positive, adding up to one. The fit is that of the present
      classes alone; an absent one gets the smallest share found. Uniform without a labelled
      example.

    Raises:
      ValueError: shapes or dtypes disagree, or ``ridge`` is not positive.

    Source: Zhu et al. 2023, arXiv:2310.08106 (generalised logit adjustment), which searches the
    simplex under constraints where this solves for its logarithm; Chen et al. 2025,
    arXiv:2501.15955, use such an estimate against the imbalance of pre-training.

    >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.75, 0.25]]))
    >>> [f"{share:.2f}" for share in fit_source_prior(logits, jnp.array([0, 1]))]
    ['0.75', '0.25']
    """
    problem = _prepare(logits, labels, class_weights, ridge)
    size = problem.present.size
    bias = _solve(problem, jnp.eye(2 * size, size, k=-size)).class_bias
    highest = jnp.max(jnp.where(problem.present, bias, -jnp.inf))
    highest = jnp.where(jnp.any(problem.present), highest, jnp.zeros_like(highest))
    return jax.nn.softmax(-jnp.where(problem.present, bias, highest))
