"""bench/gpu_*.sh without a GPU: an interpreter that writes down what it is asked to run."""

import os
import subprocess

from inputs.command_line import ROOT

# Stands for Python: says what it is asked about the machine, and writes down every other command.
PYTHON = """\
#!/bin/sh
case "$*" in
*get_device_name*) echo h200 9.0 ;;
*) printf '%s\\n' "$*" >> {log} ;;
esac
"""


def commands(script: str, tmp_path, **environment: str) -> list[list[str]]:
    """Runs a script of bench/: the commands that it gave, each as its words."""
    log, python = tmp_path / "commands", tmp_path / "python"
    python.write_text(PYTHON.format(log=log))
    python.chmod(0o755)
    log.unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", ROOT / "bench" / script, tmp_path / "out", python], env=os.environ | environment, cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split() for line in log.read_text().splitlines()]
