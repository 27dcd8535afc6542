"""numba-cuda's launcher: @cuda.jit, the signature compiled before."""

from collections.abc import Callable

import torch

from bench.launch.launchers.base import FromPython, Launcher, Ready


def _empty(arguments: int) -> Callable[..., None]:
    """A Python function of so many arguments that does nothing. numba compiles functions by their bytecode and their
    arguments' names, so each count is a function written out."""

    def none():
        pass

    def one(a0):
        pass

    def eight(a0, a1, a2, a3, a4, a5, a6, a7):
        pass

    def thirty_two(
        a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15, a16, a17, a18, a19, a20, a21, a22, a23,
        a24, a25, a26, a27, a28, a29, a30, a31,
    ):  # fmt: skip
        pass

    by_count: dict[int, Callable[..., None]] = {0: none, 1: one, 8: eight, 32: thirty_two}
    return by_count[arguments]


class NumbaCuda(Launcher):
    name = "numba-cuda"
    description = "numba.cuda.jit, compiled before: kernel[1, 32, stream](...), addresses as integers"
    package = "numba.cuda"
    install_hint = (
        "pip install -U numba 'numba-cuda[cu13]' (cu12 beside a torch of CUDA 12): an older numba does not know "
        "a newer numpy"
    )

    def make(self, arguments: int, device: torch.device) -> Ready:
        from numba import cuda

        kernel = cuda.jit(_empty(arguments))
        launch = kernel[1, 32, cuda.external_stream(torch.cuda.current_stream().cuda_stream)]
        values = [2**40 + i for i in range(arguments)]  # of 64 bits, as a pointer is
        call = lambda: launch(*values)  # noqa: E731
        call()
        return FromPython(call, device)
