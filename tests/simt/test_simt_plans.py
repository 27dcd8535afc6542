"""Launch plans that a table chooses, on the SIMT executor: each is right, and one that an op cannot run with is
refused, not launched."""

import pytest
import torch
from inputs.helpers import assert_close
from inputs.simt import STRUCTS, device
from inputs.simt_gemv import gemv_inputs, run_gemv
from inputs.simt_gqa_decode import inputs, launch
from inputs.simt_int4 import gemv_inputs as int4_inputs
from inputs.simt_int4 import run_gemv as run_int4

import pykernels as pk

BF16 = torch.bfloat16
SHARED_BYTES = {90: 227 * 1024, 80: 99 * 1024}
LARGE = [dict(warps=16, row_tiles=1), dict(warps=12, row_tiles=2)]  # of shared memory: sm_90 alone has it
SMALL = [dict(warps=8, row_tiles=1), dict(warps=8, row_tiles=2)]  # not compiled for sm_90
GEMVS = [
    *[(batch, arch, "tensor-cores", shape) for batch in (1, 3) for arch, shapes in ((90, LARGE), (80, SMALL))
      for shape in shapes],
    (1, 90, "cuda-cores", dict(vectors=1)), (1, 90, "built-in", dict(blocks=2)), (3, 90, "built-in", dict(blocks=2)),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "arch", "kernel", "fields"), GEMVS)
def test_gemv(batch, arch, kernel, fields):
    given = gemv_inputs(batch, 1528, 41, BF16)
    sizes = dict(batch=batch, in_features=1528, out_features=41, dtype=BF16)
    with device(arch, sm_count=3, shared_bytes=SHARED_BYTES[arch]) as dev:
        built_in = run_gemv(dev, given, BF16)
        with dev.choosing("gemv", sizes, kernel, **fields):
            out = run_gemv(dev, given, BF16)
            other = run_gemv(dev, gemv_inputs(batch, 520, 41, BF16), BF16)  # of sizes that the table does not have
        assert torch.equal(run_gemv(dev, gemv_inputs(batch, 520, 41, BF16), BF16), other)
    assert_close(out, pk.reference.gemv(*given), BF16)
    # The grid divides rows, and no sum.
    assert kernel != "built-in" or torch.equal(out, built_in)


GQA = [
    ("registers", dict(cluster=4)), ("registers", dict(splits=3)), ("registers", dict(splits=1)),
    ("bulk", dict(cluster=2)), ("bulk", dict(splits=5)), ("any-dim", dict(cluster=3)), ("any-dim", dict(splits=4)),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "fields"), GQA)
def test_gqa_decode(kernel, fields):
    given = inputs([300, 17], 320, 8, 2, 128, BF16)
    sizes = dict(batch=2, n_heads=8, n_kv_heads=2, head_dim=128, max_len=320, dtype=BF16)
    with device(90, sm_count=16) as dev, dev.choosing("gqa_decode", sizes, kernel, **fields):
        out, launched = launch(dev, [dev.to(tensor) for tensor in given])
        dev.synchronize()
        assert_close(out, pk.reference.gqa_decode(*given), BF16)
        assert not launched["workspace"].any(), "a launch leaves the workspace zero"


@pytest.mark.parametrize(
    ("kernel", "warps"), [("fast", 16), ("fast", 8), ("fast", 4), ("general", 16), ("general", 8), ("general", 4)]
)
def test_int4_gemv(kernel, warps):
    x, weight = int4_inputs(2, 512, 40, BF16)
    sizes = dict(batch=2, in_features=512, out_features=40, dtype=BF16,
                 weight=STRUCTS["int4_weight"](n_groups=weight.n_groups))  # fmt: skip
    with device(90) as dev, dev.choosing("int4_gemv", sizes, kernel, warps=warps):
        out = run_int4(dev, x, weight)
    assert_close(out, pk.reference.int4_gemv(x, weight), BF16)


REFUSED = [
    (90, "bulk", dict(splits=2), "40 slots are no whole tiles"),
    (90, "registers", dict(splits=4), "40 slots are three tiles"),
    (90, "registers", dict(cluster=3), "no power of two"),
    (80, "registers", dict(cluster=2), "no clusters before sm_90"),
]


@pytest.mark.parametrize(("arch", "kernel", "fields", "why"), REFUSED)
def test_attention_that_an_op_cannot_do_is_refused(arch, kernel, fields, why):
    sizes = dict(batch=1, n_heads=8, n_kv_heads=2, head_dim=128, max_len=40, dtype=BF16)
    refused = pytest.raises(RuntimeError, match="the test's plans: gqa_decode .* cannot run with")
    with device(arch, sm_count=3) as dev, dev.choosing("gqa_decode", sizes, kernel, **fields), refused:
        dev.launch("gqa_decode", **sizes)  # before anything is read


def test_a_gemv_that_an_op_cannot_do_is_refused():
    sizes = dict(batch=3, in_features=1528, out_features=41, dtype=BF16)
    refused = pytest.raises(RuntimeError, match="cannot run with cuda-cores: it needs sizes")
    with device(90, sm_count=3) as dev, dev.choosing("gemv", sizes, "cuda-cores"), refused:
        run_gemv(dev, gemv_inputs(3, 1528, 41, BF16), BF16)
    for arch, shape in ((90, SMALL[0]), (90, SMALL[1]), (80, LARGE[0]), (80, LARGE[1])):
        refused = pytest.raises(RuntimeError, match="cannot run with tensor-cores")
        chosen = dict(sizes=sizes, kernel="tensor-cores", **shape)
        with device(arch, shared_bytes=SHARED_BYTES[arch]) as dev, dev.choosing("gemv", **chosen), refused:
            run_gemv(dev, gemv_inputs(3, 1528, 41, BF16), BF16)
    refused = pytest.raises(RuntimeError, match="kernel must be one that the op has there, got bulk")
    with device(90) as dev, refused, dev.choosing("gemv", sizes, "bulk"):
        pass


def test_a_workspace_of_another_table_is_refused():
    given = inputs([320], 320, 8, 2, 128, BF16)
    sizes = dict(batch=1, n_heads=8, n_kv_heads=2, head_dim=128, max_len=320, dtype=BF16)
    with device(90, sm_count=16) as dev:
        with dev.choosing("gqa_decode", sizes, "registers", cluster=2):
            _, fields = launch(dev, [dev.to(tensor) for tensor in given])
            dev.synchronize()
        refused = pytest.raises(RuntimeError, match="workspace must be of at least .* another table of plans")
        with dev.choosing("gqa_decode", sizes, "registers", splits=3), refused:
            dev.launch("gqa_decode", **fields)
