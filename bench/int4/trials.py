"""What a 4-bit kernel is tried on: random weights of many shapes, and weights whose products are known to the last bit.

All tensors are made on the CPU: whoever runs a trial moves them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import pykernels as pk
from pykernels.quant import QuantizedWeight, round_to_nearest
from pykernels.quant.int4_weight import group_size_allowed

GROUP_SIZES = (32, 64, 128, -1)
"""The groups of a whole validation; -1 is the whole row."""

RANDOM_SHAPES = ((128, 1024), (256, 3584), (64, 18944))
"""[out_features, in_features]: a small one, which is tried with every batch, a model's width, and the longest row of
the three models."""

MANY_ROWS = (66048, 256)
"""More rows than a grid has blocks in its second dimension (65,535), as an lm_head has."""

EXACT_SHAPE = (128, 1024)
"""Fits the tiles of every kernel here."""

RAGGED = ((1, 1024, 128), (7, 1024, 128), (129, 1024, 32), (200, 96, 32), (64, 160, 32), (128, 1088, 64))
"""[out_features, in_features, group]: sizes off the tiles, which a kernel may refuse but not get wrong."""

NONZEROS = 8
"""Inputs of +-1 in an exact trial. With |q - zero| <= 15 and scales of 1 and 1/2, a sum is less than 256 halves: it
fits the 8 bits of a bf16, and so does every partial sum in whatever order."""


@dataclass(frozen=True)
class Trial:
    """One weight and the inputs [batch, in_features] that a kernel is given with it.

    dense: what the weight was before it was quantised, where that is compared too. exact: every result is known to
    the last bit of the dtype, whatever the order of the sum.
    """

    case: str
    weight: pk.Int4Weight
    inputs: list[Tensor]
    dense: Tensor | None = None
    exact: bool = False

    @property
    def batch(self) -> int:
        """Rows of an input."""
        return self.inputs[0].shape[0]

    @cached_property
    def words(self) -> str:
        """`128x1024, groups of 32, zero points, batch 8`"""
        weight = self.weight
        group = "one group a row" if weight.n_groups == 1 else f"groups of {weight.group_size}"
        kinds = ["zero points"] * (weight.zeros is not None) + ["act-order"] * (weight.perm is not None)
        return ", ".join([f"{weight.out_features}x{weight.in_features}", group, *kinds, f"batch {self.batch}"])


class _Maker:
    """Seeded numbers of one dtype."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator).mul_(std).to(self.dtype)

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
        """uint8, low..high."""
        return torch.randint(low, high + 1, shape, generator=self.generator).to(torch.uint8)

    def signs(self, batch: int, in_features: int) -> Tensor:
        """NONZEROS entries of +-1 a row, the others 0."""
        x = torch.zeros(batch, in_features, dtype=self.dtype)
        for row in x:
            columns = torch.randperm(in_features, generator=self.generator)[:NONZEROS]
            row[columns] = (self.integers(0, 1, (NONZEROS,)).to(self.dtype) * 2 - 1)[: len(columns)]
        return x

    def quantised(self, n: int, k: int, group: int, symmetric: bool) -> tuple[pk.Int4Weight, Tensor]:
        """A weight rounded to nearest, and what it was before."""
        dense = self.normal(n, k, std=k**-0.5)
        return pk.Int4Weight.from_plain(round_to_nearest(dense, group, symmetric), self.dtype), dense

    def act_ordered(self, n: int, k: int, group: int) -> pk.Int4Weight:
        """The same with columns dealt out to groups at random."""
        plain = round_to_nearest(self.normal(n, k, std=k**-0.5), group, False)
        g_idx = (torch.randperm(k, generator=self.generator) // group).to(torch.int32)
        return pk.Int4Weight.from_plain(QuantizedWeight(plain.q, plain.scales, plain.zeros, group, g_idx), self.dtype)

    def exact(
        self, q: Tensor, group: int, symmetric: bool, zero_every_other: bool = False, least_zero: int = 1
    ) -> pk.Int4Weight:
        """A weight of those q, scales of 1 and 1/2 of either sign (0 in every other group and in the whole first row),
        and zero points from `least_zero` to 15."""
        size = q.shape[1] if group == -1 else group
        shape = (q.shape[0], q.shape[1] // size)
        scales = (1.0 - 2 * self.integers(0, 1, shape).float()) / (1 + self.integers(0, 1, shape).float())
        if zero_every_other:
            scales[:, ::2] = 0
            scales[0] = 0
        zeros = None
        if not symmetric:
            zeros = self.integers(least_zero, 15, shape)
            zeros[0, 0] = least_zero
        return pk.Int4Weight.from_plain(QuantizedWeight(q, scales.to(self.dtype), zeros, size))


def one_hot(in_features: int, batch: int, dtype: torch.dtype) -> list[Tensor]:
    """The rows of the identity matrix, `batch` an input; the last may have fewer."""
    return list(torch.eye(in_features, dtype=dtype).split(batch))


def trials(
    dtype: torch.dtype, group_sizes: Sequence[int], symmetries: Sequence[bool], max_batch: int, seed: int = 0
) -> Iterator[Trial]:
    """Every trial of one dtype. symmetries: of True and False; max_batch: the largest that the kernel takes."""
    make = _Maker(dtype, seed)
    batches = range(1, max_batch + 1)
    for group in group_sizes:
        for symmetric in symmetries:
            for n, k in RANDOM_SHAPES:
                if group_size_allowed(k if group == -1 else group, k):
                    weight, dense = make.quantised(n, k, group, symmetric)
                    for batch in batches if (n, k) == RANDOM_SHAPES[0] else batches[:1]:
                        yield Trial("random", weight, [make.normal(batch, k)], dense)
            yield from _exact(make, group, symmetric, max_batch)
    # Every term of the same sign: a sum that is rounded to the dtype on its way stands still before its end.
    n, k = RANDOM_SHAPES[-1]
    q = torch.full((n, k), 15, dtype=torch.uint8)
    scales = torch.full((n, k // 128), 2.0**-8, dtype=dtype)
    long_sum = pk.Int4Weight.from_plain(QuantizedWeight(q, scales, None, 128))
    yield Trial("long sum", long_sum, [make.normal(1, k).abs()])
    yield _large_inputs(make)
    weight, dense = make.quantised(*MANY_ROWS, 128, True)
    yield Trial("many rows", weight, [make.normal(1, MANY_ROWS[1])], dense)
    for n, k, group in RAGGED:
        weight, dense = make.quantised(n, k, group, True)
        # An error is taken relative to the largest result, and with few rows that may be a sum that has all but
        # cancelled: of some inputs the one with the largest.
        inputs = make.normal(16, k)
        largest = int((inputs.double() @ dense.double().T).abs().amax(1).argmax())
        yield Trial("ragged", weight, [inputs[largest : largest + 1]], dense)
    ordered = make.act_ordered(*EXACT_SHAPE, 64)
    yield Trial("act-order", ordered, one_hot(ordered.in_features, max_batch, dtype), exact=True)


def _large_inputs(make: _Maker) -> Trial:
    """Activations of 256 to 512, as single channels of trained models have them. The results fit half precision; the
    sum of a group before it is scaled does not."""
    n, k = EXACT_SHAPE
    scales = torch.full((n, k // 128), 2.0**-6, dtype=make.dtype)
    weight = pk.Int4Weight.from_plain(QuantizedWeight(torch.full((n, k), 15, dtype=torch.uint8), scales, None, 128))
    x = 256 * (1 + torch.rand((1, k), generator=make.generator))
    return Trial("large inputs", weight, [x.to(make.dtype)])


def _exact(make: _Maker, group: int, symmetric: bool, batch: int) -> Iterator[Trial]:
    """The trials whose results are known to the last bit."""
    n, k = EXACT_SHAPE
    weight, _ = make.quantised(n, k, group, symmetric)
    yield Trial("one-hot", weight, one_hot(k, batch, make.dtype), exact=True)
    for case, q, zero_every_other in (
        ("powers of two", make.integers(0, 15, (n, k)), False),
        ("all 0", torch.zeros(n, k, dtype=torch.uint8), False),
        ("all 15", torch.full((n, k), 15, dtype=torch.uint8), False),
        ("zero scale", make.integers(0, 15, (n, k)), True),
    ):
        inputs = [make.signs(batch, k) for _ in range(4)]
        yield Trial(case, make.exact(q, group, symmetric, zero_every_other), inputs, exact=True)
    if not symmetric:  # apart from the others: a format that stores one less in 4 bits cannot say 0, and refuses it
        weight = make.exact(make.integers(0, 15, (n, k)), group, symmetric, least_zero=0)
        yield Trial("zero points of 0", weight, [make.signs(batch, k) for _ in range(4)], exact=True)
