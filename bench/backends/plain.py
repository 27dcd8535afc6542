"""What the backends of plain torch ops share: the layer is TorchLayer, the attention is each one's own."""

import importlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.base import AS_GIVEN, NO_CAPTURE, Backend, NotRecordableError, Numbers, Workload
from bench.backends.torch_layer import Attention, Projections, TorchLayer
from bench.core import bits
from bench.core.library import library_reason
from bench.core.measure import Arm, Check, Drive, Watch
from bench.core.samplers import capture, relaunches, replay_all

_MODE_REASONS = {
    "pybind": "torch's ops have no launchers of their own to bind",
    "native": "torch's ops have no launchers below the dispatcher",
    "graph-pdl": "torch captures no programmatic dependent launches",
}


class PlainLayer(Backend):
    """A layer of plain torch ops. `no_dispatch` says why its attention cannot go on a tape; None where it can.
    `programmatic` are parts of the names of kernels that ask for programmatic dependent launch in mode native.
    `results_last`: the result of a step is there after steps of other copies."""

    no_dispatch: ClassVar[str | None] = None
    programmatic: Sequence[str] = ()
    results_last: ClassVar[bool] = True

    @classmethod
    def mode_reason(cls, mode: str, device: torch.device) -> str | None:
        if mode == "graph" and device.type != "cuda":
            return NO_CAPTURE
        if mode == "dispatch":
            return cls.no_dispatch
        if mode == "native" and device.type == "cuda":
            return None  # the nodes of the captured step, launched again from a C++ loop
        return _MODE_REASONS.get(mode)

    @classmethod
    def layer_reason(cls, layer: pk.DecodeLayer) -> str | None:
        return "its attention is called without a soft cap" if layer.spec.attention_softcap else None

    @abstractmethod
    def attention(self, layer: pk.DecodeLayer) -> Attention:
        """Its attention over that layer's cache; whatever can be prepared outside the timing is prepared here."""

    def projections(self, layer: pk.DecodeLayer, kept: dict[object, Any], copy: int) -> Projections:
        """Its projections of that copy of the layer. `kept` outlives the arm (Workload.kept)."""
        return Projections(layer.weights)

    def numbers(self, weights: pk.LayerWeights) -> Numbers:
        """What judges it over those weights."""
        return AS_GIVEN

    @abstractmethod
    def kernel_name(self, layer: pk.DecodeLayer) -> str:
        """What is called for the attention, in words."""

    def surroundings(self) -> AbstractContextManager:
        """What must hold around its steps, entered outside the timing."""
        return nullcontext()

    def _steps(self, layers: list[TorchLayer]) -> Sequence[Callable[[], object]]:
        """One step a copy, for the modes that Python drives and for a graph's capture."""
        return [layer.forward for layer in layers]

    def _tapes(self, layers: list[TorchLayer]) -> list[pk.dispatch.Tape]:
        """One a copy, for mode dispatch."""
        if layers[0].layer.spec.gelu:
            raise NotRecordableError("torch's gelu takes a string, which cannot go on a tape")
        return [layer.tape() for layer in layers]

    def _calls(self, layer: TorchLayer) -> list[str]:
        """The calls of one step, by name."""
        return layer.calls(self.kernel_name(layer.layer))

    def arm(self, workload: Workload, mode: str, fusion: str | None) -> Arm:
        samplers = workload.samplers
        layers = [
            TorchLayer(layer, self.attention(layer), self.projections(layer, workload.kept, copy))
            for copy, layer in enumerate(workload.layers)
        ]
        attention = layers[0].attention
        rows = (attention.k_row, attention.v_row)
        outputs = [lambda layer=layer: layer.out for layer in layers]
        step: Callable[[], object]
        arm = Arm(self.name, mode, fusion, surroundings=self.surroundings)
        with self.surroundings():
            arm.kernels = self._calls(layers[0])
            arm.launches = len(arm.kernels)
            if mode == "dispatch":
                tapes = self._tapes(layers)
                step, arm.sampler, host_sampler = tapes[0].run, samplers.tapes(tapes), samplers.host_tapes(tapes)
                outputs = [lambda tape=tape: tape.outputs()[0] for tape in tapes]
            else:
                steps = self._steps(layers)
                if mode == "eager":
                    step, arm.sampler = steps[0], samplers.python(steps)
                    host_sampler = samplers.host_python(steps, arm.launches)
                elif mode == "native":
                    again = relaunches(steps, self.programmatic)
                    step, arm.nodes, arm.launches = (
                        partial(again[0].run, samplers.stream),
                        again[0].nodes,
                        len(again[0]),
                    )
                    arm.sampler, host_sampler = samplers.programs(again), samplers.host_programs(again)
                else:
                    graphs = capture(steps, samplers.repeats)
                    step, arm.sampler = replay_all(graphs), samplers.torch_graphs(graphs)
                    host_sampler = samplers.host_torch_graphs(graphs, arm.launches)
                    arm.steps_per_graph = samplers.repeats
        arm.host_sampler = host_sampler if samplers.on_cuda else None
        arm.check = workload.checker(
            step, outputs if self.results_last else outputs[0], [layer.attention for layer in layers],
            by_step=not self.results_last, numbers=self.numbers(workload.layers[0].weights),
        )  # fmt: skip
        if mode in ("native", "graph"):
            arm.check = self._checked(arm, steps[0], step, layers[0], rows)
        return arm

    def _checked(
        self,
        arm: Arm,
        eager: Callable[[], object],
        captured: Callable[[], object],
        layer: TorchLayer,
        rows: Sequence[Tensor],
    ) -> Check:
        """The check of an arm that runs a captured step, with the result poisoned before, and a look whether it leaves
        the bits of an eager step."""
        check = arm.check
        assert check is not None

        def checked(drive: Drive | None = None, watch: Watch | None = None) -> pk.reference.Comparison:
            if drive:
                return check(drive, watch)
            if layer.out is not None:
                bits.poison((layer.out, *rows))
            comparison = check(None, watch)
            if not comparison.ok:
                return comparison
            written = layer.out  # by the captured step; an eager one makes a result of its own

            def results(step: Callable[[], object]) -> Sequence[Tensor]:
                bits.poison((written, *rows))
                layer.out = written
                step()
                return layer.out, *rows

            arm.against_eager = bits.against_eager(partial(results, eager), partial(results, captured))
            layer.out = written
            return comparison

        return checked


class LibraryLayer(PlainLayer):
    """A layer whose attention is a library's for CUDA devices: imported only where it is named."""

    package: ClassVar[str]

    @classmethod
    def device_reason(cls, device: torch.device) -> str | None:
        """Why it cannot run on that device; None where it can."""
        return None if device.type == "cuda" else "needs a CUDA device"

    @classmethod
    def library_reason(cls) -> str | None:
        """Why there is no library, in its own words; None where there is."""
        return library_reason(cls.package, cls._library)

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        return "; ".join(filter(None, (cls.device_reason(device), cls.library_reason()))) or None

    @classmethod
    def _library(cls) -> ModuleType | Any:
        return importlib.import_module(cls.package)
