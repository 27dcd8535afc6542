"""bench/gpu_rate.sh without a GPU: its commands are right, and every p99 has the steps that it takes."""

from inputs.command_line import COMMANDS, run_here
from inputs.gpu_scripts import commands

from bench.rate.settings import Settings
from bench.study import quantiles


def test_the_commands_are_right(capsys, tmp_path):
    given = commands("gpu_rate.sh", tmp_path)
    assert [words[1] for words in given] == ["bench.rate"] * 3 and "bench.rate" in COMMANDS
    flags = {}
    for _, module, *rest in given:
        assert run_here(capsys, module, *rest, "--list").status == 0
        named = dict(flag.removeprefix("--").split("=", 1) for flag in rest)
        flags[named["json"].rsplit("/", 1)[1]] = named
    assert list(flags) == ["h200-rate-aa.json.gz", "h200-rate.json.gz", "h200-rate-load.json.gz"]
    for name in ("h200-rate.json.gz", "h200-rate-load.json.gz"):
        settings = Settings(hz=flags[name]["hz"], seconds=flags[name]["seconds"])
        for hz, seconds in zip(settings.rates, settings.seconds_each, strict=True):
            steps = seconds * hz if hz else seconds * 100
            assert steps - settings.blocks >= quantiles.steps_needed(0.99), "those that open a block do not count"
