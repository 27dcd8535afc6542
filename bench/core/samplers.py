"""The samplers of an arm: how its steps are taken and by which clock, for each thing that can drive them.

On a CPU a clock is read on the host, around the steps. On a CUDA device a sample is `repeats` steps between two
events on the stream, all samples enqueued back to back: the device is timed in steady state, with work queued ahead
of it, and no event stands between two steps, where it would cost the device a microsecond or two. The host's clock
there is read around each step while a blocking kernel holds the stream.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

import pykernels as pk
from bench.core.errors import UnsupportedError
from bench.core.measure import Rotation, Sampler, python_sampler

Step = Callable[[], object]
Item = TypeVar("Item")


def event_sampler(steps: Sequence[Step], rotation: Rotation, repeats: int, stride: int = 1) -> Sampler:
    """A Python loop over steps that enqueue on torch's current stream, timed by events.

    `repeats` calls make a sample; a call runs `stride` copies of the rotation, and the time is divided by both.
    """

    def sample(n: int) -> np.ndarray:
        rotated = rotation.take(steps, n * repeats, stride)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
        stream = torch.cuda.current_stream()
        turn, count = 0, len(rotated)
        events[0].record(stream)
        for event in events[1:]:
            for _ in range(repeats):
                rotated[turn]()
                turn += 1
                if turn == count:
                    turn = 0
            event.record(stream)
        events[-1].synchronize()
        times_ms = [begin.elapsed_time(end) for begin, end in pairwise(events)]
        return np.array(times_ms, dtype=np.float64) * (1000 / (repeats * stride))

    return sample


def held_sampler(steps: Sequence[Step], rotation: Rotation, launches: int, stride: int = 1) -> Sampler:
    """What the host takes for each call while a blocking kernel holds torch's current stream.

    launches: what one call enqueues, which decides how many calls stand between two holds (pk.runtime.steps_per_hold).
    """
    held = pk.runtime.steps_per_hold(launches)
    calls = max(1, held)

    def sample(n: int) -> np.ndarray:
        samples_us = np.empty(n)
        rotated = rotation.take(steps, n, stride)
        stream = torch.cuda.current_stream()
        hold = pk.runtime.StreamHold(stream.device_index, stream.cuda_stream)
        for first in range(0, n, calls):
            torch.cuda.synchronize()
            if held:
                hold.hold()
            try:
                for i in range(first, min(first + calls, n)):
                    step = rotated[i % len(rotated)]
                    begin = time.perf_counter_ns()
                    step()
                    samples_us[i] = (time.perf_counter_ns() - begin) / 1000 / stride
            finally:
                hold.release()
        return samples_us

    return sample


def synchronised_sampler(steps: Sequence[Step], rotation: Rotation) -> Sampler:
    """One call at a time on an idle device, from its beginning until the device is done, by the host's clock: launch,
    kernel and the way back are all in it."""

    def sample(n: int) -> np.ndarray:
        samples_us = np.empty(n)
        rotated = rotation.take(steps, n)
        torch.cuda.synchronize()
        for i in range(n):
            step = rotated[i % len(rotated)]
            begin = time.perf_counter_ns()
            step()
            torch.cuda.synchronize()
            samples_us[i] = (time.perf_counter_ns() - begin) / 1000
        return samples_us

    return sample


def chains(items: Sequence[Item], length: int) -> list[list[Item]]:
    """What each graph of `length` steps holds, so that together they go round the items: one graph where length is a
    multiple of their number. Chain j begins with item j * length, as Rotation.take wants it."""
    count = len(items)
    starts = range(0, math.lcm(count, length), length)
    return [[items[(start + i) % count] for i in range(length)] for start in starts]


@dataclass(frozen=True)
class Samplers:
    """Makes the samplers of one run's arms. A sample is the mean of `repeats` steps; copies rotate."""

    rotation: Rotation
    repeats: int
    device: torch.device

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def stream(self) -> int:
        """The handle of torch's current stream there; 0 on a CPU."""
        return torch.cuda.current_stream(self.device).cuda_stream if self.on_cuda else 0

    def python(self, steps: Sequence[Step]) -> Sampler:
        """Modes eager and pybind: a Python loop, one callable a copy."""
        if self.on_cuda:
            return event_sampler(steps, self.rotation, self.repeats)
        return python_sampler(steps, self.rotation, self.repeats)

    def tapes(self, tapes: Sequence[pk.dispatch.Tape]) -> Sampler:
        """Mode dispatch: one tape a copy."""

        def sample(n: int) -> np.ndarray:
            rotated = self.rotation.take(tapes, n * self.repeats)
            if self.on_cuda:
                return pk.dispatch.cuda_timed_loop(rotated, torch.cuda.current_stream(), 0, n, self.repeats)
            return pk.dispatch.timed_loop(rotated, 0, n, self.repeats)

        return sample

    def programs(self, programs: Sequence[pk.runtime.Program] | Sequence[pk.runtime.Relaunch]) -> Sampler:
        """Mode native: one program a copy, or one captured step that is launched again."""

        def sample(n: int) -> np.ndarray:
            rotated: Any = self.rotation.take(programs, n * self.repeats)
            if self.on_cuda:
                return pk.runtime.cuda_timed_loop(rotated, self.stream, 0, n, self.repeats)
            return pk.runtime.timed_loop(rotated, 0, n, self.repeats)

        return sample

    def native_graphs(self, graphs: Sequence["pk.runtime.CudaGraph"]) -> Sampler:
        """Modes graph and graph-pdl: a replay is one sample of `repeats` steps; graphs as chains() gives them."""

        def sample(n: int) -> np.ndarray:
            rotated = self.rotation.take(graphs, n, self.repeats)
            return pk.runtime.cuda_timed_loop(rotated, self.stream, 0, n) / self.repeats

        return sample

    def torch_graphs(self, graphs: Sequence["torch.cuda.CUDAGraph"]) -> Sampler:
        """Mode graph of torch's ops: the same from Python, which a replay of many kernels hides."""
        return event_sampler([graph.replay for graph in graphs], self.rotation, 1, self.repeats)

    @property
    def samples_for_all(self) -> int:
        """So many samples run every copy at least once."""
        copies = self.rotation.copies
        return copies // math.gcd(copies, self.repeats)

    # The host's clocks, CUDA only.

    def host_python(self, steps: Sequence[Step], launches: int) -> Sampler:
        """Of python()."""
        return held_sampler(steps, self.rotation, launches)

    def host_tapes(self, tapes: Sequence[pk.dispatch.Tape]) -> Sampler:
        """Of tapes()."""
        return lambda n: pk.dispatch.cuda_timed_loop(
            self.rotation.take(tapes, n), torch.cuda.current_stream(), 0, n, host=True
        )

    def host_programs(self, programs: Sequence[pk.runtime.Program] | Sequence[pk.runtime.Relaunch]) -> Sampler:
        """Of programs()."""
        either: Any = programs
        return lambda n: pk.runtime.cuda_host_loop(self.rotation.take(either, n), self.stream, 0, n)

    def host_native_graphs(self, graphs: Sequence["pk.runtime.CudaGraph"]) -> Sampler:
        """Of native_graphs(), per step."""
        return lambda n: (
            pk.runtime.cuda_host_loop(self.rotation.take(graphs, n, self.repeats), self.stream, 0, n) / self.repeats
        )

    def host_torch_graphs(self, graphs: Sequence["torch.cuda.CUDAGraph"], launches: int) -> Sampler:
        """Of torch_graphs(), per step; launches: those of one step. A replay is one entry of the queue, so that one of
        any length can be held; those of long graphs are held one at a time."""
        queued = min(launches * self.repeats, pk.runtime.MAX_HELD_LAUNCHES)
        return held_sampler([graph.replay for graph in graphs], self.rotation, queued, self.repeats)


