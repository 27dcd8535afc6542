"""The ladder: where the time of a backend's slowest arm goes, by successive differences of clocks.

    python   = eager - dispatch        what the Python loop and the binding cost
    dispatch = dispatch - native       PyTorch's dispatcher
    framework = eager - native         both, on a GPU where there is no dispatch arm: where no tape can be recorded
    launch   = native - graph          launching kernels one by one          (on a GPU)
    gap      = graph - device          between kernels                       (on a GPU)
    kernel   = device - floor at the measured read bandwidth                 (on a CPU: native - floor)
    ceiling  = floor at measured - floor at spec
    floor    = bytes / spec bandwidth

Only clocks that were taken take part; what a missing one would have told apart stays together in the next part,
and a note says so. Parts are signed, and add up to the first clock exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.core import floors, statistics

Chain = tuple[tuple[str, str], ...]
"""(clock, the part that lies between it and the next clock of the chain), top to bottom."""

CPU_CHAIN: Chain = (("eager", "python"), ("dispatch", "dispatch"), ("native", "kernel"))
CUDA_CHAIN: Chain = (
    ("eager", "python"), ("dispatch", "dispatch"), ("native", "launch"), ("graph", "gap"), ("device", "kernel"),
)  # fmt: skip

# What each part is called where it is held within another.
_SHARES = {
    "python": "Python's",
    "dispatch": "the dispatcher's",
    "launch": "the launches'",
    "gap": "the gaps'",
    "kernel": "the kernels'",
}
# Why a clock of the chain may be missing, where it is not just that --mode left it out.
_REASONS = {"native": "torch's ops have no loop below the dispatcher", "device": "no kernel was traced"}


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


def _spans(clocks: Mapping[str, np.ndarray], chain: Chain) -> list[tuple[str, list[str]]]:
    """The clocks that were taken, each with the parts of the chain down to the next one."""
    spans: list[tuple[str, list[str]]] = []
    for clock, part in chain:
        if clock in clocks:
            spans.append((clock, []))
        spans[-1][1].append(part)
    return spans


def _name(parts: list[str], chain: Chain) -> str:
    """The lowest part names what could not be told apart; but where only the dispatcher was not told apart from
    Python, both are what Python asks for: on a GPU the framework's part."""
    if parts == ["python", "dispatch"]:
        return "framework" if chain is CUDA_CHAIN else "python"
    return parts[-1]


def ladder(
    clocks: Mapping[str, np.ndarray],
    read_gbs: np.ndarray,
    n_bytes: int,
    spec_gbs: float | None,
    chain: Chain = CPU_CHAIN,
    host_us: Mapping[str, float] | None = None,
) -> tuple[list[Part], str]:
    """The parts, top to bottom, and a note on what could not be told apart (empty where all could).

    clocks: samples by mode, float64 [rounds], microseconds; eager must be among them. `device` is from a pass of its
    own, [any], and is resampled on its own. read_gbs: the read ceiling's samples of the same rounds, float64
    [rounds]. Without a spec bandwidth there is no part `ceiling`, and `floor` is at the measured bandwidth.
    host_us: the host's median by mode. Where it is less than the device takes for a step (the graph's time, or the
    kernels'), the cost above the graph is hidden behind the device.
    """
    spans = _spans(clocks, chain)
    median = statistics.median
    measured = on_grid(floors.microseconds(n_bytes, float(np.median(read_gbs))))
    values = [on_grid(float(np.median(clocks[clock]))) for clock, _ in spans]
    device_bound = next((float(np.median(clocks[clock])) for clock in ("graph", "device") if clock in clocks), None)
    host = host_us or {}

    def hidden(clock: str, part: str) -> bool:
        of_host = part in ("python", "dispatch", "framework", "launch")
        return of_host and device_bound is not None and clock in host and host[clock] < device_bound

    parts = []
    for (clock, covered), (below, _), value, value_below in zip(spans, spans[1:], values, values[1:], strict=False):
        low, high = statistics.difference_interval(clocks[clock], clocks[below], paired=below != "device")
        part = _name(covered, chain)
        parts.append(Part(part, value - value_below, low, high, hidden(clock, part)))

    last, _ = spans[-1]
    low, high = statistics.interval(
        lambda x, gbs: median(x) - n_bytes / (median(gbs) * 1e3), clocks[last], read_gbs, paired=last != "device"
    )
    parts.append(Part("kernel", values[-1] - measured, low, high))
    low, high = statistics.interval(lambda gbs: n_bytes / (median(gbs) * 1e3), read_gbs)
    if spec_gbs is None:
        parts.append(Part("floor", measured, low, high))
    else:
        floor = on_grid(floors.microseconds(n_bytes, spec_gbs))
        parts.append(Part("ceiling", measured - floor, low - floor, high - floor))
        parts.append(Part("floor", floor, floor, floor))
    return parts, _note(spans, chain, spec_gbs)


def _note(spans: list[tuple[str, list[str]]], chain: Chain, spec_gbs: float | None) -> str:
    notes = []
    clock_of = {part: clock for clock, part in chain}
    for _, parts in spans:
        name = _name(parts, chain)
        held = [part for part in parts if part != name]
        if name == "framework":
            notes.append("framework is Python and the dispatcher together: there is no dispatch arm")
            continue
        if not held:
            continue
        # The clock that begins a part would have told it from the one above.
        missing = [clock_of[part] for part in parts[1:]]
        *others, last = (_SHARES[part] for part in held)
        words = f"{', '.join(others)} and {last} shares" if others else f"{last} share"
        # On a GPU they have one: their captured step, launched again.
        known = _REASONS if chain is not CUDA_CHAIN else {"device": _REASONS["device"]}
        why = next((known[clock] for clock in reversed(missing) if clock in known), None)
        absent = f"there is no {' and no '.join(missing)} arm"
        notes.append(f"{name} includes {words}: {why or absent}")
    if spec_gbs is None:
        notes.append("floor is at the measured read bandwidth: the spec bandwidth is unknown (--spec-gbs)")
    return "; ".join(notes)
