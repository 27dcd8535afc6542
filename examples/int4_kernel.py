"""An author's own 4-bit kernel, as bench.int4 takes it: copy this file and put your kernel into `prepare` and `run`.

    python -m bench.int4 --validate --kernel=examples/int4_kernel.py:TransposedNibbles
    python -m bench.int4 --kernel=native,examples/int4_kernel.py:TransposedNibbles --model=tiny --group=64

The kernel here is a few torch ops, so that it runs anywhere. Yours would be a call of your extension (by
torch.utils.cpp_extension, ctypes, CuPy, Triton, ...) on torch's current stream.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.int4 import Int4Kernel


class TransposedNibbles(Int4Kernel):
    """Two weights a byte along in_features, in_features first: uint8 [in_features / 2, out_features]."""

    # What it takes. A weight that does not fit is refused by these, and not tried.
    dtypes = (torch.bfloat16, torch.float16)
    group_sizes = (32, 64, 128)
    in_multiple, out_multiple = 2, 1
    zeros = True
    act_order = False

    def prepare(self, weight: pk.Int4Weight) -> Sequence[Tensor]:
        plain = weight.plain()  # q uint8 [out, in], scales [out, groups], zeros uint8 [out, groups] or None
        q = plain.q.T
        self._packed = (q[0::2] | q[1::2] << 4).contiguous()
        self._scales = plain.scales.T.contiguous()
        self._zeros = plain.explicit_zeros().T.contiguous()
        return [self._packed, self._scales, self._zeros]

    def run(self, x: Tensor) -> Tensor:
        q = torch.stack((self._packed & 15, self._packed >> 4), dim=1).flatten(0, 1)
        groups = q.unflatten(0, (self._scales.shape[0], -1)).float() - self._zeros.float().unsqueeze(1)
        weight = (groups * self._scales.float().unsqueeze(1)).flatten(0, 1)
        return (x.float() @ weight).to(x.dtype)
