"""Triton's JIT launcher, warm."""

import torch

from bench.launch.launchers.base import FromPython, Launcher, Ready, pointers


class TritonJit(Launcher):
    name = "triton"
    description = "a @triton.jit function of pointers, compiled before: kernel[(1,)](...)"
    package = "triton"
    install_hint = "pip install triton (it comes with torch's CUDA wheels)"

    def make(self, arguments: int, device: torch.device) -> Ready:
        from bench.launch.launchers.triton_kernels import kernels

        launcher, tensors = kernels()[arguments][(1,)], pointers(arguments, device)
        call = lambda: launcher(*tensors)  # noqa: E731
        call()
        return FromPython(call, device)
