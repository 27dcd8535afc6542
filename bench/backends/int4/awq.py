"""`awq`: AWQ's own kernel as vLLM keeps it, torch.ops._C.awq_gemm, on a checkpoint's tensors as they are."""

from collections.abc import Sequence

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.int4.base import VllmKernel

SPLIT_K = 8
"""What vLLM passes: partial sums, in half precision, that a second kernel adds up."""


class Awq(VllmKernel):
    """fp16 alone. The split sums are rounded to half precision before they are added."""

    name = "awq"
    description = "AWQ's GEMM (vLLM's awq_gemm)"
    ops = ("awq_gemm",)
    dtypes = (torch.float16,)
    group_sizes = (32, 64, 128)
    in_multiple, out_multiple = 32, 64
    half_sums = True

    @classmethod
    def refusal(cls, weight: pk.Int4Weight, batch: int) -> str | None:
        if weight.out_features % weight.group_size:
            return f"takes out_features that are a multiple of the group size, not {weight.out_features}"
        return super().refusal(weight, batch)

    def prepare(self, weight: pk.Int4Weight) -> Sequence[Tensor]:
        tensors = weight.to_awq()
        self._op = self.library().awq_gemm.default
        self._tensors = tensors["qweight"], tensors["scales"], tensors["qzeros"]
        return self._tensors

    def run(self, x: Tensor) -> Tensor:
        return self._op(x, *self._tensors, SPLIT_K)
