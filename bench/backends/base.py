"""What a backend is to the drivers."""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.gate_inputs import GateInputs, fresh_inputs, gate_inputs
from bench.core.cli import DTYPE_FLAGS, MODES
from bench.core.measure import Arm, Drive, Rotation, Watch, unsupported
from bench.core.samplers import Samplers


def modes_on(device: torch.device) -> tuple[str, ...]:
    """Those that a device of that type can have at all: a CPU has nothing to capture."""
    return MODES if device.type == "cuda" else tuple(mode for mode in MODES if not mode.startswith("graph"))


NO_CAPTURE = "needs a CUDA device: there is nothing to capture on a CPU"

# A layer rounds about ten times between its input and its output; the errors add like a random walk, and the
# residual stream carries most of the output unrounded.
LAYER_DEPTH = 2
# Where the MLP is not hidden by the residual stream, its roundings are not either.
MLP_DEPTH = 3
# Nothing hides what attention gives either: a GEMV before it, and attention, which counts as two ops.
ATTENTION_DEPTH = 3


DENSE, INT4 = "dense", "int4"


@dataclass(frozen=True)
class Numbers:
    """What the reference multiplies by where it judges an arm, as a function of a layer's weights, and how many times
    the roundings of the layer the arm may err by. `key` tells one such function from another."""

    key: str = "as given"
    of: Callable[[pk.LayerWeights], pk.LayerWeights] = pk.LayerWeights.dequantize
    depth: int = 1


AS_GIVEN = Numbers()


class Workload:
    """What every backend computes: the layer, as copies with weights of their own to rotate through, and the reference.

    One copy where the layer is larger than the cache anyhow, or where warm weights are wanted. All copies hold the same
    numbers.
    """

    def __init__(self, layers: list[pk.DecodeLayer], samplers: Samplers, seed: int = 0) -> None:
        self.layers, self.samplers, self._seed = layers, samplers, seed
        self._expected: dict[tuple[bool, str], list[GateInputs]] = {}
        self._judge: Workload = self
        self._in_dtype: dict[torch.dtype, Workload] = {}
        self.phi: float | None = None
        """Of a unified maximum; None: calibrated."""
        self.kept: dict[object, Any] = {}
        """What the arms of a backend share, by its name: weights in a layout of its own."""

    @classmethod
    def of(cls, layers: list[pk.DecodeLayer], repeats: int = 1, phi: float | None = None) -> "Workload":
        """repeats: the steps of a sample, and of a graph. phi: of a unified maximum; None: calibrated."""
        workload = cls(layers, Samplers(Rotation(len(layers)), repeats, layers[0].device))
        workload.phi = phi
        workload.inputs()  # now, while the layers hold what is timed
        return workload

    @cached_property
    def dense(self) -> "Workload":
        """The same layers with 4-bit projections dequantised and rounded to the run's dtype, judged by the 4-bit ones;
        itself where they are dense. Input, cache and buffers are shared."""
        if not self.layers[0].weights.is_int4:
            return self
        other = Workload(
            [layer.with_weights(layer.weights.dequantize(layer.dtype)) for layer in self.layers], self.samplers
        )  # fmt: skip
        other._judge = self
        return other

    def in_dtype(self, dtype: torch.dtype) -> "Workload":
        """The same layers in another dtype, with inputs, caches and a reference of their own."""
        if dtype == self.layers[0].dtype:
            return self
        if dtype not in self._in_dtype:
            layers = [
                pk.DecodeLayer(layer.spec, layer.weights.to(dtype), layer.ctx, layer.batch, dtype, layer.device)
                for layer in self.layers
            ]
            self._in_dtype[dtype] = Workload(layers, self.samplers, self._seed)
            self._in_dtype[dtype].inputs()
        return self._in_dtype[dtype]

    def inputs(self, fresh: bool = False, numbers: Numbers = AS_GIVEN) -> list[GateInputs]:
        """The inputs of the gate and what the reference says of them; or those of the check after the clocks, which
        nobody has seen before. Made once for all arms that are judged by the same numbers."""
        if self._judge is not self:
            return self._judge.inputs(fresh, numbers)
        key = fresh, numbers.key
        if key not in self._expected:
            weights = numbers.of(self.layers[0].weights)
            make, seed = (fresh_inputs, secrets.randbits(62)) if fresh else (gate_inputs, self._seed)
            self._expected[key] = make(self.layers[0], weights, seed)
        return self._expected[key]

    def checker(
        self,
        step: Callable[[], object],
        outputs: Callable[[], Tensor] | Sequence[Callable[[], Tensor]],
        attentions: Sequence["Cache"] = (),
        parts: Mapping[str, Tensor] | None = None,
        by_step: bool = False,
        numbers: Numbers = AS_GIVEN,
    ) -> "LayerCheck":
        """The check of an arm (bench.core.measure.Check).

        step: one on the first copy. outputs: the layer's result, of the first copy, or of every copy. attentions: of
        every copy, the cache that it reads, where that is not the layer's own. parts: what else of the first copy can
        be looked at after a step, by its name in GateInputs.expected. by_step: the arm's loop leaves no result, so
        that the step is checked after the clocks too. numbers: what judges it.
        """
        outputs = [outputs] if callable(outputs) else outputs
        return LayerCheck(self, step, list(outputs), list(attentions), dict(parts or {}), by_step, numbers)


