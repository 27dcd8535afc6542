"""--what=pdl: what programmatic dependent launches do, edge by edge of a decode layer's programs.

An edge leads from one kernel to the next one of the step (from the last to the first of the next step). In a replay of
the plain graph and of the programmatic one, traced, its `advance` is the time from the end of the one kernel to the end
of the other: the gap between them and the second one's time. What an edge gains is its plain advance less its
programmatic one; the gains add up to what the step gains. An edge that is programmatic and whose kernels do not overlap
has a kernel that asks for nothing before its wait, or that has no griddepcontrol at all: it gains nothing, by name.

In the chain a kernel's early start may be at the cost of the one before it. So each pair is also taken alone: many of
them in one graph, a plain edge from one pair to the next; what the graph takes with a plain edge inside the pairs less
what it takes with a programmatic one, over the pairs.
"""

from collections.abc import Sequence

import numpy as np
import torch

import pykernels as pk
from bench.core import device_trace
from bench.core.document import Document
from bench.core.intervals import split_steps
from bench.core.measure import Rotation
from bench.core.samplers import event_sampler
from bench.launch.driver_graph import DriverGraph
from pykernels import _runtime
from pykernels.layer import OP_LABELS
from pykernels.models import ModelSpec
from pykernels.relaunch import DRIVER
from pykernels.trace import Kernel

STEPS = 8
PAIRS = 32
"""Of one edge alone, in a graph."""
REPLAYS = 6
CONTEXT = 2048
NOTHING_US = 0.1
"""A gain below this is none: a tick of the device's clock is 32 ns, and two ends are read."""


def advances_us(steps: Sequence[Sequence[Kernel]]) -> tuple[np.ndarray, np.ndarray]:
    """By the second kernel of each edge: the medians of the overlap (negative: a gap) and of the advance, microseconds.
    Edge 0 leads from the last kernel of a step to the first of the next."""
    count, flat = len(steps[0]), [kernel for step in steps for kernel in step]
    starts, ends = (np.array([getattr(kernel, name) for kernel in flat]) / 1000 for name in ("start_ns", "end_ns"))
    overlaps: list[list[float]] = [[] for _ in range(count)]
    advances: list[list[float]] = [[] for _ in range(count)]
    for j in range(1, len(flat)):
        overlaps[j % count].append(ends[j - 1] - starts[j])
        advances[j % count].append(ends[j] - ends[j - 1])
    return np.array([np.median(o) for o in overlaps]), np.array([np.median(a) for a in advances])


def edges(
    plain: Sequence[Sequence[Kernel]], programmatic: Sequence[Sequence[Kernel]], is_programmatic: Sequence[bool],
    alone_us: Sequence[float],
) -> list[Document]:  # fmt: skip
    """An entry an edge, in order of the step. By the second kernel: is_programmatic, as the graph has it, and alone_us,
    what the pair alone gains."""
    _, before = advances_us(plain)
    overlaps, after = advances_us(programmatic)
    names = [kernel.name for kernel in plain[0]]
    found = []
    for i, name in enumerate(names):
        gain = float(before[i] - after[i])
        if not is_programmatic[i]:
            verdict = "a plain edge"
        elif gain < NOTHING_US:
            verdict = "gains nothing"
        else:
            verdict = "gains"
        found.append({
            "from": names[i - 1], "to": name, "programmatic": is_programmatic[i], "overlap_us": float(overlaps[i]),
            "plain_advance_us": float(before[i]), "advance_us": float(after[i]), "gain_us": gain,
            "gain_alone_us": float(alone_us[i]) if is_programmatic[i] else None, "verdict": verdict,
        })  # fmt: skip
    return found


def _traced_steps(graph: "pk.runtime.CudaGraph", stream: int) -> list[list[Kernel]]:
    graph.replay(stream)
    with pk.runtime.cuda_trace() as trace:
        for _ in range(REPLAYS):
            graph.replay(stream)
    kernels = sorted(trace.kernels, key=lambda kernel: kernel.start_ns)
    return split_steps(kernels, REPLAYS * STEPS)[STEPS:]


def programmatic_edges(program: pk.runtime.Program, device: torch.device, library: str = DRIVER) -> list[bool]:
    """Whether the edge to each kernel of a step is programmatic in the captured graph of two steps, by
    cuGraphGetEdges; the first kernel's is that from the step before."""
    side = torch.cuda.Stream(device)

    def enqueue(stream: int) -> None:
        for _ in range(2):
            program.run(stream, True)

    with torch.cuda.stream(side):
        graph = DriverGraph(enqueue, side.cuda_stream, None, library)
        try:
            nodes = _runtime.Relaunch(graph.handle, device.index or 0, True, [], library).nodes
        finally:
            graph.close()
    second = nodes[len(nodes) // 2 :]
    return ["programmatic" in node.attributes for node in second]


def _pairs_us(program: pk.runtime.Program, second: int, programmatic: bool, device: torch.device) -> float:
    """Microseconds a pair of the op `second` of a program (the first op's: of the last op) and the one before it, in a
    graph of PAIRS pairs with plain edges between them. The pair's own edge is as `programmatic` says."""
    side = torch.cuda.Stream(device)

    def enqueue(stream: int) -> None:
        first, then = program.launchers(stream)[second - 1], program.launchers(stream, programmatic)[second]
        for _ in range(PAIRS):
            first()
            then()

    with torch.cuda.stream(side):
        enqueue(side.cuda_stream)
        torch.cuda.synchronize()
        graph = DriverGraph(enqueue, side.cuda_stream, None)
        try:
            samples_us = event_sampler([graph.replay], Rotation(1), 4)(REPLAYS)
            torch.cuda.synchronize()
        finally:
            graph.close()
    return float(np.median(samples_us[1:])) / PAIRS


def gains_alone_us(program: pk.runtime.Program, device: torch.device) -> list[float]:
    """By the second kernel of each edge: what a pair alone gains by a programmatic edge."""
    return [
        _pairs_us(program, second, False, device) - _pairs_us(program, second, True, device)
        for second in range(len(program))
    ]


def measure(spec: ModelSpec, device: torch.device) -> tuple[list[Document], str | None]:
    """The entries of the key `pdl`, one a program; and why there are none."""
    if torch.cuda.get_device_capability(device) < (9, 0):
        return [], "programmatic dependent launches need compute capability 9.0"
    if why := device_trace.reason():
        return [], why
    layer = pk.DecodeLayer(
        spec, pk.LayerWeights.random(spec, torch.bfloat16, device, 0), CONTEXT, 1, torch.bfloat16, device, 0
    )
    stream = torch.cuda.current_stream(device).cuda_stream
    found = []
    with torch.inference_mode():
        for fusion in OP_LABELS:
            program = layer.program(fusion)
            full, programmatic = (
                _traced_steps(pk.runtime.CudaGraph([program] * STEPS, with_edges), stream)
                for with_edges in (False, True)
            )
            alone_us = gains_alone_us(program, device)
            rows = edges(full, programmatic, programmatic_edges(program, device), alone_us)
            gain = sum(row["gain_us"] for row in rows)
            found.append({"program": f"layer {fusion}", "model": spec.name, "edges": rows, "gain_us": gain})
    return found, None
