"""cmake/beside.py: what the Makefile compiles while pip installs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from inputs.fork_server import default_ctrl_c

BESIDE = Path(__file__).resolve().parents[2] / "cmake" / "beside.py"
# Writes the number of a process of its own, which is to end with it.
ENDLESS = ["sh", "-c", "sleep 600 & echo $! > number.new; mv number.new number; wait"]
UNTIL = "until test -e {}; do sleep 0.01; done; {}"


def start(folder: Path, other: list[str], command: str) -> subprocess.Popen:
    words = [sys.executable, str(BESIDE), *other, "--", "sh", "-c", command]
    return subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True, preexec_fn=default_ctrl_c)


def assert_ended(folder: Path) -> None:
    """What ENDLESS started is a zombie at most: who takes it over may be slow to ask for its status."""
    status = Path("/proc", (folder / "number").read_text().strip(), "status")
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_the_other_is_stopped_where_the_command_fails(tmp_path):
    process = start(tmp_path, ENDLESS, command := UNTIL.format("number", "exit 3"))
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 3 and errors == f"failed, as said above: sh -c '{command}'\n"
    assert_ended(tmp_path)


@pytest.mark.parametrize(
    ("number", "then"), [(signal.SIGINT, "sleep 0.5; touch ended"), (signal.SIGTERM, "exec sleep 600")]
)
def test_the_other_is_stopped_by_an_interrupt(tmp_path, number, then):
    process = start(tmp_path, ENDLESS, UNTIL.format("number", f"kill -{number.value} $PPID; {then}"))
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 128 + number
    assert_ended(tmp_path)
    assert os.path.exists(tmp_path / "ended") == (number == signal.SIGINT)  # what Ctrl-C ends may clean up


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_they_are_started(tmp_path, number):
    """Sent from within the start of the second."""
    code = f"""
import os, subprocess, sys
sys.path.insert(0, {str(BESIDE.parent)!r})
import beside

class Popen(subprocess.Popen):
    def __init__(self, *words, **options):
        super().__init__(*words, **options)
        if not options:
            os.kill(os.getpid(), {number.value})

subprocess.Popen = Popen
sys.exit(beside.main(["sleep", "600", "--", "sh", "-c", "exec sleep {0.5 if number == 2 else 600}"]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=default_ctrl_c,
    )
    assert ended.returncode == 128 + number and not ended.stderr


def test_the_command_ends_where_the_other_fails(tmp_path):
    process = start(tmp_path, ["sh", "-c", "touch failed; exit 4"], UNTIL.format("failed", "touch ended"))
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 4 and errors == "failed, as said above: sh -c 'touch failed; exit 4'\n"
    assert os.path.exists(tmp_path / "ended")


def test_both_end(tmp_path):
    process = start(tmp_path, ["sh", "-c", UNTIL.format("begun", "touch ended")], "touch begun")
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 0
    assert os.path.exists(tmp_path / "ended")
