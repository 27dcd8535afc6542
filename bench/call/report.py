"""The measurement of bench.call, and what it found.

import bench
report = bench.measure(model, x)
print(report)
"""

import io
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from bench.call import tables
from bench.call.arms import MODES, Maker
from bench.call.subject import Subject, tensors_of
from bench.core import cli, document, floors, gaps, ladder, results, statistics
from bench.core.ceiling import Ceiling
from bench.core.chrome_trace import launch_calls
from bench.core.copies import weight_copies
from bench.core.device_trace import Traced
from bench.core.document import Document
from bench.core.environment import last_level_cache_bytes
from bench.core.errors import one_line
from bench.core.measure import Arm
from bench.core.run import Machine, Measurement, gate
from bench.core.samplers import steps_for
from bench.core.stop_rule import StopRule, parse_noise

PROGRAM = "bench.call"
_COPIES_LIMIT = 8
"""Copies of somebody's module at most: each is captured, launched again and replayed."""


class Report:
    """What was measured: `document` is the result document, `ladder` its parts by name in microseconds."""

    def __init__(self, result: Document, arms: Sequence[Arm], traces: dict[str, Traced]) -> None:
        self.document, self.arms, self.traces = result, arms, traces

    @property
    def ladder(self) -> dict[str, float]:
        """Microseconds of each part, top to bottom; they add up to an eager call."""
        return {part["part"]: part["us"] for parts in self.document["ladder"].values() for part in parts}

    def __str__(self) -> str:
        text = io.StringIO()
        tables.print_document(self.document, Console(file=text, width=120))
        return text.getvalue()

    def save(self, path: str | Path) -> None:
        """Write the result document."""
        document.write_json(Path(path), self.document)


def copies_of(subject: Subject, l2: str, device: torch.device) -> tuple[list[Subject], str | None]:
    """The subject and as many copies as a cold run rotates through, eight at most; and why there are none, where a
    subject cannot be copied."""
    count = min(weight_copies(subject.weight_bytes(), l2, device), _COPIES_LIMIT)
    try:
        return [subject, *(subject.clone() for _ in range(count - 1))], None
    except Exception as error:  # what deepcopy says of a callable or an input
        return [subject], f"warm: no copies could be made to rotate through: {one_line(error)}"


def _repeats(copies: Sequence[Subject], device: torch.device) -> int:
    """Calls of a sample: one on a CPU; on a GPU as many as last half a millisecond, at most 64 of them."""
    if device.type != "cuda":
        return 1
    with torch.inference_mode():
        copies[0].step()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream()
        begin.record(stream)
        for _ in range(3):
            copies[0].step()
        end.record(stream)
        end.synchronize()
    return min(steps_for(max(begin.elapsed_time(end) * 1000 / 3, 1.0), len(copies)), 64)


def kernel_table(arms: Sequence[Arm], traces: dict[str, Traced]) -> list[Document]:
    """The kernels of a call: how often each is launched, the device's and the host's time for all its launches, and its
    share of the device's. The device's is the graph's trace where there is one; the host's is that of the launch calls
    under the trace, of `native` where there is one, else of eager: longer than untraced."""
    by_mode = {arm.mode: traces[arm.label] for arm in arms if arm.label in traces}
    on_device = by_mode.get("graph") or by_mode.get("native") or by_mode.get("eager")
    if on_device is None:
        return []
    on_host = by_mode.get("native") or by_mode.get("eager")
    host_us: dict[str, float] = {}
    if on_host:
        spans = {
            c.correlation: (c.end_ns - c.start_ns) / 1000
            for c in launch_calls(on_host.sample.kernels, on_host.sample.calls)
        }
        for kernel in on_host.sample.kernels:
            if (span := spans.pop(kernel.correlation, None)) is not None:
                host_us[kernel.name] = host_us.get(kernel.name, 0.0) + span / on_host.sample.steps
    medians = np.median(on_device.kernel_us, axis=0)
    rows: dict[str, Document] = {}
    for name, us in zip(on_device.kernels, medians, strict=True):
        row = rows.setdefault(name, {"kernel": name, "launches": 0, "device_us": 0.0, "host_us": host_us.get(name)})
        row["launches"] += 1
        row["device_us"] += float(us)
    total = sum(row["device_us"] for row in rows.values())
    for row in rows.values():
        row["share"] = row["device_us"] / total if total else None
    return sorted(rows.values(), key=lambda row: -row["device_us"])


