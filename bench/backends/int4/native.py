"""`native`: launchtax's own int4_gemv."""

from collections.abc import Sequence

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.int4.base import Int4Kernel


class Native(Int4Kernel):
    """pk.ops.int4_gemv, its result and workspace allocated on the first call of a batch."""

    name = "native"
    description = "launchtax's own int4_gemv"
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    act_order = True
    alignment = 1  # x may begin at any element

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        if device.type == "cuda" and not pk.runtime.build_info()["cuda"]:
            return "has no kernels for cuda in this build"
        return super().availability(device)

    @classmethod
    def dtypes_on(cls, device: torch.device) -> Sequence[torch.dtype]:
        return cls.dtypes[:2] if device.type == "cuda" else cls.dtypes

    def prepare(self, weight: pk.Int4Weight) -> Sequence[Tensor]:
        self._weight = weight
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        return [tensor for tensor in weight.tensors() if tensor is not None]

    def run(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        if batch not in self._buffers:
            out = torch.empty(batch, self._weight.out_features, dtype=x.dtype, device=x.device)
            self._buffers[batch] = out, pk.ops.int4_gemv_workspace(x, self._weight)
        out, workspace = self._buffers[batch]
        return pk.ops.int4_gemv(x, self._weight, out=out, workspace=workspace)
