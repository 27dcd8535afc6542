"""NF4, 4-bit codes at the quantiles of a normal distribution (Dettmers et al., 2023, QLoRA): for comparison only.

    packed  uint8   [ceil(elements / 2)]    two codes a byte, the first in the high nibble, rows one after another
    absmax  float32 [ceil(elements / block_size)]

w = code's level * absmax of its block; blocks run over the rows without regard to their ends. No kernel here
reads it: it is what bitsandbytes stores, so that its accuracy and bytes can stand beside int4's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip
"""The sixteen levels, as the QLoRA paper's Appendix E lists them."""


@dataclass
class Nf4Weight:
    """A weight [out_features, in_features] in NF4."""

    packed: Tensor
    absmax: Tensor
    shape: tuple[int, int]
    block_size: int

    @classmethod
    def quantize(cls, weight: Tensor, block_size: int = 64) -> "Nf4Weight":
        """Scale each block by its largest magnitude and take the nearest level. A last short block is allowed."""
        if weight.dim() != 2 or 0 in weight.shape:
            raise ValueError(f"weight must be of shape [out_features, in_features], got {list(weight.shape)}")
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {block_size}")
        values = weight.float().flatten()
        blocks = torch.nn.functional.pad(values, (0, -values.numel() % block_size)).view(-1, block_size)
        absmax = blocks.abs().amax(1)
        scaled = blocks / absmax.masked_fill(absmax == 0, 1.0).unsqueeze(1)
        levels = LEVELS.to(weight.device)
        codes = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2).flatten()[: values.numel()].to(torch.uint8)
        codes = torch.nn.functional.pad(codes, (0, codes.numel() % 2), value=7)
        return cls(codes[0::2] << 4 | codes[1::2], absmax, (weight.shape[0], weight.shape[1]), block_size)

    def dequantize(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """[out_features, in_features]; computed in float64, rounded once to `dtype`."""
        count = self.shape[0] * self.shape[1]
        codes = torch.stack((self.packed >> 4, self.packed & 15), dim=1).flatten()[:count]
        absmax = self.absmax.double().repeat_interleave(self.block_size)[:count]
        return (LEVELS.to(codes.device).double()[codes.long()] * absmax).view(self.shape).to(dtype)

    @property
    def n_bytes(self) -> int:
        """Bytes of codes and block maxima."""
        return self.packed.numel() + 4 * self.absmax.numel()
