"""Class-balanced index sampling from a million examples, beside PyTorch's WeightedRandomSampler.

    python experiments/benchmarks/samplers.py [--torch PYTHON]

Millions of indices per second, compiled, the fastest round; and microseconds for a single batch.
The labels are long-tailed over 100 classes. Every sampler here draws its rows from the same class
index. With ``--torch``, the interpreter of an environment that has PyTorch, the same labels are
given there to the sampler that most people use, which makes a Python list of its indices; the
tensor it makes the list of, from ``torch.multinomial``, is the second row. Theirs costs a pass over
all examples for a single batch too.
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import samplers

EXAMPLES, CLASSES, BATCH, STEPS = 1_000_000, 100, 1000, 1000

PEER = """
import json, sys, time
import numpy as np
import torch
examples, classes, batch, steps, rounds = json.loads(sys.argv[1])
shares = np.array(json.loads(sys.argv[2]))
labels = np.random.default_rng(0).choice(classes, size=examples, p=shares)
weights = torch.from_numpy(1.0 / np.bincount(labels, minlength=classes)[labels])
def draws(number):
    sampler = torch.utils.data.WeightedRandomSampler(weights, number, replacement=True)
    return {
        "WeightedRandomSampler": lambda: list(sampler),
        "multinomial": lambda: torch.multinomial(weights, number, replacement=True),
    }
def seconds(call):
    call()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)
many, few = draws(batch * steps), draws(batch)
print(json.dumps({name: [seconds(many[name]), seconds(few[name])] for name in many}))
"""


def _shares() -> np.ndarray:
    shares = 0.01 ** (np.arange(CLASSES) / (CLASSES - 1))
    return shares / shares.sum()


def _samplers() -> dict[str, Callable[..., Any]]:
    labels = np.random.default_rng(0).choice(CLASSES, size=EXAMPLES, p=_shares())
    index = samplers.class_index(labels, num_classes=CLASSES)
    falling = samplers.switch_schedule(
        samplers.temperature_schedule(index.class_counts, tau=jnp.inf),
        samplers.temperature_schedule(index.class_counts),
        begin=0,
        end=STEPS,
    )
    key = jax.random.key(0)
    balance = partial(samplers.undersampled_counts, np.asarray(index.class_counts), ratio=20)
    sizes = {"classes_per_batch": CLASSES // 2, "examples_per_class": 2 * BATCH // CLASSES}
    return {
        "class_balanced": partial(samplers.class_balanced, key, index, batch_size=BATCH),
        "class_aware": partial(samplers.class_aware, key, index, batch_size=BATCH),
        "scheduled": partial(samplers.scheduled, key, index, schedule=falling, batch_size=BATCH),
        "m_per_class": partial(samplers.m_per_class, key, index, **sizes),
        "stratified": partial(samplers.stratified, key, index, examples_per_class=BATCH // CLASSES),
        "resampled_epochs": partial(
            samplers.resampled_epochs, key, index, target_counts=balance(), batch_size=BATCH
        ),
        "shuffled_epochs": partial(
            samplers.shuffled_epochs, key, num_examples=EXAMPLES, batch_size=BATCH
        ),
    }


def _seconds(call: Callable[[], Any], rounds: int) -> float:
    jax.block_until_ready(call())
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begun)
    return min(times)


def _of_torch(python: str, rounds: int) -> dict[str, list[float]]:
    settings = json.dumps([EXAMPLES, CLASSES, BATCH, STEPS, rounds])
    command = [python, "-c", PEER, settings, json.dumps(_shares().tolist())]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return {f"torch {name}": times for name, times in json.loads(answer).items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch", help="a Python that has torch, for its rows")
    settings = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{EXAMPLES} examples, {CLASSES} classes, {jax.default_backend()}, load {load:.1f}")
    seconds = {
        name: [_seconds(partial(draw, steps=n), settings.rounds) for n in (STEPS, 1)]
        for name, draw in _samplers().items()
    }
    if settings.torch:
        seconds |= _of_torch(settings.torch, settings.rounds)
    slow, _ = seconds.get("torch WeightedRandomSampler", (None, None))
    print(f"| sampler | million per second | µs for a batch of {BATCH} | torch's / this |")
    print("| --- | ---: | ---: | ---: |")
    for name, (many, few) in seconds.items():
        ratio = f"{slow / many:.1f}" if slow else ""
        print(f"| {name} | {BATCH * STEPS / many / 1e6:.1f} | {few * 1e6:.0f} | {ratio} |")
    print(f"load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
