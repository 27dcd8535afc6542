"""A user's CUDA kernel (FILE.cu:kernel), compiled by NVRTC through CuPy. The only place that imports CuPy."""

import importlib
import os
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

import pykernels as pk
from bench.backends.int4.base import Int4Kernel
from bench.backends.op_plugin import AttentionPlugin, Guarded, OpPlugin, changed
from bench.backends.plain import LibraryLayer
from bench.core.errors import first_line
from bench.plugins.cuda_source import CudaSource

# Above this a kernel must be allowed its dynamic shared memory by name.
_DEFAULT_SHARED_BYTES = 48 << 10


def cuda_include_folder() -> Path | None:
    """Where cuda_bf16.h lies: in a wheel beside torch, or in a toolkit. NVRTC itself brings no headers."""
    wheels = Path(sysconfig.get_path("purelib"), "nvidia")
    toolkits = [os.environ.get(name) for name in ("CUDA_PATH", "CUDA_HOME")]
    found = [*sorted(wheels.glob("*/include")), *(Path(root, "include") for root in filter(None, toolkits)),
             Path("/usr/local/cuda/include")]  # fmt: skip
    return next((folder for folder in found if (folder / "cuda_bf16.h").exists()), None)


class Kernel:
    """The kernel compiled for its sizes, to be launched on torch's current stream.

    Raises what CuPy raises where it does not compile, SourceError where its launch shape fits no device.
    """

    # Torch's handle of CuPy's current stream, and CuPy's object, one for all kernels of the process. It is kept
    # because CuPy goes back to its null stream when the object is collected.
    _current: ClassVar[tuple[int, Any] | None] = None

    def __init__(self, source: CudaSource, sizes: Mapping[str, int], floats: Mapping[str, float]) -> None:
        self._cupy: Any = importlib.import_module("cupy")
        launch = source.launch(sizes)
        folder = cuda_include_folder()
        options = ("-std=c++17", *source.macros(sizes), *([f"-I{folder}"] if folder else []))
        self._kernel = self._cupy.RawModule(code=source.text, options=options).get_function(source.kernel)
        if launch.shared_bytes > _DEFAULT_SHARED_BYTES:
            self._kernel.max_dynamic_shared_size_bytes = launch.shared_bytes
        self._grid, self._block, self._shared_bytes = launch.grid, launch.block, launch.shared_bytes
        numbers: dict[str, Any] = {name: np.int32(value) for name, value in sizes.items()}
        numbers |= {name: np.float32(value) for name, value in floats.items()}
        # A tensor's address is filled in at each call: torch may hand out another address.
        self._arguments = [(name, numbers.get(name)) for name in source.parameters]

    def __call__(self, tensors: Mapping[str, Tensor | None]) -> None:
        """Enqueue one launch; `tensors` by the parameters' names, None for a null pointer."""
        stream = torch.cuda.current_stream()
        if Kernel._current is None or Kernel._current[0] != stream.cuda_stream:  # a capture has one of its own
            Kernel._current = (stream.cuda_stream, self._cupy.cuda.Stream.from_external(stream))
            Kernel._current[1].use()
        arguments = tuple(
            number if number is not None else 0 if (tensor := tensors[name]) is None else tensor.data_ptr()
            for name, number in self._arguments
        )
        self._kernel(self._grid, self._block, arguments, shared_mem=self._shared_bytes)


def no_cupy_reason() -> str | None:
    """Why CuPy cannot be used, in its own words; None where it can."""
    wanted = "needs CuPy 14 or later (pip install 'launchtax[plugins]')"
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        return f"{wanted}: {first_line(error)}"
    # Before, it could not take torch's stream by the CUDA stream protocol.
    return None if hasattr(cupy.cuda.Stream, "from_external") else f"{wanted}: found {cupy.__version__}"


