"""Why the device stood idle before a kernel: the gaps of a traced step, each with its cause.

A gap lies between the end of all that ran before a kernel and that kernel's start. It is

    host        as far as the call that launched the kernel had not returned: the host came late
    copy        the rest, where a copy or fill of memory is on either side of it
    front_end   the rest elsewhere: the device's front end between two dependent kernels
    (overlap    no gap: the kernel began before the one ahead of it had ended, by so much)

Kernels that a graph's replay launches have one call, which is late for the first of them alone. What the trace shows is
a step under the trace; what the ladder calls `gap` is the untraced wall time less the traced busy time. The difference
of the two is `untraced`, so that the rows add up to the ladder's `gap` exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.core.chrome_trace import launch_calls
from bench.core.device_trace import Sample, Traced
from bench.core.document import Document
from bench.core.ladder import on_grid
from bench.core.measure import Arm
from pykernels.trace import Kernel

CAUSES = ("host", "front_end", "copy")


@dataclass(frozen=True)
class Gap:
    """The gap before one kernel, the mean over the steps of a sample, microseconds; `host`, `front_end` and `copy` add
    up to it. `overlap` is how long the kernel ran beside the one ahead of it."""

    before: str
    host: float
    front_end: float
    copy: float
    overlap: float

    @property
    def us(self) -> float:
        """All of it."""
        return self.host + self.front_end + self.copy


def _is_copy(kernel: Kernel) -> bool:
    return kernel.name in ("[memcpy]", "[memset]")


def gaps_of(sample: Sample) -> list[Gap]:
    """A gap a kernel of a step, in order. The first kernel of the sample has nothing before it: its step does not
    count for it, and where there is no other step it has no gap. Raises ValueError where the sample is not whole steps.
    """
    count, rest = divmod(len(sample.kernels), sample.steps)
    if rest or not count:
        raise ValueError(f"a sample must be whole steps, got {len(sample.kernels)} kernels of {sample.steps} steps")
    returned = {call.correlation: call.end_ns for call in launch_calls(sample.kernels, sample.calls)}
    sums, seen = np.zeros((count, 4)), np.zeros(count)
    ended_ns, previous = None, None
    for i, kernel in enumerate(sample.kernels):
        if previous is not None and ended_ns is not None:
            gap = kernel.start_ns - ended_ns
            first_of_call = kernel.correlation != previous.correlation
            call_ns = returned.get(kernel.correlation, ended_ns) if first_of_call else ended_ns
            late = min(max(call_ns - ended_ns, 0), max(gap, 0))
            copies = _is_copy(kernel) or _is_copy(previous)
            others = max(gap, 0) - late
            sums[i % count] += (late, 0 if copies else others, others if copies else 0, max(-gap, 0))
            seen[i % count] += 1
        ended_ns = kernel.end_ns if ended_ns is None else max(ended_ns, kernel.end_ns)
        previous = kernel
    means = sums / np.maximum(seen, 1)[:, None] / 1000
    return [Gap(sample.kernels[i].name, *(float(us) for us in row)) for i, row in enumerate(means)]


def document(arm: Arm, traced: Traced) -> Document:
    """The gaps of one traced arm: `rows` in order of the step, the sums by cause, `untraced`, and `sum_us`, which is
    the arm's wall time less its busy time."""
    gaps = gaps_of(traced.sample)
    total = on_grid(float(np.median(arm.kept_us))) - on_grid(float(np.median(traced.samples_us)))
    by_cause = {cause: on_grid(sum(getattr(gap, cause) for gap in gaps)) for cause in CAUSES}
    return {
        "rows": [
            {"before": gap.before, "us": gap.us, "host_us": gap.host, "front_end_us": gap.front_end,
             "copy_us": gap.copy, "overlap_us": gap.overlap}
            for gap in gaps
        ],
        **{f"{cause}_us": us for cause, us in by_cause.items()},
        "overlap_us": sum(gap.overlap for gap in gaps),
        "untraced_us": total - sum(by_cause.values()),
        "sum_us": total,
    }  # fmt: skip


def documents(arms: Sequence[Arm], traces: Mapping[str, Traced]) -> dict[str, Document]:
    """The key `gaps`: document() of every traced arm by its label."""
    return {arm.label: document(arm, traces[arm.label]) for arm in arms if arm.label in traces and len(arm.kept_us)}
