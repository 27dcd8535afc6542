"""A 4-bit weight in plain form: what every format unpacks to and packs from."""

from dataclasses import dataclass

import torch
from torch import Tensor

SYMMETRIC_ZERO = 8
"""The zero point of a weight that has none of its own: 4-bit values stand for -8..7."""


def check(name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise ValueError, one line, unless `tensor` is of that shape and one of those dtypes."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be of shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.dtype not in dtypes:
        allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} must be {allowed}, got {str(tensor.dtype).removeprefix('torch.')}")


FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass
class QuantizedWeight:
    """w[n, k] = (q[n, k] - zeros[n, g]) * scales[n, g], with g = g_idx[k], or k // group_size where g_idx is None.

    q: uint8 [out_features, in_features], 0..15; scales: [out_features, n_groups], float16, bfloat16 or float32;
    zeros: uint8 [out_features, n_groups], 0..15, or None (8 throughout: symmetric); g_idx: int32 [in_features] or
    None. n_groups is ceil(in_features / group_size).

    Zeros that are all 8 become None and a g_idx that counts up becomes None, so that equal weights are equal
    whatever format they came from. Raises ValueError, one line, where the parts do not fit.
    """

    q: Tensor
    scales: Tensor
    zeros: Tensor | None
    group_size: int
    g_idx: Tensor | None = None

    def __post_init__(self) -> None:
        if self.q.dim() != 2 or 0 in self.q.shape:
            raise ValueError(f"q must be of shape [out_features, in_features], got {list(self.q.shape)}")
        check("q", self.q, tuple(self.q.shape), (torch.uint8,))
        if not 1 <= self.group_size <= self.in_features:
            raise ValueError(f"group_size must be in 1..{self.in_features} (in_features), got {self.group_size}")
        shape = (self.out_features, self.n_groups)
        check("scales", self.scales, shape, FLOATS)
        if self.zeros is not None:
            check("zeros", self.zeros, shape, (torch.uint8,))
            if bool((self.zeros == SYMMETRIC_ZERO).all()):
                self.zeros = None
        if self.g_idx is not None:
            check("g_idx", self.g_idx, (self.in_features,), (torch.int32,))
            low, high = int(self.g_idx.min()), int(self.g_idx.max())
            if low < 0 or high >= self.n_groups:
                raise ValueError(f"g_idx must be in 0..{self.n_groups - 1} (n_groups), got {low}..{high}")
            if torch.equal(self.g_idx, self._counting_g_idx()):
                self.g_idx = None

    def _counting_g_idx(self) -> Tensor:
        columns = torch.arange(self.in_features, dtype=torch.int32, device=self.q.device)
        return columns.div_(self.group_size, rounding_mode="floor")

    @property
    def out_features(self) -> int:
        """Rows."""
        return self.q.shape[0]

    @property
    def in_features(self) -> int:
        """Columns."""
        return self.q.shape[1]

    @property
    def n_groups(self) -> int:
        """Groups of a row; the last may be short."""
        return -(-self.in_features // self.group_size)

    def explicit_zeros(self) -> Tensor:
        """uint8 [out_features, n_groups]: the zero points, written out where the weight is symmetric."""
        if self.zeros is not None:
            return self.zeros
        return torch.full(self.scales.shape, SYMMETRIC_ZERO, dtype=torch.uint8, device=self.q.device)

    def explicit_g_idx(self) -> Tensor:
        """int32 [in_features]: every column's group."""
        return self._counting_g_idx() if self.g_idx is None else self.g_idx

    def dequantize(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """[out_features, in_features]; computed in float64, rounded once to `dtype`."""
        dense, zeros, scales = self.q.double(), self.explicit_zeros().double(), self.scales.double()
        if self.g_idx is None and self.in_features % self.group_size == 0:
            groups = dense.unflatten(1, (self.n_groups, self.group_size))
            groups.sub_(zeros.unsqueeze(-1)).mul_(scales.unsqueeze(-1))
        else:
            of_column = self.explicit_g_idx().long()
            dense.sub_(zeros[:, of_column]).mul_(scales[:, of_column])
        return dense.to(dtype)


def equal(a: QuantizedWeight, b: QuantizedWeight) -> bool:
    """Are all parts of the two equal bit for bit?"""

    def same(x: Tensor | None, y: Tensor | None) -> bool:
        if x is None or y is None:
            return x is y
        return x.dtype == y.dtype and torch.equal(x, y)

    pairs = ((a.q, b.q), (a.scales, b.scales), (a.zeros, b.zeros), (a.g_idx, b.g_idx))
    return a.group_size == b.group_size and all(same(x, y) for x, y in pairs)


def resolve_group_size(group_size: int | None, in_features: int, n_groups: int = 0) -> int:
    """-1 is the whole row, None what makes `n_groups` equal groups of it. Raises ValueError, one line."""
    if group_size is None:
        if n_groups == 0 or in_features % n_groups:
            raise ValueError(f"group_size must be given: {in_features} columns are not {n_groups} equal groups")
        return in_features // n_groups
    if group_size == -1:
        return in_features
    if group_size < 1:
        raise ValueError(f"group_size must be -1 (the whole row) or at least 1, got {group_size}")
    return min(group_size, in_features)
