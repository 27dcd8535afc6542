"""What a 4-bit kernel is to `bench.int4`: our own, a library's, or an author's in a file of their own."""

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

import pykernels as pk
from bench.core.cli import DTYPE_FLAGS
from bench.core.library import library_reason

QKV, GATE_UP = "qkv", "gate+up"


def sizes(allowed: Sequence[int]) -> str:
    """`32, 64 or the whole row`"""
    words = ["the whole row" if size == -1 else str(size) for size in sorted(allowed, key=lambda size: size % 2**31)]
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


class Int4Kernel(ABC):
    """``x @ weight.T`` with a 4-bit weight. An instance holds one weight: `prepare` once, untimed, then `run`.

    The class attributes say what it takes; `refusal` holds a weight against them. Group size -1 is the whole row.
    """

    op: ClassVar[str] = "int4_gemv"
    name: ClassVar[str]
    description: ClassVar[str]
    install_hint: ClassVar[str | None] = None

    devices: ClassVar[Sequence[str]] = ("cpu", "cuda")
    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.bfloat16, torch.float16)
    group_sizes: ClassVar[Sequence[int] | None] = None
    """None: whatever pk.Int4Weight takes."""
    in_multiple: ClassVar[int] = 1
    out_multiple: ClassVar[int] = 1
    max_batch: ClassVar[int] = 8
    alignment: ClassVar[int] = 16
    """Bytes that the address of x must be a multiple of; a power of two, 256 at most. A validation gives it no more."""
    zeros: ClassVar[bool] = True
    """Takes weights with zero points of their own."""
    act_order: ClassVar[bool] = False
    """Takes weights whose columns are sorted by group (`perm`)."""

    fuses: ClassVar[Sequence[str]] = ()
    """Which projections of one input its own users concatenate to one weight: of QKV and GATE_UP."""
    fused_by: ClassVar[str] = ""
    """Whose model code does, or does not."""
    requantises: ClassVar[bool] = False
    """Rounds the weight once more, to a format of its own: it is held against that."""
    no_dispatch: ClassVar[str | None] = None
    """Why a call of it cannot go on a tape (mode dispatch); None where it is an op of the dispatcher."""
    unseen_call: ClassVar[str | None] = None
    """What it calls, where that is no op of the dispatcher, which would tell."""

    programmatic: Sequence[str] = ()
    """Parts of the names of its kernels that mode native launches with programmatic stream serialization (PDL)."""

    half_sums: ClassVar[bool] = False
    """Adds up in half precision, by its own account: the gate then allows HALF_SUMS_DEPTH times the roundings."""
    rounds_weights: ClassVar[bool] = False
    """Does not multiply by (q - zero) * scale rounded once, by its own account: its layout rounds zero * scale, say."""

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        """None where it can run on this device, else the reason why not."""
        return None if device.type in cls.devices else f"runs on {' or '.join(cls.devices)} only"

    @classmethod
    def dtypes_on(cls, device: torch.device) -> Sequence[torch.dtype]:
        """The activations that it takes on that device: `dtypes`, unless a device takes fewer."""
        return cls.dtypes

    @classmethod
    def refusal(cls, weight: pk.Int4Weight, batch: int) -> str | None:
        """None where it takes this weight and batch, else the reason why not, one line."""
        dtypes = cls.dtypes_on(weight.packed.device)
        if weight.dtype not in dtypes:
            taken = " or ".join(DTYPE_FLAGS[dtype] for dtype in dtypes)
            return f"takes {taken} activations, not {DTYPE_FLAGS[weight.dtype]}"
        found = {weight.group_size, *([-1] if weight.n_groups == 1 else [])}
        if cls.group_sizes is not None and not found & set(cls.group_sizes):
            return f"takes groups of {sizes(cls.group_sizes)}, not {weight.group_size}"
        for what, size, multiple in (
            ("in_features", weight.in_features, cls.in_multiple),
            ("out_features", weight.out_features, cls.out_multiple),
        ):
            if size % multiple:
                return f"takes {what} that are a multiple of {multiple}, not {size}"
        if weight.zeros is not None and not cls.zeros:
            return "takes no zero points"
        if weight.perm is not None and not cls.act_order:
            return "takes no act-order"
        if batch > cls.max_batch:
            return f"takes a batch of at most {cls.max_batch}, not {batch}"
        return None

    @abstractmethod
    def prepare(self, weight: pk.Int4Weight) -> Sequence[Tensor]:
        """Convert `weight` to a layout of its own, on the weight's device, and keep it.

        Returns the tensors that one `run` reads of it: their bytes are what its bandwidth is counted by.
        """

    @abstractmethod
    def run(self, x: Tensor) -> Tensor:
        """x [batch, in_features] of the scales' dtype -> [batch, out_features], enqueued on torch's current stream."""

    def trespass(self, weight: pk.Int4Weight) -> str | None:
        """Where `run` has written what is not its result, in words; None where it has not, or where nobody can tell.

        weight: what was prepared, as it was then.
        """
        return None

    def multiplies_by(self, weight: pk.Int4Weight) -> Tensor:
        """float64 [out_features, in_features]: what the layout of that weight says, which `run` is held against.

        A layout that cannot say what the weight does (zero * scale rounded, say) overrides this: its loss is then
        reported as the layout's, apart from the kernel's error.
        """
        return weight.dequantize()


