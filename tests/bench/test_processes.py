"""A driver's processes: however one ends, it comes back as one line, and nothing that it started runs on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from inputs.busy import HANG_S

from bench.core import descendants
from bench.core.processes import module_command, run_module, signal_name


@pytest.fixture
def ends(tmp_path, monkeypatch):
    """How a module of that source ends."""
    monkeypatch.syspath_prepend(tmp_path)

    def run(source, *arguments, limit_s=HANG_S):
        (tmp_path / "victim.py").write_text(source)
        outcome = run_module("victim", [str(argument) for argument in arguments], limit_s)
        return outcome.status, outcome.reason

    return run


@pytest.mark.parametrize(
    ("number", "name"), [(11, "SIGSEGV"), (34, "SIGRTMIN"), (40, "SIGRTMIN+6"), (64, "SIGRTMAX"), (33, "signal 33")]
)
def test_every_signal_has_a_name(number, name):
    assert signal_name(number) == name


def test_a_real_time_signal(ends):
    assert ends("import os; os.kill(os.getpid(), 40)") == ("error", "ended by SIGRTMIN+6")


def test_a_child_whose_parent_has_died_before_it_could_ask_runs_nothing():
    """Here another process is its parent, as it is then."""
    command = ["sh", "-c", '"$@"; echo "$?"', "sh", *module_command("this", [])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"{128 + signal.SIGKILL}\n"


@pytest.mark.parametrize(
    ("source", "begins"),
    [
        ("import sys; [sys.stderr.write('x' * 10**6) for _ in range(100)]; sys.exit(3)", "x" * 500 + "..."),
        ("import sys; sys.stderr.buffer.write(b'\\xff\\x1b[31mred\\udc80 ' * 10**5); sys.exit(3)", None),
        ("raise ValueError('one \\udc80 two')", "ValueError: one \\udc80 two (victim.py:1)"),
        ("raise ValueError('y' * 10**4)", "ValueError: " + "y" * 488 + "... (victim.py:1)"),
    ],
    ids=["100 MB in one line", "control characters", "a lone surrogate", "a long message"],
)
def test_what_it_writes_is_one_printable_line(ends, source, begins):
    status, reason = ends(source)
    assert status == "error" and reason.isprintable() and len(reason) <= 520
    assert begins is None or reason == begins


def test_one_that_writes_for_ever_ends_with_its_time(ends):
    begin = time.monotonic()
    assert ends("import os\nwhile True: os.write(2, b'x' * 4096)", limit_s=0.3) == ("hang", "was not done after 0.3 s")
    assert time.monotonic() - begin < HANG_S


def test_stdin_is_not_the_drivers(ends):
    assert ends("input()")[1].startswith("EOFError")


# What it leaves behind: a child of its own; one in a session of its own, with no environment, whose parent has ended.
LEAVES = """
import os, subprocess, sys, time
forever = [sys.executable, "-c", "import time; time.sleep(600)"]
if sys.argv[2] == "child":
    pid = subprocess.Popen(forever).pid
else:
    start = "print(subprocess.Popen(sys.argv[1:], start_new_session=True, env={}, stdout=subprocess.DEVNULL).pid)"
    middle = [sys.executable, "-c", "import subprocess, sys; " + start, *forever]
    pid = int(subprocess.run(middle, stdout=subprocess.PIPE, start_new_session=True).stdout)
open(sys.argv[1], "w").write(str(pid))
time.sleep(600 if sys.argv[3] == "hangs" else 0)
"""


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(("left", "then"), [("child", "ends"), ("orphan", "ends"), ("orphan", "hangs")])
def test_nothing_that_it_started_runs_on(ends, tmp_path, left, then):
    """Each holds the process's stderr open."""
    limit_s = 1.0 if then == "hangs" else HANG_S
    status, _ = ends(LEAVES, tmp_path / "pid", left, then, limit_s=limit_s)
    assert status == ("hang" if then == "hangs" else "ok")
    if then == "hangs" and not (tmp_path / "pid").exists():
        pytest.skip("too busy a machine: it did not come so far")
    assert not runs(int((tmp_path / "pid").read_text()))


def test_a_child_of_the_drivers_own_is_left_alone(ends):
    """Even one that began while a process ran, and one in a session of its own that was there before."""
    before = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        assert ends("") == ("ok", None)
        assert before.poll() is None and before.pid in descendants.children()
    finally:
        before.kill()
        before.wait()
    during = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        descendants.end(os.getpid() + 10**7, not_orphans=())  # a root that is there no more
        assert during.poll() is None
    finally:
        during.kill()
        during.wait()
