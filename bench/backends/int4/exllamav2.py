"""`exllamav2` and `exl2`: ExLlamaV2's kernels, gemm_half_q_half, on GPTQ weights and on its own format."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.int4.base import LibraryKernel


class Exllamav2Kernel(LibraryKernel):
    """fp16 alone; it adds up in half precision. Its extension compiles when it is first imported: minutes."""

    install_hint = "pip install exllamav2 (compiles with nvcc at first use)"
    package = "exllamav2"
    dtypes = (torch.float16,)
    out_multiple = 32
    half_sums = True
    fused_by = "its own model code, which keeps q, k, v, gate and up apart"
    no_dispatch = "its extension's function is no op of the dispatcher"
    unseen_call = "exllamav2_ext::gemm_half_q_half"

    @classmethod
    def library(cls) -> Any:
        """The module with make_q_matrix and the extension `ext_c`.

        The package is not run, only its modules below: it imports a tokeniser and more that no kernel needs.
        """
        if cls.package not in sys.modules and (spec := importlib.util.find_spec(cls.package)):
            sys.modules[cls.package] = importlib.util.module_from_spec(spec)
        return importlib.import_module("exllamav2.ext")

    def make(self, tensors: dict[str, Tensor], out_features: int) -> None:
        """Hand the tensors of a weight to the library. It shuffles the weight where it lies and keeps pointers: what is
        in `tensors` then, must live as long as the handle."""
        library, (first, *_) = self.library(), tensors.values()
        self._run, self._free = library.ext_c.gemm_half_q_half, library.ext_c.free_q_matrix
        self._tensors, self._out_features = tensors, out_features
        # Where it would write a dense weight, for more rows of x than are given here.
        self._dense = torch.empty(1, dtype=torch.float16, device=first.device)
        self._handle = library.make_q_matrix(tensors, self._dense)

    def run(self, x: Tensor) -> Tensor:
        out = torch.empty(x.shape[0], self._out_features, dtype=x.dtype, device=x.device)
        self._run(x, self._handle, out, False)
        return out

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            self._free(handle)


class Exllamav2(Exllamav2Kernel):
    """The 4-bit weight that all others get."""

    name = "exllamav2"
    description = "ExLlamaV2 on GPTQ weights"
    group_sizes = (32, 64, 128, 256, 512, 1024, -1)  # it takes the next power of two for whatever it is given
    in_multiple = 32

    @classmethod
    def refusal(cls, weight: pk.Int4Weight, batch: int) -> str | None:
        if weight.zeros is not None and bool((weight.zeros == 0).any()):
            return "takes no zero point of 0: it reads GPTQ v1, which stores one less in 4 bits"
        return super().refusal(weight, batch)

    def prepare(self, weight: pk.Int4Weight) -> Sequence[Tensor]:
        tensors = weight.to_gptq(version=1)
        del tensors["g_idx"]
        self.make(tensors, weight.out_features)
        return list(tensors.values())


class Exl2(Exllamav2Kernel):
    """Its own format, which the study measured: the dequantised weight rounded once more to a mix of 5 and 4 bits, 4.25
    in all with its scales and its order of the columns, and held against what that says.

    The library measures two sizes of its blocks on the first TUNING_CALLS calls of a shape and waits for each of them,
    which no capture allows: they are made on the first call, outside any timing.
    """

    name = "exl2"
    description = "ExLlamaV2 on EXL2 weights of 4.25 bits"
    GROUP_SIZE = 128
    in_multiple = GROUP_SIZE
    act_order = True  # it sees the dequantised weight alone
    rounds_weights = requantises = True
    BITS_A_WEIGHT = 4.25
    TUNING_CALLS = 201
    """200 that version 0.3.2 measures, and one that chooses."""

    _tuned: ClassVar[set[tuple[int, int, int]]] = set()
    """Batch, in_features and out_features: what the library tells calls apart by."""

    @classmethod
    def quantised(cls, weight: pk.Int4Weight) -> pk.quant.Exl2Weight:
        """The weight in EXL2."""
        mix = pk.quant.exl2.mix_of(cls.BITS_A_WEIGHT, weight.in_features, weight.out_features, cls.GROUP_SIZE)
        return pk.quant.Exl2Weight.quantize(weight.dequantize(torch.float32), mix, cls.GROUP_SIZE)

    def prepare(self, weight: pk.Int4Weight) -> Sequence[Tensor]:
        exl2 = self.quantised(weight)
        tensors = dict(vars(exl2))
        tensors["q_perm"] = torch.argsort(exl2.q_invperm).int()
        self.make(tensors, weight.out_features)
        read = ("q_weight", "q_scale", "q_scale_max", "q_group_map", "q_perm")
        return [tensors[name] for name in read]

    def run(self, x: Tensor) -> Tensor:
        shape = x.shape[0], x.shape[1], self._out_features
        if shape not in self._tuned:
            for _ in range(self.TUNING_CALLS):
                super().run(x)
            self._tuned.add(shape)
        return super().run(x)

    def multiplies_by(self, weight: pk.Int4Weight) -> Tensor:
        return self.quantised(weight).dequantize()
