"""`exllamav2`: ExLlamaV2's kernel on a GPTQ weight, gemm_half_q_half of its extension."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.int4.base import LibraryKernel


class Exllamav2(LibraryKernel):
    """fp16 alone; it adds up in half precision. Its extension compiles when it is first imported: minutes.

    The study measured it on an EXL2 file of mixed bits; here it gets the 4-bit weight that all others get.
    """

    name = "exllamav2"
    description = "ExLlamaV2 on GPTQ weights"
    install_hint = "pip install exllamav2 (compiles with nvcc at first use)"
    package = "exllamav2"
    dtypes = (torch.float16,)
    group_sizes = (32, 64, 128, 256, 512, 1024, -1)  # it takes the next power of two for whatever it is given
    in_multiple, out_multiple = 32, 32
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

    @classmethod
    def refusal(cls, weight: pk.Int4Weight, batch: int) -> str | None:
        if weight.zeros is not None and bool((weight.zeros == 0).any()):
            return "takes no zero point of 0: it reads GPTQ v1, which stores one less in 4 bits"
        return super().refusal(weight, batch)

    def prepare(self, weight: pk.Int4Weight) -> Sequence[Tensor]:
        library, tensors = self.library(), weight.to_gptq(version=1)
        del tensors["g_idx"]
        self._run, self._out_features = library.ext_c.gemm_half_q_half, weight.out_features
        # It shuffles qweight where it lies and keeps pointers: the tensors must live as long as the handle.
        self._tensors = tensors
        self._free = library.ext_c.free_q_matrix
        # Where it would write a dense weight, for more rows of x than are given here.
        self._dense = torch.empty(1, dtype=torch.float16, device=weight.packed.device)
        self._handle = library.make_q_matrix(tensors, self._dense)
        return list(tensors.values())

    def run(self, x: Tensor) -> Tensor:
        out = torch.empty(x.shape[0], self._out_features, dtype=x.dtype, device=x.device)
        self._run(x, self._handle, out, False)
        return out

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            self._free(handle)
