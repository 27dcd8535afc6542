"""bench/gpu_models.sh without a GPU: its commands are right."""

from inputs.command_line import run_here
from inputs.gpu_scripts import commands

import pykernels as pk
from bench import sweep
from bench.backends.steps import arms
from bench.core import cli


def test_the_commands_are_right(capsys, tmp_path):
    given, models, outputs = commands("gpu_models.sh", tmp_path), [], []
    assert [words[1] for words in given] == ["pytest", *["bench.op"] * 3, *["bench.sweep"] * 2]
    for _, module, *flags in given[1:]:
        named = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
        outputs.append(named.get("json", named.get("out")))
        if module == "bench.op":
            # A GPU is all that these lack here: each flag is parsed and checked before.
            assert run_here(capsys, module, *flags, "--list").status == 0
            continue
        models += cli.model_names("--model", named["model"])
        assert all(arms.parse_arm("--arm", arm) for arm in named["arm"].split(","))
        settings = sweep.Settings(
            model=named["model"], ctx=named["ctx"], batch=named["batch"], steps=int(named["steps"])
        )
        assert len(settings.cells()) == len(cli.model_names("--model", named["model"]))
    assert len(outputs) == len(set(outputs)) == 5, "each step writes files of its own"
    assert {*models, "tiny"} == set(pk.models.names())
