"""The tests' forked processes are what true ones are."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from inputs.busy import HANG_S
from inputs.command_line import ROOT, Result, run, start
from inputs.fork_server import _MARK, _client, default_ctrl_c, own_path, script_command, true_processes

from bench.core import processes

WAYS = [nullcontext, true_processes]

# What a process can tell of itself. Both ways, or one of them would be seen here.
TELLS = """
import json, os, signal, sys
print(json.dumps(dict(
    name=__name__, argv=sys.argv, first=sys.path[0], cwd=os.getcwd(), stdin=sys.stdin.read(),
    parent=os.getppid(), leads=os.getsid(0) == os.getpid(), group=os.getpgid(0) == os.getpgid(os.getppid()),
    signals={name: str(signal.getsignal(getattr(signal, name)))
             for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE")},
    environment=dict(os.environ), streams=[
        (stream.encoding, stream.errors, stream.line_buffering, stream.write_through, stream.fileno())
        for stream in (sys.stdout, sys.stderr)],
    files=sorted(set(os.listdir("/proc/self/fd")) & {"0", "1", "2"}),
)))
sys.stderr.write("to the end")
"""


def told(way, **options) -> tuple:
    with way():
        done = subprocess.run(
            [*script_command(TELLS), "--flag"], input="given", capture_output=True, text=True, timeout=HANG_S,
            preexec_fn=default_ctrl_c, **options,
        )  # fmt: skip
    return done.returncode, done.stderr, json.loads(done.stdout)


@pytest.mark.parametrize("session", [False, True])
def test_what_a_process_tells_of_itself(tmp_path, session):
    options = dict(cwd=tmp_path, env=os.environ | {"COLUMNS": "33"}, start_new_session=session)
    forked, true = (told(way, **options) for way in WAYS)
    assert forked == true
    assert (true[2]["parent"], true[2]["leads"], true[2]["stdin"]) == (os.getpid(), session, "given")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("import sys; sys.exit(7)", 7),
        ("import sys; sys.exit('words')", 1),
        ("import atexit; atexit.register(print, 'last'); print('first', end='')", 0),
        ("def f():\n    raise ValueError('no')\nf()", 1),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("import os; os.kill(os.getpid(), 11)", -signal.SIGSEGV),
        ("import threading, time; threading.Thread(target=lambda: (time.sleep(0.05), print('thread'))).start()", 0),
        ("import sys; sys.stdout = open('/dev/full', 'w'); print('x')", 120),
        ("import os; os.write(1, b'x'); os._exit(3)", 3),
    ],
)
def test_how_a_process_ends(code, status):
    ends = []
    for way in WAYS:
        with way():
            done = subprocess.run(script_command(code), capture_output=True, text=True, timeout=HANG_S)
            ends.append(Result(done.returncode, done.stdout, done.stderr))
    assert ends[0] == ends[1] and ends[0].status == status


def test_a_driver_is_refused_in_the_same_words():
    ends = []
    for way in WAYS:
        with way():
            ends.append((run("bench.layer", "--nothing"), processes.run_module("bench.op", ["--op=x"], HANG_S)))
    assert ends[0] == ends[1] and ends[0][0].status == ends[0][1].returncode == 2


# A driver that starts another, which never ends, and is killed.
STARTS = """
import sys
from bench.core import processes
processes.run_module("bench.layer", ["--weights=/dev/stdin"], 0.01)
print("one")
import subprocess
process = subprocess.Popen(
    processes.module_command("bench.fleet.controls", ["cpu"]), stdin=subprocess.PIPE, start_new_session=True
)
print(process.pid, flush=True)
process.wait()
"""


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_process_of_a_forked_one_dies_with_it():
    process = subprocess.Popen(script_command(STARTS), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "one\n"
    child = int(process.stdout.readline())
    assert running(child) and int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1]) == process.pid
    process.kill()
    assert process.communicate(timeout=HANG_S)[0] == "" and process.returncode == -signal.SIGKILL
    end = time.monotonic() + HANG_S
    while running(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert not running(child)


def begun(process: subprocess.Popen) -> bytes:
    """The command that the kernel lists: a forked process has its server's."""
    try:
        while not (command := Path(f"/proc/{process.pid}/cmdline").read_bytes()):
            assert process.poll() is None
        return command
    finally:
        process.kill()
        process.communicate()


def test_what_is_forked(monkeypatch, tmp_path):
    waits = script_command("input()")
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    mark = _MARK.strip().encode()
    assert mark not in begun(subprocess.Popen(waits, **pipes))
    for options in (dict(preexec_fn=os.getpid), dict(umask=0o77), dict(env={"HOME": "/"}), dict(pass_fds=(0,))):
        assert mark in begun(subprocess.Popen(waits, **pipes, **options)), options
    own = [sys.executable, "-c", "input()"]
    assert b"input()" in begun(subprocess.Popen(own, **pipes))
    with true_processes():
        assert b"bench.layer" in begun(start("bench.layer"))
    assert b"bench.layer" not in begun(start("bench.layer"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert b"bench.layer" in begun(start("bench.layer"))
    monkeypatch.undo()
    monkeypatch.setattr(sys, "path", list(_client.path))  # whatever earlier tests' imports have added
    monkeypatch.syspath_prepend(sysconfig.get_path("purelib") + "/ray/thirdparty_files")
    command = processes.module_command("bench.layer", [])
    assert b"bench.layer" not in begun(subprocess.Popen(command, **pipes))
    monkeypatch.syspath_prepend(str(tmp_path))
    command = processes.module_command("bench.layer", [])
    assert b"bench.layer" in begun(subprocess.Popen(command, **pipes))


def test_what_a_test_adds_to_the_path_goes_with_it(monkeypatch, tmp_path):
    """And a process of the next is forked again."""
    monkeypatch.setattr(sys, "path", list(_client.path))
    installed = sysconfig.get_path("purelib") + "/ray/thirdparty_files"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with own_path():
        sys.path[:0] = [str(tmp_path), installed]
        assert b"bench.layer" in begun(subprocess.Popen(processes.module_command("bench.layer", []), **pipes))
    assert sys.path == [installed, *_client.path]
    assert b"bench.layer" not in begun(subprocess.Popen(processes.module_command("bench.layer", []), **pipes))
