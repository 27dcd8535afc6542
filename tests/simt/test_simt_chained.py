"""Every CUDA kernel as a programmatic dependent launch (PDL) on the SIMT executor, behind a producer of each operand.

A kernel without its `griddepcontrol.wait`, or with one behind its first use, fails here: the executor reports a read of
what the launch before wrote, or a write of what it read, also where the data happened to be there.
"""

import pytest
import torch
from inputs.helpers import assert_close
from inputs.simt import STRUCTS, Device, device
from inputs.simt_chained import CASES, Case, gqa_decode, padded, qkv
from torch import Tensor

MADE = {name: make() for name, make in CASES.items()}


def names_with(part: str) -> list:
    """(case, operand or output, seed): seeds take turns among the executor's three orders of launches."""
    pairs = [(name, one) for name, case in MADE.items() for one in getattr(case, part)]
    return [pytest.param(*pair, seed % 3, id=f"{pair[0]}: {pair[1]}") for seed, pair in enumerate(pairs)]


def copy(dev: Device, source: Tensor, to: Tensor) -> None:
    """Queue a PDL launch that copies a tensor. `add` lets the next launch start before it has written;
    integers go by ceiling_copy, which does not, but leaves them as unordered."""
    if source.dtype.is_floating_point:
        zeros = padded(dev, torch.zeros_like(source))
        dev.launch("add", True, a=source, b=zeros, out=to, count=source.numel(), dtype=source.dtype)
    else:
        dev.launch("ceiling_copy", True, src=source, out=to, bytes=-(-source.nbytes // 64) * 64)


def check(case: Case, fields: dict) -> None:
    """All that the launch writes is the reference's."""
    for name, expected in case.expected.items():
        if expected.is_floating_point():
            assert_close(fields[name], expected, case.dtype, case.depth)
        else:
            assert torch.equal(fields[name], expected), name
    if case.workspace_bytes:
        assert not fields["workspace"].any(), "all of it is zero again"


@pytest.mark.parametrize(("name", "operand", "seed"), names_with("operands"))
def test_behind_the_producer_of_an_operand(name, operand, seed):
    case = MADE[name]
    with device(90, seed, sm_count=3) as dev:
        fields = case.fields(dev)
        source = fields[operand]
        fields[operand] = padded(dev, source)
        fields[operand].view(torch.uint8).fill_(0xFF)
        copy(dev, source, fields[operand])
        dev.launch(case.op, True, **fields)
        dev.synchronize()
        check(case, fields)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("length", [5, 40])
def test_behind_the_append_of_the_newest_key(length, seed):
    """The tile with it is loaded ahead of the wait, and once more behind it."""
    case = gqa_decode([length], 64, 8, 1, 64, torch.bfloat16)
    with device(90, seed, sm_count=3) as dev:
        fields = case.fields(dev)
        for cache in (fields["k_cache"], fields["v_cache"]):
            slot = cache[0, 0, length - 1]
            row = dev.to(slot.clone())
            slot.fill_(float("nan"))
            copy(dev, row, slot)
        dev.launch(case.op, True, **fields)
        dev.synchronize()
        check(case, fields)


@pytest.mark.parametrize(("name", "output", "seed"), names_with("outputs"))
def test_behind_a_reader_of_an_output(name, output, seed):
    """What the launch before reads is not written before it has ended."""
    case = MADE[name]
    before = case.outputs[output]
    with device(90, seed, sm_count=3) as dev:
        fields = case.fields(dev)
        kept = padded(dev, torch.zeros_like(before))
        copy(dev, fields[output], kept)
        dev.launch(case.op, True, **fields)
        dev.synchronize()
        check(case, fields)
        assert torch.equal(kept, before) or (kept.isnan() & before.isnan()).all()


@pytest.mark.parametrize("seed", range(6))
def test_a_qk_norm_of_sums_still_in_flight(seed):
    """A block may have counted its row pairs before all its warps have stored their sums; with few seeds one has."""
    case = qkv(1, 2, 5, 2, 64, torch.float16, qk_norm="all")
    with device(90, seed, sm_count=12) as dev:
        fields = case.fields(dev)
        dev.launch(case.op, False, **fields)
        dev.synchronize()
        check(case, fields)


def test_every_op_has_a_case():
    """A new op's kernels get their lines in CASES."""
    no_operands = {"null", "spin", "ceiling_read", "ceiling_copy", "int4_weight"}
    assert {case.op for case in MADE.values()} == STRUCTS.keys() - no_operands
