"""--what=graph: what having a graph costs, and after how many replays it has paid for itself.

Of chains of empty kernels and of one decode layer's programs: linear, with parallel branches, with programmatic edges;
captured by us through the driver, and by torch.cuda.CUDAGraph.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch

import pykernels as pk
from bench.core import statistics
from bench.core.document import Document
from bench.core.errors import one_line
from bench.core.measure import Rotation
from bench.core.samplers import event_sampler, held_sampler
from bench.launch.driver_graph import Costs, DriverGraph, in_branches
from bench.launch.launchers.base import null_program
from pykernels.layer import OP_LABELS
from pykernels.models import ModelSpec

CHAINS = (1, 10, 100, 1000)
BRANCHES = 4
REPLAYS = 30
CONTEXT = 2048

Shape = str
"""linear, parallel or programmatic"""


@dataclass(frozen=True)
class Subject:
    """What is captured: `steps` programs one after another, each on whatever stream it is given."""

    name: str
    programs: list[pk.runtime.Program]
    shapes: tuple[Shape, ...]

    @property
    def launches(self) -> int:
        """Kernels of it all."""
        return sum(len(program) for program in self.programs)

    def enqueue(self, shape: Shape) -> Callable[[int], None]:
        """What launches it on a stream."""
        if shape == "parallel":
            return in_branches([program.run for program in self.programs], BRANCHES)

        def enqueue(stream: int) -> None:
            for program in self.programs:
                program.run(stream, shape == "programmatic")

        return enqueue


def subjects(spec: ModelSpec, device: torch.device) -> Iterator[Subject]:
    """Chains of the null op; the programs of one decode layer; a step of eight such layers."""
    null = null_program(device)
    for count in CHAINS:
        shapes: tuple[Shape, ...] = ("linear", *(("parallel",) if count >= BRANCHES else ()), "programmatic")
        yield Subject(f"{count} empty", [null] * count, shapes)
    layer = pk.DecodeLayer(
        spec, pk.LayerWeights.random(spec, torch.bfloat16, device, 0), CONTEXT, 1, torch.bfloat16, device, 0
    )
    for fusion in OP_LABELS:
        program = layer.program(fusion)
        yield Subject(f"layer {fusion}", [program], ("linear", "programmatic"))
        yield Subject(f"{spec.n_layers} layers {fusion}", [program] * spec.n_layers, ("linear", "programmatic"))


def one_by_one_us(subject: Subject, device: torch.device) -> float:
    """What the host takes to launch it all without a graph, by the C++ loop with the stream held: the median, a launch,
    times the launches."""
    stream = torch.cuda.current_stream(device).cuda_stream
    program = subject.programs[0]
    samples = pk.runtime.cuda_host_loop([program], stream, 2, REPLAYS)
    return float(np.median(samples)) * len(subject.programs)


def _entry(
    subject: Subject, shape: Shape, by: str, costs: Costs, host_us: float, device_us: float, single: float
) -> Document:
    to_have = costs.capture_us + costs.instantiate_us + costs.upload_us
    saved = single - host_us
    return {
        "subject": subject.name, "shape": shape, "by": by, "status": "ok", "reason": None, **asdict(costs),
        "replay_host_us": host_us, "replay_host_us_a_node": host_us / costs.nodes,
        "replay_us": device_us, "replay_us_a_node": device_us / costs.nodes, "one_by_one_host_us": single,
        "pays_after_replays": float(np.ceil(to_have / saved)) if saved > 0 else None,
    }  # fmt: skip


def _ours(subject: Subject, shape: Shape, device: torch.device, single: float) -> Document:
    """Through the driver. Replays of a chain are timed from C++; those with parallel branches by the driver's call from
    Python."""
    side = torch.cuda.Stream(device)
    enqueue = subject.enqueue(shape)
    with torch.cuda.stream(side):
        enqueue(side.cuda_stream)
        torch.cuda.synchronize()
        graph = DriverGraph(enqueue, side.cuda_stream, lambda: torch.cuda.mem_get_info(device)[0])
        try:
            if shape == "parallel":
                host = held_sampler([graph.replay], Rotation(1), min(subject.launches, 512))(REPLAYS)
                wall = event_sampler([graph.replay], Rotation(1), 10)(5)
                torch.cuda.synchronize()
        finally:
            graph.close()
        if shape != "parallel":
            replayed = pk.runtime.CudaGraph(subject.programs, shape == "programmatic")
            host = pk.runtime.cuda_host_loop([replayed], side.cuda_stream, 2, REPLAYS)
            wall = pk.runtime.cuda_timed_loop([replayed], side.cuda_stream, 2, 5, 10)
    return _entry(subject, shape, "driver", graph.costs, float(np.median(host)), float(np.median(wall)), single)


def _torch(subject: Subject, device: torch.device, single: float) -> Document:
    """torch.cuda.CUDAGraph of the same launches, linear; torch neither uploads nor updates."""
    costs, enqueue = Costs(), subject.enqueue("linear")
    graph, side = torch.cuda.CUDAGraph(keep_graph=True), torch.cuda.Stream(device)
    with torch.cuda.stream(side):
        enqueue(side.cuda_stream)
        torch.cuda.synchronize()
        begin = time.perf_counter_ns()
        graph.capture_begin()
        try:
            enqueue(side.cuda_stream)
        finally:
            graph.capture_end()
        captured = time.perf_counter_ns()
        instantiating = time.perf_counter_ns()
        graph.instantiate()
        ready = time.perf_counter_ns()
        graph.replay()
        launched = time.perf_counter_ns()
        torch.cuda.synchronize()
        costs.nodes = subject.launches
        costs.memory_reason = "that of the driver's graph of the same nodes"
        costs.capture_us, costs.instantiate_us = (captured - begin) / 1000, (ready - instantiating) / 1000
        costs.first_launch_us = (launched - ready) / 1000
        host = held_sampler([graph.replay], Rotation(1), min(subject.launches, 512))(REPLAYS)
        wall = event_sampler([graph.replay], Rotation(1), 10)(5)
    return _entry(subject, "linear", "torch", costs, float(np.median(host)), float(np.median(wall)), single)


def measure(spec: ModelSpec, device: torch.device) -> list[Document]:
    """The entries of the key `graphs`. What fails is an entry with its reason."""
    entries: list[Document] = []
    with torch.inference_mode():
        for subject in subjects(spec, device):
            single = one_by_one_us(subject, device)
            made = [(shape, "driver", partial(_ours, subject, shape, device, single)) for shape in subject.shapes]
            made.append(("linear", "torch", partial(_torch, subject, device, single)))
            for shape, by, make in made:
                try:
                    entries.append(make())
                except Exception as error:  # a graph that cannot be had does not take the others along
                    entries.append({"subject": subject.name, "shape": shape, "by": by, "status": "error",
                                    "reason": one_line(error)})  # fmt: skip
    return entries


def verdict(entries: list[Document]) -> str:
    """After how many replays a graph has paid for itself here, in a line."""
    paid = [e for e in entries if e["status"] == "ok" and e["by"] == "driver" and e["shape"] == "linear"]
    known = [e for e in paid if e["pays_after_replays"] is not None]
    if not known:
        return "a graph saved the host nothing here"
    replays = np.array([e["pays_after_replays"] for e in known])
    least, most = known[int(replays.argmin())], known[int(replays.argmax())]
    return (
        f"a graph has paid for its capture, instantiation and upload after {least['pays_after_replays']:.0f} replays "
        f"({least['subject']}) to {most['pays_after_replays']:.0f} ({most['subject']}), against launching one by one "
        f"from C++; the median of {len(known)} is {statistics.summary(replays)['p50']:.0f}"
    )
