"""One session of bench.attention: every cell in this process."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench.attention.arms import INSIDE, AttentionArm, Plan, make_arms, sdpa_state, survived
from bench.attention.cases import Cell, Inputs
from bench.attention.results import Entry, key, session_entry, traced_keys
from bench.attention.settings import Settings
from bench.core import device_trace, floors
from bench.core.ceiling import Ceiling
from bench.core.document import Document, write_atomically
from bench.core.errors import one_line
from bench.core.measure import Rotation, no_garbage_collection
from bench.core.run import Machine, check_again, take_rounds
from pykernels.layer import available_bytes


def estimated_seconds(settings: Settings) -> float:
    """How long a session might take: a guess, made of bytes and of what a call costs its host."""
    on_cuda, plan = settings.target.type == "cuda", settings.plan
    gbs = settings.spec_bandwidth[0] or 20.0
    total_us = 12e6 if on_cuda else 6e6
    for cell in settings.cells:
        call_us = 25 + floors.microseconds(cell.bytes(settings.torch_dtype), gbs if on_cuda else min(gbs, 20.0))
        for name in plan.backends:
            one_us = call_us * (6 if name == "sdpa-math" else 1)
            calls = 2 * plan.rounds * plan.calls_a_sample(one_us, settings.copies(cell), on_cuda)
            clocks = calls * one_us + (2 * plan.single_calls(one_us) * one_us if on_cuda else 0)
            total_us += (1.5 * clocks + 2e5) if on_cuda else clocks
        total_us += 5e5
    return total_us / 1e6


def _single_clocks(arms: Sequence[AttentionArm], plan: Plan) -> None:
    """The host's clock, and the latency of a call on an idle device, of the arms that have them."""
    with no_garbage_collection():
        for arm in arms:
            # A replay is one sample of the host's clock, and of as many calls as a graph holds.
            count = plan.rounds if arm.steps_per_graph else plan.single_calls(arm.estimate_us)
            for sampler, target in (
                (arm.host_sampler, arm.host_samples_us), (arm.latency_sampler, arm.latency_samples_us)
            ):  # fmt: skip
                if arm.status == "ok" and sampler is not None:
                    try:
                        with torch.inference_mode(), arm.surroundings():
                            sampler(max(min(plan.warmup, count), 1))
                            target.extend(sampler(count).tolist())
                    except Exception as error:
                        arm.fail(error)


def _copies(cell: Cell, settings: Settings) -> list[Inputs]:
    count = settings.copies(cell)
    needed, available = cell.bytes_needed(settings.torch_dtype, count), available_bytes(settings.target)
    if needed > available:
        raise MemoryError(f"needs about {needed / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are available")
    first = Inputs(cell, settings.torch_dtype, settings.target, settings.seed)
    return [first, *(first.copy() for _ in range(count - 1))]


