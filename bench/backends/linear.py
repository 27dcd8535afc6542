"""Linear peers: the plain torch layer with the projections of a 4-bit library, made from the run's quantised weights.

RMSNorm, RoPE, the residuals and SwiGLU's product are torch's, the attention is another backend's (--attention). So two
of them differ by their projections alone, and a library is called as its own users call it: with QKV, gate and up
concatenated where their model code does that (Int4Kernel.fuses).
"""

from contextlib import AbstractContextManager
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch

import pykernels as pk
from bench.backends.base import INT4, NotRecordableError, Numbers
from bench.backends.int4 import Int4Kernel
from bench.backends.int4 import registry as kernels
from bench.backends.int4.projections import Int4Projections, layer_refusal, numbers_of
from bench.backends.plain import PlainLayer
from bench.backends.sdpa import Sdpa
from bench.backends.torch_layer import Attention, Projections, TorchLayer
from bench.core.errors import first_line

_HALVES = {torch.bfloat16: torch.float16, torch.float16: torch.bfloat16}


class LinearPeer(PlainLayer):
    """`kernel` multiplies, `of` attends. A kernel that does not take the run's dtype gets the layer in the other half
    precision, and the arm's name says so."""

    weights = (INT4,)
    kernel: ClassVar[type[Int4Kernel]]
    of: ClassVar[type[PlainLayer]] = Sdpa

    def __init__(self) -> None:
        self._of = self.of()
        self.programmatic = (*self.of.programmatic, *self.kernel.programmatic)

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        return cls.kernel.availability(device) or cls.of.availability(device)

    @classmethod
    def dtype_on(cls, device: torch.device, dtype: torch.dtype) -> torch.dtype:
        taken, other = cls.kernel.dtypes_on(device), _HALVES.get(dtype)
        return other if other and other in taken and dtype not in taken else dtype

    @classmethod
    def layer_reason(cls, layer: pk.DecodeLayer) -> str | None:
        return cls.of.layer_reason(layer) or layer_refusal(cls.kernel, layer.weights, layer.batch)

    def attention(self, layer: pk.DecodeLayer) -> Attention:
        return self._of.attention(layer)

    def projections(self, layer: pk.DecodeLayer, kept: dict[object, Any], copy: int) -> Projections:
        key = self.kernel, copy
        if key not in kept:
            kept[key] = Int4Projections(self.kernel, layer.weights)
        return kept[key]

    def numbers(self, weights: pk.LayerWeights) -> Numbers:
        return numbers_of(self.kernel, [weights])

    def kernel_name(self, layer: pk.DecodeLayer) -> str:
        return self._of.kernel_name(layer)

    def surroundings(self) -> AbstractContextManager:
        return self._of.surroundings()

    def _tapes(self, layers: list[TorchLayer]) -> list[pk.dispatch.Tape]:
        try:
            return super()._tapes(layers)
        except Exception as error:
            raise NotRecordableError(f"its calls cannot be recorded: {first_line(error)}") from None

    def _calls(self, layer: TorchLayer) -> list[str]:
        return [*super()._calls(layer), *layer.projections.unseen_calls]


_PREPARED: WeakKeyDictionary[pk.DecodeModel, dict[object, list[Int4Projections]]] = WeakKeyDictionary()


def model_projections(kernel: type[Int4Kernel], model: pk.DecodeModel) -> list[Int4Projections]:
    """Its projections of every layer of a model, prepared once for all arms; layers that are one share them."""
    kept = _PREPARED.setdefault(model, {})
    if kernel not in kept:
        one_a_layer: dict[int, Int4Projections] = {}
        for weights in model.weights.layers:
            if id(weights) not in one_a_layer:
                one_a_layer[id(weights)] = Int4Projections(kernel, weights)
        kept[kernel] = [one_a_layer[id(weights)] for weights in model.weights.layers]
    return kept[kernel]


def linear_peers(of: type[PlainLayer] = Sdpa) -> dict[str, type[LinearPeer]]:
    """Every library of 4-bit kernels as a backend, by name, with the attention of another backend."""
    peers = {}
    for name, kernel in kernels().items():
        if name == "native":
            continue
        fused = f"{' and '.join(kernel.fuses) or 'nothing'} fused, as by {kernel.fused_by}"
        members = {
            "name": name, "description": f"plain torch layer, projections by {kernel.description}; {fused}",
            "install_hint": kernel.install_hint, "no_dispatch": of.no_dispatch or kernel.no_dispatch,
            "kernel": kernel, "of": of, "__doc__": f"The layer of {kernel.description}.",
        }  # fmt: skip
        peers[name] = type(f"LinearPeer_{name.replace('-', '_')}", (LinearPeer,), members)
    return peers
