"""Run a command, and another beside it: python cmake/beside.py OTHER... -- COMMAND...

COMMAND has the terminal, and ends by itself. OTHER is stopped, with all that it started, where COMMAND fails or is
interrupted. What failed is said last, in one line, and its exit status is this one's.
"""

import os
import shlex
import signal
import subprocess
import sys
import time


def stop(process: subprocess.Popen, most_s: float = 10) -> None:
    """End a process that leads a session, and what it started: nothing of it runs when this returns."""
    ending = time.monotonic() + most_s
    number = signal.SIGTERM  # ninja passes it on to the compilers, and deletes what they had not finished
    try:
        while True:
            os.killpg(process.pid, number)
            process.poll()  # a group ends with its last process, and a leader that nobody waited for is one
            time.sleep(0.02)
            number = signal.SIGKILL if time.monotonic() > ending else 0
    except ProcessLookupError:
        process.wait()


def main(words: list[str]) -> int:
    split = words.index("--")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    other = subprocess.Popen(words[:split], start_new_session=True)
    command = subprocess.Popen(words[split + 1 :])
    failed = words[split + 1 :]
    try:
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