class Session:
    """The cells of a session, measured one after another; `document` is its entry of the key `sessions`.

    `begin` is told which backend's calls are tried next, so that whoever waits for the process knows whose fault its
    end is; `save` is called whenever a cell is done.
    """

    def __init__(
        self, settings: Settings, done: Document | None, begin: Callable[[str], None], save: Callable[[], None]
    ) -> None:
        self.settings, self._begin, self._save = settings, begin, save
        self._machine = Machine(settings.target)
        self.document: Document = done or {
            "session": 0, "status": "ok", "reason": None, "lost": {}, "environment": self._machine.before,
            "ceilings": {}, "sdpa": {}, "throttled": {}, "trace_seconds": 0.0, "entries": [],
        }  # fmt: skip

    @property
    def entries(self) -> list[Entry]:
        """One an arm and cell."""
        return self.document["entries"]

    def run(self, advance: Callable[[], None]) -> None:
        """Every cell that is not there yet, and then the traces."""
        there = {entry["shape"] for entry in self.entries}
        ceiling = None if self.settings.gate else Ceiling(self.settings.target)
        for cell in self.settings.cells:
            if cell.shape not in there:
                self._cell(cell, ceiling)
                self._save()
            advance()
        if monitor := self._machine.monitor:
            self.document["environment"]["gpu_after"] = monitor.state()
        if self.settings.traces:
            # After all cells: once CUPTI has traced, it stays in the process.
            begin = time.monotonic()
            for cell in self.settings.cells:
                self._trace(cell)
                advance()
            self.document["trace_seconds"] = time.monotonic() - begin
            self._save()

    def _cell(self, cell: Cell, ceiling: Ceiling | None) -> None:
        settings, plan = self.settings, self.settings.plan
        n_bytes = cell.bytes(settings.torch_dtype)
        spec_gbs = settings.spec_bandwidth[0]
        try:
            copies = _copies(cell, settings)
            arms = make_arms(copies, plan, Rotation(len(copies)), self._begin)
        except (MemoryError, torch.OutOfMemoryError) as error:
            arms, copies = [AttentionArm(name, mode) for name in plan.backends for mode in plan.modes], []
            for arm in arms:
                arm.fail(error)
        bandwidths: Document = {"read_gbs": None, "copy_gbs": None}
        if ceiling:
            bandwidths = self._time(cell, arms, len(copies), ceiling)
        for arm in arms:
            survived(arm, settings.target)
        if copies:
            self.document["sdpa"][cell.shape] = sdpa_state(copies[0])
        self.entries.extend(
            session_entry(arm, cell, n_bytes, bandwidths | {"spec_gbs": spec_gbs}, len(copies)) for arm in arms
        )

    def _time(self, cell: Cell, arms: Sequence[AttentionArm], copies: int, ceiling: Ceiling) -> Document:
        """Every clock of the arms but the device's. Returns the ceiling's document."""
        settings, plan = self.settings, self.settings.plan
        warmup = -(-plan.warmup // plan.calls_a_sample(0.0, max(copies, 1), settings.target.type == "cuda"))
        throttling = take_rounds(arms, ceiling, warmup, plan.rounds, self._machine.monitor, settings.stop_rule())
        _single_clocks(arms, plan)
        check_again(arms)
        if throttling:
            self.document["throttled"][cell.shape] = throttling
        self.document["ceilings"][cell.shape] = ceiling.document(*settings.spec_bandwidth)
        return self.document["ceilings"][cell.shape]

    def _trace(self, cell: Cell) -> None:
        """Put the device's clock and the kernels' names into the entries of a cell: of its calls from Python, which
        launch what a graph of them holds."""
        entries = {key(entry): entry for entry in self.entries if entry["shape"] == cell.shape}
        eager = [e for e in entries.values() if e["mode"] in ("eager", INSIDE) and e["status"] == "ok"]
        if why := device_trace.reason():
            for entry in eager:
                entry["device_reason"] = why
            return
        plan = self.settings.plan
        modes = [mode for mode in plan.modes if mode == "eager"]
        measured = list(dict.fromkeys(entry["backend"] for entry in eager))
        copies = _copies(cell, self.settings)
        arms = make_arms(copies, replace(plan, backends=measured, modes=modes), Rotation(len(copies)), self._begin)
        with no_garbage_collection():
            for arm in arms:
                key_ = (cell.shape, arm.backend, arm.mode)
                if arm.status != "ok" or arm.sampler is None or not entries.get(key_, {}).get("wall_us"):
                    continue
                entry = entries[key_]
                try:
                    with torch.inference_mode(), arm.surroundings():
                        arm.sampler(1)
                        traced = device_trace.traced(arm.sampler, entry["wall_us"]["p50"], arm.calls)
                    entry |= traced_keys(traced)
                except (RuntimeError, ValueError) as error:  # the other clocks remain
                    entry["device_reason"] = one_line(error)
        for entry in entries.values():  # a graph holds the kernels of its eager arm, whose details stand there
            if entry["mode"] == "graph" and (twin := entries.get((cell.shape, entry["backend"], "eager"))):
                entry["launches"] = twin["launches"]


@contextlib.contextmanager
def noted(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Yields what notes at `path` whose calls are tried; the file is gone when the session ends by itself."""
    if path is None:
        yield lambda name: None
        return
    yield lambda name: write_atomically(path, name.encode())
    path.unlink(missing_ok=True)
