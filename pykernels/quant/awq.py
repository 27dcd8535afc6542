"""AWQ checkpoints of version "gemm", as AutoAWQ writes them.

    qweight  int32   [K, N / 8]    nibbles along N: nibble i holds column [0, 2, 4, 6, 1, 3, 5, 7][i] of its eight
    qzeros   int32   [G, N / 8]    the same, with the true zero point
    scales   float16 [G, N]

K is in_features, N out_features, G = K / group_size groups.
"""

import torch
from torch import Tensor

from pykernels.quant.packing import PAIRS_APART, pack_words, unpack_words
from pykernels.quant.weight import FLOATS, QuantizedWeight, check


def pack(weight: QuantizedWeight) -> dict[str, Tensor]:
    """The three tensors of an AWQ layer.

    Raises ValueError where out_features is no multiple of 8, where group_size does not divide in_features and where
    the weight is act-ordered, which AWQ cannot say. Scales become float16.
    """
    if weight.out_features % 8:
        raise ValueError(f"out_features must be a multiple of 8 for AWQ, got {weight.out_features}")
    if weight.in_features % weight.group_size:
        raise ValueError(f"group_size must divide in_features ({weight.in_features}) for AWQ, got {weight.group_size}")
    if weight.g_idx is not None:
        raise ValueError("g_idx must be absent for AWQ: the format has no act-order")
    return {
        "qweight": pack_words(weight.q.T, PAIRS_APART),
        "qzeros": pack_words(weight.explicit_zeros().T, PAIRS_APART),
        "scales": weight.scales.T.to(torch.float16).contiguous(),
    }


def unpack(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> QuantizedWeight:
    """A layer in plain form. Raises ValueError, one line, where shapes or dtypes do not fit."""
    if qweight.dim() != 2 or scales.dim() != 2:
        raise ValueError(f"qweight and scales must be matrices, got {list(qweight.shape)} and {list(scales.shape)}")
    in_features, (n_groups, out_features) = qweight.shape[0], scales.shape
    if out_features % 8:
        raise ValueError(f"scales must be of a multiple of 8 columns, got {out_features}")
    if n_groups == 0 or in_features % n_groups:
        raise ValueError(f"scales must have a number of rows that divides {in_features} (in_features), got {n_groups}")
    check("qweight", qweight, (in_features, out_features // 8), (torch.int32,))
    check("qzeros", qzeros, (n_groups, out_features // 8), (torch.int32,))
    check("scales", scales, (n_groups, out_features), FLOATS)
    return QuantizedWeight(
        q=unpack_words(qweight, out_features, PAIRS_APART).T.contiguous(),
        scales=scales.T.contiguous(),
        zeros=unpack_words(qzeros, out_features, PAIRS_APART).T.contiguous(),
        group_size=in_features // n_groups,
    )
