"""Class imbalance in JAX: losses, samplers, metrics, corrections and compiled training.

Everything lives in a module named after what it is: ``jb.losses.softmax_focal_loss``, never
``jb.softmax_focal_loss``. Modules that need Flax or host libraries, or that only studies need
(``models``, ``compare``, ``dynamics``, ``experiments``), load on first use, so importing the
package costs little more than importing JAX and optax.
"""

import importlib
from types import ModuleType

from jaxbalance import adversarial as adversarial
from jaxbalance import augment as augment
from jaxbalance import classgrads as classgrads
from jaxbalance import counts as counts
from jaxbalance import data as data
from jaxbalance import losses as losses
from jaxbalance import metrics as metrics
from jaxbalance import posthoc as posthoc
from jaxbalance import samplers as samplers
from jaxbalance import training as training
from jaxbalance import transforms as transforms
from jaxbalance import weightings as weightings

__version__ = "0.1.0"

_LOADED_ON_FIRST_USE = ("models", "compare", "dynamics", "experiments")


def __getattr__(name: str) -> ModuleType:
    if name in _LOADED_ON_FIRST_USE:
        return importlib.import_module(f"jaxbalance.{name}")
    raise AttributeError(f"module 'jaxbalance' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LOADED_ON_FIRST_USE])
