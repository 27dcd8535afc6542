"""`native`: this project's own kernels, driven in every mode there is."""

from collections.abc import Sequence

import numpy as np
import torch

import pykernels as pk
from bench.backends.base import Backend, Workload
from bench.core.measure import Arm, Sampler, python_sampler

_GRAPH_REASON = "needs a CUDA device: there is nothing to capture on a CPU"


def _pybind_step(program: pk.runtime.Program):
    launchers = program.launchers()

    def step() -> None:
        for launch in launchers:
            launch()

    return step


class Native(Backend):
    """The layer program at each fusion."""

    name = "native"
    description = "launchtax's own kernels"

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        return None if device.type == "cpu" else f"has no kernels for {device.type} in this build"

    @classmethod
    def mode_reason(cls, mode: str, device: torch.device) -> str | None:
        return _GRAPH_REASON if mode.startswith("graph") else None

    @classmethod
    def fusions(cls, wanted: Sequence[str]) -> Sequence[str | None]:
        return wanted

    def arm(self, workload: Workload, mode: str, fusion: str | None) -> Arm:
        layers, rotation = workload.layers, workload.rotation
        programs = [layer.program(fusion) for layer in layers]
        sampler: Sampler
        output = lambda: layers[0].out  # noqa: E731
        if mode == "eager":
            step = lambda: layers[0].forward(fusion)  # noqa: E731
            sampler = python_sampler([lambda layer=layer: layer.forward(fusion) for layer in layers], rotation)
        elif mode == "pybind":
            steps = [_pybind_step(program) for program in programs]
            step, sampler = steps[0], python_sampler(steps, rotation)
        elif mode == "dispatch":
            tapes = [layer.tape(fusion) for layer in layers]
            step = tapes[0].run
            sampler = lambda n: pk.dispatch.timed_loop(rotation.take(tapes, n), 0, n)  # noqa: E731
        else:
            step = programs[0].run
            sampler = lambda n: pk.runtime.timed_loop(rotation.take(programs, n), 0, n)  # noqa: E731

        def host_sampler(n: int) -> np.ndarray:
            with pk.runtime.launches_disabled():
                return sampler(n)

        return Arm(
            self.name,
            mode,
            fusion,
            sampler,
            workload.checker(step, output),
            host_sampler=host_sampler,
            kernels=[f"pykernels::cpu::{op} ({pk.runtime.isa()})" for op in programs[0].ops],
            launches=len(programs[0]),
        )
