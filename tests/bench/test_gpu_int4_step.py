"""bench/gpu_int4_step.sh without a GPU: its commands are right for the drivers, and what fails is named."""

import os
import re
import subprocess
from pathlib import Path

from inputs.command_line import run_here

ROOT = Path(__file__).resolve().parents[2]

# Stands for Python: answers what it is asked about the machine, writes down every other command, and fails in one.
PYTHON = """\
#!/bin/sh
case "$*" in
*get_device_name*) echo h200 9.0 ;;
*linear_peers*) echo marlin,exllamav2,gemlite ;;
*find_spec*gemlite*) exit 1 ;;
-c*) ;;
*)
    printf '%s\\n' "$*" >> {log}
    case "$*" in *bench.layer*--model=llama*) exit 1 ;; esac
    ;;
esac
"""


def test_what_is_run(tmp_path, capsys):
    log, python = tmp_path / "commands", tmp_path / "python"
    python.write_text(PYTHON.format(log=log))
    python.chmod(0o755)
    environment = {"INT4_ATTENTION": "sdpa-flash", "INT4_FLAGS": "--group=64", "INT4_NAME": "some"}
    done = subprocess.run(
        ["bash", "bench/gpu_int4_step.sh", tmp_path / "out", python], env=os.environ | environment, cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and re.findall("^failed: (.*)", done.stdout, re.M) == ["layer llama-3.1-8b"], (
        done.stdout
    )
    commands = [line.split() for line in log.read_text().splitlines()]
    modules = [command[1] for command in commands]
    assert modules == ["bench.layer", "bench.layer", "bench.layer", "bench.step", "bench.report"]
    assert "--backend=exllamav2" in commands[0]
    for command in commands[1:4]:
        given = {"--backend=native,marlin,exllamav2,gemlite,sdpa,native-dense", "--quant=int4", "--group=64"}
        assert given | {"--attention=sdpa-flash"} <= set(command)
        refused = run_here(capsys, command[1], *command[2:], "--batch=9")  # the last flag is wrong, and no other
        assert refused.status == 2 and refused.err.startswith(f"{command[1]}: --batch=9: ")
    assert f"--json={tmp_path}/out/h200-int4-step-some.json" in commands[3]
