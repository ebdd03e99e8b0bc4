"""Mixtures of two examples of a batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import _check, _sharding
from jaxbalance._types import Array, ArrayLike, Scalar


class Mixed(NamedTuple):
    """A batch of mixtures."""

    inputs: Array
    """Mixed inputs ``[B, ...]``, floating."""
    labels: Array
    """Class probabilities ``[B, K]``; an unlabelled example has none, so rows may sum below 1."""


def mixup(
    key: Array,
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    num_classes: int,
    alpha: Scalar = 1.0,
    label_alpha: Scalar | None = None,
    partners: ArrayLike | None = None,
    active: ArrayLike | bool = True,
) -> Mixed:
    r"""Mix every example of a batch with another one.

    .. math:: \tilde x_i = \lambda_i x_i + (1 - \lambda_i) x_{j(i)}, \qquad
              \tilde y_i = \lambda_i e_{y_i} + (1 - \lambda_i) e_{y_{j(i)}}, \qquad
              \lambda_i \sim \mathrm{Beta}(\alpha, \alpha)

    With ``label_alpha`` labels have weights of their own, drawn apart from those of the inputs.
    Both are then turned so that the first example weighs at least a half, and a mixture is mostly
    of one class in both. Mixup is said to help most early in training: ``active=step < stop`` ends
    it without a new program.

    Args:
      key: a JAX PRNG key; one for every step.
      inputs: ``[B, ...]``; integers become float32.
      labels: class ids ``[B]``, or class probabilities ``[B, K]``. Id −1 is unlabelled and gives
        its share to no class.
      num_classes: K.
      alpha: > 0, traced or not; the smaller, the closer weights are to 0 and 1.
      label_alpha: the same for labels; None takes the weights of the inputs.
      partners: j(i), indices ``[B]`` in the batch, such as :func:`balanced_partners`; None draws a
        random permutation.
      active: boolean scalar; False returns the batch as it came, its labels as probabilities. This
        is the identity.

    Returns:
      ``Mixed(inputs, labels)``, for losses that take class probabilities.

    Raises:
      ValueError: shapes do not fit each other, or ``alpha`` is not positive.

    Source: Zhang et al. 2018, arXiv:1710.09412, section 2; weights of their own: Zou, Cao, Li and
    Gu 2023, arXiv:2303.08433. The authors' code of the first draws one weight per batch; one per
    example, as in its text, has the same mean and less variance.

    >>> x, y = jnp.array([[0.0], [10.0]]), jnp.array([0, 1])
    >>> mixed = mixup(jax.random.key(0), x, y, num_classes=2, partners=jnp.array([1, 0]))
    >>> bool(jnp.allclose(mixed.inputs[:, 0], 10 * mixed.labels[:, 1], atol=1e-5))
    True
    """
    x, y = _batch(inputs, labels, num_classes)
    j = _partners(key, x, partners)
    weights = _draw(key, alpha, "alpha", len(x))
    if label_alpha is None:
        label_weights = weights
    else:
        label_weights = _draw(jax.random.fold_in(key, 1), label_alpha, "label_alpha", len(x))
        weights, label_weights = (jnp.maximum(w, 1 - w) for w in (weights, label_weights))
    return _mixed(x, y, j, weights, label_weights, active)


def remix(
    key: Array,
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    class_counts: ArrayLike,
    alpha: Scalar = 1.0,
    kappa: Scalar = 3.0,
    tau: Scalar = 0.5,
    partners: ArrayLike | None = None,
    active: ArrayLike | bool = True,
) -> Mixed:
    r"""Mixup whose labels go to the much rarer class of the two.

    .. math:: \lambda^y_i = \begin{cases}
              0 & n_{y_i} / n_{y_j} \ge \kappa \text{ and } \lambda_i < \tau \\
              1 & n_{y_i} / n_{y_j} \le 1 / \kappa \text{ and } 1 - \lambda_i < \tau \\
              \lambda_i & \text{otherwise} \end{cases}

    Args:
      key: a JAX PRNG key; one for every step.
      inputs: ``[B, ...]``; integers become float32.
      labels: class ids ``[B]``; of a pair with an unlabelled one (−1), the rule changes nothing.
      class_counts: n, ``[K]``, of the training set. A pair with an absent class is left to mixup.
      alpha: > 0, of the weights' Beta distribution.
      kappa: >= 1, how many times rarer counts as much rarer; infinity is the identity, mixup.
      tau: in [0, 1]; 0 is the identity too. At the published 1/2 the rare example gives at least
        half of the input wherever it takes the whole label.
      partners: indices ``[B]`` in the batch; None draws a random permutation.
      active: boolean scalar; False returns the batch as it came.

    Returns:
      ``Mixed(inputs, labels)``.

    Raises:
      ValueError: shapes do not fit, labels are no class ids, or a knob is out of range.

    Source: Chou et al. 2020, arXiv:2007.03943, eq. 4 and 5. A well-known repository compares the
    batch's mean weight with tau instead of each pair's own.

    >>> x, y = jnp.zeros((2, 1)), jnp.array([0, 1])
    >>> mixed = remix(jax.random.key(2), x, y, class_counts=jnp.array([900, 9]), tau=1.0,
    ...               partners=jnp.array([1, 0]))
    >>> mixed.labels
    Array([[0., 1.],
           [0., 1.]], dtype=float32)
    """
    counts = _check.class_vector("class_counts", class_counts)
    _check.at_least(1, kappa=kappa)
    _check.between(0, 1, tau=tau)
    ids = _sharding.replicated(_check.class_ids(labels))
    x, y = _batch(inputs, labels, len(counts))
    j = _partners(key, x, partners)
    weights = _draw(key, alpha, "alpha", len(x))
    known = (ids >= 0) & (ids < len(counts))
    own = jnp.where(known, counts[jnp.where(known, ids, 0)], jnp.zeros((), counts.dtype))
    other, limit = own[j], jnp.asarray(kappa, counts.dtype)
    both = (own > 0) & (other > 0)
    threshold = jnp.asarray(tau, weights.dtype)
    to_other = both & (own >= limit * other) & (weights < threshold)
    to_own = both & (other >= limit * own) & (1 - weights < threshold)
    label_weights = jnp.where(to_other, 0, jnp.where(to_own, 1, weights)).astype(weights.dtype)
    return _mixed(x, y, j, weights, label_weights, active)


def balanced_partners(key: Array, labels: ArrayLike, *, num_classes: int) -> Array:
    r"""Partners for mixup whose classes are equally likely, as far as the batch has them.

    .. math:: P(j) \propto 1 / m_{y_j}, \qquad m_k = \#\{i : y_i = k\}

    Args:
      key: a JAX PRNG key.
      labels: class ids ``[B]``; −1 is never drawn.
      num_classes: K.

    Returns:
      Indices ``[B]``, int32. Where nothing is labelled, each example is its own partner, which
      makes mixup the identity for the inputs.

    Raises:
      ValueError: ``labels`` are not class ids ``[B]``.

    Source: the sampler pair of Zhang et al. 2021, arXiv:2110.04964, within a batch.

    >>> labels = jnp.array([0] * 7 + [1, -1])
    >>> drawn = balanced_partners(jax.random.key(0), labels, num_classes=2)
    >>> bool(jnp.any(labels[drawn] == 1)), bool(jnp.any(labels[drawn] == -1))
    (True, False)
    """
    ids = _sharding.replicated(_check.class_ids(labels))
    if ids.ndim != 1:
        raise ValueError(f"labels: got shape {ids.shape}, wanted class ids [B]")
    known = (ids >= 0) & (ids < num_classes)
    where = jnp.where(known, ids, num_classes)
    sizes = jnp.zeros(num_classes + 1, jnp.float32).at[where].add(1)
    shares = jnp.where(known, 1 / jnp.maximum(sizes[where], 1), 0)
    ends = jnp.cumsum(shares)
    drawn = jax.random.uniform(key, ids.shape) * ends[-1]
    # Of equal ends the first belongs to an example with a share; rounding must not pass the last.
    last = jnp.max(jnp.where(known, jnp.arange(len(ids)), 0))
    found = jnp.minimum(jnp.searchsorted(ends, drawn, side="right"), last)
    return jnp.where(ends[-1] > 0, found, jnp.arange(len(ids))).astype(jnp.int32)


def _batch(inputs: ArrayLike, labels: ArrayLike, num_classes: int) -> tuple[Array, Array]:
    """Floating inputs, and class probabilities in a floating dtype of their own."""
    _check.positive_integer(num_classes=num_classes)
    x, y = jnp.asarray(inputs), jnp.asarray(labels)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.float32)
    if _check.is_class_ids(y):
        wanted: tuple[int, ...] = x.shape[:1]
    else:
        wanted = (*x.shape[:1], num_classes)
        _check.floating("labels", y)
    if x.ndim < 1 or y.shape != wanted:
        raise ValueError(
            f"labels: got shape {y.shape}, wanted {wanted} for inputs of shape {x.shape}"
        )
    if _check.is_class_ids(y):
        y = jax.nn.one_hot(y, num_classes, dtype=jnp.float32)
    return x, y


def _partners(key: Array, inputs: Array, partners: ArrayLike | None) -> Array:
    number = len(inputs)
    if partners is None:
        return jax.random.permutation(jax.random.fold_in(key, 2), number)
    given = _check.class_ids(partners, name="partners")
    if given.shape != (number,):
        raise ValueError(f"partners: got shape {given.shape}, wanted indices of shape ({number},)")
    return given


def _draw(key: Array, alpha: Scalar, name: str, number: int) -> Array:
    _check.more_than(0, **{name: alpha})
    shape = jnp.asarray(alpha, jnp.float32)
    return jax.random.beta(key, shape, shape, (number,))


def _mixed(
    inputs: Array,
    labels: Array,
    partners: Array,
    weights: Array,
    label_weights: Array,
    active: ArrayLike | bool,
) -> Mixed:
    on = jnp.asarray(active)
    if on.shape != () or on.dtype != np.dtype(bool):
        raise ValueError(f"active: got {on.dtype} of shape {on.shape}, wanted a boolean scalar")

    def between(first: Array, share: Array) -> Array:
        wide = first.astype(_check.working_dtype(first))
        share = jnp.where(on, share, 1).astype(wide.dtype).reshape(-1, *[1] * (first.ndim - 1))
        second = _sharding.replicated(wide)[partners]
        # An infinite partner of weight 0 must not leave a NaN.
        mixture = jnp.where(share < 1, share * wide + (1 - share) * second, wide)
        return mixture.astype(first.dtype)

    return Mixed(between(inputs, weights), between(labels, label_weights))
