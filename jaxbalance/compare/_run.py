"""The whole comparison, from a source of data to a folder of results."""

import dataclasses
import difflib
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import jax
import tyro

import jaxbalance
from jaxbalance import _storage, data
from jaxbalance._check import InputError
from jaxbalance.compare import _figures, _files
from jaxbalance.compare._methods import METHODS, Method, Training, split_arguments
from jaxbalance.compare._model import save_model
from jaxbalance.compare._report import BASELINE, Report, build_report, to_json
from jaxbalance.compare._score import Score, score
from jaxbalance.compare._sweep import SEGMENTS, Budget, Outcome, task_builder, train_group
from jaxbalance.compare._table import markdown
from jaxbalance.compare._task import Task, make_task

Listener = Callable[[str, int, float], None]
"""``listener(what, runs, fraction)``: called as runs go on, and with fraction 1 at their end."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train many remedies for class imbalance on your data and report which of them help."""

    data: tyro.conf.Positional[str] = "digits"
    """digits (embedded), a .csv, .tsv or .npz file, a folder, or tfds:NAME."""
    target: str | None = None
    """Column (csv) or key (npz) that holds the labels."""
    profile: str | None = None
    """Thin the classes: exponential:RATIO, step:RATIO, linear:RATIO, zipf:EXPONENT, or natural.
    Left out: exponential:50 for digits, natural for everything else."""
    methods: str = "all"
    """Comma-separated names; `jaxbalance methods` lists them. plain always runs too."""
    model: Literal["auto", "linear", "mlp", "cnn"] = "auto"
    """auto takes a small CNN for images of 16 pixels or more and an MLP for the rest."""
    seeds: int = 10
    """Repetitions, each with its own split, initial network and order of examples."""
    steps: int | None = None
    """Steps of every run. Left out: 30 epochs, but 300 at least and 2000 at most."""
    step_sizes: tuple[float, ...] = (0.001, 0.003, 0.01)
    """Adam step sizes tried by every method; validation data choose, per seed."""
    batch_size: int | None = None
    """Examples per step. Left out: 64, or 128 from 4000 training examples on."""
    out: Annotated[pathlib.Path, tyro.conf.arg(metavar="FOLDER")] = pathlib.Path(
        "jaxbalance-report"
    )
    """Where report.md, report.json, two figures and the recommended model go."""


def compare(
    settings: Settings,
    *,
    dataset: data.Dataset | None = None,
    listener: Listener = lambda what, runs, fraction: None,
) -> Report:
    """Run a comparison and write its results.

    Runs that finished before an interruption are found again in the output folder and not repeated.

    Args:
      settings: what the command line offers.
      dataset: used in place of reading ``settings.data``.
      listener: told of progress.

    Returns:
      The :class:`Report`, whose files are in ``settings.out``.

    Raises:
      ValueError: a mistake in the settings or the data, in one line.
    """
    begun = time.perf_counter()
    methods = _methods(settings.methods)
    _check_numbers(settings)
    profile = settings.profile or ("exponential:50" if settings.data == "digits" else "natural")
    dataset = dataset or data.load(settings.data, target=settings.target)
    task = make_task(dataset, profile=profile, seeds=settings.seeds)
    budget = _budget(settings, task)
    _storage.prepare_folder(settings.out, option="--out")
    groups = _groups(methods, task)
    scores: dict[str, Score] = {}
    seconds: dict[str, float] = {}
    compilations = 0
    for trainings in groups:
        outcomes, spent, compiled = _train(settings.out, task, budget, trainings, listener)
        compilations += compiled
        for name, method in methods.items():
            if (owner := trainings.get(method.training)) is not None:
                scores[name] = score(task, method, outcomes[owner])
                seconds[name] = spent
    ordered = {name: scores[name] for name in methods}
    facts = {
        **_facts(settings, task, budget, profile),
        "compiled_programs": compilations,
        "seconds": time.perf_counter() - begun,
    }
    report = build_report(task, budget, ordered, seconds, facts)
    _write(settings.out, task, budget, report)
    return report


def _methods(text: str) -> dict[str, Method]:
    if text.strip() == "all":
        return dict(METHODS)
    chosen = {BASELINE: METHODS[BASELINE]}
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name not in METHODS:
            close = difflib.get_close_matches(name, METHODS, n=3, cutoff=0.4)
            hint = (
                f"did you mean {' or '.join(close)}?" if close else f"wanted {', '.join(METHODS)}"
            )
            raise InputError(f"unknown method {name!r}; {hint}")
        chosen[name] = METHODS[name]
    return chosen


