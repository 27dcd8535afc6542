"""`gptq`: the ExLlama kernel for GPTQ weights as vLLM keeps it, torch.ops._C.gptq_gemm (schema of vLLM 0.25.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.int4.base import VllmKernel


class Gptq(VllmKernel):
    """fp16 alone; it adds up in half precision. Words are shuffled by its own gptq_shuffle; zero points are v2's."""

    name = "gptq"
    description = "ExLlama's GPTQ kernel (vLLM's gptq_gemm)"
    ops = ("gptq_gemm", "gptq_shuffle")
    dtypes = (torch.float16,)
    in_multiple, out_multiple = 32, 8
    half_sums = True

    def prepare(self, weight: pk.Int4Weight) -> Sequence[Tensor]:
        ops, tensors = self.library(), weight.to_gptq(version=2)
        no_order = torch.empty(0, dtype=torch.int32, device=weight.packed.device)
        ops.gptq_shuffle(tensors["qweight"], no_order, 4)
        self._op = ops.gptq_gemm.default
        self._tensors = tensors["qweight"], tensors["qzeros"], tensors["scales"]
        self._no_order = no_order
        return self._tensors

    def run(self, x: Tensor) -> Tensor:
        return self._op(x, *self._tensors, self._no_order, True, True, 4)
