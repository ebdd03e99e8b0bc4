"""The whole comparison, from a source of data to a folder of results."""

import dataclasses
import difflib
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import jax
import tyro

from jaxbalance import _storage, data
from jaxbalance._check import InputError
from jaxbalance._types import HostArray, Params
from jaxbalance.compare import _figures, _files
from jaxbalance.compare._draws import SEGMENTS
from jaxbalance.compare._methods import METHODS, Method, split_arguments
from jaxbalance.compare._model import save_model
from jaxbalance.compare._plan import Budget, task_builder
from jaxbalance.compare._report import (
    ACCURACY,
    BASELINE,
    AnyScore,
    Findings,
    Measure,
    Report,
    build_report,
    to_json,
)
from jaxbalance.compare._score import Score, score
from jaxbalance.compare._sweep import Memory, Outcome, Wanted, program, train_group
from jaxbalance.compare._table import markdown
from jaxbalance.compare._task import Task, make_task

AnyMethod = TypeVar("AnyMethod")
AnyReport = TypeVar("AnyReport", bound=Findings[Any, Any])

Listener = Callable[[str, int, float], None]
"""``listener(what, runs, fraction)``: called as runs go on, and with fraction 1 at their end."""


class Group(NamedTuple, Generic[AnyScore]):
    """What one compiled program trains."""

    names: Sequence[str]
    """Of methods, one for each outcome; some may differ only in what follows a training."""
    trainings: int
    outcome: Callable[..., Any]
    """The kind of outcome: three arrays and parameters."""
    params: Params
    """Of a network, for their tree structure."""
    train: Callable[[Callable[[float], None]], tuple[list[Any], int]]
    """From what hears the fraction done to outcomes, and how many programs were compiled."""
    judge: Callable[[list[Any]], dict[str, AnyScore]]
    """From outcomes to scores of all methods that they serve."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train many remedies for class imbalance on your data and report which of them help."""

    data: tyro.conf.Positional[str] = "digits"
    """digits (embedded), a .csv, .tsv or .npz file, a folder, or tfds:NAME."""
    target: str | None = None
    """Column (csv) or key (npz) that holds the labels."""
    task: Literal["classification", "regression"] = "classification"
    """regression predicts numbers and balances errors over bins of them."""
    bins: int | None = None
    """Equally wide bins of a regression target. Left out: one for each whole number where all
    targets are whole and at most 50 apart, else 20."""
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
    if settings.task != "classification":
        raise InputError("task: got regression, wanted classification; call compare_regression")
    if settings.bins is not None:
        raise InputError("--bins cuts a number into bins; without --task regression leave it out")
    methods = choose_methods(settings.methods, METHODS)
    check_numbers(settings)
    profile = settings.profile or ("exponential:50" if settings.data == "digits" else "natural")
    dataset = dataset or data.load(settings.data, target=settings.target)
    task = make_task(dataset, profile=profile, seeds=settings.seeds)
    budget = make_budget(settings, task)
    _storage.prepare_folder(settings.out, option="--out")
    memory: Memory = {}
    groups = (_group(task, budget, methods, one, memory) for one in method_groups(methods, task))
    scores, seconds, compilations = run_groups(settings, task, budget, groups, listener)
    facts = {
        **describe(settings, task, budget, _about(task, profile)),
        "compiled_programs": compilations,
        "seconds": time.perf_counter() - begun,
    }
    report = build_report(task, budget, {name: scores[name] for name in methods}, seconds, facts)
    _write(settings.out, task, budget, report)
    return report


def choose_methods(text: str, known: Mapping[str, AnyMethod]) -> dict[str, AnyMethod]:
    """The methods that ``--methods`` names, the baseline first."""
    if text.strip() == "all":
        return dict(known)
    chosen = {BASELINE: known[BASELINE]}
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(close)}?" if close else f"wanted {', '.join(known)}"
            raise InputError(f"unknown method {name!r}; {hint}")
        chosen[name] = known[name]
    return chosen


