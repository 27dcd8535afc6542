"""The controls: the null op through every mode, and an op of known duration that proves the timer."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import pykernels as pk
from bench.core import device_trace
from bench.core.measure import Rotation, Sampler, no_garbage_collection
from bench.core.samplers import Samplers, chains, steps_for
from bench.core.statistics import summary

_REPEATS = 1000
# On a GPU a null kernel takes a thousand times what the op does on a CPU, and so many more nodes would only make the
# graph large.
_CUDA_REPEATS = 250


_CPU = torch.device("cpu")


def _program(x: torch.Tensor, spin_us: float | None = None) -> pk.runtime.Program:
    with pk.runtime.record() as program:
        if spin_us is None:
            pk.ops.null(x)
        else:
            pk.ops.spin(x, spin_us)
    return program


def null_op(steps: int, device: torch.device = _CPU) -> list[dict[str, Any]]:
    """Microseconds of one null op by mode: nothing but the call. A sample is the mean of many.

    On a GPU `us` is the device's time from one kernel to the next, mode graph included, and `host_us` what enqueuing
    one takes.
    """
    samplers = Samplers(Rotation(1), _CUDA_REPEATS if device.type == "cuda" else _REPEATS, device)
    x = torch.zeros(1, device=device)
    program = _program(x)
    tape = pk.dispatch.Tape.record(lambda: pk.ops.null(x))
    call = [lambda: pk.ops.null(x)]
    launchers = program.launchers(samplers.stream)
    walls: dict[str, Sampler] = {
        "eager": samplers.python(call),
        "pybind": samplers.python(launchers),
        "dispatch": samplers.tapes([tape]),
        "native": samplers.programs([program]),
    }
    hosts: dict[str, Sampler] = {}
    if samplers.on_cuda:
        graphs = [pk.runtime.CudaGraph(chain) for chain in chains([program], samplers.repeats)]
        walls["graph"] = samplers.native_graphs(graphs)
        hosts = {
            "eager": samplers.host_python(call, 1),
            "pybind": samplers.host_python(launchers, 1),
            "dispatch": samplers.host_tapes([tape]),
            "native": samplers.host_programs([program]),
            "graph": samplers.host_native_graphs(graphs),
        }
    rows: list[dict[str, Any]] = []
    with no_garbage_collection(), torch.inference_mode():
        for mode, sampler in walls.items():
            sampler(2)
            rows.append({"mode": mode, "us": summary(sampler(steps))})
            if mode in hosts:
                hosts[mode](2)
                # A sample is one call here, where it is many on the wall clock.
                rows[-1]["host_us"] = summary(hosts[mode](max(steps, 200)))
    return rows


def spin(
    durations_us: Sequence[float] | None = None, steps: int = 10, device: torch.device = _CPU, traces: bool = True
) -> list[dict[str, Any]]:
    """Ops that busy-wait a known time: a millisecond, on a GPU 10 and 100 us too.

    On a CPU: timed by the native loop (`us`) and by Python's clock around it (`outside_us`). On a GPU: by events and,
    where kernels can be traced, by CUPTI (`device_us`); `net_us` is that clock's median less `null_us`, the null
    kernel's on the same clock: beginning and ending a kernel takes time that is not the spin's. traces=False leaves
    CUPTI out: a process that it has traced stays slower.
    """
    if durations_us is None:
        durations_us = (10.0, 100.0, 1000.0) if device.type == "cuda" else (1000.0,)
    if device.type != "cuda":
        return _spin_on_cpu(device, durations_us, steps)
    return _spin_on_cuda(device, durations_us, steps, traces and device_trace.reason() is None)


def _spin_on_cpu(device: torch.device, durations_us: Sequence[float], steps: int) -> list[dict[str, Any]]:
    x = torch.zeros(1, device=device)
    rows: list[dict[str, Any]] = []
    for asked_us in durations_us:
        program = _program(x, asked_us)
        samples = pk.runtime.timed_loop([program], 2, steps)
        begin = time.perf_counter_ns()
        pk.runtime.timed_loop([program], 0, steps)
        outside_us = (time.perf_counter_ns() - begin) / 1000 / steps
        rows.append({"asked_us": asked_us, "us": summary(samples), "outside_us": outside_us})
    return rows


def _spin_on_cuda(device: torch.device, durations_us: Sequence[float], steps: int, trace: bool) -> list[dict[str, Any]]:
    x = torch.zeros(1, device=device)

    def clocks(program: pk.runtime.Program, estimate_us: float) -> tuple[np.ndarray, np.ndarray | None]:
        """Samples by events, and by the trace where there is one."""
        repeats = steps_for(estimate_us, 1)
        sampler = Samplers(Rotation(1), repeats, device).programs([program])
        sampler(2)
        samples = sampler(steps)
        if not trace:
            return samples, None
        try:
            return samples, device_trace.traced(sampler, float(np.median(samples)), repeats).samples_us
        except (RuntimeError, ValueError):  # the clock by events remains
            return samples, None

    null_events, null_traced = clocks(_program(x), 3.0)
    rows: list[dict[str, Any]] = []
    for asked_us in durations_us:
        events, traced = clocks(_program(x, asked_us), asked_us)
        best, null = (events, null_events) if traced is None or null_traced is None else (traced, null_traced)
        null_us = float(np.median(null))
        rows.append({
            "asked_us": asked_us, "us": summary(events), "device_us": None if traced is None else summary(traced),
            "null_us": null_us, "net_us": float(np.median(best)) - null_us,
        })  # fmt: skip
    return rows
