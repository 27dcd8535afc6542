"""Stand-ins for the libraries that bench.launch launches by, on the fake GPU: each notes what it launched."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from inputs.fake_gpu import FakeGpu

HOST_US = 3


def _module(monkeypatch: pytest.MonkeyPatch, name: str, **names: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, child = name.rpartition(".")
    if parent and parent in sys.modules:
        monkeypatch.setattr(sys.modules[parent], child, module, raising=False)
    return module


class FakeLaunchers:
    """What was launched: (library, arguments), in order."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu, self.launched = gpu, []

    def launch(self, library: str, arguments: int) -> None:
        self.launched.append((library, arguments))
        self.gpu.launch(f"empty_{arguments}")


def install_launchers(monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu) -> FakeLaunchers:
    """Put them in the places of the libraries, and of our own empty launch."""
    fake = FakeLaunchers(gpu)

    class EmptyLaunch:
        def __init__(self, call, arguments, programmatic=False, cluster_blocks=1, device=0):
            self.name, self.arguments, self.function = call, arguments, 0xF00
            self.what = f"{call}{' pdl' if programmatic else ''}{' cluster' if cluster_blocks > 1 else ''}"

        def run(self, stream: int) -> None:
            assert stream == 0
            fake.launch(self.what, self.arguments)

    def cuda_timed_empty(launch, stream, warmup, steps, repeats, host):
        import numpy as np

        begin = gpu.now_us
        for _ in range((warmup + steps) * repeats):
            launch.run(stream)
        return np.full(steps, float(HOST_US if host else (gpu.now_us - begin) / ((warmup + steps) * repeats)))

    from pykernels import _runtime

    monkeypatch.setattr(_runtime, "EmptyLaunch", EmptyLaunch, raising=False)
    monkeypatch.setattr(_runtime, "cuda_timed_empty", cuda_timed_empty, raising=False)

    class RawKernel:
        def __init__(self, source: str, name: str) -> None:
            self.arguments = source.count("const void*")
            assert f"void {name}(" in source

        def __call__(self, grid, block, values) -> None:
            assert (grid, block, len(values)) == ((1,), (32,), self.arguments)
            fake.launch("cupy", self.arguments)

    stream = SimpleNamespace(ExternalStream=lambda handle: SimpleNamespace(use=lambda: None))
    _module(monkeypatch, "cupy", RawKernel=RawKernel, cuda=stream, __version__="14.0")

    class Jit:
        def __init__(self, function) -> None:
            self.arguments = function.__code__.co_argcount

        def __getitem__(self, launch):
            def call(*values) -> None:
                assert len(values) == self.arguments
                fake.launch("triton" if launch == (1,) else "numba", self.arguments)

            return call

    _module(monkeypatch, "triton", jit=Jit)
    _module(monkeypatch, "numba")
    _module(monkeypatch, "numba.cuda", jit=Jit, external_stream=lambda handle: handle)

    class Kernel:
        def __init__(self, source: str) -> None:
            self.arguments = source.count("const void*")

        def compile(self, kind: str) -> "Kernel":
            assert kind == "cubin"
            return self

        def get_kernel(self, name: str) -> "Kernel":
            assert name == f"empty_{self.arguments}"
            return self

    def launch(stream, config, kernel, *values) -> None:
        assert len(values) == kernel.arguments and config == {"grid": 1, "block": 32} and stream == (0, 0)
        fake.launch("cuda.core", kernel.arguments)

    class Device:
        def __init__(self, index: int) -> None:
            assert index == 0

        def set_current(self) -> None:
            pass

        def create_stream(self, borrowed) -> object:
            return borrowed.__cuda_stream__()

    _module(monkeypatch, "cuda")
    _module(
        monkeypatch, "cuda.core", Device=Device, Program=lambda source, code_type, options: Kernel(source),
        ProgramOptions=dict, LaunchConfig=dict, launch=launch,
    )  # fmt: skip

    def load_inline(name: str, cpp_sources: str, functions: str) -> SimpleNamespace:
        arguments = cpp_sources.count("TensorView a")
        assert functions == "launch" and name.endswith(f"_{arguments}")

        def call(address, kernel, stream, *tensors) -> None:
            assert kernel == 0xF00 and len(tensors) == arguments
            fake.launch("tvm_ffi", arguments)

        return SimpleNamespace(launch=call)

    _module(monkeypatch, "tvm_ffi")
    _module(monkeypatch, "tvm_ffi.cpp", load_inline=load_inline)

    class Driver:
        def cuLaunchKernel(self, function, *numbers) -> int:  # noqa: N802 the driver's name
            assert function.value == 0xF00
            fake.launch("ctypes", -1)
            return 0

    from bench.launch.launchers import bindings, tvm_ffi

    monkeypatch.setattr(bindings.ctypes, "CDLL", lambda path: Driver())
    monkeypatch.setattr(tvm_ffi.ctypes, "cast", lambda function, kind: SimpleNamespace(value=0xD00))
    return fake
