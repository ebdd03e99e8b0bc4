"""From numbers to predict to what a sweep needs: bins, splits by bin, targets of one scale."""

import itertools
from typing import NamedTuple

import numpy as np

from jaxbalance import data, samplers
from jaxbalance._check import InputError
from jaxbalance._types import HostArray
from jaxbalance.compare._task import Task, make_task

_BINS = 20
_MOST_VALUES = 50
_LEAST_TO_MEASURE = 5
_MOST_NAMED = 8


class RegressionTask(NamedTuple):
    """A regression, its targets in equally wide bins that take the place of classes."""

    split: Task
    """Rows by seed, inputs and bins; what it calls a class is a bin."""
    targets: HostArray
    """``[N]``, float64, as read."""
    edges: HostArray
    """Of the M bins ``[M + 1]``, float64."""
    center: HostArray
    """Mean of each seed's training targets ``[S]``."""
    scale: HostArray
    """Their standard deviation ``[S]``."""
    notes: tuple[str, ...]
    """What a reader should know about the bins."""

    @property
    def num_bins(self) -> int:
        """M."""
        return len(self.edges) - 1

    @property
    def standardized(self) -> HostArray:
        """Targets in each seed's standard deviations from its mean ``[S, N]``, float32."""
        values = (self.targets[None, :] - self.center[:, None]) / self.scale[:, None]
        return values.astype(np.float32)

    @property
    def standardized_edges(self) -> HostArray:
        """Edges likewise ``[S, M + 1]``."""
        values = (self.edges[None, :] - self.center[:, None]) / self.scale[:, None]
        return values.astype(np.float32)


def make_regression_task(
    dataset: data.TargetDataset, *, bins: int | None, seeds: int
) -> RegressionTask:
    """Bin the targets, then split once per seed so that every part has its share of each bin.

    Bins are of equal width over the range of all targets. Left out, there is one for each whole
    number where all targets are whole and at most 50 apart, else there are 20.
    """
    edges = _edges(dataset.targets, bins)
    number = len(edges) - 1
    ids = samplers.statistic_bins(dataset.targets, num_bins=number)
    if dataset.test_indices is None and np.bincount(ids).max() < 3:
        raise InputError(
            f"{dataset.name}: its {len(ids)} targets leave no bin of {number} the three examples "
            "it takes to train, validate and test on; give more examples or fewer --bins"
        )
    as_classes = data.Dataset(
        inputs=dataset.inputs,
        labels=ids,
        class_names=_names(edges, whole=_one_per_value(dataset.targets, bins)),
        feature_names=dataset.feature_names,
        name=dataset.name,
        test_indices=dataset.test_indices,
    )
    split = make_task(as_classes, profile="natural", seeds=seeds)
    trained = dataset.targets[split.train]
    spread = trained.std(axis=1)
    return RegressionTask(
        split=split,
        targets=dataset.targets,
        edges=edges,
        center=trained.mean(axis=1),
        scale=np.where(spread > 0, spread, 1.0),
        notes=_notes(split),
    )


def _one_per_value(targets: HostArray, bins: int | None) -> bool:
    whole = bool(np.all(targets == np.floor(targets)))
    return bins is None and whole and bool(np.ptp(targets) < _MOST_VALUES)


def _edges(targets: HostArray, bins: int | None) -> HostArray:
    low, high = float(targets.min()), float(targets.max())
    if _one_per_value(targets, bins):
        return np.arange(low - 0.5, high + 1)
    return np.linspace(low, high, (_BINS if bins is None else bins) + 1)


def _names(edges: HostArray, *, whole: bool) -> tuple[str, ...]:
    if whole:
        return tuple(f"{edge + 0.5:g}" for edge in edges[:-1])
    return tuple(f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(edges))


def _notes(split: Task) -> tuple[str, ...]:
    names, number = split.dataset.class_names, split.num_classes
    trained, validated, tested = (
        np.bincount(split.dataset.labels[rows[0]], minlength=number)
        for rows in (split.train, split.validation, split.test)
    )
    total = trained + validated + tested
    coarse = (tested > 0) & (tested < _LEAST_TO_MEASURE)
    findings = (
        ((tested == 0) & (total > 0), "too few to test on: left out of every number"),
        (coarse, f"fewer than {_LEAST_TO_MEASURE} test examples: their errors are coarse"),
        ((tested > 0) & (validated == 0), "no validation example: nothing is chosen by them"),
        ((tested > 0) & (trained == 0), "no training example: no method can learn them"),
    )
    empty = int(np.sum(total == 0))
    notes = [f"bins of the target without any example: {empty} of {number}"] if empty else []
    notes += [f"{_listed(names, total, which)}: {what}" for which, what in findings if which.any()]
    return tuple(notes)


def _listed(names: tuple[str, ...], sizes: HostArray, which: HostArray) -> str:
    """The bins meant, with how many examples each has."""
    chosen = np.flatnonzero(which)
    shown = ", ".join(f"{names[b]} ({sizes[b]})" for b in chosen[:_MOST_NAMED])
    more = f" and {len(chosen) - _MOST_NAMED} more" if len(chosen) > _MOST_NAMED else ""
    return f"targets {shown}{more}"
