"""A CUDA graph step by step through the driver: what each step of having one costs. By ctypes, which adds about half a
microsecond to a call; replays are timed from C++ where ours can be (bench.launch.graph_costs)."""

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pykernels.relaunch import DRIVER

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_UPDATE_INFO_BYTES = 64  # CUgraphExecUpdateResultInfo is 24


MAX_COPIES = 256
LEAST_FALLEN_BYTES = 32 << 20
"""Of the device's free memory, before a graph's share of it is worked out: it falls by 2 MiB at a time."""


@cache
def _driver(library: str) -> ctypes.CDLL:
    return ctypes.CDLL(library)


class DriverError(RuntimeError):
    """A call of the driver failed."""


def _timed(library: str, call: str, *arguments: Any) -> float:
    """Make the call. Returns what it took, microseconds. Raises DriverError with the driver's name of the result."""
    function = getattr(_driver(library), call)
    begin = time.perf_counter_ns()
    status = function(*arguments)
    took_us = (time.perf_counter_ns() - begin) / 1000
    if status:
        name = ctypes.c_char_p()
        _driver(library).cuGetErrorName(status, ctypes.byref(name))
        raise DriverError(f"{call} failed: {(name.value or b'unknown result').decode()} ({status})")
    return took_us


@dataclass
class Costs:
    """Microseconds of the host, once each; `device_bytes` is what an executable graph takes of the device's memory,
    None where that was not told (memory_reason)."""

    nodes: int = 0
    capture_us: float = 0.0
    instantiate_us: float = 0.0
    upload_us: float = 0.0
    first_launch_us: float = 0.0
    update_us: float = 0.0
    device_bytes: int | None = None
    memory_reason: str | None = None


class DriverGraph:
    """A captured and instantiated graph on a stream that is not the legacy default one.

    enqueue(stream) launches what is captured; it has run once before. free_bytes() tells the device's free memory;
    None: what the graph takes of it is not asked.
    """

    def __init__(
        self,
        enqueue: Callable[[int], None],
        stream: int,
        free_bytes: Callable[[], int] | None,
        library: str = DRIVER,
    ) -> None:
        self._library, self._stream, self.costs = library, ctypes.c_void_p(stream), Costs()
        self._graphs: list[ctypes.c_void_p] = []
        self._exec = ctypes.c_void_p()
        try:
            self.costs.capture_us = self._capture(enqueue, stream)
            count = ctypes.c_size_t()
            _timed(library, "cuGraphGetNodes", self._graphs[0], None, ctypes.byref(count))
            self.costs.nodes = count.value
            self.costs.instantiate_us = self._instantiate(self._exec)
            self.costs.upload_us = _timed(library, "cuGraphUpload", self._exec, self._stream) + self._wait()
            self.costs.first_launch_us = self.replay()
            self._wait()
            if free_bytes:
                self.costs.device_bytes, self.costs.memory_reason = self._memory(free_bytes)
            # The same step captured once more: what an executable graph takes to be given other arguments.
            self._capture(enqueue, stream)
            info = ctypes.create_string_buffer(_UPDATE_INFO_BYTES)
            self.costs.update_us = _timed(library, "cuGraphExecUpdate_v2", self._exec, self._graphs[1], info)
        except BaseException:
            self.close()
            raise

    def _capture(self, enqueue: Callable[[int], None], stream: int) -> float:
        graph = ctypes.c_void_p()
        begin = time.perf_counter_ns()
        _timed(self._library, "cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL)
        try:
            enqueue(stream)
        except BaseException:  # the first error is the one to tell
            _driver(self._library).cuStreamEndCapture(self._stream, ctypes.byref(graph))
            if graph:
                _driver(self._library).cuGraphDestroy(graph)
            raise
        _timed(self._library, "cuStreamEndCapture", self._stream, ctypes.byref(graph))
        took_us = (time.perf_counter_ns() - begin) / 1000
        self._graphs.append(graph)
        return took_us

    def _memory(self, free_bytes: Callable[[], int]) -> tuple[int | None, str | None]:
        """What one more executable graph takes, or why that is unknown. The driver has no call that tells it
        (cudaDeviceGetGraphMemAttribute counts what allocation nodes hold), and takes memory from the device in blocks
        of megabytes: so copies are instantiated and uploaded, twice as many again, until it has asked for some."""
        library = self._library
        copies: list[ctypes.c_void_p] = []
        before, fallen = free_bytes(), 0
        try:
            while len(copies) < MAX_COPIES and fallen < LEAST_FALLEN_BYTES:
                for _ in range(max(len(copies), 1)):
                    copy = ctypes.c_void_p()
                    self._instantiate(copy)
                    copies.append(copy)
                    _timed(library, "cuGraphUpload", copy, self._stream)
                self._wait()
                fallen = before - free_bytes()
        finally:
            for copy in copies:
                _driver(library).cuGraphExecDestroy(copy)
        if fallen <= 0:
            return None, f"the device's free memory did not fall with {len(copies)} copies of the graph"
        return fallen // len(copies), None

    def _instantiate(self, executable: ctypes.c_void_p) -> float:
        return _timed(
            self._library, "cuGraphInstantiateWithFlags", ctypes.byref(executable), self._graphs[0],
            ctypes.c_ulonglong(0),
        )  # fmt: skip

    def _wait(self) -> float:
        return _timed(self._library, "cuStreamSynchronize", self._stream)

    @property
    def handle(self) -> int:
        """The captured CUgraph."""
        return self._graphs[0].value or 0

    def replay(self) -> float:
        """One launch of it. Returns what the host took, microseconds."""
        return _timed(self._library, "cuGraphLaunch", self._exec, self._stream)

    def close(self) -> None:
        """Give the graphs back."""
        if self._exec:
            _driver(self._library).cuGraphExecDestroy(self._exec)
            self._exec = ctypes.c_void_p()
        for graph in self._graphs:
            _driver(self._library).cuGraphDestroy(graph)
        self._graphs = []


def in_branches(launches: Sequence[Callable[[int], None]], branches: int) -> Callable[[int], None]:
    """Launches dealt out to so many streams that begin and end together: a graph with parallel branches."""
    import torch

    sides = [torch.cuda.Stream() for _ in range(branches - 1)]

    def enqueue(stream: int) -> None:
        main = torch.cuda.ExternalStream(stream)
        fork = torch.cuda.Event()
        fork.record(main)
        for side in sides:
            side.wait_event(fork)
        for i, launch in enumerate(launches):
            which = i % branches
            launch(stream if which == 0 else sides[which - 1].cuda_stream)
        for side in sides:
            join = torch.cuda.Event()
            join.record(side)
            main.wait_event(join)

    return enqueue