def with_rounded_zeros(weight: pk.Int4Weight, base: int) -> Tensor:
    """What (q - base) * scale + zero multiplies by, zero being (base - zero point) * scale in the scales' dtype."""
    if weight.zeros is None:
        return weight.dequantize()
    plain = weight.plain()
    scales = plain.scales.double()
    assert plain.zeros is not None
    zeros = ((base - plain.zeros.double()) * scales).to(plain.scales.dtype).double()
    scales, zeros = (part.repeat_interleave(plain.group_size, dim=1) for part in (scales, zeros))
    return (plain.q.double() - base) * scales + zeros


HALF_SUMS_DEPTH = 16
"""How many times the gate's roundings a kernel may err by that says it adds up in half precision."""


def gate_depth(kernel: type[Int4Kernel]) -> int:
    """The `depth` of pykernels.reference.compare for that kernel."""
    return HALF_SUMS_DEPTH if kernel.half_sums else 1


class LibraryKernel(Int4Kernel):
    """A kernel of a library for CUDA, imported only where it is named."""

    devices: ClassVar[Sequence[str]] = ("cuda",)
    package: ClassVar[str]
    least_capability: ClassVar[tuple[int, int]] = (8, 0)

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        reasons = [super().availability(device)]
        if reasons == [None]:
            capability = torch.cuda.get_device_capability(device)
            if capability < cls.least_capability:
                least, found = (".".join(map(str, version)) for version in (cls.least_capability, capability))
                reasons.append(f"needs compute capability {least}, and the GPU's is {found}")
        return "; ".join(filter(None, (*reasons, cls.library_reason()))) or None

    @classmethod
    def library_reason(cls) -> str | None:
        """Why there is no library, in its own words; None where there is."""
        return library_reason(cls.package, cls.library)

    @classmethod
    def library(cls) -> ModuleType | Any:
        """The library's module. Raises what importing it raises."""
        return importlib.import_module(cls.package)


class VllmKernel(LibraryKernel):
    """A kernel of vLLM's, by its registered op: from the package, or from a library that a variable names."""

    package = "vllm"
    fuses = (QKV, GATE_UP)
    fused_by = "vLLM's QKVParallelLinear and MergedColumnParallelLinear"
    install_hint = "pip install vllm, or PYKERNELS_VLLM_LIB=_C_stable_libtorch.abi3.so of a wheel for this torch"
    library_variable: ClassVar[str] = "PYKERNELS_VLLM_LIB"
    ops: ClassVar[Sequence[str]]
    """The ops of torch.ops._C that it calls."""

    @classmethod
    def library(cls) -> Any:
        """torch.ops._C. Raises ImportError where an op is missing from it."""
        if path := os.environ.get(cls.library_variable):
            torch.ops.load_library(path)
        else:
            importlib.import_module("vllm._custom_ops")
        missing = [name for name in cls.ops if not hasattr(torch.ops._C, name)]
        if missing:
            raise ImportError(f"its library has no op {', '.join(missing)}")
        return torch.ops._C
