"""The device's own clock: kernel intervals from CUPTI, in a pass of its own, because tracing slows the host.

`device_us` of a step is the time during which at least one of its kernels ran: the union of their intervals, so that
kernels that overlap (PDL launches) do not count twice and gaps do not count at all.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

import pykernels as pk
from bench.core.chrome_trace import launch_calls
from bench.core.errors import one_line
from bench.core.intervals import split_steps, union_ns
from bench.core.measure import Arm, Sampler, no_garbage_collection
from pykernels.ranges import named
from pykernels.trace import Call, Kernel

# Samples of a traced pass; the first, which finds an empty queue, does not count.
SAMPLES = 6


def reason() -> str | None:
    """Why kernels cannot be traced here; None where they can."""
    trace_reason = getattr(pk.runtime, "trace_reason", None)
    return trace_reason() if trace_reason else "this build has no CUPTI trace"


@dataclass(frozen=True)
class Sample:
    """One sample of a traced pass, to be looked at: the kernels of its `steps` steps in order of their start, and the
    calls from its first launch to its last."""

    steps: int
    kernels: Sequence[Kernel]
    calls: Sequence[Call]


def sample_of(steps: Sequence[Sequence[Kernel]], calls: Sequence[Call]) -> Sample:
    """The sample that these steps are, out of the calls of a whole trace."""
    kernels = [kernel for step in steps for kernel in step]
    launches = launch_calls(kernels, calls)
    if not launches:
        return Sample(len(steps), kernels, [])
    begin_ns, end_ns = launches[0].start_ns, max(call.end_ns for call in launches)
    return Sample(len(steps), kernels, [c for c in calls if begin_ns <= c.start_ns and c.end_ns <= end_ns])


@dataclass(frozen=True)
class Traced:
    """What a traced pass found. samples_us: the union of every step (of a graph: a replay's, over its steps);
    kernels: the names of one step's, in order; kernel_us [steps, kernels of a step]; trace_factor: traced wall time
    over untraced; sample: the last one."""

    samples_us: np.ndarray
    kernels: list[str]
    kernel_us: np.ndarray
    trace_factor: float
    sample: Sample


def traced(sampler: Sampler, untraced_us: float, repeats: int, steps_per_graph: int | None = None) -> Traced:
    """Run SAMPLES samples of `repeats` steps under the trace. untraced_us: the sampler's usual time of a step.

    Raises RuntimeError where there is no complete trace, ValueError where it does not fall into steps of the same
    kernels.
    """
    with pk.runtime.cuda_trace() as trace:
        walls_us = sampler(SAMPLES)
    kernels = sorted(trace.kernels, key=lambda kernel: kernel.start_ns)
    steps = split_steps(kernels, SAMPLES * repeats)[repeats:]
    per_unit = steps_per_graph or 1
    units = [itertools.chain(*steps[i : i + per_unit]) for i in range(0, len(steps), per_unit)]
    return Traced(
        samples_us=np.array([union_ns((k.start_ns, k.end_ns) for k in unit) / 1000 / per_unit for unit in units]),
        kernels=[kernel.name for kernel in steps[0]],
        kernel_us=np.array([[(kernel.end_ns - kernel.start_ns) / 1000 for kernel in step] for step in steps]),
        trace_factor=float(np.median(walls_us[1:])) / untraced_us,
        sample=sample_of(steps[-repeats:], trace.calls),
    )


def trace_arms(arms: Sequence[Arm], repeats: int, warmup: int = 0) -> tuple[dict[str, Traced], dict[str, str]]:
    """Trace every arm that was measured. Returns what was found and what was refused, by the arm's label.

    warmup: samples before, of arms that have not run since they were made: what a first call does is not traced.
    """
    measured = [arm for arm in arms if arm.status == "ok" and arm.sampler is not None and len(arm.kept_us)]
    if why := reason():
        return {}, {arm.label: why for arm in measured}
    found, refused = {}, {}
    for arm in measured:
        if arm.no_trace:
            refused[arm.label] = arm.no_trace
            continue
        try:
            with named(arm.label), no_garbage_collection(), torch.inference_mode(), arm.surroundings():
                sampler = arm.tracing() if arm.tracing else arm.sampler
                assert sampler is not None  # of the measured
                if warmup:
                    sampler(warmup)
                result = traced(sampler, float(np.median(arm.kept_us)), repeats, arm.steps_per_graph)
        except (RuntimeError, ValueError) as error:  # a clock that is missing does not take the others along
            refused[arm.label] = one_line(error)
            continue
        found[arm.label] = result
        arm.kernels, arm.launches = result.kernels, len(result.kernels)
    return found, refused
