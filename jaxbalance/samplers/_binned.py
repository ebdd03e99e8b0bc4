"""Balance by any number that examples have: bins of a statistic, self-paced under-sampling."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxbalance import _check, counts
from jaxbalance._types import Array, ArrayLike, HostArray, Scalar


def statistic_bins(statistic: ArrayLike | Sequence[float], *, num_bins: int) -> HostArray:
    r"""Which of the equally wide intervals between smallest and largest each example lies in.

    .. math:: b_i = \min\!\left(L - 1,\
              \left\lfloor L \frac{s_i - \min s}{\max s - \min s} \right\rfloor\right)

    The bins are class ids: :func:`class_index` groups the examples by them and every sampler then
    balances the statistic as it balances classes; :func:`class_aware` puts rare values into every
    batch. It may be a regression target, a length, a loss, the number of objects in an image; take
    its logarithm first where a few large values would leave all others in one bin. For bins of
    other widths ``np.digitize`` gives such ids. ``num_bins=1`` is the identity.

    Args:
      statistic: ``[N]`` finite numbers, on the host.
      num_bins: L.

    Returns:
      Bin ids ``[N]`` in ``0 .. L-1``, int32, by NumPy. Equal values share a bin; an interval that
      nobody lies in is an absent class; a constant statistic is all in bin 0.

    Raises:
      ValueError: ``statistic`` is not a non-empty vector of finite numbers, or ``num_bins`` is not
        an integer >= 1.

    Source: sampling from groups made by a statistic of the examples, as Jung and Lee 2025,
    arXiv:2505.11152, do with contact statistics.

    >>> statistic_bins([0.0, 0.1, 0.2, 0.9, 1.0], num_bins=2)
    array([0, 0, 0, 1, 1], dtype=int32)
    """
    _check.positive_integer(num_bins=num_bins)
    values = np.asarray(statistic)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"statistic: got shape {values.shape}, wanted shape [N], N >= 1")
    if values.dtype.kind not in "biuf":
        raise ValueError(f"statistic: got dtype {values.dtype}, wanted real numbers")
    values = values.astype(np.float64)
    broken = np.count_nonzero(~np.isfinite(values))
    if broken:
        raise ValueError(f"statistic: got {broken} of {values.size} not finite, wanted all finite")
    # Halved, so that the width of the widest range does not overflow.
    low, high = values.min() / 2, values.max() / 2
    if low == high:
        return np.zeros(values.shape, np.int32)
    edges = 2 * np.linspace(low, high, num_bins + 1)
    return np.searchsorted(edges[1:-1], values, side="right").astype(np.int32)


def self_paced_factor(iteration: Scalar, *, num_iterations: int) -> Array:
    r"""How far self-paced under-sampling has moved from equal hardness to equal numbers per bin.

    .. math:: \alpha = \tan\!\left(\frac{\pi}{2} \cdot \frac{i}{n}\right)

    Args:
      iteration: i, from 0 to n.
      num_iterations: n.

    Returns:
      alpha ``[]``, float32: 0 at i = 0, 1 half way, infinity from i = n on.

    Raises:
      ValueError: ``iteration`` is outside [0, n] or ``num_iterations`` is not an integer >= 1.

    Source: Liu et al. 2020, arXiv:1909.03500, algorithm 1, where i runs from 1 to n.
    (imbalanced-ensemble runs i from 0 and divides by n − 1.)

    >>> [float(self_paced_factor(i, num_iterations=2).round(3)) for i in (0, 1, 2)]
    [0.0, 1.0, inf]
    """
    _check.positive_integer(num_iterations=num_iterations)
    _check.between(0, num_iterations, iteration=iteration)
    done = jnp.asarray(iteration, jnp.float32) / num_iterations
    over = done >= 1
    # The float next to pi/2 may be above it, where the tangent is negative.
    angle = (jnp.pi / 2) * jnp.where(over, jnp.zeros_like(done), done)
    return jnp.where(over, jnp.full_like(done, jnp.inf), jnp.tan(angle))


def self_paced_probabilities(
    hardness: ArrayLike, bins: ArrayLike, *, num_bins: int, alpha: Scalar
) -> Array:
    r"""Share of each hardness bin in self-paced under-sampling of the majority class.

    .. math:: p_l \propto \frac{1}{\bar h_l + \alpha} \text{ over bins with examples}, \qquad
              \bar h_l = \text{mean hardness in bin } l

    ``alpha=0`` makes number times mean hardness the same for every bin: many easy examples, few
    hard ones. An infinite ``alpha`` draws the same number from every bin. Between the two,
    :func:`self_paced_factor` grows from one round of an ensemble to the next. ``num_bins=1`` is the
    identity: random under-sampling.

    The share of a bin is a class probability on the index of the bins: :func:`class_balanced` draws
    with replacement, :func:`resampled_epochs` with :func:`apportioned_counts` without.

    Args:
      hardness: ``[N]``, not negative: :math:`|1 - p_y|`, a loss, any error.
      bins: their bins ``[N]`` from :func:`statistic_bins`; −1, for the minority, say, is in no bin
        and its hardness may be anything.
      num_bins: L, static.
      alpha: alpha >= 0, infinity included.

    Returns:
      ``[L]``, at least float32, adding up to one. An empty bin gets 0 and does not change the
      others, and if all are empty all get 0. A bin of mean hardness below 1.2e-7 counts as one of
      that hardness, so that ``alpha=0`` has a finite answer.

    Raises:
      ValueError: shapes or dtypes disagree, or ``alpha`` is negative.

    Source: Liu et al. 2020, arXiv:1909.03500, algorithm 1. Its bins divide [0, 1]; those of
    imbalanced-ensemble, as those of :func:`statistic_bins`, the range of the hardness.

    >>> hardness, bins = jnp.array([0.125, 0.125, 0.5]), jnp.array([0, 0, 1])
    >>> self_paced_probabilities(hardness, bins, num_bins=2, alpha=0.0)
    Array([0.8, 0.2], dtype=float32)
    """
    _check.at_least(0.0, alpha=alpha)
    _check.positive_integer(num_bins=num_bins)
    values, ids = _check.floating("hardness", hardness), _check.class_ids(bins, name="bins")
    if values.ndim != 1:
        raise ValueError(f"hardness: got shape {values.shape}, wanted shape [N]")
    ids = _check.same_shape("bins", ids, "hardness", values)
    total = counts.class_sums(values, ids, num_classes=num_bins)
    number = counts.class_counts(ids, num_classes=num_bins).astype(total.dtype)
    mean = total / jnp.maximum(number, 1)
    factor = jnp.asarray(alpha, total.dtype)
    # Everything over max(1, alpha): an infinite alpha leaves 1 for every bin.
    scale = jnp.maximum(factor, 1)
    least = float(np.finfo(np.float32).eps)
    moved = jnp.maximum(mean, least) / scale + jnp.minimum(factor, 1)
    weight = jnp.where(number > 0, 1 / moved, jnp.zeros_like(moved))
    return weight / jnp.where(jnp.any(number > 0), jnp.sum(weight), jnp.ones_like(scale))


def apportioned_counts(
    class_counts: ArrayLike, *, class_probabilities: ArrayLike | Sequence[float], total: int
) -> HostArray:
    r"""Whole numbers of examples per class nearest to given shares, no class beyond its size.

    .. math:: m_k \approx \min(n_k, c\, p_k) \quad \text{with } c \text{ such that }
              \textstyle\sum_k m_k = M

    A class smaller than its share gives all it has and the others share the rest in proportion.
    What remains of each is rounded by largest remainder, the lower id first among equals.
    Probabilities equal to the class counts and M their sum are the identity.

    Args:
      class_counts: ``[K]``, on the host.
      class_probabilities: p, ``[K]``, on the host, not negative; need not add up to one.
      total: M.

    Returns:
      Targets ``[K]``, int64, adding up to M exactly, for :func:`resampled_epochs`, which then takes
      no member twice in an epoch.

    Raises:
      ValueError: ``class_probabilities`` is not ``[K]``, a number is negative, ``total`` is not an
        integer >= 1 or is more than the classes of positive probability have.

    Source: rounding by largest remainder, Hamilton's method of apportionment. (For self-paced
    under-sampling imbalanced-ensemble rounds down and fills up from the most populated bins.)

    >>> apportioned_counts([100, 100, 3], class_probabilities=[1, 1, 2], total=21)
    array([9, 9, 3])
    """
    _check.positive_integer(total=total)
    sizes = _check.host_counts("class_counts", class_counts).astype(np.int64)
    share = _check.host_counts("class_probabilities", class_probabilities).astype(np.float64)
    if share.shape != sizes.shape:
        raise ValueError(
            f"class_probabilities: got shape {share.shape}, wanted shape {sizes.shape}, that of "
            "class_counts"
        )
    available = int(sizes[share > 0].sum())
    if total > available:
        raise ValueError(
            f"total: got {total}, wanted at most {available}, the examples of all classes of "
            "positive probability"
        )
    exact = _filled(np.where(share > 0, sizes, 0), share, total)
    # A share that misses a whole number by rounding alone is that number.
    near = np.rint(exact)
    exact = np.where(np.isclose(exact, near, rtol=1e-12, atol=0), near, exact)
    targets = np.floor(exact).astype(np.int64)
    missing = total - int(targets.sum())
    targets[np.argsort(targets - exact, kind="stable")[:missing]] += 1
    return targets


def _filled(sizes: HostArray, share: HostArray, total: int) -> HostArray:
    """``min(sizes, c share)`` with the level c at which it adds up to ``total``."""
    infinity = np.full(share.shape, np.inf)
    ratio = np.divide(sizes, share, out=infinity.copy(), where=share > 0)
    order = np.argsort(ratio, kind="stable")
    # Before the j-th class fills up, those before it are full and the others share what remains.
    remaining = total - (np.cumsum(sizes[order]) - sizes[order])
    others = np.cumsum(share[order][::-1])[::-1]
    level = np.divide(remaining, others, out=infinity, where=others > 0)
    first = np.argmax(level <= ratio[order])
    return np.minimum(sizes, level[first] * share)
