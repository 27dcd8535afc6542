"""--trace=F: one sample of every traced arm, together in one file for Perfetto (bench.core.chrome_trace).

Arms ran one after another, each in a trace of its own, on one clock: so they lie one after another in the file too,
each under a range with its label. Inside it lie the ops of the native arms that launch them one by one.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from bench.core import chrome_trace, device_trace
from bench.core.chrome_trace import Range
from bench.core.device_trace import Sample, Traced
from bench.core.errors import UsageError
from bench.core.measure import Arm


def check_traceable(path: str, device: torch.device) -> None:
    """Raise UsageError, before the run, where a trace is wanted (`path` is not empty) that cannot be taken."""
    if path and device.type != "cuda":
        raise UsageError(f"--trace={path}: needs a CUDA device: this run is on the {device.type.upper()}")
    if path and (why := device_trace.reason()):
        raise UsageError(f"--trace={path}: needs a trace of the kernels: {why}")


def arm_ranges(label: str, sample: Sample, ops: Sequence[str] = ()) -> list[Range]:
    """A range over all of the sample, named by the arm; and one an op where a step launches once for each of `ops`."""
    starts = [span.start_ns for span in sample.kernels] + [span.start_ns for span in sample.calls]
    ends = [span.end_ns for span in sample.kernels] + [span.end_ns for span in sample.calls]
    thread = threading.get_native_id()  # whatever an arm runs, this thread launches it
    ranges = [Range(label, min(starts), max(ends), thread)]
    launches = chrome_trace.launch_calls(sample.kernels, sample.calls)
    if ops and len(launches) == len(sample.kernels) == sample.steps * len(ops):
        ranges += chrome_trace.op_ranges(ops, launches)
    return ranges


def write_trace(
    path: Path, arms: Sequence[Arm], traces: Mapping[str, Traced], op_labels: Callable[[str], Sequence[str]]
) -> None:
    """Write one sample of every arm that is in `traces` (by its label) at `path`, whole or not at all.

    op_labels: what the ops of the native program of a fusion are called, in order.
    """
    traced = [(arm, traces[arm.label].sample) for arm in arms if arm.label in traces]
    chrome_trace.write(
        path,
        [kernel for _, sample in traced for kernel in sample.kernels],
        [call for _, sample in traced for call in sample.calls],
        [
            span
            for arm, sample in traced
            for span in arm_ranges(
                arm.label, sample, op_labels(arm.fusion) if arm.backend == "native" and arm.fusion else ()
            )
        ],
    )
