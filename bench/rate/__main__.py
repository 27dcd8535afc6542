"""Decode steps that are due at a rate, as a robot's or a copilot's are: latency, its tail, jitter, and joules.

python -m bench.rate --hz=0,10,30,100 --json=rate.json --plot=rate.png
python -m bench.rate --hz=0,10,30,100 --seconds=5,38,13,5    # each rate as long as its p99 needs: 368 steps
python -m bench.rate --model=tiny --device=cpu --seconds=2 --arm=native/block:native,native/block:eager
python -m bench.rate --load=none,cpu:8 --hz=30           # beside busy host threads
python -m bench.rate --quant=int4 --hz=30                # 4-bit weights, and 16-bit steps on the same ones beside

A step's latency runs from the time it is due to its token on the host. Back to back (--hz=0) the host waits for each
token before it begins the next step, as a control loop does; bench.step does not.
"""

import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import torch

import pykernels as pk
from bench.backends.steps import arms as step_arms
from bench.core import cli, results
from bench.core import quant_words as words
from bench.core.document import Document, write_rows
from bench.core.errors import UsageError
from bench.core.flags import make_command
from bench.core.measure import Arm
from bench.core.outputs import Outputs
from bench.core.progress import about, progress
from bench.core.run import Machine, close, gate
from bench.drivers import takes
from bench.rate import energy, load, tables
from bench.rate.blocks import timer_error_us
from bench.rate.measure import Cell, RateArm, Watch, cell_document, idle_watts, measure_rate, warm_up
from bench.rate.settings import SECOND_NAME, Settings
from bench.rate.stepper import DueClock, TokenStepper
from bench.study import quantiles

_PROGRAM = "bench.rate"
_WARM_UP_STEPS = 6
_IDLE_S = 2.0
"""That idle power is taken over."""
_CHECK_S = energy.RAMP_S + 2.0
"""A spin, and steps back to back, while the power is read, for the energy counter's check."""


def make_arms(settings: Settings, model: pk.DecodeModel) -> tuple[list[Arm], dict[str, RateArm]]:
    """The arms as the gate and the document know them, and those that run here at work, by name. `model` stands at the
    positions that are measured."""
    reference, arms, at_work = step_arms.Reference(model, settings.ctx), [], {}
    for backend, fusion, mode in settings.arms:
        arm, driver = step_arms.arm_of(step_arms.backends()[backend], reference, mode, fusion)
        arms.append(arm)
        if driver is None:
            continue
        names = [arm.label] + ([arm.label + SECOND_NAME] if settings.twice == (backend, fusion, mode) else [])
        for name in names:
            stepper = TokenStepper(name, driver, settings.ctx, settings.positions - 1, settings.burst)
            at_work[name] = RateArm(name, stepper, arm.surroundings)
    gate(arms)
    return arms, {name: arm for name, arm in at_work.items() if _status(arms, name) == "ok"}


def _status(arms: list[Arm], name: str) -> str:
    return next(arm.status for arm in arms if arm.label == name.removesuffix(SECOND_NAME))


def _energy_document(watch: Watch, spun: Document | None, at_work: dict[str, RateArm]) -> Document:
    """The key `energy`: the counter, how often it moves, and, on a GPU, its checks against power x time: beside a spin
    op of known length, and beside steps back to back of the fastest arm."""
    meter, steps = watch.meter, None
    if isinstance(meter.counter, energy.NvmlCounter) and at_work:
        fastest = min(at_work.values(), key=lambda arm: arm.step_us)
        count = max(int(_CHECK_S * 1e6 / fastest.step_us), 2)
        steps = energy.check(meter.counter, lambda: warm_up(fastest, DueClock(), count)).document()
    return {
        "counter": meter.counter.name if meter.counter else None, "reason": meter.reason,
        "resolution_s": meter.resolution_s, "idle_w": watch.idle_w, "spin_check": spun, "check": steps,
    }  # fmt: skip


def _spin_check(meter: energy.Meter, device: torch.device) -> Document | None:
    """The counter against power x time while the spin op runs, on a GPU."""
    if not isinstance(meter.counter, energy.NvmlCounter):
        return None
    x = torch.zeros(1, device=device)

    def spin() -> None:
        pk.ops.spin(x, _CHECK_S * 1e6)
        torch.cuda.synchronize(device)

    return energy.check(meter.counter, spin).document()


