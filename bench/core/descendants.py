"""Whatever a process has started, also what has left its group and its session: found and killed.

A process whose parent has ended is given to the nearest subreaper above it, by default to init. This process makes
itself one, so that nothing that it starts, directly or not, leaves the tree below it.
"""

import ctypes
import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress

_PR_SET_CHILD_SUBREAPER = 36
_END_S = 10  # a killed process gives its memory back before it is gone
_LOOK_S = 0.005

_Table = dict[int, tuple[int, int, bool]]
"""By process: its parent, its session, whether it still runs."""


def become_subreaper() -> None:
    """From here on this process is the parent of every orphan below it. Where the kernel refuses, init stays it."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _table() -> _Table:
    found: _Table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, ValueError, IndexError):  # it has ended since
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent, _, session = file.read().rpartition(b")")[2].split()[:4]
                found[int(name)] = int(parent), int(session), state not in b"ZX"
    return found


def children() -> set[int]:
    """Of this process."""
    return {process for process, (parent, *_) in _table().items() if parent == os.getpid()}


def _below(roots: Collection[int], table: _Table) -> set[int]:
    found, new = set(roots), set(roots)
    while new:
        new = {process for process, (parent, *_) in table.items() if parent in new} - found
        found |= new
    return found


def below(root: int) -> set[int]:
    """Whatever descends from the process, and itself."""
    return _below({root}, _table())


def end(root: int, not_orphans: Collection[int] | None) -> None:
    """Kill the process `root`, which leads a session, and all that descends from it.

    Orphans that this process has become the parent of are known by that session. Where `not_orphans` is given, they are
    all of its children beside those and of another session than its own: a session can be left and not be joined, so
    that what it started itself is not among them.
    """
    until = time.monotonic() + _END_S
    own, own_session = os.getpid(), os.getsid(0)
    while time.monotonic() < until:
        table = _table()
        strangers = {process: session for process, (parent, session, _) in table.items()
                     if parent == own and session != own_session and process != root}  # fmt: skip
        orphans = {process for process, session in strangers.items()
                   if session == root or (not_orphans is not None and process not in not_orphans)}  # fmt: skip
        running = [process for process in _below({root, *orphans}, table) if table.get(process, (0, 0, False))[2]]
        for process in running:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        for orphan in orphans:
            with suppress(ChildProcessError):
                os.waitpid(orphan, os.WNOHANG)
        if not running and not orphans:
            return
        time.sleep(_LOOK_S)
