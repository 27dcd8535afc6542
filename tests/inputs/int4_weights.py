"""Random 4-bit weights of every kind."""

import dataclasses

import torch

import pykernels as pk
from inputs.helpers import randn

# (in_features, group_size): every way a tile can hold groups, whole and with a short end.
GROUPS = [
    (32, 32), (96, 32), (256, 32), (320, 32), (64, 64), (192, 64), (256, 64), (128, 128), (384, 128), (512, 256),
    (32, -1), (160, -1), (256, -1), (992, -1),
]  # fmt: skip
ISAS = pk.runtime.isas_supported()


def shuffled(weight: pk.Int4Weight, seed: int = 9) -> pk.Int4Weight:
    """The same with its columns in some other order, as act-order has them."""
    generator = torch.Generator().manual_seed(seed)
    return dataclasses.replace(weight, perm=torch.randperm(weight.in_features, generator=generator).int())


def int4(
    out_features: int,
    in_features: int,
    group_size: int = 128,
    symmetric: bool = True,
    dtype: torch.dtype = torch.float32,
    act_order: bool = False,
    seed: int = 1,
) -> pk.Int4Weight:
    """A weight whose mean is not zero, so that zero points matter."""
    values = randn(out_features, in_features, seed=seed, scale=in_features**-0.5) + in_features**-0.5
    size = -1 if group_size > in_features else group_size
    weight = pk.Int4Weight.quantize(values, size, symmetric, dtype)
    return shuffled(weight) if act_order else weight


def powers_of_two(dtype: torch.dtype, symmetric: bool) -> tuple[pk.Int4Weight, torch.Tensor, torch.Tensor]:
    """Scales and a sparse x of powers of two, so that no sum is ever rounded: the weight, x and the exact result."""
    generator = torch.Generator().manual_seed(4)
    q = torch.randint(0, 16, (9, 512), generator=generator, dtype=torch.uint8)
    zeros = None if symmetric else torch.randint(0, 16, (9, 4), generator=generator, dtype=torch.uint8)
    scales = torch.randint(-3, 4, (9, 4), generator=generator).float().exp2().to(dtype)
    x = torch.zeros(3, 512, dtype=dtype)
    x[:, ::61] = torch.randint(-2, 3, (3, 9), generator=generator).float().exp2().to(dtype)
    plain = pk.quant.QuantizedWeight(q, scales, zeros, 128)
    return pk.Int4Weight.from_plain(plain), x, (x.double() @ plain.dequantize().T).to(dtype)
