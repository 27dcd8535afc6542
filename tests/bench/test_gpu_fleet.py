"""bench/gpu_fleet.sh without a GPU: its commands are right for the drivers."""

from inputs.command_line import COMMANDS, run_here
from inputs.gpu_scripts import commands


def test_the_commands_are_right(capsys, tmp_path):
    given = commands("gpu_fleet.sh", tmp_path, FLEET_STEPS="null apart at-once tests ray pack report")
    modules = [words[1] for words in given]
    sweeps = [words for words in given if words[1] == "bench.sweep"]
    assert modules.count("bench.sweep") == 6 and {"bench.fleet.null_launches", "pytest", "bench.report"} < set(modules)
    shares = [tuple(word for word in words if word.startswith(("--shard", "--device"))) for words in sweeps[:4]]
    assert sorted(shares) == sorted([("--shard=1/2", "--device=cuda:0"), ("--shard=2/2", "--device=cuda:1")] * 2)
    for _, module, *flags in given:
        if module in COMMANDS:
            # A GPU is all that these lack here: each flag is parsed before.
            assert run_here(capsys, module, *flags, "--list").status == 0
