"""What AUROC and average precision cost, relative to scikit-learn's.

    python experiments/benchmarks/ranking_metrics.py [--quick]

Scores are normal, those of positives one deviation higher; *exact* is an untraced call (on a CPU it
sorts with NumPy), *traced* the same function under ``jax.jit``, *histogram* fills 2**20 bins and
reads the number and its bound off them, and *traced histogram* does so in one program. Every timed
call is preceded by one of scikit-learn's on the same scores, and the ratio is the median of the
paired ratios: how many times faster.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sklearn
from sklearn.metrics import average_precision_score, roc_auc_score

from jaxbalance import metrics

SIZES, QUICK = (100_000, 1_000_000), (20_000,)
SHARES = (0.01, 0.1, 0.5)
METRICS = (
    ("AUROC", roc_auc_score, metrics.auroc, metrics.histogram_auroc),
    (
        "AP",
        average_precision_score,
        metrics.average_precision,
        metrics.histogram_average_precision,
    ),
)


def _draw(size: int, share: float) -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    labels = (generator.random(size) < share).astype(np.int32)
    return (generator.normal(size=size) + labels).astype(np.float32), labels


def _binned(function: Callable[..., Any], scores: Any, labels: Any) -> Any:
    return function(metrics.score_histogram(scores, labels))


def _both_binned(scores: Any, labels: Any) -> Any:
    histogram = metrics.score_histogram(scores, labels)
    return metrics.histogram_auroc(histogram), metrics.histogram_average_precision(histogram)


def _both_trusted(labels: Any, scores: Any) -> Any:
    return roc_auc_score(labels, scores), average_precision_score(labels, scores)


def _both_exact(scores: Any, labels: Any) -> Any:
    return metrics.auroc(scores, labels), metrics.average_precision(scores, labels)


def _seconds(call: Callable[..., Any], *arguments: Any) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(call(*arguments))
    return time.perf_counter() - begun


def _row(name: str, trusted: Any, call: Any, size: int, share: float, rounds: int) -> str:
    scores, labels = _draw(size, share)
    arguments = jnp.asarray(scores), jnp.asarray(labels)
    result = jax.block_until_ready(call(*arguments))
    pairs = [(_seconds(trusted, labels, scores), _seconds(call, *arguments)) for _ in range(rounds)]
    slow, fast = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    wanted = np.atleast_1d(trusted(labels, scores))
    bounded = isinstance(jax.tree.leaves(result, is_leaf=_is_bounded)[0], metrics.Bounded)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result)]
    values = leaves[::2] if bounded else leaves
    gap = max(abs(float(v) - w) for v, w in zip(values, wanted, strict=True))
    bound = f"{max(map(float, leaves[1::2])):.1e}" if bounded else ""
    return (
        f"| {name} | {size} | {share:g} | {slow:.1f} | {fast:.1f} | {ratio:.1f} "
        f"| {gap:.1e} | {bound} |"
    )


def _is_bounded(node: Any) -> bool:
    return isinstance(node, metrics.Bounded)


def _rows(size: int, share: float, rounds: int) -> list[str]:
    cases = []
    for name, trusted, exact, binned in METRICS:
        cases += [
            (f"{name}, exact", trusted, exact),
            (f"{name}, traced", trusted, jax.jit(exact)),
            (f"{name}, histogram", trusted, partial(_binned, binned)),
            (f"{name}, traced histogram", trusted, jax.jit(partial(_binned, binned))),
        ]
    cases += [
        ("both, exact", _both_trusted, _both_exact),
        ("both, histogram", _both_trusted, _both_binned),
    ]
    return [_row(*case, size, share, rounds) for case in cases]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="one small size, to see that it runs")
    arguments = parser.parse_args()
    print(
        f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, "
        f"scikit-learn {sklearn.__version__}, {arguments.rounds} pairs"
    )
    heads = ["metric", "N", "positives", "scikit-learn ms", "ms", "ratio", "difference", "bound"]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for size in QUICK if arguments.quick else SIZES:
        for share in SHARES[:1] if arguments.quick else SHARES:
            print("\n".join(_rows(size, share, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
