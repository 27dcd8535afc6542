"""Every driver's flags are declared once: what is parsed can be spelled out again, and a child process gets it all."""

import dataclasses
import importlib
import inspect

import pytest
import typer
from inputs.command_line import COMMANDS, run, run_here

from bench.core import cli
from bench.core.errors import UsageError
from bench.core.flags import Flags
from bench.drivers import DRIVERS


def settings_class(name: str) -> type[Flags]:
    """A driver's class of flags, wherever in its folder it lies."""
    module = importlib.import_module(f"bench.{name}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"bench.{name}.__main__")
    return module.Settings


@pytest.mark.parametrize("name", DRIVERS)
def test_flags_round_trip(name):
    """Defaults, and every flag with another value than its default."""
    of = settings_class(name)
    assert of.from_flags(of().to_flags()) == of()
    other = {
        "dtype": "fp16", "l2": "warm", "quant": "int4", "group": 64, "batch": 2 if name in ("layer", "op") else "2",
        "layer": 3, "warmup": 7, "steps": 11, "repeats": 5, "threads": 2, "seed": 9, "sessions": 4, "calls": 17,
        "compile_jobs": 3, "layers": 1, "aa": 6 if name == "op" else "native", "ctx": 77, "threshold": 0.5,
        "alpha": 0.25, "spec_gbs": 12.5, "memory_limit_gb": 1.5, "limit_s": 3.5, "plugin_timeout_s": 8.0,
            "plugin_memory_gb": 1.25,
        "launches": 1000, "depth": 9, "n_bytes": 4096, "stop_noise": "0.5%", "max_seconds": 2.5,
        "seconds": 3.5, "blocks": 3, "idle_s": 0.25, "burst": 2, "deadline_ms": 5.5, "shift": 0.125,
    }  # fmt: skip
    changed = {}
    for field in dataclasses.fields(of):
        if field.init:
            value = other.get(field.name, "some, text=with 'marks'")
            default = getattr(of(), field.name)
            if isinstance(default, bool):
                value = not default
            elif isinstance(default, list):
                value = ["a=1", "b=2"]
            changed[field.name] = type(default)(value)
            assert changed[field.name] != default, field.name
    settings = of(**changed)
    assert of.from_flags(settings.to_flags()) == settings
    left_out = of.from_flags(settings.shared_flags())
    for field in changed:
        expected = getattr(of(), field) if field in of.NOT_SHARED else changed[field]
        assert getattr(left_out, field) == expected, field


@pytest.mark.parametrize("name", DRIVERS)
def test_a_flag_that_is_not_shared_is_one(name):
    fields = {field.name for field in dataclasses.fields(settings_class(name))}
    of_this_driver = settings_class(name).NOT_SHARED - Flags.NOT_SHARED
    assert of_this_driver <= fields


@pytest.mark.parametrize("name", DRIVERS)
def test_the_command_has_every_field_as_an_option(name):
    parameters = inspect.signature(COMMANDS[f"bench.{name}"]).parameters
    assert list(parameters) and set(parameters) == {
        field.name for field in dataclasses.fields(settings_class(name)) if field.init
    }
    for parameter in parameters.values():
        (option,) = parameter.annotation.__metadata__
        assert isinstance(option, typer.models.ParameterInfo) and option.help or option.hidden, parameter.name


@pytest.mark.parametrize("name", DRIVERS)
def test_every_driver_has_a_list_and_an_expected_duration(name, capsys):
    listed = run_here(capsys, f"bench.{name}", "--list")
    assert listed.status == 0 and listed.out.strip()
    assert DRIVERS[name].takes
    shown = run_here(capsys, f"bench.{name}", "--help")
    assert shown.status == 0 and "--list" in shown.out
    assert " ".join(f"Expected duration: {DRIVERS[name].takes}.".split()) in " ".join(shown.out.split())


def test_cpp_is_mode_native(capsys):
    assert cli.modes("--mode", "cpp,eager", cli.MODES) == ["native", "eager"]
    assert cli.modes("--mode", "native,cpp", cli.MODES) == ["native"]
    with pytest.raises(UsageError, match="--mode=native: must be all, or of eager, graph"):
        cli.modes("--mode", "cpp", ("eager", "graph"))
    for name in DRIVERS:
        of = settings_class(name)
        if hasattr(of, "modes"):
            assert "cpp" not in of(mode="cpp" if name not in ("inside",) else "graph", device="cpu").modes


def test_cpp_in_an_arm():
    from bench.backends.steps.arms import parse_arm

    assert parse_arm("--arm", "native/block:cpp") == parse_arm("--arm", "native/block:native")


def test_the_drivers_are_listed_one_line_each():
    listed = run("bench")
    assert listed.status == 0
    for name, driver in DRIVERS.items():
        assert any(line.startswith(f"python -m bench.{name} ") for line in listed.out.splitlines())
        assert driver.answers in listed.out
    for word in ("launchtax", "pykernels", "bench"):
        assert any(line.startswith(f"{word} ") for line in listed.out.splitlines())
    assert all(len(line) <= 100 for line in listed.out.splitlines())


def test_a_driver_by_its_name():
    assert "usage" in run("bench", "doctor", "--help").out.lower()
    refused = run("bench", "nothing")
    assert refused.status == 2 and refused.err.count("\n") == 1 and "layer" in refused.err