def run(
    subject: Subject,
    reference: Callable[..., Any] | None,
    title: str,
    device: torch.device,
    modes: Sequence[str] = MODES,
    l2: str = "cold",
    steps: int = 30,
    warmup: int = 5,
    repeats: int = 0,
    n_bytes: int = 0,
    depth: int = 4,
    serialise: bool = False,
    expected: Callable[[int], list[torch.Tensor]] | None = None,
    spec_bandwidth: tuple[float | None, str] | None = None,
    stop: StopRule | None = None,
) -> Report:
    """Gate and measure every mode. n_bytes: what a call must move; 0 counts weights, inputs and results once."""
    machine, bandwidth = Machine(device), spec_bandwidth or cli.spec_bandwidth(0.0, device)
    wanted = None
    with torch.inference_mode():
        if reference is not None:
            twin = subject.clone()
            wanted = [t.clone() for t in tensors_of(reference(*twin.args, **twin.kwargs))]
        copies, not_copied = copies_of(subject, l2, device)
        for one in copies:
            one.step()
    if wanted is None and expected is not None:
        wanted = expected(len(subject.written))
    moved = n_bytes or subject.n_bytes()
    maker = Maker(copies, repeats or _repeats(copies, device), device, wanted, depth, serialise)
    maker.notes += [not_copied] if not_copied else []
    arms = [maker.arm(mode) for mode in modes]
    ceiling = Ceiling(device)
    found = Measurement(arms, ceiling, bandwidth, machine.monitor)
    gate(arms)
    looked: Document = {"kernels": [], "gaps": {}}

    def look_closer() -> None:
        if device.type == "cuda":
            found.trace(maker.samplers.repeats)
            looked["kernels"] = kernel_table(arms, found.traces)
            looked["gaps"] = gaps.documents(arms, found.traces)

    found.take(warmup, steps, look_closer, stop)
    entries = [results.arm_document(arm, moved, found.bandwidths, arms) for arm in arms]
    if device.type == "cuda":
        found.add_device_keys(entries)
    ladders = results.make_ladders(
        arms, ceiling.read_gbs(), lambda *_: moved, bandwidth[0],
        ladder.CUDA_CHAIN if device.type == "cuda" else ladder.CPU_CHAIN, found.traces,
    )  # fmt: skip
    counted = "as --bytes says" if n_bytes else "weights, inputs and results, each once"
    cache_mb = last_level_cache_bytes(device) / 1e6
    head = cli.head(PROGRAM, "call", title=title, interrupted=found.interrupted, environment=machine.document())
    return Report(
        head | {
            "device": device.type, "batch": None, "dtype": None, "l2": l2,
            "l2_words": f"{l2}: {subject.weight_bytes() / 1e6:.3g} MB of weights and inputs, "
                        f"{len(copies)} {'copy' if len(copies) == 1 else 'copies'}, against a last-level cache of "
                        f"{cache_mb:.0f} MB",
            "weight_copies": len(copies), "warmup": warmup, "steps": steps, "repeats": maker.samplers.repeats,
            **found.throttling,
            "ceiling": found.bandwidths,
            "bytes": {"call": moved, "counted": counted},
            "floor_us": floors.microseconds(moved, bandwidth[0] or found.bandwidths["read_gbs"]),
            "reference": "reference" if reference else "saved outputs" if expected else "an eager call",
            "notes": maker.notes,
            "eager_us": statistics.summary(arms[0].kept_us) if len(arms[0].kept_us) else None,
            **looked,
            "ops": [], "arms": entries, **ladders,
        },
        arms, found.traces,
    )  # fmt: skip


def measure(
    function: Callable[..., Any],
    *inputs: Any,
    reference: Callable[..., Any] | None = None,
    l2: str = "cold",
    steps: int = 30,
    device: str | torch.device | None = None,
    n_bytes: int = 0,
    stop_noise: str = "",
    max_seconds: float = 0.0,
    **keywords: Any,
) -> Report:
    """The ladder of `function(*inputs, **keywords)`: eager, by the dispatcher, launched again, replayed and traced.

    device: where its tensors lie; that of the inputs, or of a module's weights, unless given. reference takes the same
    inputs and returns what is right; without one the captured modes are held to an eager call. l2: "cold" rotates
    copies of a module's weights and of the inputs past the cache. n_bytes: what a call must move, for the floor;
    weights, inputs and results once unless given. stop_noise, max_seconds: end the rounds, `steps` at most, when every
    median is that sure ("0.5%"), or after that time.

    Raises what the function raises.
    """
    subject = Subject(function, inputs, keywords)
    if device is None:
        lying = tensors_of([subject.weights, inputs, keywords])
        device = lying[0].device if lying else "cuda" if torch.cuda.is_available() else "cpu"
    name = getattr(function, "__name__", type(function).__name__)
    target = torch.device(device)
    with torch.cuda.device(target) if target.type == "cuda" else nullcontext():
        return run(
            subject, reference, f"one call of {name}", target, l2=l2, steps=steps, n_bytes=n_bytes,
            stop=StopRule(parse_noise("stop_noise", stop_noise), max_seconds or None),
        )  # fmt: skip
