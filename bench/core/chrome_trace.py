"""A trace as Chrome trace events (JSON), which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Rows: the ranges and the calls of each host thread, and one a stream of each device. Arrows lead from a call to the
kernels it launched. Times count from the first event, in microseconds with three decimals: exact to the nanosecond.
"""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from bench.core.document import write_atomically
from pykernels.trace import Call, Kernel

_HOST = 1  # process ids of the trace: the host's, and device i's is _FIRST_DEVICE + i
_FIRST_DEVICE = 2

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Range:
    """A named span of one host thread, on the clock of the calls."""

    name: str
    start_ns: int
    end_ns: int
    thread: int


class _Timed(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def start_ns(self) -> int: ...

    @property
    def end_ns(self) -> int: ...


Timed = TypeVar("Timed", bound=_Timed)


def launch_calls(kernels: Iterable[Kernel], calls: Iterable[Call]) -> list[Call]:
    """The calls that launched something, in order of their start: of a runtime call and the driver's call inside it,
    the outer one. A graph's replay is one call however many kernels it launches."""
    wanted = {kernel.correlation for kernel in kernels}
    outer: dict[int, Call] = {}
    for call in calls:
        if call.correlation in wanted:
            known = outer.setdefault(call.correlation, call)
            if (call.start_ns, -call.end_ns) < (known.start_ns, -known.end_ns):
                outer[call.correlation] = call
    return sorted(outer.values(), key=lambda call: call.start_ns)


def op_ranges(ops: Sequence[str], launches: Sequence[Call]) -> list[Range]:
    """One range an op, named by it and as long as its launch.

    `ops` are the names of a program's ops in order, each of which launches once, and `launches` the launch calls
    (`launch_calls`) of one thread that ran the program any number of times.

    Raises ValueError where the launches are not those of whole runs of the program.
    """
    if not ops or len(launches) % len(ops):
        raise ValueError(f"launches must be whole runs of {len(ops)} ops, got {len(launches)}")
    threads = {call.thread for call in launches}
    if len(threads) > 1:
        raise ValueError(f"launches must be of one thread, got {sorted(threads)}")
    named = zip(itertools.cycle(ops), launches, strict=False)  # the cycle has no end
    return [Range(op, call.start_ns, call.end_ns, call.thread) for op, call in named]


def _lanes(spans: Iterable[Timed], nest: bool) -> list[list[Timed]]:
    """Spans in as few lanes as they come to, first fit: viewers draw a row right only where no two spans of it cross.

    With `nest` a span may lie inside another of its lane; without, they only follow one another.
    """
    lanes: list[tuple[list[Timed], list[int]]] = []  # spans; the ends of those that are open, outermost first
    for span in sorted(spans, key=lambda span: (span.start_ns, -span.end_ns)):
        for lane in lanes:
            ends = lane[1]
            while ends and ends[-1] <= span.start_ns:
                ends.pop()
            if not ends or (nest and span.end_ns <= ends[-1]):
                break
        else:
            lane = ([], [])
            lanes.append(lane)
        lane[0].append(span)
        lane[1].append(span.end_ns)
    return [lane[0] for lane in lanes]


def _grouped(spans: Iterable[Timed], *attributes: str) -> dict[tuple[int, ...], list[Timed]]:
    groups: dict[tuple[int, ...], list[Timed]] = {}
    for span in spans:
        groups.setdefault(tuple(getattr(span, name) for name in attributes), []).append(span)
    return dict(sorted(groups.items()))


class _Writer:
    def __init__(self, base_ns: int) -> None:
        self.base_ns = base_ns
        self.events: list[Event] = []
        self.rows_of: dict[int, tuple[int, int]] = {}  # id of a span: its process and row
        self._rows = itertools.count(1)

    def us(self, time_ns: int) -> float:
        return (time_ns - self.base_ns) / 1000

    def name_process(self, process: int, name: str) -> None:
        for kind, argument in (("process_name", {"name": name}), ("process_sort_index", {"sort_index": process})):
            self.events.append({"ph": "M", "name": kind, "pid": process, "tid": 0, "args": argument})

    def rows(self, process: int, name: str, category: str, spans: Iterable[Timed], nest: bool) -> None:
        """The spans on a row of that name; those that would cross another on rows below it."""
        for number, lane in enumerate(_lanes(spans, nest)):
            row = next(self._rows)
            title = name if number == 0 else f"{name}, overlapping {number}"
            for kind, argument in (("thread_name", {"name": title}), ("thread_sort_index", {"sort_index": row})):
                self.events.append({"ph": "M", "name": kind, "pid": process, "tid": row, "args": argument})
            for span in lane:
                self.rows_of[id(span)] = (process, row)
                self.events.append(
                    {"ph": "X", "name": span.name, "cat": category, "pid": process, "tid": row,
                     "ts": self.us(span.start_ns), "dur": (span.end_ns - span.start_ns) / 1000,
                     "args": _arguments(span)}
                )  # fmt: skip

    def arrow(self, number: int, call: Call, kernel: Kernel) -> None:
        for phase, span, more in (("s", call, {}), ("f", kernel, {"bp": "e"})):
            process, row = self.rows_of[id(span)]
            self.events.append(
                {"ph": phase, "name": "launch", "cat": "launch", "id": number, "pid": process, "tid": row,
                 "ts": self.us(span.start_ns), **more}
            )  # fmt: skip


def _arguments(span: Any) -> Event:
    if isinstance(span, Kernel):
        names = ("correlation", "graph_node_id", "grid", "block", "registers", "static_shared_bytes",
                 "dynamic_shared_bytes")  # fmt: skip
        return {name: getattr(span, name) for name in names}
    return {"correlation": span.correlation} if isinstance(span, Call) else {}


def _trace(kernels: Sequence[Kernel], calls: Sequence[Call], ranges: Sequence[Range]) -> Event:
    starts = [kernel.start_ns for kernel in kernels] + [call.start_ns for call in calls]
    base_ns = min(starts + [named.start_ns for named in ranges], default=0)
    writer = _Writer(base_ns)
    writer.name_process(_HOST, "host")
    for (thread,), spans in _grouped(ranges, "thread").items():
        writer.rows(_HOST, f"ranges of thread {thread}", "range", spans, nest=True)
    for (thread,), made in _grouped(calls, "thread").items():
        writer.rows(_HOST, f"CUDA calls of thread {thread}", "call", made, nest=True)
    for (device,), device_kernels in _grouped(kernels, "device").items():
        process = _FIRST_DEVICE + device
        writer.name_process(process, f"device {device}")
        for (stream,), ran in _grouped(device_kernels, "stream").items():
            writer.rows(process, f"stream {stream}", "kernel", ran, nest=False)
    launching = {call.correlation: call for call in launch_calls(kernels, calls)}
    for number, kernel in enumerate(kernels):
        if call := launching.get(kernel.correlation):
            writer.arrow(number, call, kernel)
    return {"traceEvents": writer.events, "displayTimeUnit": "ns", "otherData": {"base_ns": str(base_ns)}}


def write(path: Path, kernels: Sequence[Kernel], calls: Sequence[Call], ranges: Sequence[Range] = ()) -> None:
    """Write the trace at `path`, whole or not at all."""
    text = json.dumps(_trace(kernels, calls, ranges), allow_nan=False)
    write_atomically(path, (text + "\n").encode())
