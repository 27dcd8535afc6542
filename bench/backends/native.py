"""`native`: this project's own kernels, driven in every mode there is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch

import pykernels as pk
from bench.backends.base import DENSE, INT4, NO_CAPTURE, Backend, Workload
from bench.core.measure import Arm, Sampler
from bench.core.samplers import Samplers, Step, chains, replay_all
from bench.core.unified import UNIFIED, Counted, choose_phi
from pykernels.calibrate import ScoreRows

TUNED_HEAD_DIMS = (64, 80, 96, 112, 128, 256)
"""Those for which gqa_decode was made fast on CUDA; any other multiple of 8 up to 256 is right."""


def _pybind_step(program: pk.runtime.Program, stream: int) -> Step:
    launchers = program.launchers(stream)
    if len(launchers) == 1:
        return launchers[0]

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


def program_of(call: Step) -> pk.runtime.Program:
    """The ops of one call through the public API, recorded."""
    with pk.runtime.record() as program:
        call()
    return program


def tape_of(call: Step) -> pk.dispatch.Tape:
    """What such a call asks of the dispatcher, recorded. It may have defaults, which what is traced may not have."""
    return pk.dispatch.Tape.record(lambda: call())


def cuda_kernel(op: str, head_dim: int) -> str:
    """The kernel's name in a document."""
    tuned = op != "gqa_decode" or head_dim in TUNED_HEAD_DIMS
    return f"pykernels::cuda::{op}" + ("" if tuned else f" (head_dim {head_dim}: not tuned)")


@dataclass(frozen=True)
class Driven:
    """Our ops in one mode: one step on the first copy, the wall clock's sampler, and the host's on a CUDA device."""

    step: Step
    sampler: Sampler
    host_sampler: Sampler


def drive(mode: str, calls: Sequence[Step], samplers: Samplers) -> Driven:
    """calls: one a copy, each the same ops through the public API. They are made once to be recorded, by all modes."""
    programs = [program_of(call) for call in calls]
    stream = samplers.stream
    if mode in ("eager", "pybind"):
        steps = calls if mode == "eager" else [_pybind_step(program, stream) for program in programs]
        return Driven(steps[0], samplers.python(steps), samplers.host_python(steps, len(programs[0])))
    if mode == "dispatch":
        tapes = [tape_of(call) for call in calls]
        return Driven(tapes[0].run, samplers.tapes(tapes), samplers.host_tapes(tapes))
    if mode == "native":
        return Driven(partial(programs[0].run, stream), samplers.programs(programs), samplers.host_programs(programs))
    graphs = graphs_of(programs, samplers, mode)
    return Driven(replay_all(graphs, stream), samplers.native_graphs(graphs), samplers.host_native_graphs(graphs))


class Native(Backend):
    """The layer program at each fusion."""

    name = "native"
    description = "launchtax's own kernels"
    weights: ClassVar[Sequence[str]] = (DENSE, INT4)
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
        if layer.spec.attention_softcap:
            return "has no soft cap of attention scores on CUDA, and the model has one (attn_logit_softcapping)"
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
        return self._arm_of(workload, workload.layers, mode, fusion)

    def _arm_of(self, workload: Workload, layers: list[pk.DecodeLayer], mode: str, fusion: str | None) -> Arm:
        samplers = workload.samplers
        assert fusion is not None  # fusions() names them
        driven = drive(mode, [partial(layer.forward, fusion) for layer in layers], samplers)
        ops, first = layers[0].program(fusion).ops, layers[0]
        if samplers.on_cuda:
            kernels = [cuda_kernel(op, first.spec.head_dim) for op in ops]
        else:
            kernels = [f"pykernels::cpu::{op} ({pk.runtime.isa()})" for op in ops]
        return Arm(
            self.name,
            mode,
            fusion,
            driven.sampler,
            workload.checker(driven.step, [partial(getattr, layer, "out") for layer in layers], parts=first.parts()),
            host_sampler=driven.host_sampler if samplers.on_cuda else without_kernels(driven.sampler),
            kernels=kernels,
            launches=len(kernels),
            steps_per_graph=samplers.repeats if mode.startswith("graph") else None,
        )


class NativeUnified(Native):
    """The same kernels with a unified maximum in the attention's softmax (FlashDecoding++, Hong et al., 2023)."""

    name = UNIFIED
    description = "native, its attention's softmax with a unified maximum (FlashDecoding++)"

    @classmethod
    def layer_reason(cls, layer: pk.DecodeLayer) -> str | None:
        if reason := super().layer_reason(layer):
            return reason
        spec = layer.spec
        if layer.device.type == "cuda" and spec.attention_softcap:
            return "has no soft cap of scores on CUDA, and the model has one (attn_logit_softcapping)"
        if layer.device.type == "cuda" and (spec.head_dim not in (64, 128) or spec.group_size == 1):
            has = f"head_dim {spec.head_dim} and {spec.n_heads} query heads for {spec.n_kv_heads} KV heads"
            return f"takes head_dim 64 or 128 and more query heads than KV heads on CUDA, and the model has {has}"
        return None

    @staticmethod
    def _phi(workload: Workload) -> tuple[float, pk.Phi | None]:
        """Once for all arms."""
        first = workload.layers[0]

        def rows() -> list[ScoreRows]:
            first.forward("block")
            return [first.score_rows()]

        if UNIFIED not in workload.kept:
            workload.kept[UNIFIED] = choose_phi(workload.phi, rows, first.dtype)
        return workload.kept[UNIFIED]

    def arm(self, workload: Workload, mode: str, fusion: str | None) -> Arm:
        phi, calibrated = self._phi(workload)
        layers = [layer.with_softmax("unified", phi) for layer in workload.layers]
        arm, first = self._arm_of(workload, layers, mode, fusion), layers[0]
        arm.counted = Counted(
            phi, calibrated, [layer.attention_workspace for layer in layers], first.batch * first.spec.n_heads,
            workload.samplers.repeats,
        )  # fmt: skip
        return arm


class NativeDense(Native):
    """The same kernels over 4-bit weights that were dequantised: what 16 bits cost beside 4."""

    name = "native-dense"
    description = "launchtax's own kernels on the dequantised weights"
    weights = (DENSE,)
