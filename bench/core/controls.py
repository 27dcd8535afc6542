"""The controls: the null op through every mode, and an op of known duration that proves the timer."""

import time

import torch

import pykernels as pk
from bench.core.measure import Rotation, no_garbage_collection, python_sampler
from bench.core.statistics import summary

_REPEATS = 1000


def null_op(steps: int) -> list[dict[str, object]]:
    """Microseconds of one null op by mode: nothing but the call. A sample is the mean of 1000."""
    x = torch.zeros(1)
    with pk.runtime.record() as program:
        pk.ops.null(x)
    tape = pk.dispatch.Tape.record(lambda: pk.ops.null(x))
    samplers = {
        "eager": python_sampler([lambda: pk.ops.null(x)], Rotation(1), _REPEATS),
        "pybind": python_sampler(program.launchers(), Rotation(1), _REPEATS),
        "dispatch": lambda n: tape.timed_loop(0, n, _REPEATS),
        "native": lambda n: pk.runtime.timed_loop([program], 0, n, _REPEATS),
    }
    rows: list[dict[str, object]] = []
    with no_garbage_collection(), torch.inference_mode():
        for mode, sampler in samplers.items():
            sampler(2)
            rows.append({"mode": mode, "us": summary(sampler(steps))})
    return rows


def spin(durations_us: tuple[float, ...] = (1000.0,), steps: int = 10) -> list[dict[str, object]]:
    """Ops that busy-wait a known time, timed by the native loop and by Python's clock around it."""
    x = torch.zeros(1)
    rows: list[dict[str, object]] = []
    for asked_us in durations_us:
        with pk.runtime.record() as program:
            pk.ops.spin(x, asked_us)
        samples = pk.runtime.timed_loop([program], 2, steps)
        begin = time.perf_counter_ns()
        pk.runtime.timed_loop([program], 0, steps)
        outside_us = (time.perf_counter_ns() - begin) / 1000 / steps
        rows.append({"asked_us": asked_us, "us": summary(samples), "outside_us": outside_us})
    return rows
