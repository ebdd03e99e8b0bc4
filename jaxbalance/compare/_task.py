"""From a data set to everything a sweep needs: splits per seed, counts, standardisation."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import counts, data, samplers
from jaxbalance._check import InputError
from jaxbalance._types import Array, HostArray

_LEAST_TO_MEASURE = 5
_MOST_NAMED = 8
TEST_FRACTION = 0.2
_PROFILES: dict[str, tuple[Callable[..., HostArray], str]] = {
    "exponential": (counts.exponential, "ratio"),
    "step": (counts.step, "ratio"),
    "linear": (counts.linear, "ratio"),
    "zipf": (counts.zipf, "exponent"),
}
VALIDATION_FRACTION = 0.25


class Task(NamedTuple):
    """A data set, split once per seed with equal class sizes, ready for compiled runs."""

    dataset: data.Dataset
    inputs: Array
    """All examples, on the device, as read."""
    labels: Array
    """``[N]``, int32, on the device."""
    class_counts: HostArray
    """Training examples of each class ``[K]``; the same for every seed."""
    train: HostArray
    """Rows of the training part ``[S, n]``; likewise ``validation`` and ``test``."""
    validation: HostArray
    test: HostArray
    class_index: samplers.ClassIndex
    """Rows of the training part by class, with a leading axis of seeds."""
    standardizer: data.Standardizer
    """Training statistics, with a leading axis of seeds."""
    shape: tuple[int, ...]
    """That of an example, without columns that were added to fill it up."""
    notes: tuple[str, ...]
    """What a reader should know about the data: rare classes, what was done about them."""

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.dataset.class_names)

    @property
    def redrawn(self) -> bool:
        """Whether every seed has a test set of its own (no official one exists)."""
        return self.dataset.test_indices is None

    @property
    def fingerprint(self) -> str:
        """Short hash of the first seed's training rows."""
        return data.fingerprint(self.train[0])


def parse_profile(text: str) -> Callable[[int, int], HostArray] | None:
    """Read ``NAME:NUMBER`` into ``profile(num_classes, largest) -> sizes``; "natural" is None.

    >>> parse_profile("exponential:10")(3, 100)
    array([100,  31,  10])
    """
    if text == "natural":
        return None
    name, _, number = text.partition(":")
    if name not in _PROFILES:
        raise InputError(
            f"unknown profile {text!r}; wanted natural, exponential:RATIO, step:RATIO, "
            "linear:RATIO or zipf:EXPONENT"
        )
    maker, knob = _PROFILES[name]
    try:
        profile = partial(maker, **{knob: float(number)})
        profile(2, largest=1)
    except ValueError as error:
        raise InputError(f"profile {text!r}: {error}") from None
    return lambda num_classes, largest: profile(num_classes, largest=largest)


def make_task(dataset: data.Dataset, *, profile: str, seeds: int) -> Task:
    """Split a data set once per seed: a test part, then the profile, then train and validation.

    The profile shapes training and validation data alike, since nobody has a balanced validation
    set of a long-tailed problem; the test part keeps the data's own class sizes.
    """
    shape = parse_profile(profile)
    splits = [_split(dataset, shape, seed) for seed in range(seeds)]
    train, validation, test = (np.stack(parts) for parts in zip(*splits, strict=True))
    if not validation.size or not test.size:
        raise InputError(
            f"{dataset.name}: its {len(dataset.labels)} examples are too few to train, validate "
            "and test on; no class has the three examples that takes"
        )
    num_classes = len(dataset.class_names)
    class_counts = np.bincount(dataset.labels[train[0]], minlength=num_classes)
    indices = [_index(dataset.labels, rows, num_classes) for rows in train]
    standardizers = [data.fit_standardizer(dataset.inputs[rows]) for rows in train]
    return Task(
        dataset=dataset,
        inputs=jnp.asarray(dataset.inputs),
        labels=jnp.asarray(dataset.labels, jnp.int32),
        class_counts=class_counts,
        train=train,
        validation=validation,
        test=test,
        class_index=jax.tree.map(lambda *leaves: jnp.stack(leaves), *indices),
        standardizer=jax.tree.map(lambda *leaves: np.stack(leaves), *standardizers),
        shape=dataset.inputs.shape[1:],
        notes=_notes(dataset, train[0], validation[0], test[0]),
    )


def _split(
    dataset: data.Dataset, shape: Callable[[int, int], HostArray] | None, seed: int
) -> tuple[HostArray, HostArray, HostArray]:
    labels = dataset.labels
    outer = data.stratified_split(
        labels,
        seed=seed,
        validation_fraction=0.0,
        test_fraction=TEST_FRACTION,
        test_indices=dataset.test_indices,
    )
    pool = np.sort(outer.train)
    if shape is not None:
        available = np.bincount(labels[pool], minlength=len(dataset.class_names))
        sizes = np.minimum(shape(available.size, int(available.max())), available)
        if np.any((sizes < 2) & (available > 0)):
            raise InputError(
                f"the profile leaves {sizes.tolist()} examples per class; every class needs two, "
                "one to train on and one to validate on: choose a smaller ratio"
            )
        pool = pool[data.long_tail_subset(labels[pool], sizes, seed=seed)]
    inner = data.stratified_split(
        labels[pool],
        seed=seed,
        validation_fraction=VALIDATION_FRACTION,
        test_fraction=0.0,
    )
    return pool[inner.train], pool[inner.validation], np.sort(outer.test)


def _index(labels: HostArray, rows: HostArray, num_classes: int) -> samplers.ClassIndex:
    masked = np.full_like(labels, -1)
    masked[rows] = labels[rows]
    return samplers.class_index(masked, num_classes=num_classes)


def _notes(
    dataset: data.Dataset, train: HostArray, validation: HostArray, test: HostArray
) -> tuple[str, ...]:
    number = len(dataset.class_names)
    trained, validated, tested = (
        np.bincount(dataset.labels[rows], minlength=number) for rows in (train, validation, test)
    )
    coarse = (tested > 0) & (tested < _LEAST_TO_MEASURE)
    findings = (
        (tested == 0, "too rare for the test set: trained on, but left out of every average"),
        (coarse, f"fewer than {_LEAST_TO_MEASURE} test examples: recall is coarse"),
        ((tested > 0) & (validated == 0), "no validation example: nothing is chosen by it"),
        ((tested > 0) & (trained == 0), "no training example: no method can learn it"),
    )
    total = trained + validated + tested
    return tuple(
        f"{_listed(dataset.class_names, total, which)}: {what}"
        for which, what in findings
        if np.any(which)
    )


def _listed(names: tuple[str, ...], sizes: HostArray, which: HostArray) -> str:
    """The classes meant, by name, with how many examples each has."""
    chosen = np.flatnonzero(which)
    shown = ", ".join(f"{names[k]!r} ({sizes[k]})" for k in chosen[:_MOST_NAMED])
    more = f" and {len(chosen) - _MOST_NAMED} more" if len(chosen) > _MOST_NAMED else ""
    return f"class{'es' if len(chosen) > 1 else ''} {shown}{more}"
