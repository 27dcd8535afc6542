"""`native`: this project's own kernels, driven in every mode there is."""

from collections.abc import Sequence

import numpy as np
import torch

import pykernels as pk
from bench.backends.base import NO_CAPTURE, Backend, Workload
from bench.core.measure import Arm, Sampler
from bench.core.samplers import Samplers, chains, replay_all

CUDA_HEAD_DIMS = (64, 128)


def _pybind_step(program: pk.runtime.Program, stream: int):
    launchers = program.launchers(stream)

    def step() -> None:
        for launch in launchers:
            launch()

    return step


def without_kernels(sampler: Sampler) -> Sampler:
    """The same loop with every launcher returning at once: the host's clock on a CPU."""

    def sample(n: int) -> np.ndarray:
        with pk.runtime.launches_disabled():
            return sampler(n)

    return sample


def graphs_of(programs: Sequence[pk.runtime.Program], samplers: Samplers, mode: str) -> list["pk.runtime.CudaGraph"]:
    """The graphs of mode `graph` or `graph-pdl`: `repeats` programs each, going round the copies."""
    programmatic = mode == "graph-pdl"
    return [pk.runtime.CudaGraph(chain, programmatic) for chain in chains(programs, samplers.repeats)]


class Native(Backend):
    """The layer program at each fusion."""

    name = "native"
    description = "launchtax's own kernels"
    takes_int4 = True
    NO_FLOAT32 = "has no float32 kernels for CUDA: bf16 or fp16"

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        if device.type == "cpu" or (device.type == "cuda" and pk.runtime.build_info()["cuda"]):
            return None
        return f"has no kernels for {device.type} in this build"

    @classmethod
    def layer_reason(cls, layer: pk.DecodeLayer) -> str | None:
        if layer.device.type != "cuda":
            return None
        if layer.dtype == torch.float32:
            return cls.NO_FLOAT32
        if layer.spec.head_dim not in CUDA_HEAD_DIMS:
            return f"has CUDA kernels of head_dim 64 and 128, and the model's is {layer.spec.head_dim}"
        return None

    @classmethod
    def mode_reason(cls, mode: str, device: torch.device) -> str | None:
        if not mode.startswith("graph"):
            return None
        if device.type != "cuda":
            return NO_CAPTURE
        if mode == "graph-pdl" and torch.cuda.get_device_capability(device) < (9, 0):
            return "programmatic dependent launches need compute capability 9.0"
        return None

    @classmethod
    def fusions(cls, wanted: Sequence[str]) -> Sequence[str | None]:
        return wanted

    def arm(self, workload: Workload, mode: str, fusion: str | None) -> Arm:
        layers, samplers = workload.layers, workload.samplers
        programs = [layer.program(fusion) for layer in layers]
        launches, stream = len(programs[0]), samplers.stream
        is_graph = mode.startswith("graph")
        if mode in ("eager", "pybind"):
            if mode == "eager":
                steps = [lambda layer=layer: layer.forward(fusion) for layer in layers]
            else:
                steps = [_pybind_step(program, stream) for program in programs]
            step, sampler, on_host = steps[0], samplers.python(steps), samplers.host_python(steps, launches)
        elif mode == "dispatch":
            tapes = [layer.tape(fusion) for layer in layers]
            step, sampler, on_host = tapes[0].run, samplers.tapes(tapes), samplers.host_tapes(tapes)
        elif mode == "native":
            step = lambda: programs[0].run(stream)  # noqa: E731
            sampler, on_host = samplers.programs(programs), samplers.host_programs(programs)
        else:
            graphs = graphs_of(programs, samplers, mode)
            step = replay_all(graphs, stream)
            sampler, on_host = samplers.native_graphs(graphs), samplers.host_native_graphs(graphs)
        if samplers.on_cuda:
            kernels = [f"pykernels::cuda::{op}" for op in programs[0].ops]
        else:
            kernels = [f"pykernels::cpu::{op} ({pk.runtime.isa()})" for op in programs[0].ops]
        return Arm(
            self.name,
            mode,
            fusion,
            sampler,
            workload.checker(step, lambda: layers[0].out),
            host_sampler=on_host if samplers.on_cuda else without_kernels(sampler),
            kernels=kernels,
            launches=launches,
            steps_per_graph=samplers.repeats if is_graph else None,
        )
