"""`machete`: Machete, the Hopper kernel of vLLM: torch.ops._C.machete_mm (schema of vLLM 0.25.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.int4.base import VllmKernel, with_rounded_zeros
from bench.backends.int4.marlin import UINT4, UINT4B8
from pykernels.quant.packing import pack_words


class Machete(VllmKernel):
    """Its schedule is left to its own heuristic. Zero points go in as -zero * scale, in the activations' dtype."""

    name = "machete"
    description = "Machete (vLLM's machete_mm), Hopper only"
    ops = ("machete_mm", "machete_prepack_B")
    group_sizes = (64, 128, -1)
    in_multiple, out_multiple = 64, 128
    least_capability = (9, 0)
    rounds_weights = True

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] != 9:
            return "Machete requires compute capability of 90 (Hopper)"
        return super().availability(device)

    def prepare(self, weight: pk.Int4Weight) -> Sequence[Tensor]:
        ops, dtype = self.library(), weight.dtype
        self._type = UINT4B8 if weight.zeros is None else UINT4
        # [in_features / 8, out_features], column by column in memory.
        words = pack_words(weight.plain().q).T
        self._packed = ops.machete_prepack_B(words, dtype, self._type, dtype)
        self._scales, self._zeros = weight.scales.T.contiguous(), None
        if weight.zeros is not None:
            self._zeros = (-weight.scales.double() * weight.zeros.double()).to(dtype).T.contiguous()
        self._group_size = -1 if weight.n_groups == 1 else weight.group_size
        self._op = ops.machete_mm.default
        return [tensor for tensor in (self._packed, self._scales, self._zeros) if tensor is not None]

    def run(self, x: Tensor) -> Tensor:
        return self._op(
            x, self._packed, self._type, None, self._scales, self._zeros, self._group_size, None, None, None
        )  # fmt: skip

    def multiplies_by(self, weight: pk.Int4Weight) -> Tensor:
        return with_rounded_zeros(weight, 0)
