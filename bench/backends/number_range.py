"""Of what size numbers may be that are compared in a dtype."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# What lies between the root mean square of a tensor and its small numbers that still count, and its largest.
_BELOW, _ABOVE = 2.0**2, 2.0**4
# Of an exponent of 8 bits, as much as leaves squares and products in float32.
_WIDEST = 2.0**50


def power_of_two(number: float) -> float:
    """The nearest to a positive number; 1 where it is none, as where weights are not finite and no arm can be right."""
    return 2.0 ** round(math.log2(number)) if 0 < number < math.inf else 1.0


def rms(tensor: Tensor) -> float:
    """Root mean square of all numbers."""
    return float(tensor.double().pow(2).mean().sqrt())


@dataclass(frozen=True)
class NumberRange:
    """Root mean squares from `low` to `high`: what counts of such a tensor are normal numbers of the dtype."""

    low: float
    high: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> "NumberRange":
        """2**-12 to 2**12 in float16, 2**-50 to 2**50 in the others."""
        info = torch.finfo(dtype)
        return cls(max(info.smallest_normal * _BELOW, 1 / _WIDEST), min((info.max + 32) / _ABOVE, _WIDEST))

    def scale(self, sizes: Iterable[float], wanted: float = 1.0) -> float:
        """The power of two nearest to `wanted` that brings all sizes into the range; where they are too far apart for
        that, the one that leaves as much out below as above."""
        sizes = [size for size in sizes if 0 < size < math.inf]
        if sizes:
            low, high = self.low / min(sizes), self.high / max(sizes)
            wanted = min(max(wanted, low), high) if low <= high else math.sqrt(low * high)
        return power_of_two(wanted)
