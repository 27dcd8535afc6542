"""The ladder: where the time of a backend's slowest arm goes, by successive differences of clocks.

    python   = eager - dispatch        what the Python loop and the binding cost
    dispatch = dispatch - native       PyTorch's dispatcher
    kernel   = native - floor at the measured read bandwidth
    ceiling  = floor at measured - floor at spec
    floor    = bytes / spec bandwidth

Only clocks that were taken take part; what a missing one would have told apart stays together in the next part,
and a note says so. Parts are signed, and add up to the first clock exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.core import floors, statistics

# (mode, the part that lies between it and the next clock of the chain)
CHAIN = (("eager", "python"), ("dispatch", "dispatch"), ("native", "kernel"))


@dataclass(frozen=True)
class Part:
    """One part in microseconds, with its 95% interval. `hidden`: its cost is covered by something else's time."""

    part: str
    us: float
    low: float
    high: float
    hidden: bool = False


def on_grid(us: float) -> float:
    """The nearest multiple of 2^-20 us: sums and differences of such numbers (up to 2^32 us) are exact."""
    return round(us * 2**20) / 2**20


def ladder(
    clocks: Mapping[str, np.ndarray], read_gbs: np.ndarray, n_bytes: int, spec_gbs: float | None
) -> tuple[list[Part], str]:
    """The parts, top to bottom, and a note on what could not be told apart (empty where all could).

    clocks: samples by mode, float64 [rounds], microseconds; eager must be among them. read_gbs: the read
    ceiling's samples of the same rounds, float64 [rounds]. Without a spec bandwidth there is no part `ceiling`,
    and `floor` is at the measured bandwidth.
    """
    chain = [(mode, part, clocks[mode]) for mode, part in CHAIN if mode in clocks]
    median = statistics.median
    measured = on_grid(floors.microseconds(n_bytes, float(np.median(read_gbs))))
    values = [on_grid(float(np.median(samples))) for _, _, samples in chain]
    parts = []
    for (_, part, samples), (_, _, below), value, value_below in zip(
        chain, chain[1:], values, values[1:], strict=False
    ):
        low, high = statistics.difference_interval(samples, below)
        parts.append(Part(part, value - value_below, low, high))

    _, _, last = chain[-1]
    low, high = statistics.interval(lambda x, gbs: median(x) - n_bytes / (median(gbs) * 1e3), last, read_gbs)
    parts.append(Part("kernel", values[-1] - measured, low, high))
    low, high = statistics.interval(lambda gbs: n_bytes / (median(gbs) * 1e3), read_gbs)
    if spec_gbs is None:
        parts.append(Part("floor", measured, low, high))
    else:
        floor = on_grid(floors.microseconds(n_bytes, spec_gbs))
        parts.append(Part("ceiling", measured - floor, low - floor, high - floor))
        parts.append(Part("floor", floor, floor, floor))
    return parts, _note(clocks, spec_gbs)


def _note(clocks: Mapping[str, np.ndarray], spec_gbs: float | None) -> str:
    notes = []
    if "native" not in clocks:
        held = "the dispatcher's share" if "dispatch" in clocks else "Python's and the dispatcher's shares"
        notes.append(f"kernel includes {held}: torch's ops have no loop below the dispatcher")
    elif "dispatch" not in clocks:
        notes.append("python includes the dispatcher's share: there is no dispatch arm")
    if spec_gbs is None:
        notes.append("floor is at the measured read bandwidth: the spec bandwidth is unknown (--spec-gbs)")
    return "; ".join(notes)
