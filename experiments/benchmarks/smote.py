"""SMOTE on the device against imbalanced-learn, side by side in one process.

    python experiments/benchmarks/smote.py

Medians of the ratio of neighbouring runs. "growing" examples are the class that must grow, beside
twice as many of another; both double it. The neighbours alone are timed too, since they are nearly
all of it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from imblearn.over_sampling import SMOTE
from sklearn.neighbors import NearestNeighbors

import jaxbalance as jb


def seconds(call: Callable[[], Any]) -> float:
    """Of one call, to its end."""
    begun = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begun


def side_by_side(theirs: Callable[[], Any], ours: Callable[[], Any], repeats: int) -> list[float]:
    """Median milliseconds of both, and the median of their ratio, run by run."""
    theirs(), ours()
    pairs = [(seconds(theirs), seconds(ours)) for _ in range(repeats)]
    medians = [1e3 * statistics.median(column) for column in zip(*pairs, strict=True)]
    return [*medians, statistics.median(first / second for first, second in pairs)]


def one_size(growing: int, features: int, repeats: int) -> dict[str, list[float]]:
    """Neighbours alone, and SMOTE whole."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], [2 * growing, growing])
    inputs = generator.normal(size=(3 * growing, features)).astype(np.float32)
    x, y = jnp.asarray(inputs), jnp.asarray(labels)
    own, zeros = x[2 * growing :], jnp.zeros(growing, jnp.int32)
    nearest = jax.jit(lambda x, y: jb.augment.nearest_neighbors(x, y, num_classes=1, k=5))
    target = (2 * growing, 2 * growing)
    smote = jax.jit(lambda key, x, y: jb.augment.smote(key, x, y, target_counts=target).inputs)
    known = NearestNeighbors(n_neighbors=6, n_jobs=-1).fit(np.asarray(own))
    key = jax.random.key(0)
    return {
        "neighbours": side_by_side(
            lambda: known.kneighbors(np.asarray(own)), lambda: nearest(own, zeros), repeats
        ),
        "SMOTE": side_by_side(
            lambda: SMOTE(random_state=0).fit_resample(inputs, labels),
            lambda: smote(key, x, y),
            repeats,
        ),
    }


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--growing", type=int, nargs="+", default=[2_000, 20_000])
    given = parser.parse_args()
    print("| growing examples | what | theirs, ms | ours, ms | times faster |")
    print("| ---: | --- | ---: | ---: | ---: |")
    for growing in given.growing:
        for what, (theirs, ours, ratio) in one_size(growing, given.features, given.repeats).items():
            print(f"| {growing} | {what} | {theirs:.0f} | {ours:.0f} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
