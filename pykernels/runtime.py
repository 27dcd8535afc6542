"""Programs, the native timed loop, and the settings of the kernel library.

A program is a list of ops with bound arguments. It is recorded from the calls of ``pykernels.ops``::

    with pk.runtime.record() as program:
        pk.ops.rmsnorm(x, weight, 1e-6, out=y)
        pk.ops.gemv(y, projection, out=z)
    program.run()                                  # both, in C++, on the same memory
    samples_us = pk.runtime.timed_loop([program], warmup=5, steps=30)

Recording checks the arguments as a call does, computes nothing and keeps the tensors alive.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from pykernels import _runtime
from pykernels import relaunch as _relaunch
from pykernels.graph_loop import GraphLoop as GraphLoop
from pykernels.graph_loop import graph_loop_reason as graph_loop_reason
from pykernels.plans import plan_table as plan_table
from pykernels.plans import set_plan_table as set_plan_table
from pykernels.relaunch import Relaunch as Relaunch
from pykernels.timestamps import kernel_timestamps as kernel_timestamps
from pykernels.timestamps import timestamps_reason as timestamps_reason
from pykernels.trace import cuda_trace as cuda_trace
from pykernels.trace import trace_reason as trace_reason

Program = _runtime.Program
"""``run()``, ``len()``, ``ops`` (names in order) and ``launchers()`` (callables, one an op: mode ``pybind``)."""

if _runtime.build_info()["cuda"]:
    CudaGraph = _runtime.CudaGraph
    """``CudaGraph(programs, programmatic=False)``: the programs captured one after the other; ``replay(stream)``,
    ``kernels``."""

    StreamHold = _runtime.StreamHold
    """``StreamHold(device_index, stream)``: ``hold()`` keeps the stream busy (ten seconds at most) until
    ``release()``, which waits for all that was enqueued. Few hundred launches may be enqueued meanwhile."""

MAX_HELD_LAUNCHES = _runtime.max_held_launches
"""What a step that is held launches at most; a graph's replay, of which any length can be held, counts as no more."""

steps_per_hold = _runtime.steps_per_hold
"""``steps_per_hold(launches)``: how many steps of so many launches the host enqueues behind one blocking kernel where
its own time is read. 0: a step has too many for the launch queue, and is timed on an idle device."""

build_info = _runtime.build_info
num_threads = _runtime.num_threads
set_num_threads = _runtime.set_num_threads
isa = _runtime.isa
set_isa = _runtime.set_isa
isas_supported = _runtime.supported_isas


@contextmanager
def record() -> Iterator[Program]:
    """Record this thread's calls of ``pykernels.ops`` into the program it yields.

    The program keeps the tensors' memory. It reads the values of index tensors (``position``, ``kv_len``, ``token``,
    ``perm``) each time it runs.

    Give ``out=`` (and ``workspace=``) to read results later: a program writes where its recording pointed.
    Raises RuntimeError when this thread is recording already, and, the recording ended, when the context is left in
    another thread than it was entered in.
    """
    if _runtime.is_recording():
        raise RuntimeError("pykernels.runtime.record: this thread is recording already")
    program = Program()
    thread = threading.get_ident()
    _runtime.set_recording(program)
    try:
        yield program
    finally:
        if threading.get_ident() != thread:
            program.end_recording()
            raise RuntimeError("pykernels.runtime.record: entered in one thread and left in another")
        _runtime.set_recording(None)


monotonic_ns = _runtime.monotonic_ns
"""The clock of :func:`wait_until`, nanoseconds: CLOCK_MONOTONIC, as ``time.monotonic_ns()``."""


def wait_until(due_ns: int, spin_us: float = 200.0) -> int:
    """Wait for a time of :data:`monotonic_ns`: asleep until ``spin_us`` before it, then spinning, the GIL released.

    A sleep alone ends tens of microseconds late. Ctrl-C interrupts the wait within 0.1 s. Returns the clock's reading
    at the end, nanoseconds, at least ``due_ns``; at once where that is past.
    """
    return _runtime.wait_until(due_ns, round(spin_us * 1000))


def timed_loop(programs: Sequence[Program], warmup: int, steps: int, repeats: int = 1) -> np.ndarray:
    """Time ``steps`` samples in C++ (steady clock, no Python, the GIL released).

    Step i runs ``programs[i % len(programs)]``, so that copies of the weights can rotate past the cache. A
    sample is the mean over ``repeats`` runs; ``warmup * repeats`` runs come first, untimed.

    Returns float64 [steps], microseconds a run.
    """
    return _runtime.timed_loop(list(programs), warmup, steps, repeats)


def timed_ops(programs: Sequence[Program], warmup: int, steps: int) -> np.ndarray:
    """The same steps with a clock reading (about 25 ns) between ops.

    Returns float64 [steps, ops of a program], microseconds.
    """
    return _runtime.timed_ops(list(programs), warmup, steps)


@contextmanager
def range_checks() -> Iterator[None]:
    """Check the values of index tensors at every launch on CUDA too, in all threads; on a CPU they always are.

    Positions, lengths, tokens and permutations out of range then raise ValueError, which names the op and the argument.
    Without it CUDA kernels clamp them, so that no access leaves a tensor, and compute something else than was meant.
    Each launch that reads such a tensor waits for the device, and launches of a captured graph are not checked. The
    environment variable PYKERNELS_CHECK_RANGES=1 does the same for a whole process.
    """
    before = _runtime.range_checks()
    _runtime.set_range_checks(True)
    try:
        yield
    finally:
        _runtime.set_range_checks(before)


@contextmanager
def launches_disabled() -> Iterator[None]:
    """Make every launcher return at once, in all threads: a loop in any mode then costs its host work only."""
    _runtime.set_launches_enabled(False)
    try:
        yield
    finally:
        _runtime.set_launches_enabled(True)


CudaSteps = Sequence[Program] | Sequence["CudaGraph"] | Sequence[Relaunch]
"""What the CUDA loops take: all of one kind."""


def _cuda_loop(steps: CudaSteps, stream: int, warmup: int, samples: int, repeats: int, host: bool) -> np.ndarray:
    relaunches = [step for step in steps if isinstance(step, Relaunch)]
    if relaunches:
        return _relaunch.timed(relaunches, stream, warmup, samples, repeats, host)
    programs = [step for step in steps if isinstance(step, Program)]
    if programs or not steps:
        return _runtime.cuda_timed_programs(programs, stream, warmup, samples, repeats, False, host)
    graphs = [step for step in steps if isinstance(step, CudaGraph)]
    return _runtime.cuda_timed_graphs(graphs, stream, warmup, samples, repeats, host)


def cuda_timed_loop(steps: CudaSteps, stream: int, warmup: int, samples: int, repeats: int = 1) -> np.ndarray:
    """Time programs, graphs or relaunches on a CUDA stream, enqueued back to back by C++ in rotation.

    A sample is the device's time of ``repeats`` steps, read from the events at its ends, over ``repeats``;
    ``warmup * repeats`` steps come first. ``stream`` is a ``cudaStream_t`` (``torch.cuda.Stream.cuda_stream``).

    Returns float64 [samples], microseconds a step: a run of a program or a relaunch, a replay of a graph.
    """
    return _cuda_loop(steps, stream, warmup, samples, repeats, host=False)


def cuda_host_loop(steps: CudaSteps, stream: int, warmup: int, samples: int) -> np.ndarray:
    """What the host takes to enqueue a step while a blocking kernel holds the stream.

    Returns float64 [samples], microseconds a step as in :func:`cuda_timed_loop`.
    """
    return _cuda_loop(steps, stream, warmup, samples, 1, host=True)
