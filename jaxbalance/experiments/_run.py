"""One experiment, from its settings to a folder of results."""

import dataclasses
import datetime
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxbalance
from jaxbalance import _storage
from jaxbalance._check import InputError
from jaxbalance._types import HostArray
from jaxbalance.experiments import _find, _settings

Listener = Callable[[str, int, int, float], None]
"""``listener(part, number, of, seconds)``: called when a part has been computed or found again."""

_HOLDS = "holds"
_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": "small",
    "axes.prop_cycle": "cycler('color', ['0072B2', 'D55E00', '009E73', 'CC79A7', 'E69F00', "
    "'56B4E9', '222222'])",
}


class Result(NamedTuple):
    """What a finished run left in its folder."""

    place: pathlib.Path
    """The folder."""
    config: dict[str, Any]
    """Settings of the run, ``config.json``."""
    numbers: dict[str, Any]
    """What was measured, ``numbers.json``."""
    provenance: dict[str, Any]
    """When, where and for how long it ran, and what its check said, ``provenance.json``."""

    @property
    def holds(self) -> bool:
        """Whether claim and null passed the experiment's check."""
        return bool(self.provenance["check"] == _HOLDS)


def run(
    experiment: ModuleType,
    config: Any,
    *,
    results: pathlib.Path,
    listener: Listener = lambda part, number, of, seconds: None,
) -> Result:
    """Run an experiment and keep its results in ``results/NAME/DIGEST``.

    The folder appears whole, when everything is in it. Until then finished parts are kept in
    ``results/NAME/.DIGEST`` and not computed again by the next run of the same settings, the same
    file and the same versions. A claim that does not hold is a result like any other.

    Args:
      experiment: the module, from :func:`load`.
      config: its ``Config``.
      results: folder of all results.
      listener: told of every part.

    Returns:
      The :class:`Result`.

    Raises:
      ValueError: a setting is out of range, or the folder cannot be written.
    """
    _settings.check_config(config)
    try:
        return _run(experiment, config, results, listener)
    except ValueError as error:
        # One that names a setting is the caller's mistake, whoever found it.
        named = any(str(error).startswith(f"{f.name}:") for f in dataclasses.fields(config))
        if named and not isinstance(error, InputError):
            raise InputError(str(error)) from error
        raise


def _run(experiment: ModuleType, config: Any, results: pathlib.Path, listener: Listener) -> Result:
    settings, name = dataclasses.asdict(config), experiment.__name__
    # First of all: the parts may ask for a number of devices, the digest starts them.
    parts = experiment.parts(config)
    place = results / name / _digest(experiment, settings)
    unfinished = place.with_name(f".{place.name}")
    _storage.prepare_folder(unfinished, option="--results")
    record: dict[str, HostArray] = {}
    total = np.zeros(2)
    for number, (part, compute) in enumerate(parts.items(), start=1):
        arrays, seconds = _part(unfinished / f"part-{number}.npz", compute)
        record |= {f"{part}/{key}": value for key, value in arrays.items()}
        total += seconds
        listener(part, number, len(parts), float(seconds[0]))
    numbers = experiment.measure(record)
    spent = dict(zip(("seconds", "cpu_seconds"), total.round(1).tolist(), strict=True))
    provenance = {"check": _verdict(experiment, numbers), **spent, **_where()}
    _write(unfinished / "config.json", _to_json(settings))
    _write(unfinished / "numbers.json", _to_json(numbers))
    _write(unfinished / "provenance.json", _to_json(provenance))
    _write(unfinished / "record.npz", _storage.to_npz(record))
    if importlib.util.find_spec("matplotlib") is not None:
        _write(unfinished / "figure.png", _png(experiment, record))
    _publish(unfinished, place)
    return read(place)


def read(place: pathlib.Path) -> Result:
    """Read back the folder of a finished run."""
    names = ("config", "numbers", "provenance")
    return Result(place, *(json.loads((place / f"{name}.json").read_text()) for name in names))


def finished(name: str, results: pathlib.Path) -> list[Result]:
    """Finished runs of an experiment, the last one first.

    Args:
      name: of the experiment.
      results: folder of all results.
    """
    places = sorted((results / name).glob("[!.]*/provenance.json"))
    runs = [read(path.parent) for path in places]
    return sorted(runs, key=lambda result: str(result.provenance["finished"]), reverse=True)


def recorded(name: str) -> list[Result]:
    """Runs of an experiment that are published with it.

    Args:
      name: of the experiment.
    """
    path = _find.folder() / "recorded" / f"{name}.json"
    if not path.is_file():
        return []
    return [Result(path, **run) for run in json.loads(path.read_text(encoding="utf-8"))]


def _digest(experiment: ModuleType, settings: dict[str, Any]) -> str:
    """Names a run: equal digest, equal numbers."""
    file = pathlib.Path(str(experiment.__file__))
    source = b"".join(path.read_bytes() for path in (file, *sorted(file.parent.glob("_*.py"))))
    where = (jax.default_backend(), jax.device_count())
    text = json.dumps([settings, jaxbalance.__version__, jax.__version__, where])
    return hashlib.sha256(source + text.encode()).hexdigest()[:12]


def _part(
    kept: pathlib.Path, compute: Callable[[], Mapping[str, Any]]
) -> tuple[dict[str, HostArray], HostArray]:
    """Arrays of a part and the seconds it took, found again where that is possible."""
    try:
        arrays = _storage.from_npz(kept)
        return arrays, arrays.pop("seconds of this part")
    except (FileNotFoundError, ValueError, KeyError):
        begun = _clocks()
        arrays = {name: np.asarray(value) for name, value in compute().items()}
        seconds = _clocks() - begun
    _write(kept, _storage.to_npz({**arrays, "seconds of this part": seconds}))
    return arrays, seconds


def _clocks() -> HostArray:
    """Seconds on the wall, and of all cores together."""
    return np.array([time.perf_counter(), time.process_time()])


def _verdict(experiment: ModuleType, numbers: dict[str, Any]) -> str:
    try:
        experiment.check(numbers)
    except AssertionError as error:
        return f"does not hold: {error or 'an assertion of its check failed'}"
    return _HOLDS


def _where() -> dict[str, Any]:
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cores": os.cpu_count(),
        "commit": _commit(),
        "python": platform.python_version(),
        "jaxbalance": jaxbalance.__version__,
        **{name: metadata.version(name) for name in packages},
    }


def _commit() -> str | None:
    """The commit of a checkout, marked where files differ from it; None outside of one."""
    here = str(pathlib.Path(__file__).parent)
    command = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _to_json(content: dict[str, Any]) -> bytes:
    """JSON without a NaN in it: a run that diverged is said to have, in words or as null."""
    return json.dumps(content, indent=2, allow_nan=False).encode() + b"\n"


def _png(experiment: ModuleType, record: dict[str, HostArray]) -> bytes:
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        experiment.plot(record).savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def _write(path: pathlib.Path, content: bytes) -> None:
    _storage.write_atomically(path, content)


def _publish(unfinished: pathlib.Path, place: pathlib.Path) -> None:
    """Give a complete folder its name, in place of an older run of the same settings."""
    for kept in unfinished.glob("part-*.npz"):
        kept.unlink()
    if place.exists():
        old = place.with_name(f".{place.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
        unfinished.rename(place)
        shutil.rmtree(old)
    else:
        unfinished.rename(place)
