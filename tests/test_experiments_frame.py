"""The frame that all experiments share: found, run, kept, resumed, refused."""

import dataclasses
import json
import math
import sys
import textwrap
from typing import Literal, get_args, get_origin

import numpy as np
import pytest

from jaxbalance import cli, experiments
from jaxbalance.experiments import _command, _find, _run, _settings
from tests.data_helpers import refusal

SOURCE = """
    '''A coin is fair.

    Claim: heads and tails are equally likely.
    '''

    import dataclasses
    import numpy as np

    @dataclasses.dataclass(frozen=True)
    class Config:
        throws: int = 100
        share: float = 0.5
        sizes: tuple[int, ...] = (1, 2)
        data: str = "coin"

    PAPER = Config(throws=5000)
    CALLS = []

    def parts(config):
        def throw(name):
            CALLS.append(name)
            if name == "broken":
                raise KeyboardInterrupt
            if config.data == "nowhere":
                raise ValueError("data: got 'nowhere', wanted a coin")
            return {"heads": np.array(config.throws * config.share)}
        names = ["first", "broken" if config.data == "broken" else "second"]
        return {name: (lambda name=name: throw(name)) for name in names}

    def measure(record):
        bad = record["first/heads"] == 0
        return {"heads": float("nan") if bad else float(record["first/heads"])}

    def summary(numbers):
        return f"{numbers['heads']:g} heads.\\n\\nMore below."

    def check(numbers):
        assert numbers["heads"] > 40, "too few heads"

    def plot(record):
        from matplotlib.figure import Figure
        return Figure()
"""


