"""Ctrl-C in the seconds before a driver's command begins: one line and status 130, as later, and no traceback.

`python -m bench.layer` imports the package `bench` first and then torch, which takes seconds in which nothing of the
driver could catch an exception. None is raised: an extension module turns a KeyboardInterrupt of its own imports into
an ImportError. The process ends at once, since it has nothing to keep and nothing to put in order by then.
"""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130
"""The exit status."""


def say(program: str) -> None:
    """The one line."""
    print(f"{program}: interrupted before anything was measured", file=sys.stderr, flush=True)


def _starting_module() -> str:
    """The module that this process is being started for (`python -m`); "" once it has begun, or where it is none."""
    # While Python looks for the module, and imports its package, -m stands where its path will.
    if sys.argv[:1] != ["-m"]:
        return ""
    return sys.orig_argv[-len(sys.argv)].removeprefix("-m")


_program = _starting_module()


def _end(_signal: int, _frame: FrameType | None) -> None:
    say(_program)
    os._exit(INTERRUPTED)


def guard(program: str = "") -> None:
    """From here to release(), where this process is being started for one of our modules and does not ignore Ctrl-C.

    program: what is being started, by the command `launchtax`, which is no module's name.
    """
    global _program
    _program = program or _program
    ours = _program.startswith(("bench.", "launchtax"))
    if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def release() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def forget() -> None:
    """Once a KeyboardInterrupt is caught for good. CPython notes one that came out of an exec() of text, as dataclasses
    and torch have them, and ends a `python -m` by SIGINT in place of its exit status, caught or not; running any text
    clears the note."""
    exec("")