def capture(steps: Sequence[Step], length: int) -> list["torch.cuda.CUDAGraph"]:
    """torch.cuda.CUDAGraphs of `length` steps each, by chains(). The steps run once before: what torch prepares in a
    first call (cuBLAS's workspace, cuDNN's plans, kernels' code) may not happen in a capture. A graph holds addresses,
    not tensors: the steps are kept with it, and so is whatever they read."""
    for step in steps:
        step()
    graphs = []
    for chain in chains(steps, length):
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for step in chain:
                step()
        graph.steps = chain
        graphs.append(graph)
    return graphs


def capture_results(
    calls: Sequence[Callable[[], Tensor]], length: int
) -> tuple[list["torch.cuda.CUDAGraph"], Callable[[], Tensor]]:
    """capture() of calls that return their result; and a replay of every graph, which returns the first call's result,
    poisoned before."""
    results = [calls[0]()]

    def first() -> None:
        results[0] = calls[0]()  # in a capture: the tensor that every replay writes

    graphs = capture([first, *calls[1:]], length)
    replay = replay_all(graphs)

    def replayed() -> Tensor:
        results[0].fill_(float("nan"))
        replay()
        return results[0]

    return graphs, replayed


def relaunch_results(
    calls: Sequence[Callable[[], Tensor]], stream: int, programmatic: Sequence[str] = ()
) -> tuple[list[pk.runtime.Relaunch], Callable[[], Tensor]]:
    """relaunches() of calls that return their result; and a launch of the first again, which returns its result,
    poisoned before."""
    results = [calls[0]()]

    def first() -> None:
        results[0] = calls[0]()  # in a capture: the tensor that every launch of it writes

    again = relaunches([first, *calls[1:]], programmatic)

    def relaunched() -> Tensor:
        results[0].fill_(float("nan"))
        again[0].run(stream)
        return results[0]

    return again, relaunched


