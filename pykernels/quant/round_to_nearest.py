"""The plainest quantiser: every group's scale from its own extremes, every weight to the nearest step."""

import torch
from torch import Tensor

from pykernels.quant.weight import FLOATS, SYMMETRIC_ZERO, QuantizedWeight, resolve_group_size


def round_to_nearest(
    weight: Tensor, group_size: int = 128, symmetric: bool = True, dtype: torch.dtype | None = None
) -> QuantizedWeight:
    """Quantise `weight` [out_features, in_features] without looking at any activations.

    Symmetric: the scale is the group's largest magnitude / 7.5 and the zero point 8, so both ends err by half a step.
    Asymmetric: the scale is (max - min) / 15 over the group's values and 0, the zero point the step nearest to 0.
    Scales are rounded to `dtype` (the weight's own where None) before the weights are divided by them; a group of
    zeros gets the scale 0.

    group_size is -1 (the whole row) or divides in_features. Raises ValueError, one line, otherwise and where a scale
    is not finite.
    """
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"weight must be of shape [out_features, in_features], got {list(weight.shape)}")
    dtype = dtype or weight.dtype
    if dtype not in FLOATS:
        raise ValueError(f"dtype must be float16, bfloat16 or float32, got {str(dtype).removeprefix('torch.')}")
    in_features = weight.shape[1]
    if group_size > in_features:
        raise ValueError(f"group_size must be at most in_features ({in_features}), or -1 for the row, got {group_size}")
    group_size = resolve_group_size(group_size, in_features)
    if in_features % group_size:
        raise ValueError(f"group_size must divide in_features ({in_features}), got {group_size}")
    groups = weight.float().unflatten(1, (-1, group_size))
    if symmetric:
        steps = groups.abs().amax(-1) / 7.5
    else:
        low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
        steps = (high - low) / 15
    scales = steps.to(dtype)
    if not bool(scales.isfinite().all()):
        raise ValueError(f"weight must be finite and its scales within {str(dtype).removeprefix('torch.')}")
    # A group whose scale is 0 stands for zeros whatever its q: it gets the zero point.
    divisor = scales.float().masked_fill(scales == 0, torch.inf)
    zeros = None if symmetric else (-low / divisor).round_().clamp_(0, 15)
    offset = SYMMETRIC_ZERO if zeros is None else zeros.unsqueeze(-1)
    q = ((groups / divisor.unsqueeze(-1)).round_() + offset).clamp_(0, 15).to(torch.uint8)
    return QuantizedWeight(q.flatten(1), scales, None if zeros is None else zeros.to(torch.uint8), group_size)
