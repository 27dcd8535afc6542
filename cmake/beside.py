"""Run a command, and another beside it: python cmake/beside.py OTHER... -- COMMAND...

COMMAND has the terminal, and ends by itself. OTHER is stopped, with all that it started, where COMMAND fails or is
interrupted. What failed is said last, in one line, and its exit status is this one's.
"""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from types import FrameType

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def adopt_orphans() -> None:
    """What a process of ours leaves behind becomes our child, so that we can wait for it: whoever has process number 1
    in a container may never do so, and a process that nobody waits for stays in its group."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def stop(process: subprocess.Popen, most_s: float = 10) -> None:
    """End a process that leads a session, and what it started: nothing of it runs when this returns."""
    ending = time.monotonic() + most_s
    try:
        os.killpg(process.pid, signal.SIGTERM)  # ninja passes it on, and deletes what compilers had not finished
        while True:
            os.waitpid(-process.pid, os.WNOHANG)
            time.sleep(0.02)
            if time.monotonic() > ending:
                os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, ChildProcessError):  # none is left
        process.wait()


def end(number: int, frame: FrameType | None = None) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def main(words: list[str]) -> int:
    split = words.index("--")
    adopt_orphans()
    # A signal that came while they are started would leave one of them behind: it is kept until both are known.
    early: list[int] = []
    numbers = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) != signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, lambda number, frame: early.append(number))
    other = subprocess.Popen(words[:split], start_new_session=True)
    command = subprocess.Popen(words[split + 1 :])
    failed = words[split + 1 :]
    try:
        for number in numbers:
            signal.signal(number, end)
        for number in early:
            end(number)
        status = command.wait()
        if status == 0:
            failed, status = words[:split], other.wait()
    except KeyboardInterrupt:  # the terminal has told COMMAND too: it may have something to put right
        stop(other)
        command.wait()
        return 130
    except SystemExit:
        command.terminate()
        command.wait()
        raise
    finally:
        stop(other)
    if status:
        print(f"failed, as said above: {shlex.join(failed)}", file=sys.stderr)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
