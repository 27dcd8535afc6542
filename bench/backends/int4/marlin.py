"""`marlin`: Marlin as vLLM keeps it, torch.ops._C.marlin_gemm (schema of vLLM 0.25.1).

Tiles of 16 x 64 in the order of the tensor cores' fragments, made by its own gptq_marlin_repack; scales and zero
points are permuted to match. The permutations are facts of its kernel: 64 columns are read as 8 x 8, transposed; a
scale a row instead lies as the accumulators do.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.flash import arguments
from bench.backends.int4.base import VllmKernel
from pykernels.quant.packing import PAIRS_APART, pack_words

UINT4B8, UINT4 = 1125899907892224, 1125899906843648
"""vLLM's numbers of the types: 4 bits less 8, and 4 bits with zero points."""

_GROUPED = torch.arange(64).view(8, 8).T.flatten()
_WHOLE_ROW = (2 * torch.arange(4).view(4, 1) + torch.tensor([0, 1, 8, 9, 16, 17, 24, 25])).flatten()


def permuted(values: Tensor, order: Tensor) -> Tensor:
    """[n_groups, out_features] with every len(order) neighbours of a row in that order."""
    return values.unflatten(1, (-1, len(order)))[..., order.to(values.device)].flatten(1).contiguous()


class Marlin(VllmKernel):
    """Sums are reduced in float32 (`use_fp32_reduce`), vLLM's own choice, without atomic adds."""

    name = "marlin"
    description = "Marlin (vLLM's marlin_gemm)"
    ops = ("marlin_gemm", "gptq_marlin_repack")
    group_sizes = (32, 64, 128, -1)
    in_multiple, out_multiple = 128, 64

    def prepare(self, weight: pk.Int4Weight) -> Sequence[Tensor]:
        ops, device = self.library(), weight.packed.device
        in_features, out_features = weight.in_features, weight.out_features
        plain = weight.plain()
        empty = torch.empty(0, dtype=torch.int32, device=device)
        packed = ops.gptq_marlin_repack(
            pack_words(plain.q).T.contiguous(), empty, in_features, out_features, 4, False
        )  # fmt: skip
        scales = permuted(weight.scales.T, _WHOLE_ROW if weight.n_groups == 1 else _GROUPED)
        zeros = empty
        if weight.zeros is not None:
            zeros = pack_words(permuted(weight.zeros.T, _GROUPED), PAIRS_APART)
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        self._op = ops.marlin_gemm.default
        self._rest: dict[int, list] = {}
        self._given = dict(
            b_q_weight=packed, b_scales=scales, b_zeros_or_none=zeros, g_idx_or_none=empty, perm_or_none=empty,
            workspace=torch.zeros(multiprocessors, dtype=torch.int32, device=device),
            b_type_id=UINT4B8 if weight.zeros is None else UINT4, size_n=out_features, size_k=in_features,
            is_k_full=True, use_atomic_add=False, use_fp32_reduce=True, is_zp_float=False,
        )  # fmt: skip
        return [packed, scales, zeros]

    def run(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        if batch not in self._rest:
            self._rest[batch] = arguments(self._op._schema, a=None, size_m=batch, **self._given)[1:]
        return self._op(x, *self._rest[batch])
