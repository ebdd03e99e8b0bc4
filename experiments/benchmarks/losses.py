"""What each loss costs, forward and backward, relative to optax's plain cross entropy.

    python experiments/benchmarks/losses.py

Same logits, one process; every call is preceded by one of the reference, and the ratio is the
median of the paired ratios. Class ids are compared with
``optax.softmax_cross_entropy_with_integer_labels``, class probabilities with
``optax.softmax_cross_entropy``, the multi-label loss with ``optax.sigmoid_binary_cross_entropy``.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxbalance import counts, losses

SIZES = ((4096, 10), (4096, 100), (1024, 1000))


def _rows(classes: int) -> dict[str, Callable[[Any, Any], Any]]:
    sizes = jnp.asarray(counts.exponential(classes, largest=5000, ratio=100))
    weights = counts.inverse_frequency_weights(sizes)
    return {
        "weighted_cross_entropy": partial(losses.weighted_cross_entropy, class_weights=weights),
        "softmax_focal_loss": losses.softmax_focal_loss,
        "logit_adjusted_cross_entropy": partial(
            losses.logit_adjusted_cross_entropy, class_counts=sizes
        ),
        "label_distribution_aware_margin_loss": partial(
            losses.label_distribution_aware_margin_loss, class_counts=sizes
        ),
        "vector_scaling_loss": partial(losses.vector_scaling_loss, class_counts=sizes),
    }


def _compiled(loss: Callable[[Any, Any], Any], logits: Any, labels: Any) -> Callable[[], Any]:
    gradient = jax.jit(jax.value_and_grad(lambda z, y: jnp.mean(loss(z, y))))
    jax.block_until_ready(gradient(logits, labels))
    return lambda: gradient(logits, labels)


def _seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    begun = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(call())
    return (time.perf_counter() - begun) / repeats


def _ratio(call: Callable[[], Any], reference: Callable[[], Any], rounds: int) -> float:
    return statistics.median(_seconds(call) / _seconds(reference) for _ in range(rounds))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    table: dict[str, list[str]] = {}
    for batch, classes in SIZES:
        logits = jax.random.normal(jax.random.key(0), (batch, classes))
        ids = jax.random.randint(jax.random.key(1), (batch,), 0, classes)
        shares = jax.nn.softmax(jax.random.normal(jax.random.key(2), (batch, classes)))
        flags = (shares > 1 / classes).astype(jnp.float32)
        by_id = _compiled(optax.softmax_cross_entropy_with_integer_labels, logits, ids)
        by_share = _compiled(optax.softmax_cross_entropy, logits, shares)
        by_flag = _compiled(optax.sigmoid_binary_cross_entropy, logits, flags)
        for name, loss in _rows(classes).items():
            cells = table.setdefault(name, [])
            cells.append(f"{_ratio(_compiled(loss, logits, ids), by_id, rounds):.2f}")
            cells.append(f"{_ratio(_compiled(loss, logits, shares), by_share, rounds):.2f}")
        sigmoid = _compiled(losses.sigmoid_focal_loss, logits, flags)
        cells = table.setdefault("sigmoid_focal_loss (multi-label)", [])
        cells += [f"{_ratio(sigmoid, by_flag, rounds):.2f}", ""]
    heads = [f"[{b}, {k}] {kind}" for b, k in SIZES for kind in ("ids", "soft")]
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, median of {rounds} pairs")
    print(f"| loss | {' | '.join(heads)} |\n| --- |{' ---: |' * len(heads)}")
    for name, cells in table.items():
        print(f"| `{name}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
