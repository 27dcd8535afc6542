"""CuPy that is none: it takes what the real one takes, and computes what the kernel would, on its pointers' memory.

So the arguments that are marshalled, their order and their types meet the reference on a machine without a GPU.
"""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

import pykernels as pk
from bench.plugins.cuda_source import CudaSource


def tensor_at(pointer: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor that lies at an address."""
    count = torch.Size(shape).numel()
    return torch.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(pointer), dtype=dtype).view(shape)


class CompileError(Exception):
    """What a source with `#error` in it ends with."""


class FakeKernel:
    """A kernel of an op of cuda_source.OPS; `launches` are (grid, block, shared_mem, stream)."""

    def __init__(self, cupy: "FakeCupy", source: CudaSource, options: tuple[str, ...]) -> None:
        self.cupy, self.source, self.launches = cupy, source, []
        self.macros = dict(option[2:].split("=") for option in options if option.startswith("-D"))
        self.max_dynamic_shared_size_bytes = 48 << 10
        self.dense: Tensor | None = None

    def __call__(self, grid: tuple, block: tuple, args: tuple, *, shared_mem: int = 0) -> None:
        assert isinstance(grid, tuple) and isinstance(block, tuple) and isinstance(args, tuple)
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        self.launches.append((grid, block, shared_mem, self.cupy.stream))
        given = dict(zip(self.source.parameters, args, strict=True))
        for name, value in given.items():
            kind = np.float32 if name == "scale" else np.int32 if f"-D{name.upper()}" in self.declared else int
            assert type(value) is kind, f"{name} is a {type(value).__name__}"
        sizes = {name.lower(): int(value) for name, value in self.macros.items()}
        for name in sizes.keys() & given.keys():
            assert given[name] == sizes[name], f"{name} is {given[name]}, its macro {sizes[name]}"
        compute = {"gemv": self._gemv, "int4_gemv": self._int4_gemv, "gqa_decode": self._attention}[self.source.op]
        compute(given, SimpleNamespace(**sizes))

    @property
    def declared(self) -> set[str]:
        return {f"-D{name}" for name in self.macros}

    def _attention(self, given: dict, n: SimpleNamespace) -> None:
        dtype, cache = self.source.dtype, (n.batch, n.n_kv_heads, n.max_len, n.head_dim)
        q, out = (tensor_at(given[name], (n.batch, n.n_heads, n.head_dim), dtype) for name in ("q", "out"))
        keys, values = (tensor_at(given[name], cache, dtype) for name in ("k_cache", "v_cache"))
        lengths = tensor_at(given["kv_len"], (n.batch,), torch.int32).tolist()
        for b, length in enumerate(lengths):
            k, v = (t[b, :, :length].double().repeat_interleave(n.group, 0) for t in (keys, values))
            scores = torch.einsum("hd,hld->hl", q[b].double(), k) * float(given["scale"])
            out[b] = torch.einsum("hl,hld->hd", scores.softmax(-1), v).to(dtype)

    def _gemv(self, given: dict, n: SimpleNamespace) -> None:
        x, weight, out = (
            tensor_at(given[name], shape, self.source.dtype)
            for name, shape in (("x", (n.batch, n.n_in)), ("weight", (n.n_out, n.n_in)), ("out", (n.batch, n.n_out)))
        )
        out.copy_(x.double() @ weight.double().T)

    def _int4_gemv(self, given: dict, n: SimpleNamespace) -> None:
        def at(name: str, dtype: torch.dtype, *shape: int) -> Tensor | None:
            return tensor_at(given[name], shape, dtype) if given.get(name) else None  # null, or not declared

        dtype = self.source.dtype
        weight = pk.Int4Weight(
            at("packed", torch.uint8, n.n_out, n.n_in // 2), at("scales", dtype, n.n_out, n.n_groups),
            at("zeros", torch.uint8, n.n_out, n.n_groups), at("perm", torch.int32, n.n_in),
        )  # fmt: skip
        if self.dense is None:  # the kernel of one weight
            self.dense = weight.dequantize()
        at("out", dtype, n.batch, n.n_out).copy_(pk.reference.gemv(at("x", dtype, n.batch, n.n_in), self.dense))
        self.cupy.afterwards(given)


class FakeCupy:
    """The module: RawModule and cuda.Stream.from_external. `kernels` are those that were compiled."""

    def __init__(self) -> None:
        self.kernels: list[FakeKernel] = []
        self.afterwards: Callable[[dict], object] = lambda given: None  # what else an int4_gemv does, by its arguments
        self.stream: int | None = None
        cupy = self

        class Stream:
            """Current until another one is, or until it is collected."""

            def __init__(self, ptr: int) -> None:
                self.ptr = ptr

            @classmethod
            def from_external(cls, stream: object) -> "Stream":
                return cls(stream.cuda_stream)

            def use(self) -> None:
                cupy.stream = self.ptr

            def __del__(self) -> None:
                if cupy.stream == self.ptr:
                    cupy.stream = None

        self.cuda = SimpleNamespace(Stream=Stream)

    def RawModule(self, *, code: str, options: tuple[str, ...] = ()) -> SimpleNamespace:  # noqa: N802
        """Compiled when a kernel is requested, as by the real one."""

        def get_function(name: str) -> FakeKernel:
            if "#error" in code:
                raise CompileError("/tmp/x.cu(3): error: #error directive\n1 error detected")
            self.kernels.append(FakeKernel(self, CudaSource.parse(code, name), options))
            return self.kernels[-1]

        return SimpleNamespace(get_function=get_function)
