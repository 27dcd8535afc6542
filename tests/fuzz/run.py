"""A case in a process of its own, and what is wrong with how it went."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from fuzz.case import MEASURES, OK, PARTLY, REFUSED, Case

ROOT = Path(__file__).resolve().parent.parent.parent


def listing(folder: Path) -> set[str]:
    """Everything below the folder that is no empty folder, by its path."""
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if not (path.is_dir() and not path.is_symlink())
    }


def problem(case: Case, status: int | None, words: str, left: set[str]) -> str | None:
    """What is wrong with a case that ended with this status (None: it did not) and these words on stderr, leaving
    these new files; None where nothing is."""
    lines = words.strip().splitlines()
    last = lines[-1][:160] if lines else "(nothing on stderr)"
    new = [name for name in sorted(left) if not re.match(case.may_leave, name)]
    hidden = [name for name in sorted(left) if Path(name).name.startswith(".")]
    if status is None:
        return "HANG: it did not end"
    if "Traceback (most recent call last)" in words or "Fatal Python error" in words:
        return f"TRACEBACK (status {status}): {last}"
    if not 0 <= status <= 2:
        return f"CRASH: status {status}: {last}"
    if case.expected == REFUSED and status != 2:
        return f"ACCEPTED: status {status}: {last}"
    if case.expected == PARTLY and status != 1:
        return f"NOT SAID: status {status}: {last}"
    if case.expected == OK and status != 0:
        return f"REFUSED, though allowed: status {status}: {last}"
    if status == 2 and len(lines) != 1:
        return f"NOT ONE LINE but {len(lines)}: {last}"
    if hidden or (status == 2 and new):
        return f"LEFT BEHIND: {', '.join(new + hidden)[:160]}"
    return None


def end(process: subprocess.Popen) -> None:
    """The process and what is left of its group, which is of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(case: Case, work: Path, limit_s: float) -> tuple[str | None, float, list[str]]:
    """What is wrong with how the case went, None where nothing is; the seconds it took; its command line."""
    limit_s *= 1 if case.expected == REFUSED else MEASURES
    folder = Path(tempfile.mkdtemp(dir=work))
    arguments = case.make(folder)
    before = listing(folder)
    devices = {path for path in folder.iterdir() if path.is_char_device()}
    command = [sys.executable, "-m", f"bench.{case.driver}", *arguments]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "150"}
    environment |= {name: value.replace("{w}", str(folder)) for name, value in case.env.items()}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        stdout = out
        if case.stdout == "full":
            stdout = open("/dev/full", "wb")  # noqa: SIM115 - closed with this process
        elif case.stdout == "closed":
            reading, writing = os.pipe()
            os.close(reading)
            stdout = os.fdopen(writing, "wb")
        elif case.stdout == "none":
            command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
        begin = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=err,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(limit_s)
            status = process.returncode
        except subprocess.TimeoutExpired:
            status = None
        took = time.monotonic() - begin
        end(process)
        err.seek(0)
        words = err.read(1 << 20).decode(errors="replace")
    found = problem(case, status, words, listing(folder) - before)
    for device in devices:
        if not device.is_char_device():
            found = f"REPLACED the device {device.name} by a file"
    return found, took, command
