"""What binds a kernel: its time split into four parts that add up to it, from the clocks and the counted bytes.

The rule, in this order:

bandwidth       bytes / the read bandwidth measured in the same run
launch          of what is left: the null op's time in the same mode for every kernel of the call, or time less the
                device's clock, or all of it where the host's clock fills the time; the largest of the three
kernel          of what is left then: what the dense kernel of the same shape, mode and run loses likewise
                (ramp, drain, tail, latency); for a dense kernel all of it
dequantisation  the rest: what the 4-bit kernel loses and the dense one does not

The word for an arm is its largest part. Where the kernel takes less time than its bytes at the measured bandwidth
(it found them in a cache), everything is bandwidth.
"""

from dataclasses import dataclass

PARTS = ("bandwidth", "launch", "kernel", "dequantisation")

HOST_BOUND = 0.95
"""The host is what is waited for where its clock reaches this share of the time."""


@dataclass(frozen=True)
class Parts:
    """Microseconds of a call; they add up to its time."""

    bandwidth: float
    launch: float
    kernel: float
    dequantisation: float

    @property
    def binds(self) -> str:
        """The name of the largest part; the first of equal ones."""
        return max(PARTS, key=lambda name: getattr(self, name))


def split(
    time_us: float,
    n_bytes: int,
    read_gbs: float,
    null_us: float,
    host_us: float | None = None,
    device_us: float | None = None,
    dense: Parts | None = None,
) -> Parts:
    """The parts of one call.

    time_us: its wall time; n_bytes: what it must read and write; null_us: as many null ops as it launches, in the same
    mode; host_us and device_us: those clocks where they were taken; dense: the parts of the dense kernel of that shape
    and mode, None for a dense kernel itself.
    """
    bandwidth = min(n_bytes / (read_gbs * 1e3), time_us)
    left = time_us - bandwidth
    launch = max(null_us, 0.0 if device_us is None else time_us - device_us)
    if host_us is not None and host_us >= HOST_BOUND * time_us:
        launch = left
    launch = min(launch, left)
    left -= launch
    kernel = left if dense is None else min(dense.kernel, left)
    return Parts(bandwidth, launch, kernel, left - kernel)
