"""What the drivers do alike: watch the machine, measure arms beside the ceiling, and close the run."""

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from rich.console import Console

from bench.core import cli, device_trace, environment, gpu_state, measure, results, tables
from bench.core.ceiling import Ceiling
from bench.core.device_trace import Traced
from bench.core.document import Document, entry_name
from bench.core.measure import Arm
from bench.core.outputs import Outputs
from bench.core.progress import progress
from bench.core.stop_rule import StopRule


class Machine:
    """The machine of a run; on a GPU with a monitor of its clocks (`monitor` is None elsewhere)."""

    def __init__(self, device: torch.device) -> None:
        self.before = environment.collect(device)
        self.monitor = gpu_state.Monitor(device) if device.type == "cuda" else None
        if self.monitor:
            self.before["gpu_before"] = self.monitor.state()

    def document(self) -> Document:
        """The key `environment`: read when all is measured, since it holds the GPU's state after that too."""
        return {**self.before, "gpu_after": self.monitor.state()} if self.monitor else self.before


def gate(arms: Sequence[Arm]) -> None:
    """measure.gate, with a progress bar."""
    runnable = [arm for arm in arms if arm.status == "ok"]
    with progress("checking", len(runnable)) as advance:
        measure.gate(runnable, lambda arm: advance())


def check_again(arms: Sequence[Arm]) -> None:
    """measure.gate_again, with a progress bar."""
    timed = [arm for arm in arms if arm.status == "ok" and arm.samples_us]
    with progress("checking again", len(timed)) as advance:
        measure.gate_again(timed, lambda arm: advance())


def take_rounds(
    arms: Sequence[Arm],
    ceiling: Ceiling,
    warmup: int,
    rounds: int,
    monitor: gpu_state.Monitor | None,
    stop: StopRule | None = None,
) -> Document:
    """The rounds of some of a run's arms beside the ceiling, whose samples begin anew.

    Returns the document's keys about throttling, and where a rule was given about what ended the rounds. Raises
    KeyboardInterrupt where it was interrupted: of so few arms nothing is kept then.
    """
    for arm in ceiling.arms:
        arm.samples_us = []
    rule, every = stop or StopRule(), [*ceiling.arms, *arms]
    rule.begin()
    finished, throttling = gpu_state.alternate_watched(
        every, warmup, rounds, lambda: None, monitor, lambda done: rule.reached(arms, done)
    )
    if not finished:
        raise KeyboardInterrupt
    return throttling | rule.document()


class Measurement:
    """The arms of a run measured beside the ceiling, and what a GPU's traces add to them.

    `ceiling` is None where there was no memory for anything: then nothing is measured, and its bandwidths are None.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        ceiling: Ceiling | None,
        spec_bandwidth: tuple[float | None, str],
        monitor: gpu_state.Monitor | None,
    ) -> None:
        spec_gbs, source = spec_bandwidth
        self.arms, self.ceiling = arms, ceiling
        self.interrupted = False
        self.throttling: Document = {}
        self.bandwidths: Document = {"spec_gbs": spec_gbs, "spec_source": source, "read_gbs": None, "copy_gbs": None}
        self.traces: dict[str, Traced] = {}
        self.untraced: dict[str, str] = {}
        self._spec_bandwidth, self._monitor = spec_bandwidth, monitor

    def take(self, warmup: int, steps: int, afterwards: Callable[[], None], stop: StopRule | None = None) -> None:
        """The rounds, as many as `steps` or fewer by the rule; the host's clock; and `afterwards`: what else is
        measured when those are done.

        Ctrl-C ends it early: `interrupted` says so, and what was finished is kept. Before the end of the first round
        nothing is, and KeyboardInterrupt goes on upwards.
        """
        if self.ceiling is None:
            return
        rule = stop or StopRule()
        rule.begin()
        total = steps * (len([arm for arm in self.arms if arm.status == "ok"]) + len(self.ceiling.arms))
        with progress("measuring", total) as advance:
            finished, self.throttling = gpu_state.alternate_watched(
                [*self.ceiling.arms, *self.arms], warmup, steps, advance, self._monitor,
                lambda done: rule.reached(self.arms, done),
            )  # fmt: skip
        self.throttling |= rule.document()
        if not self.ceiling.read.samples_us:
            raise KeyboardInterrupt
        self.bandwidths = self.ceiling.document(*self._spec_bandwidth)
        checked = False
        try:
            if not finished:
                raise KeyboardInterrupt
            measure.measure_host(self.arms, warmup, steps)
            checked = True
            check_again(self.arms)
            afterwards()
        except KeyboardInterrupt:
            self.interrupted = True
            if not checked:  # what was finished is kept, and so it is checked; whoever is in a hurry asks again
                with suppress(KeyboardInterrupt):
                    check_again(self.arms)

    def trace(self, repeats: int) -> None:
        """The device's own clock of every arm: last, since a process that CUPTI has traced stays slower."""
        self.traces, self.untraced = device_trace.trace_arms(self.arms, repeats)

    def add_device_keys(self, entries: Sequence[Document], keys: Callable[..., Document] = results.device_keys) -> None:
        """Put into the entries of `arms`, one an arm, what a GPU adds: `keys` of its trace, or why there is none."""
        for arm, entry in zip(self.arms, entries, strict=True):
            traced = self.traces.get(arm.label)
            why = self.untraced.get(arm.label, "not traced: " + (arm.reason or "the run was interrupted"))
            entry |= keys(entry, traced, None if traced else why, self.bandwidths)
            entry["steps_per_graph"] = arm.steps_per_graph


def close(
    document: Document,
    outputs: Outputs,
    show: Callable[[Document, Console], object] = tables.print_document,
    **written: Any,
) -> int:
    """Print the document, write the files (`written`: further arguments of Outputs.write), return the exit status."""
    try:
        show(document, Console())
    finally:  # whoever reads the tables may have gone away, as `head` does: the files are still wanted
        outputs.write(document, **written)
    if document["interrupted"]:
        return cli.INTERRUPTED
    why = failure(document)
    if why:
        print(f"{document_program(document)}: {why}", file=sys.stderr)
    return 1 if why else 0


def document_program(document: Document) -> str:
    """The driver that made a document, by its command: `python -m bench.layer ...`."""
    return next(iter(shlex.split(document.get("command", ""))[2:]), "bench")


def failure(document: Document) -> str | None:
    """Why the exit status of a finished run is 1, in a line; None where it is 0. One rule for all drivers: something
    was wrong, something ended in an error (a plug-in's is one), or nothing ran at all. What is unsupported, or found no
    memory, is an answer and no failure."""
    entries = [entry for key in ("arms", "ops", "sessions") for entry in document.get(key, ())]
    for tuned in document.get("tuned", ()):
        entries += [
            one | {"backend": f"{tuned['op']} {tuned['shape']}", "mode": one["name"]} for one in tuned["candidates"]
        ]
    by_status: dict[str, list[Document]] = {}
    for entry in entries:
        by_status.setdefault(entry.get("status", "ok"), []).append(entry)
    for status in ("wrong", "error", "hang"):
        if found := by_status.get(status):
            first = found[0]
            name = entry_name(first) if "backend" in first else f"session {first.get('session', '')}".strip()
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            return f"{status}: {name}{more}: {first.get('reason') or 'its output does not match the reference'}"
    for session in document.get("sessions", ()):
        for backend, why in session.get("lost", {}).items():
            return f"error: {backend} ended the process of session {session['session']}: {why}"
    if entries and set(by_status) == {"unsupported"}:
        return f"nothing ran: {entries[0]['reason']}"
    return None