def _check_numbers(settings: Settings) -> None:
    for name in ("seeds", "steps", "batch_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')}: got {value}, wanted at least 1")
    if not settings.step_sizes or not all(0 < size < float("inf") for size in settings.step_sizes):
        raise InputError(f"--step-sizes: got {settings.step_sizes}, wanted positive numbers")


def _budget(settings: Settings, task: Task) -> Budget:
    size = task.train.shape[1]
    batch_size = settings.batch_size or (64 if size < 4000 else 128)
    steps = settings.steps or min(max(30 * size // batch_size, 300), 2000)
    shape = task.inputs.shape[1:]
    images = data.is_images(task.dataset)
    if settings.model == "cnn" and not images:
        raise InputError(f"--model cnn needs images, but {task.dataset.name} is a table; use mlp")
    model = settings.model
    if model == "auto":
        model = "cnn" if images and min(shape[:2]) >= 16 else "mlp"
    return Budget(-(-steps // SEGMENTS) * SEGMENTS, batch_size, settings.step_sizes, model)


def _groups(methods: Mapping[str, Method], task: Task) -> list[dict[Training, int]]:
    """Distinct trainings, grouped by what makes one compiled program serve several of them."""
    groups: dict[Any, dict[Training, int]] = {}
    for method in methods.values():
        training = method.training
        arguments = jax.eval_shape(lambda c, t=training: split_arguments(t, c), task.class_counts)
        key = (training.loss, training.head, training.link, tuple(sorted(arguments)))
        members = groups.setdefault(key, {})
        members.setdefault(training, len(members))
    return list(groups.values())


def _train(
    out: pathlib.Path,
    task: Task,
    budget: Budget,
    trainings: Mapping[Training, int],
    listener: Listener,
) -> tuple[list[Outcome], float, int]:
    """Outcomes of a group, seconds per training, and how many programs were compiled for it."""
    names = [next(n for n, m in METHODS.items() if m.training == t) for t in trainings]
    label = ", ".join(names)
    runs = len(trainings) * len(task.train) * len(budget.step_sizes)
    digest = _files.digest(task, budget, names, jaxbalance.__version__)
    kept = out / "finished-runs" / f"{digest}.npz"
    model = task_builder(task, budget, next(iter(trainings)))(jax.random.key(0))
    found = _files.load_outcomes(kept, model.params, len(trainings))
    if found is not None:
        listener(f"{label} (finished before)", runs, 1.0)
        return found, 0.0, 0
    begun = time.perf_counter()
    outcomes, compiled = train_group(
        task, budget, list(trainings), lambda fraction: listener(label, runs, fraction)
    )
    kept.parent.mkdir(exist_ok=True)
    _files.save_outcomes(kept, outcomes)
    return outcomes, (time.perf_counter() - begun) / len(trainings), compiled


def _facts(settings: Settings, task: Task, budget: Budget, profile: str) -> dict[str, Any]:
    dataset = task.dataset
    return {
        "data": {
            "name": dataset.name,
            "source": settings.data,
            "profile": profile,
            "examples": len(dataset.labels),
            "classes": task.num_classes,
            "class_names": list(dataset.class_names),
            "training_counts": task.class_counts.tolist(),
            "train": task.train.shape[1],
            "validation": task.validation.shape[1],
            "test": task.test.shape[1],
            "test_redrawn_per_seed": task.redrawn,
            "fingerprint": task.fingerprint,
        },
        "budget": {
            "seeds": settings.seeds,
            "steps": budget.steps,
            "batch_size": budget.batch_size,
            "step_sizes": list(budget.step_sizes),
            "model": budget.model,
            "optimiser": "adam, cosine decay to zero",
        },
    }


def _write(out: pathlib.Path, task: Task, budget: Budget, report: Report) -> None:
    if _figures.available():
        _storage.write_atomically(
            out / "recall_by_class.png", _figures.recall_by_class(task, report)
        )
        _storage.write_atomically(
            out / "learning_curves.png", _figures.learning_curves(task, report)
        )
    else:
        report.notes.append('no figures: pip install "jaxbalance[plot]" draws them')
    best = report.scores[report.recommended]
    save_model(out / "model.npz", task, budget, report.recommended, best)
    _storage.write_atomically(out / "report.md", markdown(report).encode())
    _storage.write_atomically(out / "report.json", to_json(report).encode())
    for kept in (out / "finished-runs").glob("*.npz"):
        kept.unlink()
    (out / "finished-runs").rmdir()
