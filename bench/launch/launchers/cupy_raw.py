"""CuPy's RawKernel."""

import torch

from bench.launch.launchers.base import FromPython, Launcher, Ready, held, pointers


def empty_source(name: str, arguments: int) -> str:
    """An empty kernel of so many pointers in CUDA C++."""
    parameters = ", ".join(f"const void* a{i}" for i in range(arguments))
    return f'extern "C" __global__ void {name}({parameters}) {{}}'


class CupyRaw(Launcher):
    name = "cupy"
    description = "cupy.RawKernel on torch's stream, addresses as integers"
    package = "cupy"
    install_hint = "pip install 'launchtax[plugins]'"

    def make(self, arguments: int, device: torch.device) -> Ready:
        import cupy

        kernel = cupy.RawKernel(empty_source(f"empty_{arguments}", arguments), f"empty_{arguments}")
        tensors = pointers(arguments, device)
        values = tuple(tensor.data_ptr() for tensor in tensors)
        stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)
        stream.use()

        def call() -> None:
            kernel((1,), (32,), values)

        held(call, tensors, stream)
        call()
        return FromPython(call, device)
