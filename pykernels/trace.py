"""What a device ran and what the host called, from CUPTI's activity records: the device clock.

    with pk.runtime.cuda_trace() as trace:
        program.run(stream)
    trace.kernels, trace.calls

Tracing slows the host, and CUPTI stays in the process when a trace has ended: take untraced times first.
"""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pykernels import _runtime

_NAMES = ("libcupti.so.13", "libcupti.so.12")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel as it ran; also a copy or fill of device memory, ``[memcpy]`` and ``[memset]``, its sizes zero."""

    name: str
    """Demangled."""
    start_ns: int
    end_ns: int
    device: int
    stream: int
    """CUPTI's number of the stream."""
    correlation: int
    """That of the call that launched it; all kernels of one graph replay share one."""
    graph_node_id: int
    """0 where no graph launched it."""
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    registers: int
    """Of one thread."""
    static_shared_bytes: int
    dynamic_shared_bytes: int

    @property
    def shared_bytes(self) -> int:
        """Shared memory of one block."""
        return self.static_shared_bytes + self.dynamic_shared_bytes


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the CUDA runtime, or of the driver; a runtime call's driver calls lie within it."""

    name: str
    start_ns: int
    """On the kernels' clock."""
    end_ns: int
    correlation: int
    thread: int
    """``threading.get_native_id()`` of the thread that called."""
    is_driver: bool


@dataclass(slots=True)
class Trace:
    """Kernels and calls in order of their start; filled when the trace has ended."""

    kernels: list[Kernel] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)


def cupti_libraries() -> list[str]:
    """Names and paths under which libcupti may lie: the loader's, those of pip's wheels, the toolkit's."""
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    paths = [path for folder in wheels for path in folder.glob("*/lib/libcupti.so.*") if path.name in _NAMES]
    paths.sort(key=lambda path: _NAMES.index(path.name))
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            paths += [Path(home, "extras/CUPTI/lib64/libcupti.so"), Path(home, "lib64/libcupti.so")]
    paths += [Path("/usr/local/cuda/extras/CUPTI/lib64/libcupti.so"), Path("/usr/local/cuda/lib64/libcupti.so")]
    return [*_NAMES, *map(str, paths)]


def _reason_from_torch(libraries: Sequence[str] | None) -> str | None:
    if torch.autograd._profiler_enabled():
        return "torch.profiler is running, and CUPTI has room for one profiler"
    if libraries is None and _runtime.build_info()["cuda"] and not torch.cuda.is_available():
        return "there is no CUDA device that torch can use"
    return None


def trace_reason(libraries: Sequence[str] | None = None, attach: bool = False) -> str | None:
    """Why no trace can be taken, in one line; None where one can.

    ``libraries`` are names or paths of libcupti, `cupti_libraries()` unless given. Without ``attach`` the library is
    looked for and no more. With it the records are switched on and off once, which alone finds missing privileges,
    other profilers and an unfit driver; CUPTI is then in the process for good, so ask after untraced times are taken.
    """
    names = cupti_libraries() if libraries is None else list(libraries)
    return _reason_from_torch(libraries) or _runtime.cuda_trace_reason(names, attach) or None


@contextmanager
def cuda_trace(libraries: Sequence[str] | None = None) -> Iterator[Trace]:
    """Trace all that is enqueued inside, in every thread; waits for the current device on both sides.

    Raises RuntimeError where no trace can be taken (see `trace_reason`), where one is running already, and where CUPTI
    lost records: a trace is complete or there is none.
    """
    if reason := _reason_from_torch(libraries):
        raise RuntimeError(reason)
    recorder = _runtime.CudaTrace(cupti_libraries() if libraries is None else list(libraries))
    trace = Trace()
    recorder.start()
    try:
        yield trace
    except BaseException:
        with suppress(RuntimeError):  # the first error is the one to tell
            recorder.stop()
        raise
    kernels, calls = recorder.stop()
    trace.kernels += [Kernel(*fields) for fields in kernels]
    trace.calls += [Call(*fields) for fields in calls]
