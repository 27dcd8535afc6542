"""From Python into C or C++: pybind11, and ctypes on the driver."""

import ctypes
from pathlib import Path

import torch

import pykernels as pk
from bench.launch.launchers.base import FromPython, Launcher, Ready, current_stream, held, null_program, pointers
from pykernels import _runtime
from pykernels.relaunch import DRIVER

_THREADS = 32


class Pybind(Launcher):
    name = "pybind11"
    description = "one pybind11 call that launches with everything bound (on a CPU: our null op)"
    devices = ("cuda", "cpu")

    def make(self, arguments: int, device: torch.device) -> Ready:
        if device.type == "cpu":
            (launch,) = null_program(device).launchers(0)
            return FromPython(launch, device)
        empty, stream = _runtime.EmptyLaunch("cudaLaunchKernel", arguments, device=device.index or 0), current_stream()
        call = empty.run
        call(stream)
        return FromPython(lambda: call(stream), device)


class Ctypes(Launcher):
    name = "ctypes"
    description = "ctypes on the driver's cuLaunchKernel (on a CPU: on a C function that launches our null op)"
    devices = ("cuda", "cpu")

    def make(self, arguments: int, device: torch.device) -> Ready:
        if device.type == "cpu":
            function = ctypes.CDLL(str(Path(pk.__file__).with_name("libpykernels.so"))).pykernels_null_launch
            return FromPython(lambda: function(-1, None), device)
        launch = _runtime.EmptyLaunch("cudaLaunchKernel", arguments, device=device.index or 0)
        stream, call = ctypes.c_void_p(current_stream()), ctypes.CDLL(DRIVER).cuLaunchKernel
        address = ctypes.c_void_p(launch.function)
        tensors = pointers(arguments, device)
        values = (ctypes.c_void_p * max(arguments, 1))(*(tensor.data_ptr() for tensor in tensors))
        size = ctypes.sizeof(ctypes.c_void_p)
        params = (ctypes.c_void_p * max(arguments, 1))(
            *(ctypes.addressof(values) + i * size for i in range(max(arguments, 1)))
        )

        def run() -> None:
            if status := call(address, 1, 1, 1, _THREADS, 1, 1, 0, stream, params, None):
                raise RuntimeError(f"cuLaunchKernel failed: CUresult {status}")

        held(run, launch, tensors, values)  # what the addresses are of
        run()
        return FromPython(run, device)
