"""Through torch: its dispatcher from Python and from C++, an op written in Python, compiled code."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import pykernels as pk
from bench.backends.compile import compiler_reason
from bench.core.measure import Rotation
from bench.core.samplers import Samplers
from bench.launch.launchers.base import FromCpp, FromPython, Launcher, Ready, current_stream, null_program, pointers
from pykernels import _runtime


class Dispatcher(Launcher):
    name = "torch-op"
    description = "torch.ops of a C++ op of the stable ABI, one tensor: our null op"
    devices = ("cuda", "cpu")
    arguments = (1,)

    def make(self, arguments: int, device: torch.device) -> Ready:
        op, (x,) = torch.ops.pykernels.null.default, pointers(1, device)
        op(x)
        return FromPython(lambda: op(x), device)


class DispatcherLoop(Launcher):
    name = "torch-op-loop"
    description = "C++ loop through torch's dispatcher by the stable ABI: mode dispatch"
    devices = ("cuda", "cpu")
    arguments = (1,)

    def make(self, arguments: int, device: torch.device) -> Ready:
        (x,) = pointers(1, device)
        tape = pk.dispatch.Tape.record(lambda: pk.ops.null(x))

        def timed(warmup: int, samples: int, repeats: int, host: bool) -> np.ndarray:
            tapes = Samplers(Rotation(1), repeats, device)
            sampler = tapes.host_tapes([tape]) if host and device.type == "cuda" else tapes.tapes([tape])
            if warmup:
                sampler(warmup)
            return sampler(samples)

        return FromCpp(timed, tape.run)


def _launch_of(arguments: int, device: torch.device) -> Callable[[], object]:
    """What an op of Python's launches: the empty kernel of so many arguments by pybind11; on a CPU our null op."""
    if device.type == "cpu":
        (launch,) = null_program(device).launchers(0)
        return launch
    empty, stream = _runtime.EmptyLaunch("cudaLaunchKernel", arguments, device=device.index or 0), current_stream()
    return lambda: empty.run(stream)


class CustomOp(Launcher):
    name = "torch-custom-op"
    description = "torch.library.custom_op in Python around the pybind11 launch, its arguments tensors"
    devices = ("cuda", "cpu")
    arguments = (1, 8, 32)

    def make(self, arguments: int, device: torch.device) -> Ready:
        launch, tensors = _launch_of(arguments, device), pointers(arguments, device)

        def body(*_: Tensor) -> None:
            launch()

        schema = f"({', '.join(f'Tensor a{i}' for i in range(arguments))}) -> ()"
        op = torch.library.custom_op(
            f"launchtax::empty_{arguments}_{device.type}", body, mutates_args=(), schema=schema
        )
        call = lambda: op(*tensors)  # noqa: E731
        call()
        return FromPython(call, device)


class Compiled(Launcher):
    name = "torch-compile"
    description = "a torch.compile'd function of one kernel, x += 1 on one element: inductor's launcher"
    devices = ("cuda", "cpu")
    arguments = (1,)

    @classmethod
    def reason(cls, device: torch.device) -> str | None:
        return compiler_reason(device)

    def make(self, arguments: int, device: torch.device) -> Ready:
        (x,) = pointers(1, device)

        def add(x: Tensor) -> Tensor:
            return x.add_(1.0)

        compiled = torch.compile(add, dynamic=False, fullgraph=True)
        compiled(x)
        return FromPython(lambda: compiled(x), device)
