"""bench/gpu_models.sh without a GPU: its commands are right."""

from inputs.command_line import COMMANDS, run_here
from inputs.gpu_scripts import commands


def test_the_commands_are_right(capsys, tmp_path):
    given, outputs = commands("gpu_models.sh", tmp_path), []
    assert [words[1] for words in given] == ["pytest", "bench.op", "bench.op", "bench.sweep", "bench.sweep"]
    for _, module, *flags in given[1:]:
        assert module in COMMANDS
        # A GPU is all that these lack here: each flag is parsed and checked before.
        assert run_here(capsys, module, *flags, "--list").status == 0
        outputs += [flag for flag in flags if flag.startswith(("--json=", "--out="))]
    assert len(outputs) == len(set(outputs)) == 4, "each step writes files of its own"