def check_numbers(settings: Settings) -> None:
    """Refuse settings that are no sizes."""
    for name in ("seeds", "steps", "batch_size", "bins"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')}: got {value}, wanted at least 1")
    if not settings.step_sizes or not all(0 < size < float("inf") for size in settings.step_sizes):
        raise InputError(f"--step-sizes: got {settings.step_sizes}, wanted positive numbers")


def make_budget(settings: Settings, task: Task) -> Budget:
    """The budget that the settings say, or that suits the data where they say nothing."""
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


def wanted_of(method: Method) -> Wanted:
    """The training that a method needs, and the new last layer."""
    return method.training, method.refit


def method_groups(methods: Mapping[str, Method], task: Task) -> list[list[Wanted]]:
    """What is to be trained, grouped by what makes one compiled program serve several trainings."""
    groups: dict[Any, list[Wanted]] = {}
    for wanted in dict.fromkeys(map(wanted_of, methods.values())):
        training = wanted[0]
        arguments = jax.eval_shape(lambda c, t=training: split_arguments(t, c), task.class_counts)
        groups.setdefault((program(training), tuple(sorted(arguments))), []).append(wanted)
    return list(groups.values())


def _group(
    task: Task,
    budget: Budget,
    methods: Mapping[str, Method],
    wanted: Sequence[Wanted],
    memory: Memory,
) -> Group[Score]:
    def judge(outcomes: Sequence[Outcome]) -> dict[str, Score]:
        return {
            name: score(task, method, outcomes[wanted.index(wanted_of(method))])
            for name, method in methods.items()
            if wanted_of(method) in wanted
        }

    return Group(
        names=[next(n for n, m in METHODS.items() if wanted_of(m) == one) for one in wanted],
        trainings=len({training for training, _ in wanted}),
        outcome=Outcome,
        params=task_builder(task, budget, wanted[0][0])(jax.random.key(0)).params,
        train=partial(train_group, task, budget, wanted, memory=memory),
        judge=judge,
    )


def run_groups(
    settings: Settings,
    task: Task,
    budget: Budget,
    groups: Iterable[Group[AnyScore]],
    listener: Listener,
    others: Sequence[HostArray] = (),
) -> tuple[dict[str, AnyScore], dict[str, float], int]:
    """Scores, seconds per training, and how many programs were compiled.

    What an earlier call finished is found again in the output folder; ``others`` is what the runs
    depend on besides the task and the budget.
    """
    scores: dict[str, AnyScore] = {}
    seconds: dict[str, float] = {}
    compilations = 0
    for group in groups:
        label = ", ".join(group.names)
        runs = group.trainings * len(task.train) * len(budget.step_sizes)
        kept = _files.place(settings.out, task, budget, group.names, others)
        outcomes = _files.load_outcomes(kept, group.params, len(group.names), group.outcome)
        begun = time.perf_counter()
        if outcomes is None:
            outcomes, compiled = group.train(partial(listener, label, runs))
            _files.save_outcomes(kept, outcomes)
            compilations += compiled
            spent = (time.perf_counter() - begun) / group.trainings
        else:
            listener(f"{label} (finished before)", runs, 1.0)
            spent = 0.0
        judged = group.judge(outcomes)
        scores.update(judged)
        seconds.update(dict.fromkeys(judged, spent))
    return scores, seconds, compilations


def _about(task: Task, profile: str) -> dict[str, Any]:
    return {
        "profile": profile,
        "examples": len(task.dataset.labels),
        "classes": task.num_classes,
        "class_names": list(task.dataset.class_names),
    }


def describe(
    settings: Settings, task: Task, budget: Budget, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Facts on the data, among them ``about``, and on the budget."""
    return {
        "data": {
            "name": task.dataset.name,
            "source": settings.data,
            **about,
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
    best = report.scores[report.recommended]
    save_model(out / "model.npz", task, budget, report.recommended, best)
    pictures = {
        "recall_by_class.png": partial(_figures.recall_by_class, task),
        "learning_curves.png": partial(_figures.learning_curves, task),
    }
    write(out, report, ACCURACY, pictures, markdown)


def write(
    out: pathlib.Path,
    report: AnyReport,
    measure: Measure[Any, Any],
    pictures: Mapping[str, Callable[[AnyReport], bytes]],
    page: Callable[[AnyReport], str],
) -> None:
    """Write a report; from then on no runs have to be kept."""
    if _figures.available():
        for name, draw in pictures.items():
            _storage.write_atomically(out / name, draw(report))
    else:
        report.notes.append('no figures: pip install "jaxbalance[plot]" draws them')
    _storage.write_atomically(out / "report.md", page(report).encode())
    _storage.write_atomically(out / "report.json", to_json(measure, report).encode())
    _files.forget(out)
