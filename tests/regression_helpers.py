"""What the tests of the comparison of regressions share."""

import numpy as np

from jaxbalance import data


def problem(*, rows=400, seed=0):
    """Targets up to 6, most near 0; noise as wide as they are pulls guesses there."""
    generator = np.random.default_rng(seed)
    targets = np.minimum(generator.exponential(0.8, size=rows), 6.0)
    noisy = targets[:, None] + 2 * generator.normal(size=(rows, 3))
    return noisy.astype(np.float32), targets


def dataset(**settings):
    return data.from_target_arrays(*problem(**settings), name="tail")


def written(tmp_path, content, name="table.csv"):
    path = tmp_path / name
    path.write_text(content)
    return path