def capture_each(steps: Sequence[Step], keep_graph: bool = False) -> list["torch.cuda.CUDAGraph"]:
    """One torch.cuda.CUDAGraph a step, for steps that are replayed one after another, never two at once: they share
    their memory, less what the steps' results hold. The first step runs once before, for the sake of capture().

    keep_graph: they are captured and no more, for their nodes to be read: neither instantiated nor replayed.
    """
    pool, stream, graphs = torch.cuda.graph_pool_handle(), torch.cuda.Stream(), []
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        steps[0]()
        torch.cuda.synchronize()
        for step in steps:
            # Not torch.cuda.graph(): it collects garbage and empties the cache of memory at every capture.
            graph: Any = torch.cuda.CUDAGraph(keep_graph=keep_graph)
            graphs.append(graph)
            graphs[-1].capture_begin(pool=pool)
            try:
                step()
            finally:
                graphs[-1].capture_end()  # a stream left capturing would fail all that comes after
            graphs[-1].steps = [step]
    for graph in () if keep_graph else graphs:  # the first replay brings a graph to the device
        graph.replay()
    torch.cuda.synchronize()
    return graphs


def relaunches(
    steps: Sequence[Step], programmatic: Sequence[str] = (), serialise: bool = False
) -> list[pk.runtime.Relaunch]:
    """Every step captured, to be launched again node by node (mode native of whoever has no launchers of ours). Raises
    UnsupportedError where that cannot be done with what a step launches."""
    graphs = capture_each(steps, keep_graph=True)
    try:
        return [
            pk.runtime.Relaunch(graph, programmatic=programmatic, serialise=serialise, owners=[step])
            for graph, step in zip(graphs, steps, strict=True)
        ]
    except ValueError as error:
        raise UnsupportedError(str(error)) from None


def replay_all(graphs: Sequence[Any], *stream: int) -> Step:
    """One replay of every graph: what the gate checks. All of them, because an output that several graphs write is
    where the last one left it."""

    def step() -> None:
        for graph in graphs:
            graph.replay(*stream)

    return step


def steps_for(estimate_us: float, copies: int, least_us: float = 500.0) -> int:
    """Steps that make a sample last least_us, a multiple of the copies where those are few enough: one graph then
    holds each copy as often as any other. At most 512."""
    steps = min(max(math.ceil(least_us / estimate_us), 1), 512)
    rounded = math.ceil(steps / copies) * copies
    return rounded if rounded <= 1024 else steps
