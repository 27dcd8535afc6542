"""Claims: which of several processes, on one machine or on many, measures a part of a run. They share a folder.

A claim on NAME is a file `.NAME.claim-G` that is made exclusively (O_EXCL: atomic on local file systems and on NFS). Of
several the highest G counts. A claim whose process is gone is stale: of a process of the same kernel and process
namespace that is known at once, of any other when its file was not touched for STALE_S. A stale claim is superseded by
G + 1, which one process alone can make: nobody removes a claim that was taken over meanwhile. Whoever holds one looks
once more whether the part is finished.
"""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.core.files import TEMPORARY, temporary

STALE_S = 120.0
"""A claim of another machine that was not touched for so long has no process any more."""
BEAT_S = 15.0
"""How often a claim is touched while it is held."""


def _text(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def _started(pid: int) -> str | None:
    """When the process began, in ticks since the boot; None where there is none, or a zombie."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in ("Z", "X") else None


def _machine() -> str:
    """What processes share that can see one another by their ids: a boot of a kernel, and a namespace of ids."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{_text('/proc/sys/kernel/random/boot_id')} {namespace}"


def _now_of(folder: Path) -> float:
    """The time by the clock of the folder's file system, which stamps the claims too."""
    probe, descriptor = temporary(folder)
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)


def _claims(folder: Path, name: str) -> dict[int, Path]:
    """The claims on a part by generation."""
    pattern = re.compile(rf"\.{re.escape(name)}\.claim-(\d+)")
    found = {}
    for entry in os.scandir(folder):
        if match := pattern.fullmatch(entry.name):
            found[int(match[1])] = folder / entry.name
    return found


def _stale(path: Path) -> bool:
    """Is there nobody behind the claim? Its own file tells; one that is not written yet is new."""
    try:
        try:
            holder = json.loads(path.read_text() or "{}")
        except ValueError:
            holder = {}
        if isinstance(holder, dict) and holder.get("machine") == _machine() and isinstance(holder.get("pid"), int):
            return _started(holder["pid"]) != holder.get("started")
        return _now_of(path.parent) - path.stat().st_mtime > STALE_S
    except FileNotFoundError:
        return False  # given back just now: the next try finds the part free, or finished


@dataclass
class Claim:
    """A part that this process measures."""

    path: Path
    name: str
    generation: int

    def held(self) -> bool:
        """Does it still count? Not where another process took it over, as after this machine had slept."""
        claims = _claims(self.path.parent, self.name)
        return self.generation in claims and self.generation == max(claims)

    def touch(self) -> None:
        """The process is alive."""
        with suppress(OSError):
            os.utime(self.path)

    def give_back(self) -> None:
        """Remove it, and those it superseded before."""
        for generation, path in sorted(_claims(self.path.parent, self.name).items()):
            if generation <= self.generation:
                path.unlink(missing_ok=True)


def take(folder: Path, name: str) -> Claim | None:
    """A claim on the part, or None where another process has it. Raises OSError where the folder takes no file."""
    claims = _claims(folder, name)
    if claims and not _stale(claims[max(claims)]):
        return None
    generation = max(claims, default=-1) + 1
    path = folder / f".{name}.claim-{generation}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return None
    with os.fdopen(descriptor, "w") as file:
        json.dump({"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}, file)
    claim = Claim(path, name, generation)
    if not claim.held():  # a higher one was made while this one was
        path.unlink(missing_ok=True)
        return None
    return claim


@contextmanager
def claimed(folder: Path | None, name: str) -> Iterator[Claim | None]:
    """take(), touched as long as the context lasts and given back at its end. Without a folder nobody competes, and the
    claim is one on nothing."""
    if folder is None:
        yield Claim(Path(os.devnull), name, 0)
        return
    claim = take(folder, name)
    if claim is None:
        yield None
        return
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_S):
            claim.touch()

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield claim
    finally:
        over.set()
        beating.join()
        claim.give_back()


def work_file(folder: Path, name: str) -> Path:
    """For what the process of a part writes before the part is finished."""
    return folder / f".{name}.running.json"


def tidy(folder: Path | None, name: str) -> None:
    """Remove the claim on a finished part whose process was killed before it could give it back, and its work file."""
    if folder and _claims(folder, name) and (claim := take(folder, name)):
        work_file(folder, name).unlink(missing_ok=True)
        claim.give_back()


def clean(folder: Path) -> None:
    """Remove the temporary files of processes killed while they wrote: those that nobody touched for STALE_S."""
    if left := list(folder.glob(f"{TEMPORARY}*")):
        now = _now_of(folder)
        for path in left:
            with suppress(FileNotFoundError):
                if now - path.stat().st_mtime > STALE_S:
                    path.unlink()


def parts(
    folder: Path | None, names: Iterable[str], finished: Callable[[str], bool], poll_s: float = 1.0
) -> Generator[tuple[str, bool]]:
    """Every part by its name, once: (name, True) is for this process to measure, which has the claim until it asks for
    the next; (name, False) is finished, by an earlier run or by another process. Those that others have are waited for,
    and taken over from the dead."""
    if folder:
        clean(folder)
    left = list(names)
    while left:
        before = len(left)
        for name in list(left):
            if finished(name):
                left.remove(name)
                tidy(folder, name)
                yield name, False
                continue
            with claimed(folder, name) as claim:
                if claim is not None:
                    left.remove(name)
                    yield name, not finished(name)
        if len(left) == before:
            time.sleep(poll_s)
