"""RoPE's frequencies (Su et al., 2021), the ways in which models scale them for long contexts, and their table."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearRopeScaling:
    """Every frequency divided by `factor` (Chen et al., 2023)."""

    factor: float


@dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama 3.1's frequency scaling: long wavelengths are slowed by `factor`, short ones kept, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True)
class YarnRopeScaling:
    """YaRN (Peng et al., 2023): pairs that rotate more than `beta_fast` times over the original context keep their
    frequency, those below `beta_slow` are slowed by `factor`, a ramp over the pairs between. Cosines and sines are
    times `attention_factor`. truncate: the ramp begins and ends at whole pairs."""

    factor: float
    beta_fast: float
    beta_slow: float
    original_max_position: int
    attention_factor: float
    truncate: bool


@dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE (Ding et al., 2024): a divisor for each pair, `long_factors` where the table is longer than the
    original context, else `short_factors`. Cosines and sines are times `attention_factor`."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_position: int
    attention_factor: float


RopeScaling = LinearRopeScaling | Llama3RopeScaling | YarnRopeScaling | LongRopeScaling


def frequencies(theta: float, dims: int, scaling: RopeScaling | None = None, length: int = 1) -> Tensor:
    """Angle per position of each pair of `dims` rotated dimensions, for a table of `length` positions: float64
    [dims / 2].

    theta^(-2i / dims). With Llama 3.1's scaling a frequency of wavelength above original / low is divided by the
    factor, one below original / high is kept, and between them the two are blended in proportion to
    original / wavelength.
    """
    plain = theta ** -(torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    if isinstance(scaling, LinearRopeScaling):
        return plain / scaling.factor
    if isinstance(scaling, Llama3RopeScaling):
        rotations = scaling.original_max_position * plain / (2 * math.pi)
        kept = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        kept = kept.clamp(0.0, 1.0)
        return plain * (kept + (1.0 - kept) / scaling.factor)
    if isinstance(scaling, YarnRopeScaling):
        slowed = _yarn_ramp(theta, dims, scaling)
        return plain * ((1.0 - slowed) + slowed / scaling.factor)
    if isinstance(scaling, LongRopeScaling):
        long = length > scaling.original_max_position
        factors = scaling.long_factors if long else scaling.short_factors
        return plain / torch.tensor(factors, dtype=torch.float64)
    return plain


def _yarn_ramp(theta: float, dims: int, scaling: YarnRopeScaling) -> Tensor:
    """How far each pair is slowed, 0 to 1."""

    def pair_of(rotations: float) -> float:
        """The pair, a real number, that rotates so many times over the original context."""
        wavelength = scaling.original_max_position / rotations
        return dims * math.log(wavelength / (2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dims - 1)
    width = last - first or 0.001
    return ((torch.arange(dims // 2, dtype=torch.float64) - first) / width).clamp(0.0, 1.0)


def table(angles_per_position: Tensor, length: int, attention_factor: float = 1.0) -> Tensor:
    """Cosines, then sines, of every position's angles: float64 [length, 2 * pairs]."""
    angles = torch.outer(torch.arange(length, dtype=torch.float64), angles_per_position)
    return torch.cat((angles.cos(), angles.sin()), dim=1) * attention_factor
