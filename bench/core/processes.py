"""Fresh processes with a time limit: a crash or a hang costs the one alone."""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pykernels
from bench.core import descendants
from bench.core.errors import plain


@dataclass(frozen=True)
class Outcome:
    """How a process ended. `status` is ok, error (with its exit status or signal) or hang (past the limit)."""

    status: str
    reason: str | None
    returncode: int | None


_FRAME = re.compile(r'^  File "(.+)", line (\d+)', re.MULTILINE)
_NOT_THE_USERS = (Path(__file__).parents[1], Path(pykernels.__file__).parent, Path(sysconfig.get_path("stdlib")))

_TAIL_BYTES = 64 << 10
"""What is kept of a process's stderr: its end."""

# Those of every thread that wait for one; and the children that there were before the first of them.
_running: set[subprocess.Popen] = set()
_others: set[int] = set()
_lock = threading.Lock()

# Killed with -9 a driver cannot end its child, which would then disturb the run that takes its place: the child asks
# the kernel (PR_SET_PDEATHSIG) to be killed with it, and ends where the driver has died before that. It does so itself,
# not in a preexec_fn: with one, Python runs the hooks of its modules at the fork, and a Ctrl-C that falls into one of
# them is lost.
#
# Its sys.path is this process's: whatever lies in the current folder or on PYTHONPATH, it finds the same packages.
_START = """
import ctypes, json, os, runpy, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
sys.path[:] = json.loads(sys.argv[2])
del sys.argv[:3]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def module_command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command of `python -m module arguments` for a child of this process, which finds the same packages and dies
    with it."""
    return [sys.executable, "-c", _START, str(os.getpid()), json.dumps(sys.path), module, *arguments]


class _Tail:
    """The end of what a process writes to stderr. A pipe that is read all the while: what a file could hold, a disk may
    not."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self._bytes = descriptor, b""
        os.set_blocking(descriptor, False)

    def read(self) -> bool:
        """Take what is there, as much as a pipe holds. Whether there may be more to come."""
        for _ in range(16):
            try:
                new = os.read(self.descriptor, _TAIL_BYTES)
            except BlockingIOError:
                return True
            if not new:
                return False
            self._bytes = (self._bytes + new)[-_TAIL_BYTES:]
        return True

    def words(self) -> str:
        """See _last_words()."""
        return _last_words(self._bytes.decode(errors="replace"))


def run_module(module: str, arguments: Sequence[str], limit_s: float) -> Outcome:
    """`python -m module arguments` in a session of its own, which dies with it, and whatever it started, too.

    The reason of a failure is the exception that ended the process, or the last line it wrote to stderr. Ctrl-C kills
    it and goes on upwards. It can read nothing from this process's stdin.
    """
    with _lock:
        if not _running:
            descendants.become_subreaper()
            _others.clear()
            _others.update(descendants.children())
        process = subprocess.Popen(
            module_command(module, arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        _running.add(process)
    assert process.stderr
    with process.stderr:
        tail = _Tail(process.stderr.fileno())
        try:
            ended = _wait(process, tail, limit_s)
        finally:
            _end(process)
        if not ended:
            return Outcome("hang", f"was not done after {limit_s:g} s", None)
        tail.read()
    if process.returncode == 0:
        return Outcome("ok", None, 0)
    if process.returncode < 0:
        return Outcome("error", f"ended by {signal_name(-process.returncode)}", process.returncode)
    return Outcome("error", tail.words() or f"exit status {process.returncode}", process.returncode)


def _wait(process: subprocess.Popen, tail: _Tail, limit_s: float) -> bool:
    """For its end, for so long at most, while what it writes is read: a full pipe would stop it. Whether it ended."""
    until = time.monotonic() + limit_s
    with selectors.DefaultSelector() as selector:
        selector.register(tail.descriptor, selectors.EVENT_READ)
        writes = True
        while process.poll() is None:
            left = min(until - time.monotonic(), 0.05)
            if left <= 0:
                return False
            if not writes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(left)
            elif selector.select(left) and not tail.read():
                writes = False
    return True


def signal_name(number: int) -> str:
    """SIGSEGV; of a real-time signal, most of which have no name in Python, SIGRTMIN+6."""
    with suppress(ValueError):
        return signal.Signals(number).name
    first = int(signal.SIGRTMIN)
    return f"SIGRTMIN+{number - first}" if first < number < signal.SIGRTMAX else f"signal {number}"


def end_all() -> None:
    """Kill the processes that other threads wait for: a Ctrl-C reaches the main thread alone."""
    for process in list(_running):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _last_words(text: str) -> str:
    """Of the last traceback the exception, of whose words, as of CUDA's, the first line says what it is; else the last
    line. As a table can show it."""
    lines = text.strip().splitlines()
    tracebacks = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if not tracebacks:
        return plain(next(iter(lines[-1:]), ""))
    traceback = lines[tracebacks[-1] + 1 :]
    raised = next((line for line in traceback if line[:1].strip()), "")
    line = _user_line(traceback)
    return plain(raised, f" ({line})" if raised and line and line.partition(":")[0] not in raised else "")


def _user_line(traceback: Sequence[str]) -> str | None:
    """`kernel.py:12`: the innermost line of a traceback that lies outside of this project, of what is installed and of
    Python itself; None where there is none."""
    found = None
    for path, number in _FRAME.findall("\n".join(traceback)):
        inside = any(Path(path).is_relative_to(folder) for folder in _NOT_THE_USERS)
        if not inside and "site-packages" not in path and not path.startswith("<"):
            found = f"{Path(path).name}:{number}"
    return found


def _end(process: subprocess.Popen) -> None:
    """End the process where it still runs, and whatever it has left behind. Orphans are known to be its own where no
    other process runs."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with _lock:
        _running.discard(process)
        descendants.end(process.pid, None if _running else _others)
    process.wait()
