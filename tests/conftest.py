"""Strict everywhere: no silent promotion, no silent broadcasting, eight devices, no warnings."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
).strip()
os.environ.setdefault("MPLBACKEND", "Agg")

import pathlib

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


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
