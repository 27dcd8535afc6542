"""Cells over nodes: which is measured where, again elsewhere when its node dies or is not to be trusted.

Knows nothing of Ray: a `Cluster` starts cells on slots and says what became of them, so that a test can be one.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench.core import claims, document, environment
from bench.core.document import Document
from bench.fleet.cells import Cell, Plan, duration, failed, finished, line, status_of, write_cell
from bench.fleet.local import Count

LOSSES = 3
"""So often a cell loses its worker or node before it is given up."""
NODE_WAIT_S = 60.0
"""Without any node for so long the run ends."""


class LostError(Exception):
    """The worker or the node of a cell died; the words say how."""


@dataclass(frozen=True)
class Slot:
    """Where one cell can be measured at a time: a node, or with --pack a GPU of one."""

    id: str
    node: str
    kind: str


class Cluster(Protocol):
    """Who starts cells."""

    def slots(self) -> list[Slot]:
        """Those of the nodes that are there now and may be used."""

    def start(self, slot: Slot, cell: Cell) -> Any:
        """Begin a cell there. Returns a handle."""

    def wait(self, handles: Sequence[Any], seconds: float) -> list[Any]:
        """Those that are done, or lost, after that time at most."""

    def result(self, handle: Any) -> Document:
        """The document of a cell that is done. Raises LostError."""

    def cancel(self, handles: Sequence[Any]) -> None:
        """End them: nobody wants them any more."""


@dataclass
class Job:
    """A cell for a kind of node, and what became of it so far."""

    plan: Plan
    cell: Cell
    kind: str
    losses: int = 0
    doubted: Document | None = None
    avoid: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """Of the cell, with its kind where there are kinds."""
        return f"{self.kind}/{self.cell.name}" if self.kind else self.cell.name

    def done(self) -> bool:
        """Is its document there?"""
        return finished(self.plan, self.cell)


@dataclass
class _Running:
    job: Job
    slot: Slot
    claim: claims.Claim
    context: AbstractContextManager[Any]
    begin: float


class Schedule:
    """One run over a cluster. `count` tells what was finished, before it and in it."""

    def __init__(self, jobs: Sequence[Job], cluster: Cluster, say: Callable[[str], None], poll_s: float = 1.0) -> None:
        self.cluster, self.say, self._poll_s = cluster, say, poll_s
        self.count, self.total = Count(), len(jobs)
        self.set_aside: dict[str, str] = {}
        self._pending = []
        for folder in {job.plan.out for job in jobs}:
            claims.clean(folder)
        for job in jobs:
            if job.done():
                claims.tidy(job.plan.out, job.cell.name)
                self.count.add(status_of(document.load(job.plan.path(job.cell)))[0])
            else:
                self._pending.append(job)
        self._todo, self._ended = len(self._pending), 0
        self._running: dict[Any, _Running] = {}
        self._seconds: list[float] = []
        self._seen_node = time.monotonic()

    def run(self) -> bool:
        """Every cell that is not finished. Returns whether there were nodes until the end. Ctrl-C ends what runs and
        goes on upwards."""
        if self._todo < self.total:
            self.say(f"{self.total - self._todo} of {self.total} cells were finished before")
        try:
            while self._pending or self._running:
                self._start()
                if not self._running and not self._waits_for_node():
                    return False
                for handle in self.cluster.wait(list(self._running), self._poll_s):
                    self._end(handle)
            return True
        finally:
            self.cluster.cancel(list(self._running))
            for running in self._running.values():
                running.context.__exit__(None, None, None)

    def _usable(self) -> list[Slot]:
        """The slots of nodes that are trusted; where no other of its kind is left, of those set aside too."""
        slots = self.cluster.slots()
        trusted = [slot for slot in slots if slot.node not in self.set_aside]
        kinds = {slot.kind for slot in trusted}
        return trusted + [slot for slot in slots if slot.node in self.set_aside and slot.kind not in kinds]

    def _start(self) -> None:
        slots = self._usable()
        if slots:
            self._seen_node = time.monotonic()
        busy = {running.slot.id for running in self._running.values()}
        for slot in slots:
            if slot.id in busy:
                continue
            others = {other.node for other in slots if other.kind == slot.kind} - {slot.node}
            for job in [job for job in self._pending if job.kind == slot.kind]:
                if slot.node in job.avoid and others - job.avoid:
                    continue
                if self._take(job, slot):
                    break

    def _take(self, job: Job, slot: Slot) -> bool:
        """Begin the job there, unless another process has it; where that one has finished it, note so."""
        if job.doubted is None and job.done():
            self._pending.remove(job)
            claims.tidy(job.plan.out, job.cell.name)
            self._report(job, document.load(job.plan.path(job.cell)), "measured by another process")
            return False
        context = claims.claimed(job.plan.out, job.cell.name)
        claim = context.__enter__()
        if claim is None:
            return False
        with ExitStack() as stack:
            stack.callback(context.__exit__, None, None, None)
            if job.doubted is None and job.done():  # between the two looks
                return False
            handle = self.cluster.start(slot, job.cell)
            stack.pop_all()
        self._pending.remove(job)
        self._running[handle] = _Running(job, slot, claim, context, time.monotonic())
        return True

    def _waits_for_node(self) -> bool:
        """With nothing running: is there a node, or may one still come?"""
        return time.monotonic() - self._seen_node < NODE_WAIT_S

    def _end(self, handle: Any) -> None:
        running = self._running.pop(handle)
        job, slot = running.job, running.slot
        try:
            try:
                result = self.cluster.result(handle)
            except LostError as error:
                if (result_ := self._lost(job, slot, str(error))) is None:
                    return
                result = result_
            else:
                self._seconds.append(time.monotonic() - running.begin)
            doubt = (result.get("controls") or {}).get("doubt")
            if doubt and self._elsewhere(job, slot, doubt, result):
                return
            if running.claim.held():
                write_cell(job.plan.path(job.cell), result)
            self._report(job, result, f"on {slot.node}")
        finally:
            running.context.__exit__(None, None, None)

    def _lost(self, job: Job, slot: Slot, words: str) -> Document | None:
        """The cell in hand goes back to the front; a document of its failure where it was lost too often."""
        job.losses += 1
        self.say(f"{job.name}: lost on {slot.node}: {words}")
        if job.losses < LOSSES:
            self._pending.insert(0, job)
            return None
        reason = f"its worker was lost {job.losses} times: {words}"
        device, machine = job.plan.device.type, environment.collect()
        return job.doubted or failed(job.cell, job.plan.flags, device, "error", reason, machine)

    def _elsewhere(self, job: Job, slot: Slot, doubt: str, result: Document) -> bool:
        """Set the node aside. Is the cell measured again on another of its kind?"""
        if slot.node not in self.set_aside:
            self.set_aside[slot.node] = doubt
            self.say(f"node {slot.node} is set aside: {doubt}")
        job.avoid.add(slot.node)
        nodes = {other.node for other in self.cluster.slots() if other.kind == slot.kind} - self.set_aside.keys()
        if not nodes - job.avoid:
            return False
        job.doubted = result
        self._pending.insert(0, job)
        return True

    def _report(self, job: Job, result: Document, where: str) -> None:
        self.count.add(status_of(result)[0])
        self._ended += 1
        left = self._todo - self._ended
        words = ""
        if left and self._seconds:
            lanes = max(len(self._usable()), 1)
            words = f", about {duration(sum(self._seconds) / len(self._seconds) * left / lanes)} left"
        self.say(f"[{self._ended}/{self._todo}{words}] {job.name} {where}: {line(result)}")
