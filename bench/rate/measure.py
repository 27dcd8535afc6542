"""The cells of bench.rate: arms x rates x loads, each measured in blocks that alternate with the other arms'."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch

from bench.core.document import Document
from bench.core.measure import no_garbage_collection
from bench.rate import energy
from bench.rate.blocks import SECOND_NS, Clock, Stepper, Times, run_block, turns
from bench.study import quantiles


@dataclass
class RateArm:
    """An arm at work: how it steps, and what must hold around its steps."""

    name: str
    stepper: Stepper
    surroundings: Callable[[], AbstractContextManager]
    step_us: float = 0.0
    """Of a few steps back to back: whether a rate can be met."""


@dataclass
class Cell:
    """An arm at a rate under a load."""

    arm: str
    hz: float
    load: str
    met: bool = True
    reason: str | None = None
    times: Times = field(default_factory=Times)
    joules: float = 0.0
    block_s: float = 0.0
    states: list[Document] = field(default_factory=list)
    """The GPU's state after each block."""


@dataclass
class Watch:
    """What is read between blocks."""

    meter: energy.Meter = field(default_factory=energy.Meter)
    idle_w: float | None = None
    """What the device takes with nothing to do."""
    state: Callable[[], Document] | None = None


def warm_up(arm: RateArm, clock: Clock, steps: int) -> None:
    """A few steps back to back: their median is the arm's step_us."""
    us = []
    with torch.inference_mode(), arm.surroundings():
        for _ in range(steps):
            arm.stepper.prepare()
            begin = clock.now_ns()
            arm.stepper.step()
            us.append((clock.now_ns() - begin) / 1000)
    arm.step_us = float(np.median(us[1:] or us))


def cell_of(arm: RateArm, hz: float, load: str) -> Cell:
    """The cell; a rate whose period is shorter than a step cannot be met, and is measured back to back."""
    cell = Cell(arm.name, hz, load)
    if hz and arm.step_us > (period_us := 1e6 / hz):
        cell.met = False
        cell.reason = (
            f"a step takes {arm.step_us / 1000:.3g} ms and is due every {period_us / 1000:.3g} ms: "
            "measured back to back"
        )
    return cell


def measure_rate(
    arms: Mapping[str, RateArm], hz: float, load: str, seconds: float, blocks: int, idle_s: float, clock: Clock,
    watch: Watch, advance: Callable[[], None], pause: Callable[[float], None] = time.sleep,
) -> dict[str, Cell]:  # fmt: skip
    """Every arm at one rate, by name. Before each block nothing runs for `idle_s`, so that its first step is a cold
    one."""
    cells = {name: cell_of(arm, hz, load) for name, arm in arms.items()}

    def block(_: int, name: str) -> None:
        arm, cell = arms[name], cells[name]
        pause(idle_s)
        with torch.inference_mode(), arm.surroundings():
            before, _waited_s = watch.meter.at_a_new_value()
            cell.block_s += (
                run_block(arm.stepper, clock, hz if cell.met else 0, seconds / blocks, cell.times) / SECOND_NS
            )
            after, waited_s = watch.meter.at_a_new_value()  # the device idles meanwhile
            cell.joules += after - before - waited_s * (watch.idle_w or 0.0)
        if watch.state:
            cell.states.append(watch.state())
        advance()

    with no_garbage_collection():
        turns(list(arms), blocks, block)
    return cells


def idle_watts(meter: energy.Meter, seconds: float, pause: Callable[[float], None] = time.sleep) -> float | None:
    """What the device takes with nothing to do, once it has had a second to calm down."""
    if meter.counter is None:
        return None
    pause(1.0)
    before, _waited_s = meter.at_a_new_value()
    begin = time.perf_counter()
    pause(seconds)
    after, _waited_s = meter.at_a_new_value()
    return (after - before) / (time.perf_counter() - begin)


def cell_document(cell: Cell, burst: int, batch: int, deadline_us: float | None, watch: Watch) -> Document:
    """One entry of an arm's `cells`."""
    latencies = cell.times.latencies_us()
    steps, sizes = len(cell.times.end_ns), [count - 1 for count in cell.times.blocks]
    found: Document = {
        "hz": cell.hz, "load": cell.load, "met": cell.met, "reason": cell.reason,
        "steps": steps, "blocks": cell.times.blocks, "latency_us": quantiles.summary(latencies, sizes),
        "jitter_us": float(np.std(latencies)) if len(latencies) else None,
        "interval_us": quantiles.summary(cell.times.intervals_us(), sizes),
        "host_late_us": quantiles.summary(cell.times.late_us(), sizes),
        "first_step_us": cell.times.latencies_us(first=True).tolist(),
        "deadline": quantiles.missed(latencies, deadline_us) if deadline_us else None,
        "energy": None, "gpu": cell.states, "samples_us": latencies.tolist(),
    }  # fmt: skip
    if watch.meter.counter and cell.block_s:
        found["energy"] = energy.of_block(cell.joules, cell.block_s, steps, steps * burst * batch, watch.idle_w)
    return found
