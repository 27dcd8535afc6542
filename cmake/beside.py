"""Run a command, and another beside it: python cmake/beside.py OTHER... -- COMMAND...

COMMAND has the terminal and is never stopped by this. OTHER is stopped, with all that it started, where COMMAND fails
or Ctrl-C ends both. What failed is said last, in one line, and its exit status is this one's.
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
    other, command = words[:split], words[split + 1 :]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    beside = subprocess.Popen(other, start_new_session=True)
    try:
        failed, status = command, subprocess.call(command)
        if status == 0:
            failed, status = other, beside.wait()
    except KeyboardInterrupt:
        return 130
    finally:
        stop(beside)
    if status:
        print(f"failed, as said above: {shlex.join(failed)}", file=sys.stderr)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
