"""C++ loops over the runtime's and the driver's calls, and over our own launcher of the null op."""

from functools import partial
from typing import ClassVar

import numpy as np
import torch

import pykernels as pk
from bench.launch.launchers.base import FromCpp, Launcher, Ready, current_stream, null_program
from pykernels import _runtime


class _NullLoop(Ready):
    """The timed loop of a CPU."""

    def __init__(self, program: pk.runtime.Program) -> None:
        self._program = program

    def host(self, n: int) -> np.ndarray:
        return pk.runtime.timed_loop([self._program], 1, n)

    def back_to_back(self, samples: int, launches: int) -> np.ndarray:
        return pk.runtime.timed_loop([self._program], 1, samples, launches)

    def enqueue(self, n: int) -> None:
        for _ in range(n):
            self._program.run()


class NativeLoop(Launcher):
    """What mode native is made of."""

    name = "native-loop"
    description = "C++ loop over launchtax's launcher of the null op (cudaLaunchKernelEx, checked)"
    devices = ("cuda", "cpu")
    arguments = (1,)

    def make(self, arguments: int, device: torch.device) -> Ready:
        program = null_program(device)
        if device.type == "cpu":
            return _NullLoop(program)
        stream = current_stream()

        def timed(warmup: int, samples: int, repeats: int, host: bool) -> np.ndarray:
            if host:
                return pk.runtime.cuda_host_loop([program], stream, warmup, samples)
            return pk.runtime.cuda_timed_loop([program], stream, warmup, samples, repeats)

        return FromCpp(timed, partial(program.run, stream))


class _EmptyLoop(Launcher):
    """One CUDA call on an empty kernel."""

    call: ClassVar[str]
    programmatic: ClassVar[bool] = False
    cluster_blocks: ClassVar[int] = 1

    @classmethod
    def reason(cls, device: torch.device) -> str | None:
        if why := super().reason(device):
            return why
        if (cls.programmatic or cls.cluster_blocks > 1) and torch.cuda.get_device_capability(device) < (9, 0):
            return "needs compute capability 9.0"
        return None

    def make(self, arguments: int, device: torch.device) -> Ready:
        launch = _runtime.EmptyLaunch(self.call, arguments, self.programmatic, self.cluster_blocks, device.index or 0)
        stream = current_stream()
        launch.run(stream)
        return FromCpp(
            lambda warmup, samples, repeats, host: _runtime.cuda_timed_empty(
                launch, stream, warmup, samples, repeats, host
            ),
            partial(launch.run, stream),
        )


class RuntimeLaunch(_EmptyLoop):
    name = call = "cudaLaunchKernel"
    description = "C++ loop over the runtime's call, the one of <<<>>>"


class RuntimeLaunchEx(_EmptyLoop):
    name = call = "cudaLaunchKernelEx"
    description = "C++ loop over the runtime's call that takes attributes"


class DriverLaunch(_EmptyLoop):
    name = call = "cuLaunchKernelEx"
    description = "C++ loop over the driver's call"


class ProgrammaticLaunch(_EmptyLoop):
    name, call, programmatic = "cuLaunchKernelEx-pdl", "cuLaunchKernelEx", True
    description = "the same with programmatic stream serialization"


class ClusterLaunch(_EmptyLoop):
    name, call, cluster_blocks = "cuLaunchKernelEx-cluster", "cuLaunchKernelEx", 2
    description = "the same of a cluster of two blocks"


class RuntimeProgrammaticLaunch(_EmptyLoop):
    name, call, programmatic = "cudaLaunchKernelEx-pdl", "cudaLaunchKernelEx", True
    description = "the runtime's call with programmatic stream serialization"
