"""bench/gpu_gemv.sh without a GPU: its commands are right, and one that fails costs its own step alone."""

import os
import subprocess

from inputs.command_line import COMMANDS, ROOT, run_here
from inputs.gpu_scripts import commands


def test_the_commands_are_right(capsys, tmp_path):
    outputs = []
    for words in commands("gpu_gemv.sh", tmp_path, GEMV_STEPS="tests gemv fused layer step small"):
        _, module, *flags = words
        if module == "pytest":
            assert (ROOT / flags[1]).exists()
            continue
        assert module in COMMANDS
        # A GPU is all that these lack here: each flag is parsed and checked before.
        assert run_here(capsys, module, *flags, "--list").status == 0
        outputs += [flag for flag in flags if flag.startswith("--json=")]
    assert len(outputs) == len(set(outputs)) == 11, "each step writes files of its own"


def test_a_step_that_fails_is_named_and_the_others_run(tmp_path):
    python, log, tools = tmp_path / "python", tmp_path / "log", tmp_path / "tools"
    python.write_text(
        f"""#!/bin/sh
case "$*" in *get_device_name*) echo h200 9.0 ;; *) printf '%s\\n' "$*" >> {log} ;; esac
case "$*" in *llama-3.2-1b*) exit 1 ;; esac
"""
    )
    tools.mkdir()
    sanitizer = tools / "compute-sanitizer"
    sanitizer.write_text('#!/bin/sh\n[ "$2" != racecheck ] || { echo "race in gemv"; exit 1; }\n')
    for file in (python, sanitizer):
        file.chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / "bench" / "gpu_gemv.sh", tmp_path / "out", python], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"GEMV_STEPS": "tests small sanitize", "PATH": f"{tools}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 1
    failed = done.stdout.splitlines()[-2:]
    assert failed == ["failed: small", "failed: sanitize"]
    assert "race in gemv" in done.stdout
    assert len(log.read_text().splitlines()) == 2, "tests and small"
