"""int4_gemv on the SIMT executor."""

import torch
from torch import Tensor

import pykernels as pk
from inputs.helpers import randn
from inputs.int4_weights import int4
from inputs.simt import STRUCTS, Device


def on_device(dev: Device, weight: pk.Int4Weight, offset: int = 0, shared: dict | None = None):
    """The weight's parameters, its tensors on the device; `offset` bytes off for those that may begin anywhere.

    `shared`: perms that are there already, so that weights which share one still do.
    """
    shared = {} if shared is None else shared
    params = STRUCTS["int4_weight"]()
    params.packed = dev.to(weight.packed).data_ptr()
    params.scales = dev.to(weight.scales, offset).data_ptr()
    params.zeros = dev.to(weight.zeros, offset // 2).data_ptr() if weight.zeros is not None else None
    if weight.perm is not None:
        if id(weight.perm) not in shared:
            shared[id(weight.perm)] = dev.to(weight.perm)
        params.perm = shared[id(weight.perm)].data_ptr()
    params.n_groups = weight.n_groups
    return params


def run_gemv(dev, x, weight, bias=None, residual=None, offset=0, programmatic=False) -> Tensor:
    """out of one launch, tensors that may begin anywhere `offset` bytes past a multiple of 64."""
    (batch, n_in), n_out, dtype = x.shape, weight.out_features, x.dtype
    out = dev.empty(batch, n_out, dtype=dtype, offset=offset)
    dev.launch(
        "int4_gemv", programmatic, x=dev.to(x, offset), weight=on_device(dev, weight, offset),
        bias=dev.to(bias, offset), residual=dev.to(residual, offset), out=out, batch=batch, in_features=n_in,
        out_features=n_out, dtype=dtype,
    )  # fmt: skip
    dev.synchronize()
    return out.clone()


def gemv_inputs(batch: int, n_in: int, n_out: int, dtype: torch.dtype, **kind) -> tuple[Tensor, pk.Int4Weight]:
    """x [batch, n_in] and a 4-bit weight [n_out, n_in]; `kind` is int4()'s."""
    return randn(batch, n_in, dtype=dtype), int4(n_out, n_in, dtype=dtype, **kind)
