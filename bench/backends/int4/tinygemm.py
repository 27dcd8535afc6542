"""`tinygemm`: torch's own _weight_int4pack_mm, on CUDA and on the CPU.

It computes (q - 8) * scale + zero with a zero in the activations' dtype, so a zero point z becomes (8 - z) * scale,
rounded: exact for symmetric weights alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.int4.base import QKV, Int4Kernel, with_rounded_zeros

INNER_K_TILES = 8
"""Of the CUDA layout; the CPU's ignores it."""


def scales_and_zeros(weight: pk.Int4Weight) -> Tensor:
    """[n_groups, out_features, 2] in the scales' dtype."""
    scales = weight.scales
    zeros = torch.zeros_like(scales)
    if weight.zeros is not None:
        zeros = ((8 - weight.zeros.double()) * scales.double()).to(scales.dtype)
    return torch.stack((scales.T, zeros.T), dim=-1).contiguous()


def tile_packed(q: Tensor) -> Tensor:
    """int32 [out_features / 8, in_features / 128, 32, 4] of the CUDA kernel, from uint8 [out_features, in_features].

    What torch packs are bytes of two columns, the even one in the high nibble.
    """
    return torch.ops.aten._convert_weight_to_int4pack((q[:, ::2] << 4 | q[:, 1::2]).contiguous(), INNER_K_TILES)


def cpu_packed(q: Tensor) -> Tensor:
    """The CPU kernel's layout, from uint8 [out_features, in_features]."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.int(), INNER_K_TILES)


class Tinygemm(Int4Kernel):
    """aten::_weight_int4pack_mm and aten::_weight_int4pack_mm_for_cpu."""

    name = "tinygemm"
    description = "torch's _weight_int4pack_mm"
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    group_sizes = (32, 64, 128, 256)
    fuses, fused_by = (QKV,), "gpt-fast's wqkv"
    rounds_weights = True

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            return "_weight_int4pack_mm_cuda requires compute capability 8.0 or more"
        return super().availability(device)

    @classmethod
    def dtypes_on(cls, device: torch.device) -> Sequence[torch.dtype]:
        return (torch.bfloat16,) if device.type == "cuda" else cls.dtypes

    @classmethod
    def refusal(cls, weight: pk.Int4Weight, batch: int) -> str | None:
        if reason := super().refusal(weight, batch):
            return reason
        in_multiple, out_multiple = (16 * INNER_K_TILES, 8) if weight.packed.is_cuda else (2, 16)
        if weight.in_features % in_multiple or weight.out_features % out_multiple:
            return (
                f"takes in_features that are a multiple of {in_multiple} and out_features of {out_multiple}, "
                f"not {weight.in_features} and {weight.out_features}"
            )
        return None

    def prepare(self, weight: pk.Int4Weight) -> Sequence[Tensor]:
        self._group_size, self._scales_and_zeros = weight.group_size, scales_and_zeros(weight)
        if weight.packed.is_cuda:
            self._op, self._packed = torch.ops.aten._weight_int4pack_mm, tile_packed(weight.plain().q)
        else:
            self._op = torch.ops.aten._weight_int4pack_mm_for_cpu
            self._packed = cpu_packed(weight.plain().q)
        return [self._packed, self._scales_and_zeros]

    def run(self, x: Tensor) -> Tensor:
        return self._op(x, self._packed, self._group_size, self._scales_and_zeros)

    def multiplies_by(self, weight: pk.Int4Weight) -> Tensor:
        return with_rounded_zeros(weight, 8)
