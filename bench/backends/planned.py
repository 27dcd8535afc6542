"""Backends of the study that this version lists and cannot drive yet."""

import torch

import pykernels as pk
from bench.backends.base import Backend, Workload
from bench.core.measure import Arm


class _Planned(Backend):
    needs_cuda = False

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        needs = "needs a CUDA device; " if cls.needs_cuda and device.type != "cuda" else ""
        return f"{needs}launchtax {pk.__version__} has no adapter for it"

    @classmethod
    def mode_reason(cls, mode: str, device: torch.device) -> str | None:
        return cls.availability(device)

    def arm(self, workload: Workload, mode: str, fusion: str | None) -> Arm:
        raise NotImplementedError(self.availability(workload.layers[0].device))


class FlashAttention2(_Planned):
    """The flash-attn package."""

    needs_cuda = True

    name = "fa2"
    description = "FlashAttention-2 (flash-attn)"


class FlashAttention3(_Planned):
    """FlashAttention-3, Hopper only."""

    needs_cuda = True

    name = "fa3"
    description = "FlashAttention-3 (flash_attn_3)"


class FlashInfer(_Planned):
    """FlashInfer's decode kernels."""

    needs_cuda = True

    name = "flashinfer"
    description = "FlashInfer decode"


class Flex(_Planned):
    """torch's flex_attention."""

    name = "flex"
    description = "torch flex_attention"


class Compile(_Planned):
    """The plain torch layer through torch.compile."""

    name = "compile"
    description = "torch.compile of the plain torch layer"