class Cache(Protocol):
    """A cache in a layout of a backend's own. `k_row`, `v_row` [batch, n_kv_heads, head_dim] are views of the slot that
    a step writes."""

    k_row: Tensor
    v_row: Tensor

    def load(self, layer: pk.DecodeLayer) -> None:
        """Take over what the layer's own cache holds now."""


@dataclass
class LayerCheck:
    """The check of one arm of a layer: its step on every set of the gate's inputs, or what drives it on fresh ones."""

    workload: Workload
    step: Callable[[], object]
    outputs: list[Callable[[], Tensor]]
    caches: list[Cache]
    parts: dict[str, Tensor]
    by_step: bool
    numbers: Numbers = AS_GIVEN

    def __call__(self, drive: Drive | None = None, watch: Watch | None = None) -> pk.reference.Comparison:
        """As bench.core.measure.Check says."""
        timed, *others = self.workload.inputs(numbers=self.numbers)
        sets = self.workload.inputs(fresh=True, numbers=self.numbers) if drive else [timed, *others]
        # Before the clocks one copy is enough: that the others are right is seen after them.
        checked = len(self.outputs) if drive else 1
        layers = self.workload.layers[:checked]
        found = []
        try:
            for inputs in sets:
                self._put(inputs, layers)
                if not drive:
                    self._poison(layers[0])
                if watch:
                    watch.begin()
                if drive and not self.by_step:
                    drive(self.workload.samplers.samples_for_all)
                else:
                    self.step()
                found += self._compare(inputs, layers)
                if watch and (words := watch.end()):
                    return replace(found[-1], ok=False, message=words)
        finally:
            self._put(timed, layers)
        return max(found, key=lambda comparison: comparison.max_rel_error / comparison.tolerance)

    def _put(self, inputs: GateInputs, layers: Sequence[pk.DecodeLayer]) -> None:
        for layer in layers:
            inputs.put(layer)
        for layer, cache in zip(layers, self.caches, strict=False):
            cache.load(layer)

    def _rows(self, layer: pk.DecodeLayer, copy: int) -> tuple[Tensor, Tensor]:
        if self.caches:
            return self.caches[copy].k_row, self.caches[copy].v_row
        slot = int(layer.position[0])
        return layer.k_cache[:, :, slot], layer.v_cache[:, :, slot]

    def _poison(self, layer: pk.DecodeLayer) -> None:
        layer.poison()
        for row in self._rows(layer, 0):
            row.fill_(float("nan"))

    def _compare(self, inputs: GateInputs, layers: Sequence[pk.DecodeLayer]) -> list[pk.reference.Comparison]:
        rows = [self._rows(layer, copy) for copy, layer in enumerate(layers)]
        got = {
            "out": [output() for _, output in zip(layers, self.outputs, strict=False)],
            "k_row": [k_row for k_row, _ in rows],
            "v_row": [v_row for _, v_row in rows],
        } | {name: [tensor] for name, tensor in self.parts.items()}
        found = []
        for name, tensors in got.items():
            if name not in inputs.expected:
                continue
            expected = inputs.expected[name]
            stacked = torch.stack([tensor.reshape(expected.shape) for tensor in tensors])
            of_all = expected.expand(stacked.shape)
            shows_mlp = inputs.shows_mlp and name in ("activated", "out")
            depth = ATTENTION_DEPTH if name == "attended" else MLP_DEPTH if shows_mlp else LAYER_DEPTH
            depth += inputs.more_depth if name in ("h", "activated", "out") else 0
            depth *= self.numbers.depth
            comparison = pk.reference.compare(stacked, of_all, self.workload.layers[0].dtype, depth)
            found.append(replace(comparison, message=f"{inputs.words(name)}: {comparison.message}"))
        return found


