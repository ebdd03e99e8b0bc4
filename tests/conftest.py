"""Strict everywhere: no silent promotion, no silent broadcasting, eight devices, no warnings.

Thousands of small programs are compiled here and run once, so compiling them quickly matters more
than running them quickly; ``XLA_FLAGS=--xla_backend_optimization_level=3`` compiles as users do.
"""

import gc
import os
import pathlib
from importlib.metadata import version

import jax
import numpy as np
import pytest

# Read when JAX first looks for devices, here and in the programs that tests start.
FLAGS = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
if "optimization_level" not in FLAGS[0]:
    FLAGS.append("--xla_backend_optimization_level=0")
    # XLA refuses to start with a flag it does not know, and this one is not there for ever.
    if tuple(map(int, version("jaxlib").split(".")[:2])) <= (0, 10):
        FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(FLAGS).strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("MPLBACKEND", "Agg")
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# What is traced and compiled stays: looking for rubbish in it took a tenth of the time.
gc.set_threshold(100_000, 20, 20)

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forgets compiled programs before their memory maps reach Linux's 65,530 for a process."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 20_000:
        jax.clear_caches()


@pytest.fixture
def shared_data() -> pathlib.Path:
    """The folder of real data sets beside the checkout; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder of real data sets is not beside this checkout")
    return SHARED_DATA


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> np.random.Generator:
    """A NumPy generator whose seed is fixed by the test's name, so that failures replay."""
    seed = sum(ord(letter) for letter in request.node.nodeid)
    print(f"generator seed: {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def as_users_do():
    """Experiments and the command line are a user's programs: JAX's own defaults hold."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
