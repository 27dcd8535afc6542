"""cuda-python's cuda.core."""

import importlib
from typing import Any

import torch

from bench.core.errors import first_line
from bench.launch.launchers.base import FromPython, Launcher, Ready, held, pointers
from bench.launch.launchers.cupy_raw import empty_source


class CudaCore(Launcher):
    name = "cuda.core"
    description = "cuda.core.launch of cuda-python, addresses as integers"
    package = "cuda.core"
    install_hint = "pip install 'cuda-core[cu13]' (cu12 beside a torch of CUDA 12)"

    @classmethod
    def library(cls) -> Any:
        try:
            core = importlib.import_module("cuda.core")
            if hasattr(core, "launch"):
                return core
        except ImportError as error:
            missing = first_line(error)
        else:
            missing = "cuda.core has no launch"
        try:
            return importlib.import_module("cuda.core.experimental")  # where it lay before its version 0.5
        except ImportError:
            raise ImportError(missing) from None

    def make(self, arguments: int, device: torch.device) -> Ready:
        core = self.library()
        major, minor = torch.cuda.get_device_capability(device)
        ours = core.Device(device.index or 0)
        ours.set_current()
        name = f"empty_{arguments}"
        options = core.ProgramOptions(std="c++17", arch=f"sm_{major}{minor}")
        program = core.Program(empty_source(name, arguments), code_type="c++", options=options)
        kernel = program.compile("cubin").get_kernel(name)
        stream = ours.create_stream(_Borrowed(torch.cuda.current_stream().cuda_stream))
        config = core.LaunchConfig(grid=1, block=32)
        tensors = pointers(arguments, device)
        values, launch = [tensor.data_ptr() for tensor in tensors], core.launch

        def call() -> None:
            launch(stream, config, kernel, *values)

        held(call, tensors)
        call()
        return FromPython(call, device)


class _Borrowed:
    """A stream of somebody else's by the CUDA stream protocol."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle
