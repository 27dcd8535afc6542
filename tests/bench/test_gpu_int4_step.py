"""bench/gpu_int4_step.sh without a GPU: its commands are right for the drivers, what fails is named, and a library that
takes its process along does not take the others' results."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from inputs.command_line import run_here

ROOT = Path(__file__).resolve().parents[2]

# Stands for Python: answers what it is asked about the machine, writes down every other command and leaves the document
# that it names, but for the layers of one model: with marlin they crash.
PYTHON = """\
#!/bin/sh
case "$*" in
*get_device_name*) echo h200 9.0 ;;
*linear_peers*) echo marlin,exllamav2,gemlite ;;
*find_spec*gemlite*) exit 1 ;;
*find_spec*exllamav2_ext*) exit 1 ;;
-c*) ;;
*)
    printf '%s\\n' "$*" >> {log}
    case "$*" in *bench.layer*marlin*--model=llama*|*bench.layer*--model=llama*marlin*) kill -SEGV $$ ;; esac
    for flag; do case "$flag" in --json=*) echo "{{}}" > "${{flag#--json=}}" ;; esac; done
    ;;
esac
"""


@pytest.fixture
def run(tmp_path):
    """Runs the script with that environment: its result and the commands that it gave, each as its words."""
    log, python = tmp_path / "commands", tmp_path / "python"
    python.write_text(PYTHON.format(log=log))
    python.chmod(0o755)
    extension = tmp_path / "extensions" / "py312_cu130" / "exllamav2_ext"
    extension.mkdir(parents=True)

    def script(compiled: bool = True, **environment: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
        if compiled:
            (extension / "exllamav2_ext.so").touch()
        (extension / "lock").touch()
        given = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")} | environment
        done = subprocess.run(
            ["bash", "bench/gpu_int4_step.sh", tmp_path / "out", python], env=given, cwd=ROOT, capture_output=True,
            text=True,
        )  # fmt: skip
        return done, [line.split() for line in log.read_text().splitlines()]

    return script


def test_what_is_run(run, tmp_path, capsys):
    done, commands = run(INT4_ATTENTION="sdpa-flash", INT4_FLAGS="--group=64", INT4_NAME="some")
    crashed = ["layer llama-3.1-8b", "layer llama-3.1-8b marlin"]
    assert done.returncode == 1 and re.findall("^failed: (.*)", done.stdout, re.M) == crashed, done.stdout + done.stderr
    modules = [command[1] for command in commands]
    assert modules == ["bench.layer"] * 6 + ["bench.step", "bench.report"]
    assert "--backend=exllamav2" in commands[0]
    assert not (tmp_path / "extensions" / "py312_cu130" / "exllamav2_ext" / "lock").exists()
    every = "--backend=native,marlin,exllamav2,gemlite,sdpa,native-dense"
    alone = [f"--backend=native,{library},sdpa" for library in ("marlin", "exllamav2", "gemlite")]
    for command, backends in zip(commands[1:7], [every, every, *alone, every], strict=True):
        assert {backends, "--quant=int4", "--group=64", "--attention=sdpa-flash"} <= set(command)
        refused = run_here(capsys, command[1], *command[2:], "--batch=9")  # the last flag is wrong, and no other
        assert refused.status == 2 and refused.err.startswith(f"{command[1]}: --batch=9: ")
    documents = {path.name for path in (tmp_path / "out").glob("*.json")}
    assert documents == {
        "h200-int4-layer-qwen2.5-7b-some.json", "h200-int4-layer-llama-3.1-8b-some-exllamav2.json",
        "h200-int4-layer-llama-3.1-8b-some-gemlite.json", "h200-int4-step-some.json",
    }  # fmt: skip


def test_what_is_not_compiled_is_left_out(run):
    done, commands = run(compiled=False, INT4_STEPS="step", INT4_LIBRARIES="exl2,marlin,exllamav2")
    assert done.returncode == 1 and "left out: exllamav2, exl2: the extension is not compiled" in done.stdout
    [[_, module, *flags]] = commands
    assert module == "bench.step" and "--backend=native,marlin,sdpa,native-dense" in flags


def test_time_for_libraries_alone_is_bounded(run):
    done, commands = run(INT4_STEPS="layer", INT4_MODELS="llama-3.1-8b", INT4_SECONDS="40")
    assert len(commands) == 1 and done.stdout.count("no time is left for layer llama-3.1-8b of ") == 3
