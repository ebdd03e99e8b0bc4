"""Slow float64 twins of the losses: loops and textbook formulas, written without the library."""

import math

import numpy as np


def softmax(z):
    shifted = np.exp(np.asarray(z, np.float64) - np.max(z))
    return shifted / shifted.sum()


def _target(label, num_classes):
    if np.ndim(label) == 1:
        return np.asarray(label, np.float64)
    target = np.zeros(num_classes)
    if 0 <= label < num_classes:
        target[label] = 1.0
    return target


def _each(per_class, logits, labels):
    """Sum over classes of label probability times ``per_class(z, k)``, for every example."""
    return np.array(
        [
            sum(q * per_class(z, k) for k, q in enumerate(_target(y, len(z))) if q)
            for z, y in zip(np.asarray(logits, np.float64), labels, strict=True)
        ]
    )


def weighted_cross_entropy(logits, labels, counts, *, class_weights=None):
    w = np.ones(len(counts)) if class_weights is None else class_weights
    return _each(lambda z, k: -w[k] * math.log(softmax(z)[k]), logits, labels)


def softmax_focal_loss(logits, labels, counts, *, gamma=2.0, class_weights=None):
    w = np.ones(len(counts)) if class_weights is None else class_weights

    def per_class(z, k):
        p = softmax(z)
        rest = sum(p[j] for j in range(len(p)) if j != k)
        return -w[k] * rest**gamma * math.log(p[k])

    return _each(per_class, logits, labels)


def _floored(counts):
    rarest = min(n for n in counts if n > 0)
    return np.array([n if n > 0 else rarest for n in counts], np.float64)


def _log_prior(counts):
    return np.log(_floored(counts) / np.sum(counts))


def logit_adjusted_cross_entropy(logits, labels, counts, *, tau=1.0, class_weights=None):
    shifted = np.asarray(logits, np.float64) + tau * _log_prior(counts)
    return weighted_cross_entropy(shifted, labels, counts, class_weights=class_weights)


def label_distribution_aware_margin_loss(
    logits, labels, counts, *, max_margin=0.5, scale=30.0, class_weights=None
):
    w = np.ones(len(counts)) if class_weights is None else class_weights
    quarter = _floored(counts) ** -0.25
    margins = quarter * (max_margin / quarter.max())

    def per_class(z, k):
        changed = np.array(z)
        changed[k] -= margins[k]
        return -w[k] * math.log(softmax(scale * changed)[k])

    return _each(per_class, logits, labels)


def vector_scaling_loss(logits, labels, counts, *, tau=1.0, gamma=0.3, class_weights=None):
    sizes = _floored(counts)
    changed = np.asarray(logits, np.float64) * (sizes / sizes.max()) ** gamma
    changed = changed + tau * _log_prior(counts)
    return weighted_cross_entropy(changed, labels, counts, class_weights=class_weights)


def class_dependent_temperature_loss(logits, labels, counts, *, gamma=0.3, class_weights=None):
    sizes = _floored(counts)
    changed = np.asarray(logits, np.float64) / (sizes.max() / sizes) ** gamma
    return weighted_cross_entropy(changed, labels, counts, class_weights=class_weights)


def sigmoid_focal_loss(logits, labels, counts=None, *, gamma=2.0, alpha=None):
    out = np.zeros(np.shape(logits))
    for place in np.ndindex(out.shape):
        x, t = float(logits[place]), float(labels[place])
        if t < 0:
            continue
        s = 1 / (1 + math.exp(-x))
        a = alpha if alpha is None or np.ndim(alpha) == 0 else alpha[place[-1]]
        on, off = (1.0, 1.0) if a is None else (a, 1 - a)
        out[place] = -on * t * (1 - s) ** gamma * math.log(s)
        out[place] -= off * (1 - t) * s**gamma * math.log(1 - s)
    return out
