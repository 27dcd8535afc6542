"""`gemlite`: GemLite's Triton kernels, through its GemLiteLinear."""

from collections.abc import Sequence

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.int4.base import LibraryKernel, with_rounded_zeros


class Gemlite(LibraryKernel):
    """Tunes itself on the first call of a shape, when it is checked: outside the timing.

    Symmetric weights get the one zero point 8; others -zero * scale in the activations' dtype, its fast form. Blocks of
    16 to 128 columns add their sums to the result by atomic adds in the activations' dtype, bf16 too from compute
    capability 9.0 on (its default).
    """

    name = "gemlite"
    description = "GemLite (Triton)"
    install_hint = "pip install gemlite (needs triton 3.6 or newer)"
    package = "gemlite"
    in_multiple, out_multiple = 32, 32
    half_sums = True
    fused_by = "GemLite's patch_model, which replaces one nn.Linear after another"
    no_dispatch = "its Triton kernels are launched from Python"
    rounds_weights = True

    def prepare(self, weight: pk.Int4Weight) -> Sequence[Tensor]:
        library, plain = self.library(), weight.plain()
        dtype = library.DType.BF16 if weight.dtype == torch.bfloat16 else library.DType.FP16
        linear = library.GemLiteLinear(
            4, group_size=weight.group_size, in_features=weight.in_features, out_features=weight.out_features,
            input_dtype=dtype, output_dtype=dtype,
        )  # fmt: skip
        zeros = 8 if weight.zeros is None else weight.zeros.to(weight.dtype)
        linear.pack(plain.q, weight.scales, zeros, None)
        self._linear = linear
        return [linear.W_q, linear.scales, linear.zeros]

    def run(self, x: Tensor) -> Tensor:
        return self._linear(x)

    def multiplies_by(self, weight: pk.Int4Weight) -> Tensor:
        # A scale a row: it keeps whole zero points beside it.
        return weight.dequantize() if weight.n_groups == 1 else with_rounded_zeros(weight, 0)