def _arm_entries(arms: list[Arm], cells: dict[str, list[Document]]) -> list[Document]:
    """The key `arms`: an entry an arm, with its cells; two for an arm of --aa."""
    entries = []
    for arm in arms:
        for name in [arm.label, *([arm.label + SECOND_NAME] if arm.label + SECOND_NAME in cells else [])]:
            entries.append({
                "name": name, "backend": arm.backend, "mode": arm.mode, "fusion": arm.fusion, "status": arm.status,
                "reason": arm.reason, "kernels": arm.kernels, "launches": arm.launches,
                "max_rel_error": arm.max_rel_error, "cells": cells.get(name, []),
            })  # fmt: skip
    return entries


def run(settings: Settings) -> Document:
    """Measure. Ctrl-C ends it early: rates that all arms finished are kept, and the document says so."""
    machine, device = Machine(settings.target), settings.target
    clock = DueClock()
    timer = quantiles.summary(timer_error_us(clock))
    watch = Watch(energy.meter_of(device), state=machine.monitor.state if machine.monitor else None)
    try:
        model = settings.make_model()
        arms, at_work = make_arms(settings, model)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UsageError(f"--model={settings.spec.name}: {error}") from None
    cells: dict[str, list[Document]] = {name: [] for name in at_work}
    watch.idle_w = idle_watts(watch.meter, _IDLE_S)
    spun = _spin_check(watch.meter, device)
    interrupted = False

    def keep(found: dict[str, Cell]) -> None:
        for name, cell in found.items():
            deadline = settings.deadline_us(cell.hz)
            cells[name].append(cell_document(cell, settings.burst, settings.batch, deadline, watch))

    total = len(settings.points) * settings.blocks * len(at_work)
    limit_s = 60 + 3 * expected_s(settings)
    try:
        for arm in at_work.values():
            warm_up(arm, clock, _WARM_UP_STEPS)
        with progress("measuring", total) as advance:
            for named, points in groupby(settings.points, key=lambda point: point[0]):
                with load.running(named, device.index or 0, limit_s):
                    for _, hz, seconds in points:
                        keep(measure_rate(at_work, hz, named, seconds, settings.blocks, settings.idle_s,
                                          clock, watch, advance))  # fmt: skip
    except KeyboardInterrupt:
        if not any(cells.values()):
            raise
        interrupted = True
    return cli.head(
        _PROGRAM, "rate", interrupted=interrupted,
        title=f"decode steps of {settings.spec.name}{words.quant_words(settings.int4_format)} at a rate, "
              f"ctx {settings.ctx}"
              + (f", {settings.spec.n_layers} of {settings.full_spec.n_layers} layers" if settings.layers else ""),
        environment=machine.document(),
    ) | {
        "model": results.model_document(settings.spec), "weights": "checkpoint" if settings.weights else "random",
        "quant": words.quant_document(settings.int4_format),
        "ctx": settings.ctx, "batch": settings.batch, "dtype": settings.dtype, "device": device.type,
        "burst": settings.burst, "hz": settings.rates, "loads": settings.loads, "seconds": settings.seconds_each,
        "shard": settings.shard or None, "block_count": settings.blocks, "idle_s": settings.idle_s,
        "positions": {"first": settings.ctx, "count": settings.positions - 1},
        "timer": timer, "energy": _energy_document(watch, spun, {} if interrupted else at_work),
        "arms": _arm_entries(arms, cells),
    }  # fmt: skip


def _write_csv(path: Path, document: Document) -> None:
    rows = list(tables.rows(document))
    write_rows(path, dict.fromkeys(key for row in rows for key in row), rows)


def _write_picture(path: Path, document: Document) -> None:
    from bench.rate import plots  # matplotlib takes a second: only where --plot is given

    plots.write_picture(path, document)


def expected_s(settings: Settings) -> float:
    """How long the blocks take."""
    each = sum(seconds + settings.blocks * settings.idle_s for _, _, seconds in settings.points)
    return each * (len(settings.arms) + (settings.twice is not None))


def main(settings: Settings) -> int:
    """Decode steps that are due at a rate: latency and its tail, and the energy of a step."""
    if settings.list_:
        step_arms.print_list()
        return 0
    outputs = Outputs(settings.json, settings.csv, settings.md, settings.plot)
    settings.check()
    cli.set_threads(settings.threads)
    print(f"{_PROGRAM}: about {about(expected_s(settings))} of measuring", file=sys.stderr)
    writers: dict[str, Callable[[Path, Document], object]] = {
        "--csv": _write_csv, "--md": tables.write_markdown, "--plot": _write_picture,
    }  # fmt: skip
    return close(run(settings), outputs, tables.print_document, writers=writers)


command = make_command(main, Settings, takes("rate"))


if __name__ == "__main__":
    sys.exit(cli.run(_PROGRAM, command))
