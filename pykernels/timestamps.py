"""In-kernel timestamps: when the first and the last warp of every block of a CUDA kernel passed its marks.

    with pk.runtime.kernel_timestamps(device=0, capacity=100_000) as found:
        graph.replay(stream)
    found.records, found.kernels, found.lost

There are none but in a build whose kernels were compiled with them: CMAKE_ARGS=-DPYKERNELS_TIMESTAMPS=ON make build.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from pykernels import _runtime

POINTS = ("start", "first_copies", "producers_done", "x_ready", "first_scores", "streamed", "combined", "end")
"""In the order in which a kernel passes them (csrc/timestamps.h says what each is)."""

MISSING = 0xFFFFFFFF
"""What a record has for a point that its warp did not pass."""

RECORD = np.dtype(
    [
        ("start_ticks", np.uint64),
        ("end_ns", np.uint64),
        ("ticks", np.uint32, len(POINTS) - 1),
        ("kernel", np.uint32),
        ("block", np.uint32),
        ("blocks", np.uint32),
        ("sm", np.uint32),
        ("warp", np.uint32),
    ]
)
"""csrc/timestamps.h's StampRecord: `start_ticks` of the SM's clock, `ticks` from there to POINTS[1:], `end_ns` of the
device's clock at the end; `kernel` is an index into the names; `blocks` of the launch; `warp` of the block."""


@dataclass(slots=True)
class Timestamps:
    """Filled when the recording has ended."""

    records: np.ndarray = field(default_factory=lambda: np.empty(0, RECORD))
    """RECORD, in the order in which the warps found the kernels before theirs ended: launch by launch."""
    kernels: list[str] = field(default_factory=list)
    """The ops that RECORD's `kernel` numbers."""
    lost: int = 0
    """Records that came when `capacity` others had; the latest ones."""


def timestamps_reason() -> str | None:
    """None where the kernels of this build have in-kernel timestamps, else why there are none."""
    if _runtime.build_info()["timestamps"]:
        return None
    return "this build has no in-kernel timestamps: CMAKE_ARGS=-DPYKERNELS_TIMESTAMPS=ON make build"


@contextmanager
def kernel_timestamps(device: int, capacity: int) -> Iterator[Timestamps]:
    """Record timestamps of all that CUDA device `device` runs until the end: at most `capacity` records, 64 bytes each.

    Raises RuntimeError where the build has none, or a recording is under way; ValueError where capacity is not in
    1..2^31.
    """
    if reason := timestamps_reason():
        raise RuntimeError(f"pykernels.runtime.kernel_timestamps: {reason}")
    if not 1 <= capacity <= 1 << 31:
        raise ValueError(f"capacity must be in 1..{1 << 31}, got {capacity}")
    found = Timestamps()
    _runtime.start_timestamps(device, capacity)
    try:
        yield found
    finally:
        data, found.lost, found.kernels = _runtime.stop_timestamps()
        found.records = np.frombuffer(data, RECORD).copy()
