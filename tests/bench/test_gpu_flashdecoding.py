"""bench/gpu_flashdecoding.sh without a GPU: its commands are right."""

import os

from inputs.command_line import COMMANDS, run_here
from inputs.gpu_scripts import commands

ALL = "tests attention fallback gemv layer step sanitizer inside"


def test_the_commands_are_right(capsys, tmp_path):
    stamped = tmp_path / "stamped"
    stamped.mkdir()
    sanitizer = tmp_path / "compute-sanitizer"  # runs what it is given
    sanitizer.write_text('#!/bin/sh\nshift 3\nexec "$@"\n')
    sanitizer.chmod(0o755)
    environment = {"FLASHDECODING_STEPS": ALL, "STAMPED": str(stamped), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    outputs = []
    for words in commands("gpu_flashdecoding.sh", tmp_path, **environment):
        _, module, *flags = words
        if module == "pytest":
            assert "tests/gpu/test_gqa_unified.py" in flags
            continue
        assert module in COMMANDS
        # A GPU is all that these lack here: each flag is parsed and checked before.
        flags = [
            flag if not flag.startswith("--mode=") or module == "bench.inside" else "--mode=eager" for flag in flags
        ]
        assert run_here(capsys, module, *flags, "--list").status == 0
        outputs += [flag for flag in flags if flag.startswith("--json=")]
    assert len(outputs) == len(set(outputs)) == 9, "each step writes files of its own"
