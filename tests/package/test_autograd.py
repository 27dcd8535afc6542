"""Ops and autograd: as torch's out= ops, they refuse what requires a gradient, count writes, respect inference mode."""

import pytest
import torch
from inputs.helpers import randn

import pykernels as pk


@pytest.mark.parametrize("name", ["x", "weight", "bias", "residual", "out"])
def test_an_argument_that_requires_grad_is_refused(name):
    tensors = {"x": randn(1, 64), "weight": randn(32, 64), "bias": randn(32), "residual": randn(1, 32)}
    tensors["out"] = torch.zeros(1, 32)
    tensors[name].requires_grad_()
    with pytest.raises(RuntimeError, match=f"pykernels::gemv: {name} requires grad, and the op has no derivative"):
        pk.ops.gemv(**tensors)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            pk.ops.gemv(**tensors)


def test_a_result_that_requires_grad_is_refused():
    x = randn(1, 64).requires_grad_() * 2
    with pytest.raises(RuntimeError, match="pykernels::rmsnorm: x requires grad"):
        pk.ops.rmsnorm(x, torch.ones(64), 1e-6)
    pk.ops.rmsnorm(x.detach(), torch.ones(64), 1e-6)


@pytest.mark.parametrize("grad", [True, False])
def test_writes_are_counted(grad):
    cos_sin, position = randn(8, 32), torch.zeros(1, dtype=torch.int32)
    q, k, v = randn(1, 4, 32), randn(1, 2, 32), randn(1, 2, 32)
    k_cache, v_cache, out = torch.zeros(1, 2, 8, 32), torch.zeros(1, 2, 8, 32), torch.zeros(1, 4, 32)
    written, read = [k_cache, v_cache, out], [q, k, v, cos_sin, position]
    before = [tensor._version for tensor in (*written, *read)]
    with torch.set_grad_enabled(grad):
        pk.ops.rope_kv_append(q, k, v, cos_sin, position, k_cache, v_cache, out=out)
    after = [tensor._version for tensor in (*written, *read)]
    assert after == [version + (i < len(written)) for i, version in enumerate(before)]


def test_autograd_finds_what_it_saved_overwritten():
    x = randn(1, 64).requires_grad_()
    factor = torch.ones(1, 64)
    loss = (x * factor).sum()
    with torch.no_grad():
        pk.ops.add(torch.ones(1, 64), torch.ones(1, 64), out=factor)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_inference_tensor_is_written_in_inference_mode_only():
    with torch.inference_mode():
        out = torch.zeros(1, 64)
        pk.ops.add(torch.ones(1, 64), torch.ones(1, 64), out=out)
    with pytest.raises(RuntimeError, match="pykernels::add: out is an inference tensor"):
        pk.ops.add(torch.ones(1, 64), torch.ones(1, 64), out=out)
    assert (out == 2).all()


def test_controls_have_nothing_to_differentiate():
    x = randn(8).requires_grad_()
    pk.ops.null(x)
    pk.ops.spin(x, 0.0)
