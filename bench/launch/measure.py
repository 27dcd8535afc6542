"""The clocks of bench.launch: every launcher at every count of arguments."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

import pykernels as pk
from bench.core import device_trace, statistics, stop_rule
from bench.core.document import Document
from bench.core.errors import UnsupportedError, one_line
from bench.core.measure import no_garbage_collection
from bench.core.stop_rule import StopRule
from bench.launch.launchers import Launcher, Ready
from bench.launch.launchers.base import current_stream

SAMPLES = 21
"""Of the time from one launch to the next."""
LAUNCHES_A_SAMPLE = 500
CHUNK = 1000
"""Launches that the host's clock is read around before a stop rule is asked."""
TRACED = 101
"""Launches that lie ready when the device begins them: so what lies between two is the device's own."""


def clock(samples_us: np.ndarray) -> dict[str, float | int]:
    """statistics.summary() with the 99th percentile."""
    return {**statistics.summary(samples_us), "p99": float(np.percentile(samples_us, 99))}


def entry_of(launcher: type[Launcher], arguments: int) -> Document:
    """An entry of the key `launchers` in which nothing was measured yet."""
    return {
        "launcher": launcher.name, "description": launcher.description, "arguments": arguments, "status": "ok",
        "reason": None, "install_hint": None, "host_us": None, "back_to_back_us": None, "device_gap_us": None,
        "gap_reason": None,
    }  # fmt: skip


def gaps_us(launch: Ready, device: torch.device) -> np.ndarray:
    """What the device leaves between two launches that both lie ready: float64 [launches - 1], microseconds; negative
    where one begins before the other has ended. Raises RuntimeError where there is no trace of so many."""
    hold = pk.runtime.StreamHold(device.index or 0, current_stream())
    with pk.runtime.cuda_trace() as trace:
        hold.hold()
        try:
            launch.enqueue(TRACED)
        finally:
            hold.release()
    kernels = sorted((k for k in trace.kernels if "hold_kernel" not in k.name), key=lambda kernel: kernel.start_ns)
    if len(kernels) < TRACED:
        raise RuntimeError(f"the trace has {len(kernels)} kernels of {TRACED} launches")
    starts, ends = (np.array([getattr(k, name) for k in kernels[-TRACED:]]) for name in ("start_ns", "end_ns"))
    return (starts[1:] - ends[:-1]) / 1000


def measure(
    launchers: Sequence[type[Launcher]],
    arguments: Sequence[int],
    device: torch.device,
    launches: int,
    rule: StopRule,
    advance: Callable[[Document], None],
) -> tuple[list[Document], bool]:
    """The entries, and whether it came to its end: Ctrl-C keeps what was measured. `advance` is given each entry. The
    rule ends the host's launches of one launcher and count.

    The traces come last: a process that CUPTI has traced stays slower.
    """
    entries: list[Document] = []
    ready: list[tuple[Document, Ready]] = []
    try:
        for launcher in launchers:
            why = launcher.reason(device)
            counts = [count for count in arguments if count in launcher.counts(device)]
            for count in counts[:1] if why else counts:
                entry = entry_of(launcher, count)
                entries.append(entry)
                if why:
                    entry |= {"status": "unsupported", "reason": why, "install_hint": launcher.install_hint}
                else:
                    _take(launcher, entry, device, launches, rule, ready)
                advance(entry)
        _trace(ready, device)
    except KeyboardInterrupt:
        return [entry for entry in entries if entry["host_us"] or entry["status"] != "ok"], False
    return entries, True


def _take(
    launcher: type[Launcher], entry: Document, device: torch.device, launches: int, rule: StopRule,
    ready: list[tuple[Document, Ready]],
) -> None:  # fmt: skip
    try:
        with torch.inference_mode():
            launch = launcher().ready(entry["arguments"], device)
            with no_garbage_collection():
                launch.back_to_back(1, LAUNCHES_A_SAMPLE)  # warm
                host_us = stop_rule.take(launch.host, launches, rule, CHUNK)
                back_to_back_us = launch.back_to_back(SAMPLES, LAUNCHES_A_SAMPLE)
    except UnsupportedError as error:
        entry |= {"status": "unsupported", "reason": str(error), "install_hint": launcher.install_hint}
        return
    except Exception as error:  # the library's own words are the result
        entry |= {"status": "error", "reason": one_line(error), "install_hint": launcher.install_hint}
        return
    entry |= {"host_us": clock(host_us), "back_to_back_us": clock(back_to_back_us), **rule.document()}
    ready.append((entry, launch))


def _trace(ready: Sequence[tuple[Document, Ready]], device: torch.device) -> None:
    if device.type != "cuda":
        return
    why = device_trace.reason()
    for entry, launch in ready:
        if why:
            entry["gap_reason"] = why
            continue
        try:
            with torch.inference_mode(), no_garbage_collection():
                entry["device_gap_us"] = clock(gaps_us(launch, device))
        except RuntimeError as error:  # a clock that is missing does not take the others along
            entry["gap_reason"] = one_line(error)
