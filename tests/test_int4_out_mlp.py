"""int4_out_mlp against the oracle and the three ops it stands for, its workspace, and what it refuses."""

import dataclasses

import pytest
import torch
from helpers import DTYPES, Guarded, assert_close, check_op, isa, randn, threads
from test_int4_gemv import ISAS, int4, shuffled

import pykernels as pk

IN, HIDDEN, INTERMEDIATE = 96, 128, 192
EPS = 1e-5
# h, the norm's result and the product of gate and up are rounded.
DEPTH = 3
WEIGHTS = ("o", "gate", "up", "down")


def arguments(
    batch: int = 2, n_in: int = IN, hidden: int = HIDDEN, intermediate: int = INTERMEDIATE,
    dtype: torch.dtype = torch.float32, **kind: object,
) -> dict:  # fmt: skip
    kind = {"group_size": 32, **kind}
    return dict(
        x=randn(batch, n_in, dtype=dtype),
        residual=randn(batch, hidden, dtype=dtype, seed=1),
        o=int4(hidden, n_in, dtype=dtype, seed=2, **kind),
        norm_weight=randn(hidden, dtype=dtype, seed=3),
        eps=EPS,
        gate=int4(intermediate, hidden, dtype=dtype, seed=4, **kind),
        up=int4(intermediate, hidden, dtype=dtype, seed=5, **kind),
        down=int4(hidden, intermediate, dtype=dtype, seed=6, **kind),
    )


def in_three(given: dict) -> torch.Tensor:
    """The same by the ops that it is made of."""
    h = pk.ops.int4_gemv(given["x"], given["o"], residual=given["residual"])
    activated = pk.ops.int4_swiglu_gemv(h, given["gate"], given["up"], given["norm_weight"], given["eps"])
    return pk.ops.int4_gemv(activated, given["down"], residual=h)


def workspace_of(given: dict) -> torch.Tensor:
    return pk.ops.int4_out_mlp_workspace(given["x"], *(given[name] for name in WEIGHTS))


@pytest.mark.parametrize("kind", [dict(), dict(symmetric=False), dict(symmetric=False, act_order=True)], ids=str)
@pytest.mark.parametrize("group_size", [32, 64, -1])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", ISAS)
def test_any_group(isa_name, dtype, batch, group_size, kind):
    given = arguments(batch, 128, 192, 256, dtype, group_size=group_size, **kind)
    with isa(isa_name):
        check_op(
            lambda out: pk.ops.int4_out_mlp(**given, out=out), pk.reference.int4_out_mlp(**given), dtype, DEPTH
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 5])
def test_equals_the_three_ops_to_the_bit(count, dtype):
    given = arguments(3, dtype=dtype, symmetric=False)
    given["up"] = shuffled(given["up"])
    with threads(count):
        assert torch.equal(pk.ops.int4_out_mlp(**given), in_three(given))


@pytest.mark.parametrize("dtype", DTYPES)
def test_workspace(dtype):
    given = arguments(8, dtype=dtype, group_size=-1, symmetric=False)
    workspace = Guarded(workspace_of(given).numel(), dtype=torch.uint8)
    out = pk.ops.int4_out_mlp(**given, workspace=workspace.tensor)
    workspace.check()
    assert torch.equal(out, pk.ops.int4_out_mlp(**given))
    assert_close(out, pk.reference.int4_out_mlp(**given), dtype, DEPTH)


@pytest.mark.parametrize("full", [False, True], ids=["plain", "everything"])
def test_opcheck(full):
    given = arguments(symmetric=not full, act_order=full)
    weights = {name: given[name].tensors() for name in WEIGHTS}
    tensors = (
        given["x"], given["residual"], *weights["o"], given["norm_weight"], EPS, *weights["gate"], *weights["up"],
        *weights["down"], torch.empty(2, HIDDEN), workspace_of(given) if full else None,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.pykernels.int4_out_mlp.default, tensors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(x=randn(9, IN)), "x must be of batch 1 to 8, got batch 9"),
        (dict(x=randn(2, 40)), "x must be of a multiple of 32 columns, got 40 columns"),
        (dict(residual=randn(2, HIDDEN + 1)), r"residual must be of shape \[2, 128\], got \[2, 129\]"),
        (dict(o=int4(HIDDEN, 64, 32)), r"o_packed must be of shape \[any, 48\], got \[128, 32\]"),
        (dict(norm_weight=randn(IN)), r"norm_weight must be of shape \[128\], got \[96\]"),
        (dict(gate=int4(INTERMEDIATE, 64, 32)), r"gate_packed must be of shape \[any, 64\], got \[192, 32\]"),
        (dict(up=int4(64, HIDDEN, 32)), r"up_packed must be of shape \[192, 64\], got \[64, 64\]"),
        (dict(down=int4(HIDDEN, 64, 32)), r"down_packed must be of shape \[128, 96\], got \[128, 32\]"),
        (dict(down=int4(64, INTERMEDIATE, 32)), r"down_packed must be of shape \[128, 96\], got \[64, 96\]"),
        (dict(gate=int4(40, HIDDEN, 32)), "down_packed must be of rows for a multiple of 32 columns, got 40 columns"),
        (dict(down=int4(HIDDEN, INTERMEDIATE, 32).to(torch.float16)), "down_scales must be of the dtype of x"),
        (dict(eps=1.0), r"eps must be in \[0, 1\), got 1"),
        (dict(out=randn(2, IN)), r"out must be of shape \[2, 128\], got \[2, 96\]"),
        (dict(workspace=torch.zeros(64, dtype=torch.uint8)), "workspace must be of at least .* bytes, got 64 bytes"),
    ],
)  # fmt: skip
def test_bad_arguments(changes, message):
    given = arguments() | changes
    if "gate" in changes and given["gate"].out_features == 40:
        given["up"] = given["gate"]
    with pytest.raises(ValueError, match=f"int4_out_mlp: {message}"):
        pk.ops.int4_out_mlp(**given)


@pytest.mark.parametrize("name", [*WEIGHTS, "x", "residual", "norm_weight"])
def test_out_overlaps_an_input(name):
    given = arguments()
    memory = torch.zeros(1 << 14, dtype=torch.uint8)
    tensor = given[name].packed if name in WEIGHTS else given[name]
    view = memory[: tensor.numel() * tensor.element_size()].view(tensor.dtype).view_as(tensor).copy_(tensor)
    given[name] = dataclasses.replace(given[name], packed=view) if name in WEIGHTS else view
    out = memory[: 2 * HIDDEN * 4].view(torch.float32).view(2, HIDDEN)
    with pytest.raises(ValueError, match=f"out must be memory of its own, got memory that overlaps {name}"):
        pk.ops.int4_out_mlp(**given, out=out)
