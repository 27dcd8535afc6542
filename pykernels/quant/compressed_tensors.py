"""Checkpoints of compressed-tensors in the format "pack-quantized" with 4-bit integers.

    weight_packed      int32  [N, ceil(K / 8)]    nibbles along K, in order: the signed value plus 8
    weight_scale       float  [N, G]              one column where the strategy is "channel"
    weight_zero_point  int32  [ceil(N / 8), G]    asymmetric only; nibbles along N, in order: the signed zero plus 8
    weight_g_idx       int32  [K]                 act-order only; all -1 says that there is none
    weight_shape       int    [2]                 N and K

Value and zero carry the same 8, so (q - zero) * scale holds for the nibbles as they lie.
"""

import torch
from torch import Tensor

from pykernels.quant.packing import pack_words, unpack_words
from pykernels.quant.weight import FLOATS, QuantizedWeight, check, resolve_group_size


def pack(weight: QuantizedWeight) -> dict[str, Tensor]:
    """The tensors of a layer: weight_zero_point and weight_g_idx where the weight has them."""
    tensors = {
        "weight_packed": pack_words(weight.q),
        "weight_scale": weight.scales.clone(),
        "weight_shape": torch.tensor(weight.q.shape, dtype=torch.int64),
    }
    if weight.zeros is not None:
        tensors["weight_zero_point"] = pack_words(weight.zeros.T).T.contiguous()
    if weight.g_idx is not None:
        tensors["weight_g_idx"] = weight.g_idx.clone()
    return tensors


def unpack(
    weight_packed: Tensor,
    weight_scale: Tensor,
    weight_shape: Tensor,
    weight_zero_point: Tensor | None = None,
    weight_g_idx: Tensor | None = None,
    *,
    group_size: int | None = None,
) -> QuantizedWeight:
    """A layer in plain form. group_size may be left out where the number of groups divides K.

    Raises ValueError, one line, where shapes or dtypes do not fit.
    """
    if weight_shape.shape != (2,) or weight_shape.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"weight_shape must be 2 integers, got {weight_shape.tolist()} of {weight_shape.dtype}")
    out_features, in_features = weight_shape.tolist()
    if weight_scale.dim() != 2 or not 1 <= weight_scale.shape[1] <= in_features:
        raise ValueError(
            f"weight_scale must be of shape [{out_features}, groups] (strategy group or channel), "
            f"got {list(weight_scale.shape)}"
        )
    n_groups = weight_scale.shape[1]
    check("weight_packed", weight_packed, (out_features, -(-in_features // 8)), (torch.int32,))
    check("weight_scale", weight_scale, (out_features, n_groups), FLOATS)
    zeros = None
    if weight_zero_point is not None:
        check("weight_zero_point", weight_zero_point, (-(-out_features // 8), n_groups), (torch.int32,))
        zeros = unpack_words(weight_zero_point.T, out_features).T.contiguous()
    g_idx = None
    if weight_g_idx is not None and not bool((weight_g_idx == -1).all()):
        g_idx = weight_g_idx.to(torch.int32)
    return QuantizedWeight(
        q=unpack_words(weight_packed, in_features),
        scales=weight_scale.contiguous(),
        zeros=zeros,
        group_size=resolve_group_size(group_size, in_features, n_groups),
        g_idx=g_idx,
    )
