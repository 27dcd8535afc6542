"""Quantised weights as plain tensors."""

import torch

from pykernels import quant


def plain(
    rows: int = 24, columns: int = 256, group_size: int = 64, zeros: bool = True, act_order: bool = False, seed: int = 0
) -> quant.QuantizedWeight:
    """Random nibbles, zero points from 1 to 15 and float16 scales."""
    generator = torch.Generator().manual_seed(seed)
    n_groups = -(-columns // group_size)
    g_idx = None
    if act_order:
        g_idx = (torch.arange(columns) // group_size)[torch.randperm(columns, generator=generator)].int()
    return quant.QuantizedWeight(
        q=torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8),
        scales=torch.rand(rows, n_groups, generator=generator).add_(0.1).half(),
        zeros=torch.randint(1, 16, (rows, n_groups), generator=generator, dtype=torch.uint8) if zeros else None,
        group_size=group_size,
        g_idx=g_idx,
    )
