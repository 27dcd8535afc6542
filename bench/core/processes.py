"""Fresh processes with a time limit: a crash or a hang costs the one alone."""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pykernels


@dataclass(frozen=True)
class Outcome:
    """How a process ended. `status` is ok, error (with its exit status or signal) or hang (past the limit)."""

    status: str
    reason: str | None
    returncode: int | None


_FRAME = re.compile(r'^  File "(.+)", line (\d+)', re.MULTILINE)
_NOT_THE_USERS = (Path(__file__).parents[1], Path(pykernels.__file__).parent, Path(sysconfig.get_path("stdlib")))

# Those of every thread that wait for one.
_running: set[subprocess.Popen] = set()

# Killed with -9 a driver cannot end its child, which would then disturb the run that takes its place: the child asks
# the kernel (PR_SET_PDEATHSIG) to be killed with it. It does so itself, not in a preexec_fn: with one, Python runs the
# hooks of its modules at the fork, and a Ctrl-C that falls into one of them is lost.
#
# Its sys.path is this process's: whatever lies in the current folder or on PYTHONPATH, it finds the same packages.
_START = """
import ctypes, json, runpy, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
sys.path[:] = json.loads(sys.argv[1])
del sys.argv[:2]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def module_command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command of `python -m module arguments` that finds the same packages and dies with this process."""
    return [sys.executable, "-c", _START, json.dumps(sys.path), module, *arguments]


def run_module(module: str, arguments: Sequence[str], limit_s: float) -> Outcome:
    """`python -m module arguments` in a process group of its own, which dies with it.

    The reason of a failure is the exception that ended the process, or the last line it wrote to stderr. Ctrl-C kills
    it and goes on upwards.
    """
    # A file and no pipe: what the process started and left behind would hold a pipe open, and with it this one.
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            module_command(module, arguments),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        _running.add(process)
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return Outcome("hang", f"was not done after {limit_s:g} s", None)
        finally:
            _running.discard(process)
            _kill(process)
        errors.seek(0)
        words = _last_words(errors.read())
    if process.returncode == 0:
        return Outcome("ok", None, 0)
    if process.returncode < 0:
        return Outcome("error", f"ended by {signal.Signals(-process.returncode).name}", process.returncode)
    return Outcome("error", words or f"exit status {process.returncode}", process.returncode)


def end_all() -> None:
    """Kill the processes that other threads wait for: a Ctrl-C reaches the main thread alone."""
    for process in list(_running):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _last_words(text: str) -> str:
    """Of the last traceback the exception, of whose words, as of CUDA's, the first line says what it is; else the last
    line."""
    lines = text.strip().splitlines()
    tracebacks = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if not tracebacks:
        return next(iter(lines[-1:]), "")
    traceback = lines[tracebacks[-1] + 1 :]
    raised = next((line for line in traceback if line[:1].strip()), "")
    line = _user_line(traceback)
    return f"{raised} ({line})" if raised and line and line.partition(":")[0] not in raised else raised


def _user_line(traceback: Sequence[str]) -> str | None:
    """`kernel.py:12`: the innermost line of a traceback that lies outside of this project, of what is installed and of
    Python itself; None where there is none."""
    found = None
    for path, number in _FRAME.findall("\n".join(traceback)):
        inside = any(Path(path).is_relative_to(folder) for folder in _NOT_THE_USERS)
        if not inside and "site-packages" not in path and not path.startswith("<"):
            found = f"{Path(path).name}:{number}"
    return found


def _kill(process: subprocess.Popen) -> None:
    """The process where it still runs, and whatever of its group it has left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
