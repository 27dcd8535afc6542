"""bench/gpu_int4.sh without a GPU: its commands are right for the drivers, and what fails is named."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from inputs.command_line import run_here

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "gpu_int4.sh"

# Stands for Python: says what it is asked about the machine, writes down every other command, and fails in some.
PYTHON = """\
#!/bin/sh
case "$*" in
*get_device_name*) echo h200 9.0 ;;
*registry*) echo native marlin gemlite awq gptq ;;
-c*) ;;
*)
    printf '%s\\n' "$*" >> {log}
    echo "native: right in all of 9 trials"
    case "$*" in
    *--kernel=gemlite\\ --group*) exit 124 ;;
    *--kernel=marlin\\ *) exit 1 ;;
    *--kernel=awq\\ *) echo "awq: WRONG in 3 of 9 trials, 2 of which raised"; exit 1 ;;
    *--kernel=gptq\\ *) kill -SEGV $$ ;;
    esac
esac
"""


@pytest.fixture
def run(tmp_path):
    """Runs the script with that environment: its result and the commands that it gave, in order of their words."""
    log, python = tmp_path / "commands", tmp_path / "python"
    python.write_text(PYTHON.format(log=log))
    python.chmod(0o755)

    def script(**environment: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
        given = {"INT4_STEPS": "compile validate arch int4 layer", "INT4_MODELS": "tiny"} | environment
        done = subprocess.run(
            ["bash", SCRIPT, tmp_path / "out", python], env=os.environ | given, cwd=ROOT, capture_output=True, text=True
        )
        return done, sorted(line.split() for line in log.read_text().splitlines())

    return script


def test_what_is_run(run, tmp_path):
    done, commands = run(INT4_NAME="some")
    assert done.returncode == 1, done.stderr
    assert sorted(re.findall("^failed: (.*)", done.stdout, re.M)) == [
        "validate-awq", "validate-gemlite", "validate-gptq", "validate-marlin",
    ]  # fmt: skip
    assert "--- validate-native\nnative: right in all of 9 trials\nvalidate-native: status 0" in done.stdout
    out = tmp_path / "out"
    texts = [" ".join(command) for command in commands]
    validations = [text for text in texts if "--validate" in text]
    assert validations == [
        f"-m bench.int4 --validate --kernel={name}{less} --json={out}/h200-int4-validate-{name}.json"
        for name, less in (
            ("awq", ""),
            ("gemlite", " --group=128 --dtype=bf16"),
            ("gptq", ""),
            ("marlin", ""),
            ("native", ""),
        )
    ]
    assert "-m bench.int4 --arch=sm89" in texts
    # What did not finish its validation, or might take the others along, is not timed; what was wrong is, to be said
    # wrong.
    assert re.findall("^not timed: (.*)", done.stdout, re.M) == [
        "gemlite: its validation did not end", "awq: it raised in its validation",
        "gptq: its validation ended with status 139",
    ]  # fmt: skip
    (timed,) = [text for text in texts if "--predict" in text]
    assert "--kernel=native,marlin --model=tiny" in timed and f"--json={out}/h200-int4-some.json" in timed
    assert len(commands) == 9
    # Another call finds out the same from the logs in the folder.
    again, commands = run(INT4_STEPS="int4")
    assert again.returncode == 0 and again.stdout.count("not timed: ") == 3
    timed = [command for command in commands if "--predict=l4" in command]
    assert len(timed) == 2 and all("--kernel=native,marlin" in command for command in timed)


def test_no_kernel_is_left(run):
    run(INT4_STEPS="validate", INT4_KERNELS="awq")
    done, commands = run(INT4_STEPS="int4", INT4_KERNELS="awq")
    assert done.returncode == 1 and "failed: int4" in done.stdout and len(commands) == 1


def test_the_commands_run(run, capsys):
    flags = "--device=cpu --l2=warm --ctx=64"
    _, commands = run(INT4_FLAGS=flags, INT4_STEPS="compile int4 layer", INT4_KERNELS="native gemlite")
    assert [command[1] for command in commands] == ["bench.int4", "bench.int4", "bench.layer"]
    for _, module, *given in commands:
        result = run_here(capsys, module, *given, "--steps=2", "--warmup=1")
        assert result.status == 0, (module, result.err)


def test_only_the_steps_that_are_wanted(run):
    done, commands = run(INT4_STEPS="arch")
    assert done.returncode == 0 and commands == [["-m", "bench.int4", "--arch=sm89"]]


def test_the_sanitizer_is_given_tests_of_every_4_bit_op():
    expression = re.search(r'SANITIZED="(.*?)"', SCRIPT.read_text(), re.S)[1].replace("\\\n", "")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/gpu/test_cuda.py", "-k", expression,
               "--override-ini=addopts="]  # fmt: skip
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    names = set(re.findall(r"::(test_\w+)\[(.*)\]", found))
    assert {name for name, _ in names} == {"test_int4_gemv", "test_int4_swiglu_gemv", "test_int4_layer"}, found
    # 512 and 3584 columns in groups of 128 are the fast path's, 18944 its pairs of blocks', 544 in groups of 32 the
    # general path's.
    for columns in ("3584-512-128", "18944-258-128", "544-131-32", "512-1408-128", "544-33-32", "tiny-128"):
        assert any(columns in rest for _, rest in names), columns
    assert 20 < len(names) < 50