@pytest.fixture
def coin(tmp_path, monkeypatch):
    """A folder with one experiment, in place of the published ones."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "coin.py").write_text(textwrap.dedent(SOURCE).lstrip())
    (folder / "_helper.py").write_text("")
    monkeypatch.setattr(_find, "folder", lambda: folder)
    monkeypatch.chdir(tmp_path)
    yield experiments.load("coin")
    sys.modules.pop("coin")
    sys.path.remove(str(folder))


def test_every_published_experiment_follows_the_contract():
    assert {"accuracy_disparity", "tail_curvature", "long_tailed_vision"} <= set(_find.names())
    for name in _find.names():
        module = experiments.load(name)
        for function in ("parts", "measure", "summary", "check", "plot"):
            assert getattr(module, function).__doc__, f"{name}.{function}"
        _settings.check_config(module.Config())
        _settings.check_config(module.PAPER)
        assert type(module.PAPER) is module.Config
        assert module.Config.__dataclass_params__.frozen
        assert "Claim" in module.__doc__
        assert f"python experiments/{name}.py" in module.__doc__
        assert len(experiments.title(name)) <= 100


def test_a_run_leaves_its_folder_whole(coin, tmp_path):
    told = []
    result = experiments.run(
        coin, coin.Config(), results=tmp_path, listener=lambda *what: told.append(what[:3])
    )
    assert told == [("first", 1, 2), ("second", 2, 2)]
    names = {"config.json", "numbers.json", "provenance.json", "record.npz", "figure.png"}
    assert {path.name for path in result.place.iterdir()} == names
    assert result.numbers == {"heads": 50.0}
    assert result.config == {"throws": 100, "share": 0.5, "sizes": [1, 2], "data": "coin"}
    assert result.holds
    assert {"commit", "device", "jax", "finished", "seconds"} <= set(result.provenance)
    with np.load(result.place / "record.npz") as record:
        assert record["second/heads"] == 50
    assert [path.name for path in result.place.parent.iterdir()] == [result.place.name]


def test_a_second_run_takes_the_place_of_the_first(coin, tmp_path):
    first = experiments.run(coin, coin.Config(), results=tmp_path)
    (first.place / "numbers.json").write_text("{}")
    again = experiments.run(coin, coin.Config(), results=tmp_path)
    assert again.place == first.place
    assert again.numbers == {"heads": 50.0}
    other = experiments.run(coin, coin.Config(throws=200), results=tmp_path)
    assert other.place != first.place
    assert len(experiments.finished("coin", tmp_path)) == 2


def test_an_interrupted_run_leaves_no_result_and_goes_on_where_it_was(coin, tmp_path, capsys):
    arguments = ["experiments", "run", "coin", "--results", str(tmp_path), "--data=broken"]
    assert cli.main(arguments) == 130
    assert "interrupted" in capsys.readouterr().err
    assert experiments.finished("coin", tmp_path) == []
    assert cli.main(arguments) == 130
    assert coin.CALLS == ["first", "broken", "broken"]


def test_a_damaged_part_is_computed_again(coin, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        experiments.run(coin, coin.Config(data="broken"), results=tmp_path)
    (kept,) = (tmp_path / "coin").glob(".*/part-1.npz")
    kept.write_bytes(kept.read_bytes()[:40])
    with pytest.raises(KeyboardInterrupt):
        experiments.run(coin, coin.Config(data="broken"), results=tmp_path)
    assert coin.CALLS == ["first", "broken", "first", "broken"]


def test_a_claim_that_fails_is_a_result_and_exit_code_one(coin, tmp_path, capsys):
    results = ["--results", str(tmp_path)]
    assert cli.main(["experiments", "run", "coin", "--share", "0.2", *results]) == 1
    assert "does not hold: too few heads" in capsys.readouterr().out
    assert cli.main(["experiments", *results]) == 0
    out = capsys.readouterr().out
    assert "20 heads." in out
    assert "More below" not in out
    assert "does not hold: too few heads" in out


def test_no_nan_reaches_the_numbers(coin, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        experiments.run(coin, coin.Config(share=0.0), results=tmp_path)
    assert experiments.finished("coin", tmp_path) == []


def test_the_command_lists_and_runs(coin, capsys):
    assert cli.main(["experiments"]) == 0
    assert "A coin is fair." in capsys.readouterr().out
    assert cli.main(["experiments", "run", "coin", "--paper", "--share=0.25"]) == 0
    assert "1250 heads" in capsys.readouterr().out
    assert cli.main(["experiments", "--help"]) == 0
    assert "run NAME" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "coins"], "wanted one such as coin"),
        (["run"], "wanted the name of an experiment"),
        (["run", "coin", "--throws=0"], "throws: got 0, wanted an integer >= 1"),
        (["run", "coin", "--share=nan"], "share: got nan, wanted a finite number >= 0"),
        (["run", "coin", "--share=-1"], "share: got -1.0, wanted a finite number >= 0"),
        (["run", "coin", "--sizes"], "sizes: got nothing"),
        (["run", "coin", "--sizes", "2", "0"], "sizes: got 0"),
        (["run", "coin", "--data=nowhere"], "data: got 'nowhere', wanted a coin"),
    ],
)
def test_mistakes_are_one_line(coin, capsys, arguments, message):
    assert cli.main(["experiments", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("flag", ["--throws=many", "--trows=3"])
def test_flags_that_are_unknown_or_of_another_type_are_named(coin, capsys, flag):
    with pytest.raises(SystemExit) as stop:
        cli.main(["experiments", "run", "coin", flag])
    assert stop.value.code == 2
    assert flag.partition("=")[0] in capsys.readouterr().err


def test_results_that_cannot_be_written_are_refused_before_any_work(coin, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert cli.main(["experiments", "run", "coin", "--results", str(tmp_path / "taken")]) == 2
    assert "choose another folder with --results" in capsys.readouterr().err
    assert coin.CALLS == []


def test_a_script_ends_with_the_exit_code(coin, monkeypatch, capsys):
    for flags, code in (([], 0), (["--share=0.1"], 1), (["--throws=0"], 2)):
        monkeypatch.setattr(sys, "argv", ["coin.py", *flags])
        with pytest.raises(SystemExit) as stop:
            _command.main("somewhere/coin.py")
        assert stop.value.code == code
    assert "throws: got 0" in capsys.readouterr().err


# Values that no field of a kind may have, and what is wanted instead.
UNFIT = {
    bool: ((1, "no", None), "True or False"),
    int: ((0, -3, 2.0, True, "4", None), "an integer >= 1"),
    float: ((-0.1, math.nan, math.inf, "0.5", False, None), "a finite number >= 0"),
    experiments.Positive: ((0.0, 0, -1.0, math.inf, "1"), "a finite number > 0"),
    experiments.Ratio: ((0.99, 0, math.nan, math.inf, [2.0]), "a finite number >= 1"),
    experiments.Share: ((1.01, 2, -0.01, math.nan), "a number in [0, 1]"),
    experiments.OpenShare: ((0.0, 1.0, 1, -0.5, math.nan), "a number in (0, 1)"),
    str: (("", 3, None, ("digits",)), "a text that is not empty"),
    Literal["jit", "sharded", "pmap"]: (("cpu", "", 1), "one of jit, sharded, pmap"),
    Literal["float32", "float64"]: (("int8", None), "one of float32, float64"),
}


def unfit(kind):
    """Pairs of an unfit value and how the message about it ends."""
    if get_origin(kind) is not tuple:
        values, wanted = UNFIT[kind]
        return [(value, f"got {value!r}, wanted {wanted}") for value in values]
    inside = [((value,), message) for value, message in unfit(get_args(kind)[0])]
    return [
        ((), "got nothing, wanted at least one value"),
        ([1], "got [1], wanted a tuple"),
        *inside,
    ]


@dataclasses.dataclass(frozen=True)
class Everything:
    """A field of each kind."""

    flag: bool = False
    number: int = 1
    length: float = 0.0
    step_size: experiments.Positive = 1e-9
    ratio: experiments.Ratio = 1.0
    share: experiments.Share = 0.0
    prior: experiments.OpenShare = 0.5
    name: str = "x"
    devices: Literal["jit", "sharded", "pmap"] = "jit"
    dtype: Literal["float32", "float64"] = "float64"
    names: tuple[str, ...] = ("x",)
    shares: tuple[experiments.Share, ...] = (0.0, 1.0)


def test_every_kind_of_field_takes_what_is_fit():
    _settings.check_config(Everything())
    # A whole number is a float to Python, and zero of them is no count.
    fit = {"length": 0, "step_size": 3, "ratio": 2, "share": 1, "flag": True}
    _settings.check_config(Everything(**fit))


@pytest.mark.parametrize("name", ["a field of each kind", *_find.names()])
def test_settings_are_checked_field_by_field(name):
    """Whatever cannot be is refused in one line that names the field, and nothing else is."""
    config = Everything() if name not in _find.names() else experiments.load(name).Config()
    for field in dataclasses.fields(config):
        for value, message in unfit(field.type):
            wrong = dataclasses.replace(config, **{field.name: value})
            assert refusal(_settings.check_config, wrong) == f"{field.name}: {message}"
        one = getattr(config, field.name)
        if isinstance(one, tuple):
            # The last of a tuple is looked at as the first is.
            value, message = unfit(get_args(field.type)[0])[0]
            wrong = dataclasses.replace(config, **{field.name: (*one, value)})
            assert refusal(_settings.check_config, wrong) == f"{field.name}: {message}"
        with pytest.raises(TypeError, match=f"'no_{field.name}'"):
            type(config)(**{f"no_{field.name}": one})


@pytest.mark.parametrize("name", _find.names())
def test_flags_of_every_experiment_are_its_fields(name, capsys):
    """One value of a wrong type and one field too many: each is named, and nothing is run."""
    module = experiments.load(name)
    kinds = {field.name: field.type for field in dataclasses.fields(module.Config)}
    number = next(field for field, kind in kinds.items() if kind is int).replace("_", "-")
    for flag, line in (
        (f"--{number}=many", f"Error parsing --{number}: "),
        ("--no-such-field=1", "Unrecognized options: --no-such-field=1"),
    ):
        with pytest.raises(SystemExit) as stop:
            _command.parse(module, [flag])
        assert stop.value.code == 2
        assert line in capsys.readouterr().err


def test_numbers_are_written_as_plain_json():
    assert json.loads(_run._to_json({"a": [1, None]})) == {"a": [1, None]}
