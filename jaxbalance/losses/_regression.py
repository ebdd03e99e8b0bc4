"""Losses for regression on imbalanced targets; a NaN target is unlabelled.

Weights by density come from :func:`inverse_density_weights` and its neighbours.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbalance import _check
from jaxbalance._types import Array, ArrayLike, Scalar


class Problem(NamedTuple):
    """Checked predictions and targets, ready to compute with."""

    predictions: Array
    """``[...]`` in the working dtype, zero where nothing is labelled; as the targets."""
    targets: Array
    known: Array
    dtype: jnp.dtype
    """What came in, and so what goes out."""

    def finish(self, values: Array, weights: ArrayLike | None = None) -> Array:
        """Values weighed, 0 where unlabelled, in the dtype that came in."""
        if weights is not None:
            checked = _check.same_shape("weights", weights, "predictions", values)
            values = values * checked.astype(values.dtype)
        return jnp.where(self.known, values, jnp.zeros_like(values)).astype(self.dtype)


def prepare(predictions: ArrayLike, targets: ArrayLike, *, batch: bool = False) -> Problem:
    """Check the pair and bring it into the form every loss here computes with."""
    array = _check.floating("predictions", predictions)
    wanted = _check.floating("targets", targets)
    wanted = _check.same_shape("targets", wanted, "predictions", array)
    if batch and array.ndim != 1:
        raise ValueError(f"predictions: got shape {array.shape}, wanted [N]")
    known, dtype, working = ~jnp.isnan(wanted), array.dtype, _check.working_dtype(array)
    # Zeroed before use rather than masked after: a padding row may hold anything, even NaN.
    array, wanted = (jnp.where(known, values.astype(working), 0) for values in (array, wanted))
    return Problem(array, wanted, known, dtype)


def squared_error(
    predictions: ArrayLike, targets: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    r"""Weighted squared error.

    .. math:: \ell_i = w_i (\hat y_i - y_i)^2

    Identity: ``weights=None``.

    Args:
      predictions: ``[...]``, floating.
      targets: the same shape, floating; NaN is unlabelled: loss and gradient exactly 0.
      weights: one per example, of the same shape; None is all ones.

    Returns:
      ``[...]`` in the dtype of ``predictions``; computed in at least float32. (Errors beyond 255
      exceed float16.)

    Raises:
      ValueError: shapes or dtypes disagree.

    >>> squared_error(jnp.array([1.0, 3.0]), jnp.array([0.0, jnp.nan]))
    Array([1., 0.], dtype=float32)
    """
    problem = prepare(predictions, targets)
    return problem.finish((problem.predictions - problem.targets) ** 2, weights)


def absolute_error(
    predictions: ArrayLike, targets: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    r"""Weighted absolute error, ``w |prediction - target|``.

    Identity: ``weights=None``.

    Args:
      predictions: as in :func:`squared_error`.
      targets: as in :func:`squared_error`.
      weights: as in :func:`squared_error`.

    Returns:
      As :func:`squared_error`.

    Raises:
      ValueError: shapes or dtypes disagree.

    >>> absolute_error(jnp.array([1.0, 3.0]), jnp.array([0.0, 5.0]), weights=jnp.array([1.0, 2.0]))
    Array([1., 4.], dtype=float32)
    """
    problem = prepare(predictions, targets)
    return problem.finish(jnp.abs(problem.predictions - problem.targets), weights)


def huber_error(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    delta: Scalar = 1.0,
    weights: ArrayLike | None = None,
) -> Array:
    r"""Weighted Huber loss, in the scale of the absolute error (also known as smooth L1).

    .. math:: \ell = w \begin{cases} e^2 / 2\delta & |e| < \delta \\
              |e| - \delta / 2 & \text{else} \end{cases}, \qquad e = \hat y - y

    Identity: as ``delta`` goes to 0 it becomes the absolute error. ``optax.huber_loss`` is
    ``delta`` times it.

    Args:
      predictions: as in :func:`squared_error`.
      targets: as in :func:`squared_error`.
      delta: > 0, where the square ends, in units of the target.
      weights: as in :func:`squared_error`.

    Returns:
      As :func:`squared_error`.

    Raises:
      ValueError: shapes or dtypes disagree, or ``delta`` is not positive.

    >>> huber_error(jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0]))
    Array([0.125, 2.5  ], dtype=float32)
    """
    _check.more_than(0.0, delta=delta)
    problem = prepare(predictions, targets)
    size = jnp.abs(problem.predictions - problem.targets)
    delta = jnp.asarray(delta, size.dtype)
    inner = jnp.minimum(size, delta)
    return problem.finish(inner * inner / (2 * delta) + (size - inner), weights)


def focal_regression_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    error: Callable[[Array, Array], Array] = squared_error,
    beta: Scalar = 0.2,
    gamma: Scalar = 1.0,
    weights: ArrayLike | None = None,
) -> Array:
    r"""Focal-R: an error that fades where it is small already.

    .. math:: \ell = w\, \bigl(2 \sigma(\beta |e|) - 1\bigr)^{\gamma}\, \text{error}(\hat y, y),
              \qquad e = \hat y - y

    Identity: ``gamma=0`` is the error itself.

    Args:
      predictions: ``[...]``, floating.
      targets: the same shape, floating; NaN is unlabelled: loss and gradient exactly 0.
      error: what fades, one number per example: :func:`squared_error`, :func:`absolute_error`,
        :func:`huber_error` or one's own.
      beta: > 0, per unit of the target: the factor is about ``beta |e| / 2`` for small errors.
      gamma: focusing exponent >= 0.
      weights: one per example, of the same shape; None is all ones.

    Returns:
      ``[...]`` in the dtype of ``predictions``; computed in at least float32.

    Raises:
      ValueError: shapes or dtypes disagree, ``beta`` is not positive or ``gamma`` is negative.

    Source: Yang et al. 2021, arXiv:2102.09554, appendix. (It prints σ(β|e|) alone; its code scales
    that to begin at 0, as here, or takes tanh(β|e|), which is this at twice the ``beta``.)

    >>> focal_regression_loss(jnp.array([1.0, 10.0]), jnp.array([0.0, 0.0]), beta=0.2)
    Array([ 0.0996..., 76.159...], dtype=float32)
    """
    _check.more_than(0.0, beta=beta)
    _check.at_least(0.0, gamma=gamma)
    problem = prepare(predictions, targets)
    size = jnp.abs(problem.predictions - problem.targets)
    some = size > 0
    # The power has no derivative at 0 for gamma < 1, while any error times it has.
    half = jnp.asarray(beta, size.dtype) / 2 * jnp.where(some, size, 1)
    gamma = jnp.asarray(gamma, size.dtype)
    none = (gamma == 0).astype(half.dtype)
    factor = jnp.where(some, jnp.tanh(half) ** gamma, none)
    return problem.finish(factor * error(problem.predictions, problem.targets), weights)


def balanced_mse_gai(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    means: ArrayLike,
    variances: ArrayLike,
    weights: ArrayLike,
    noise_variance: Scalar = 1.0,
) -> Array:
    r"""Balanced MSE for targets distributed as a Gaussian mixture, in closed form (GAI).

    .. math:: \ell = 2 \bar v \Bigl[ \frac{(\hat y - y)^2}{2 v} + \tfrac12 \log v
              + \log \textstyle\sum_k w_k (v_k + v)^{-1/2}
              e^{-(\hat y - \mu_k)^2 / 2 (v_k + v)} \Bigr]

    the negative log likelihood of a regression with Gaussian noise of variance v under the
    distribution of training targets, so that the network learns it for uniform targets. The factor
    before the bracket has no gradient; v may be trained with the network.

    Identity: as the mixture becomes flat (``variances`` without bound) the gradient becomes that of
    the squared error.

    Args:
      predictions: ``[...]``, floating.
      targets: the same shape, floating; NaN is unlabelled: loss and gradient exactly 0.
      means: of the mixture's L components, ``[L]``, as of ``sklearn.mixture.GaussianMixture`` on
        the training targets.
      variances: ``[L]``, >= 0.
      weights: ``[L]``, >= 0; a component of weight 0 is absent.
      noise_variance: v > 0, a number or a trained parameter.

    Returns:
      ``[...]`` in the dtype of ``predictions``; computed in at least float32.

    Raises:
      ValueError: shapes or dtypes disagree, or ``noise_variance`` is not positive.

    Source: Ren et al. 2022, arXiv:2203.16427, section 3.3, and the factor 2v of its code.

    >>> mixture = {"means": jnp.zeros(1), "variances": jnp.ones(1), "weights": jnp.ones(1)}
    >>> balanced_mse_gai(jnp.array([0.0, 2.0]), jnp.array([0.0, 2.0]), **mixture)
    Array([-0.693..., -2.693...], dtype=float32)
    """
    problem = prepare(predictions, targets)
    centres = _check.class_vector("means", means)
    widths = _check.class_vector("variances", variances, centres.size)
    variance = positive_variance(noise_variance, problem)
    widths = widths.astype(variance.dtype) + variance
    heights = _log(_check.class_vector("weights", weights, centres.size)) - jnp.log(widths) / 2
    balance = _log_sum_of_gaussians(problem.predictions, centres, widths, heights)
    return _likelihood(problem, variance, balance + jnp.log(variance) / 2)


def balanced_mse_bni(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    bin_centers: ArrayLike,
    bin_counts: ArrayLike,
    noise_variance: Scalar = 1.0,
) -> Array:
    r"""Balanced MSE with the distribution of training targets as a histogram (BNI).

    .. math:: \ell = 2 \bar v \Bigl[ \frac{(\hat y - y)^2}{2 v} + \log \textstyle\sum_b
              \frac{n_b}{n} e^{-(\hat y - c_b)^2 / 2 v} \Bigr]

    As :func:`balanced_mse_gai`, for targets that no small mixture describes.

    Identity: bins that fill the line densely and alike give the gradient of the squared error.

    Beyond the outermost centre the two squares cancel to a line: for a target that lies there the
    loss has no minimum, and its predictions run away. Let the outermost centres be the extreme
    targets.

    Args:
      predictions: as in :func:`balanced_mse_gai`.
      targets: as in :func:`balanced_mse_gai`, none beyond the outermost centres.
      bin_centers: ``[M]``, in any order.
      bin_counts: training examples ``[M]``, or :func:`smoothed_label_density` of them; an empty bin
        is absent.
      noise_variance: v > 0, a number or a trained parameter.

    Returns:
      As :func:`balanced_mse_gai`.

    Raises:
      ValueError: as :func:`balanced_mse_gai`.

    Source: Ren et al. 2022, arXiv:2203.16427, section 3.3.

    >>> bins = {"bin_centers": jnp.array([0.0, 2.0]), "bin_counts": jnp.array([9, 1])}
    >>> balanced_mse_bni(jnp.array([0.0, 2.0]), jnp.array([0.0, 2.0]), **bins)
    Array([-0.1808..., -3.0119...], dtype=float32)
    """
    problem = prepare(predictions, targets)
    centres = _check.class_vector("bin_centers", bin_centers)
    sizes = _check.class_vector("bin_counts", bin_counts, centres.size)
    variance = positive_variance(noise_variance, problem)
    total = jnp.sum(sizes)
    heights = _log(sizes) - jnp.log(jnp.where(total > 0, total, 1))
    widths = jnp.broadcast_to(variance, centres.shape)
    balance = _log_sum_of_gaussians(problem.predictions, centres, widths, heights)
    return _likelihood(problem, variance, balance)


def positive_variance(noise_variance: Scalar, problem: Problem) -> Array:
    """The noise variance in the dtype of the computation."""
    _check.more_than(0.0, noise_variance=noise_variance)
    return jnp.asarray(noise_variance).astype(problem.predictions.dtype)


def _log(sizes: Array) -> Array:
    positive = sizes > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, sizes, 1)), -jnp.inf)


def _log_sum_of_gaussians(points: Array, centres: Array, widths: Array, heights: Array) -> Array:
    """Log of the sum over L of e^(height − (point − centre)² / 2 width), ``[...]``; 0 if none."""
    some = jnp.any(heights > -jnp.inf)
    heights = jnp.where(some, heights, jnp.zeros_like(heights))
    shape = (*points.shape, centres.size)
    spread = (jnp.broadcast_to(v.astype(points.dtype), shape) for v in (centres, widths, heights))
    centre, width, height = spread
    logs = jax.nn.logsumexp(height - (points[..., None] - centre) ** 2 / (2 * width), axis=-1)
    return logs * some.astype(logs.dtype)


def _likelihood(problem: Problem, variance: Array, balance: Array) -> Array:
    error = (problem.predictions - problem.targets) ** 2 / (2 * variance)
    return problem.finish(2 * jax.lax.stop_gradient(variance) * (error + balance))


def correlation_loss(
    predictions: ArrayLike, targets: ArrayLike, *, weights: ArrayLike | None = None
) -> Array:
    r"""One less the (weighted) Pearson correlation of a batch's predictions and targets, a scalar.

    .. math:: 1 - \frac{\sum_i w_i a_i b_i}
              {\sqrt{\sum_i w_i a_i^2 \sum_i w_i b_i^2}}, \qquad
              a_i = \hat y_i - \operatorname{mean}(\hat y), \quad b_i = y_i - \operatorname{mean}(y)

    A term to add to a (weighted) squared error, which alone can be small without any correlation.
    It needs batches whose targets differ.

    Identity: ``weights=None`` is the plain correlation.

    Args:
      predictions: ``[N]``, floating.
      targets: ``[N]``, floating; NaN is unlabelled and counts for nothing.
      weights: ``[N]``, >= 0, of the products but not of the means; None is all ones.

    Returns:
      A scalar in [0, 2], in the dtype of ``predictions``; 1 with gradient 0 where predictions or
      targets are all equal.

    Raises:
      ValueError: shapes or dtypes disagree.

    Source: the correlation term of CISIR, arXiv:2509.16339, weighted as in its code.

    >>> correlation_loss(jnp.array([1.0, 2.0, 3.0]), jnp.array([10.0, 20.0, 0.0]))
    Array(1.5, dtype=float32)
    """
    problem = prepare(predictions, targets, batch=True)
    ones = jnp.ones_like(problem.targets)
    mass = problem._replace(dtype=ones.dtype).finish(ones, weights)
    number = jnp.maximum(jnp.sum(problem.known).astype(mass.dtype), 1)
    centred = [
        jnp.where(problem.known, values - jnp.sum(values) / number, 0)
        for values in (problem.predictions, problem.targets)
    ]
    first, second = (jnp.sum(mass * values * values) for values in centred)
    varied = (first > 0) & (second > 0)
    first, second = (jnp.where(varied, square, 1) for square in (first, second))
    product = jnp.sum(mass * centred[0] * centred[1])
    correlation = product * jax.lax.rsqrt(first) * jax.lax.rsqrt(second)
    return (1 - jnp.where(varied, correlation, 0)).astype(problem.dtype)
