"""The CUDA gqa_decode with a unified maximum on the SIMT executor: fall-backs have online's bits, and are counted."""

import pytest
import torch
from inputs.covering import pairwise
from inputs.simt import ARCHS, DTYPES, device
from inputs.simt_gqa_decode import launch
from inputs.unified import PLANTS, check_unified, planted

from pykernels.reference import UNIFIED_LIMITS


def check(given, arch, seed=0, sm_count=4, phi=0.0, programmatic=False, runs=1):
    """On the executor online and unified, `runs` times on one workspace."""
    with device(arch, seed, sm_count) as dev:
        on_device = [dev.to(tensor) for tensor in given]
        online, _ = launch(dev, on_device, programmatic=programmatic)  # its plan is another one
        out, fields = launch(dev, on_device, softmax=1, phi=phi, programmatic=programmatic)
        for run in range(runs):
            if run > 0:
                out.fill_(float("nan"))
                dev.launch("gqa_decode", programmatic, **fields)
            dev.synchronize()
            count = fields["workspace"][:4].view(torch.int32)
            check_unified(out.clone(), online.clone(), int(count), given, phi)
            count.zero_()
            assert not fields["workspace"].any(), "a launch leaves the workspace zero but for the count"


# By max_len and sm_count: one split; a cluster; splits through global memory; a long cache by bulk copies.
PLANS = {
    "one split": ([70], 100, 4, 1, 128, 1),
    "cluster": ([500, 130], 520, 14, 2, 64, 8),
    "splits": ([700], 8209, 7, 1, 64, 40),
    "one active split": ([9], 8209, 7, 1, 64, 40),
    "bulk": ([1000], 16400, 8, 1, 128, 3),
    "bulk in a cluster": ([1000], 2064, 4, 1, 128, 4),
    "as many KV heads as query heads": ([70], 2064, 2, 2, 64, 4),
    "bulk in the PDL launch": ([290], 304, 7, 1, 64, 3),
}


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plant", [*PLANTS, None])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("programmatic", [False, True])
def test_planted_scores(programmatic, plan, plant, dtype, arch):
    *shape, sm_count = PLANS[plan]
    given = planted(*shape, dtype, {(0, 0): plant} if plant else {})
    check(given, arch, seed=len(plan), sm_count=sm_count, programmatic=programmatic and arch == 90)


@pytest.mark.parametrize("plan", PLANS)
def test_a_fall_back_leaves_the_workspace_for_the_next_launch(plan):
    *shape, sm_count = PLANS[plan]
    check(planted(*shape, torch.bfloat16, {(0, 0): "overflows"}), 90, sm_count=sm_count, runs=2)


def test_the_kernel_for_any_head_dim_has_none():
    given = planted([70], 100, 4, 1, 96, torch.bfloat16)
    with (
        device(90) as dev,
        pytest.raises(RuntimeError, match="softmax unified takes head_dim 64 or 128, got 96"),
    ):
        launch(dev, [dev.to(tensor) for tensor in given], softmax=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_highest_exponent_is_safe(dtype):
    """All scores equal, a quarter below the end of the range."""
    given = planted([300], 300, 4, 1, 64, dtype, {(0, 0): "all_equal"})
    given[0].zero_()
    check(given, 90, phi=-(UNIFIED_LIMITS[dtype][0] - 0.25) * 0.6931)


@pytest.mark.parametrize("seed", range(4))
def test_the_newest_slot_of_a_fall_back(seed):
    """It comes from the launch just before; what was read of it ahead of that is not used again."""
    dtype, heads, dim = torch.bfloat16, 7, 64
    for newest, max_len in ((0, 304), (200, 304), (303, 304), (1030, 1040), (383, 16400)):
        given = planted([newest + 1], max_len, heads, 1, dim, dtype, {(0, 0): "overflows"})
        q, k, v, kv_len = given
        before_k, before_v = k.clone(), v.clone()
        before_k[:, :, newest] = before_v[:, :, newest] = float("nan")
        cos_sin = torch.cat((torch.ones(max_len, dim // 2), torch.zeros(max_len, dim // 2)), 1)
        with device(90, seed, sm_count=3) as dev:
            online, _ = launch(dev, [dev.to(tensor) for tensor in given], programmatic=True)
            rotated, caches = dev.empty(*q.shape, dtype=dtype), (dev.to(before_k), dev.to(before_v))
            dev.launch(
                "rope_kv_append", True, q=dev.to(q), k=dev.to(k[:, :, newest].clone()),
                v=dev.to(v[:, :, newest].clone()), cos_sin=dev.to(cos_sin),
                position=dev.to(torch.tensor([newest], dtype=torch.int32)), q_out=rotated, k_cache=caches[0],
                v_cache=caches[1], batch=1, n_heads=heads, n_kv_heads=1, head_dim=dim, max_len=max_len,
                max_position=max_len, dtype=dtype,
            )  # fmt: skip
            out, fields = launch(dev, [rotated, *caches, dev.to(kv_len)], softmax=1, programmatic=True)
            dev.synchronize()
            check_unified(out.clone(), online.clone(), int(fields["workspace"][:4].view(torch.int32)), given)
