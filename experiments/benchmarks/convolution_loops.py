"""What a convolution costs inside a compiled loop, and what writing it as a matrix product changes.

Claim: XLA on CPU runs the gradient of a convolution inside a loop many times slower than outside;
a convolution made of shifted copies and a matrix product costs about the same as Flax's outside a
loop, no more inside one, and many models at once cost no more than one after the other.

    python experiments/benchmarks/convolution_loops.py

Every row is one training step of ``jaxbalance.models.SmallCNN`` on 64 images of 28 x 28, in
milliseconds for one model, and the ratio to Flax's convolution outside a loop measured right before
it in the same process (median of the paired ratios). Two of the decisions it backs:
``jaxbalance.training.run_steps`` leaves the loop to Python where a step contains a convolution on
CPU, and ``jaxbalance compare`` trains CNNs one after the other on CPU inside one program.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import optax
from flax import nnx

from jaxbalance import losses, models, training
from jaxbalance.models import _networks

BATCH, MODELS, STEPS = 64, 8, 4


def _flax(in_features: int, out_features: int, *, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(in_features, out_features, (3, 3), rngs=rngs)


def _pieces(convolution: Any) -> tuple[Any, Any]:
    """A step, and a function from keys to states, for the CNN with the given convolution."""
    tx = optax.sgd(0.01)
    with mock.patch.object(_networks, "ShiftedConvolution", convolution):
        model = models.functional(models.SmallCNN((28, 28, 1), 10, rngs=nnx.Rngs(0)))
    loss = training.example_loss(model.apply, losses.weighted_cross_entropy)
    step = training.make_step(loss, tx, num_classes=10)

    def start(key: jax.Array) -> training.TrainState:
        noisy = jax.tree.map(lambda p: p + 1e-3 * jax.random.normal(key, p.shape), model.params)
        return training.init_state(noisy, tx)

    return step, start


def _variants() -> dict[str, tuple[Callable[[], Any], int]]:
    """Compiled calls without arguments, and how many model steps each takes."""
    images = jax.random.normal(jax.random.key(0), (BATCH, 28, 28, 1))
    labels = jax.random.randint(jax.random.key(1), (BATCH,), 0, 10)
    keys = jax.random.split(jax.random.key(2), MODELS)
    out: dict[str, tuple[Callable[[], Any], int]] = {}
    for name, convolution in (("flax", _flax), ("shifted", models.ShiftedConvolution)):
        step, start = _pieces(convolution)

        def once(state: Any, step: Any = step) -> Any:
            return step(state, images, labels)[0]

        def loop(state: Any, once: Any = once) -> Any:
            return jax.lax.scan(lambda s, _: (once(s), None), state, None, length=STEPS)[0]

        one, many = start(keys[0]), jax.vmap(start)(keys)
        programs = {
            "outside a loop": (once, one, 1),
            "in a loop": (loop, one, STEPS),
            "8 models batched": (jax.vmap(once), many, MODELS),
            "8 models in a loop": (lambda s, once=once: jax.lax.map(once, s), many, MODELS),
        }
        for what, (program, state, count) in programs.items():
            compiled = jax.jit(program).lower(state).compile()
            out[f"{name}, {what}"] = (lambda c=compiled, s=state: c(s), count)
    return out


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begun


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    variants = _variants()
    reference = variants["flax, outside a loop"][0]
    jax.block_until_ready(reference())
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, median of {rounds} pairs")
    print("| variant | ms per model step | ratio |\n| --- | ---: | ---: |")
    for name, (call, count) in variants.items():
        jax.block_until_ready(call())
        times, ratios = [], []
        for _ in range(rounds):
            base = _seconds(reference)
            times.append(_seconds(call) / count)
            ratios.append(times[-1] / base)
        milliseconds = 1e3 * statistics.median(times)
        print(f"| {name} | {milliseconds:.1f} | {statistics.median(ratios):.2f} |")


if __name__ == "__main__":
    main()