class Backend(ABC):
    """One way to compute the layer. Subclasses are registered in bench.backends."""

    name: str
    description: str
    install_hint: str | None = None
    weights: ClassVar[Sequence[str]] = (DENSE,)
    """What its projections multiply by. One of dense weights alone gets 4-bit ones dequantised and rounded to the run's
    dtype: the 16-bit layer beside the 4-bit ones."""

    @classmethod
    @abstractmethod
    def availability(cls, device: torch.device) -> str | None:
        """None where it can run on this device, else the reason why not."""

    @classmethod
    @abstractmethod
    def mode_reason(cls, mode: str, device: torch.device) -> str | None:
        """None where it has that mode on this device, else the reason why not."""

    @classmethod
    def layer_reason(cls, layer: pk.DecodeLayer) -> str | None:
        """None where it can run that layer on its device, else the reason why not."""
        return None

    @classmethod
    def modes(cls, device: torch.device) -> list[str]:
        """The modes it has on this device."""
        if cls.availability(device):
            return []
        return [mode for mode in MODES if not cls.mode_reason(mode, device)]

    @classmethod
    def dtype_on(cls, device: torch.device, dtype: torch.dtype) -> torch.dtype:
        """The activations that it computes with in a run of that dtype: the run's, unless it takes another alone."""
        return dtype

    @abstractmethod
    def arm(self, workload: Workload, mode: str, fusion: str | None) -> Arm:
        """The arm of one mode that mode_reason allows."""

    @classmethod
    def fusions(cls, wanted: Sequence[str]) -> Sequence[str | None]:
        """Which of the wanted fusions this backend tells apart: none, unless it has programs of its own."""
        return [None]


class NotRecordableError(Exception):
    """A step whose calls no tape can hold: an arm of mode dispatch is unsupported, in these words."""


def name_in(name: str, dtype: torch.dtype, of_the_run: torch.dtype) -> str:
    """What a backend is called that computes in another dtype than the run: its name, and that dtype."""
    return name if dtype == of_the_run else f"{name}-{DTYPE_FLAGS[dtype]}"


def arms_of(backend: type[Backend], workload: Workload, modes: Sequence[str], fusions: Sequence[str]) -> list[Arm]:
    """All arms of a backend, unsupported ones with their reason. What fails while it is made is an `error` arm."""
    layer = workload.layers[0]
    device = layer.device
    reason = backend.availability(device)
    if reason is None and not layer.weights.is_int4 and DENSE not in backend.weights:
        reason = "multiplies by 4-bit weights only"
    name = backend.name
    if reason is None:
        dtype = backend.dtype_on(device, layer.dtype)
        name = name_in(name, dtype, layer.dtype)
        workload = workload.in_dtype(dtype) if INT4 in backend.weights else workload.dense
        reason = backend.layer_reason(workload.layers[0])
    if reason:
        return [unsupported(name, mode, reason) for mode in modes]
    arms = []
    for fusion in backend.fusions(fusions):
        for mode in modes:
            if reason := backend.mode_reason(mode, device):
                arms.append(unsupported(name, mode, reason, fusion))
                continue
            try:
                with torch.inference_mode():
                    arm = backend().arm(workload, mode, fusion)
            except NotRecordableError as error:
                arm = unsupported(name, mode, str(error), fusion)
            except Exception as error:  # the library's own words are the result
                arm = Arm(name, mode, fusion)
                arm.fail(error)
            arm.backend = name
            arms.append(arm)
    return arms