def sizes_of(inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """The sizes of an op (cuda_source.OPS) by its inputs."""
    if "weight" in inputs:
        batch, n_in = inputs["x"].shape
        return {"batch": batch, "n_in": n_in, "n_out": inputs["weight"].shape[0]}
    batch, n_heads, head_dim = inputs["q"].shape
    _, n_kv_heads, max_len, _ = inputs["k_cache"].shape
    return {
        "batch": batch, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim, "max_len": max_len,
    }  # fmt: skip


class _FromSource:
    """What every kernel of a source has."""

    source: ClassVar[CudaSource]
    programmatic: Sequence[str] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if hasattr(cls, "source") and cls.source.pdl:
            cls.programmatic = (cls.source.kernel,)

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        return LibraryLayer.device_reason(device) or no_cupy_reason()


class _CudaOp(_FromSource, OpPlugin):
    """A kernel on its op's inputs. Compiled at the first call for those sizes, which no clock sees."""

    def __init__(self) -> None:
        self._compiled: Kernel | None = None

    @classmethod
    def inputs_reason(cls, inputs: Mapping[str, Tensor]) -> str | None:
        dtype = next(iter(inputs.values())).dtype
        if dtype != cls.source.dtype:
            wanted, got = (str(name).removeprefix("torch.") for name in (cls.source.dtype, dtype))
            return f"is a kernel for {wanted} by its launchtax line, got {got}"
        return cls.source.unmet(sizes_of(inputs))

    def run(self, inputs: Mapping[str, Tensor], out: Tensor) -> None:
        if self._compiled is None:
            sizes = sizes_of(inputs)
            floats = {"scale": sizes["head_dim"] ** -0.5} if "head_dim" in sizes else {}
            self._compiled = Kernel(self.source, sizes, floats)
        self._compiled({**inputs, "out": out})


class CudaGemv(_CudaOp):
    """A kernel of op gemv."""

    op = "gemv"


class CudaInt4Gemv(_FromSource, Int4Kernel):
    """A kernel of op int4_gemv, on launchtax's own layout. Compiled for a weight at its first call of a batch."""

    description = "a user's CUDA int4 kernel"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.dtypes = (cls.source.dtype,)
        cls.zeros, cls.act_order = ("zeros" in cls.source.parameters, "perm" in cls.source.parameters)
        # A validation gives exact cases the largest batch that is taken: one that `require` rules out is not.
        usual = {"n_in": 1024, "n_out": 128, "group_size": 128}
        taken = [batch for batch in range(1, 9) if not cls.source.unmet(usual | {"batch": batch})]
        cls.max_batch = max(taken, default=8)

    def __init__(self) -> None:
        self._compiled: dict[int, tuple[Kernel, Guarded]] = {}

    @staticmethod
    def _sizes(weight: pk.Int4Weight, batch: int) -> dict[str, int]:
        sizes = {"n_in": weight.in_features, "n_out": weight.out_features, "group_size": weight.group_size}
        return {"batch": batch, **sizes}

    @classmethod
    def refusal(cls, weight: pk.Int4Weight, batch: int) -> str | None:
        return super().refusal(weight, batch) or cls.source.unmet(cls._sizes(weight, batch))

    def prepare(self, weight: pk.Int4Weight) -> Sequence[Tensor]:
        self._weight = weight
        self._inputs = {name: getattr(weight, name) for name in ("packed", "scales", "zeros", "perm")}
        return [tensor for tensor in self._inputs.values() if tensor is not None]

    def run(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        if batch not in self._compiled:
            out = Guarded("out", (batch, self._weight.out_features), x.dtype, x.device)
            self._compiled[batch] = Kernel(self.source, self._sizes(self._weight, batch), {}), out
        kernel, out = self._compiled[batch]
        kernel({**self._inputs, "x": x, "out": out.tensor})
        return out.tensor

    def trespass(self, weight: pk.Int4Weight) -> str | None:
        found = [out.overrun() for _, out in self._compiled.values()]
        found += [
            changed(name, tensor.cpu(), getattr(weight, name).cpu())
            for name, tensor in self._inputs.items() if tensor is not None
        ]  # fmt: skip
        return next(filter(None, found), None)


class CudaAttention(_CudaOp, AttentionPlugin):
    """A kernel of op gqa_decode, also as a layer of plain torch ops with it as its attention."""

    description = "a user's CUDA attention kernel"

    @classmethod
    def layer_reason(cls, layer: pk.DecodeLayer) -> str | None:
        q = layer.k_cache.new_empty(layer.batch, layer.spec.n_heads, layer.spec.head_dim)
        return cls.inputs_reason({"q": q, "k_cache": layer.k_cache})

    def kernel_name(self, layer: pk.DecodeLayer) -> str:
        return f"{self.source.kernel} (CUDA, by NVRTC)"

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, kv_len: Tensor, out: Tensor) -> None:
        self.run({"q": q, "k_cache": k_cache, "v_cache": v_cache, "kv_len": kv_len}, out)


KERNELS: dict[str, type[_FromSource]] = {kernel.op: kernel for kernel in (CudaAttention, CudaGemv, CudaInt4Gemv)}
"""What runs a source, by its op."""
