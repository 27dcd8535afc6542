"""The CUDA gqa_decode on the SIMT executor against the reference and the CPU op: groups, lengths, splits, seeds."""

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import assert_close
from inputs.simt import ARCHS, DTYPES, device
from inputs.simt_gqa_decode import check, inputs, launch

import pykernels as pk

GROUPS = [1, 4, 7, 8, 16]


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("sm_count", [1, 6])
def test_groups(sm_count, group, head_dim, dtype, arch):
    kv_heads = 2 if group < 8 else 1
    check(inputs([70], 150, group * kv_heads, kv_heads, head_dim, dtype), arch, seed=group, sm_count=sm_count)


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("max_len", [150, 2100])
def test_the_last_blocks_of_a_group_have_fewer_heads(max_len, head_dim, arch):
    check(inputs([max_len - 3], max_len, 9, 1, head_dim, torch.bfloat16), arch, seed=head_dim)


# A split has a share of the keys that depends on sm_count: with max_len 400 and one KV head, 3 SMs make 3 splits.
BORDERS = [1, 2, 7, 8, 9, 31, 63, 64, 65, 127, 128, 129, 191, 193, 255, 257, 383, 385, 399, 400]


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("length", BORDERS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_lengths_next_to_the_borders(head_dim, length, arch):
    check(inputs([length], 400, 4, 1, head_dim, torch.bfloat16), arch, seed=length, sm_count=3)


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[5, 260], [1, 129, 64], [1, 33, 64, 65, 100, 128, 200, 260]], ids=len)
@pytest.mark.parametrize("sm_count", [4, 20])
def test_every_sequence_has_its_own_length(sm_count, lengths, dtype, arch):
    check(inputs(lengths, 260, 7, 1, 64, dtype), arch, seed=2, sm_count=sm_count)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("length", [1, 255, 256, 257, 273, 4100])
def test_more_splits_than_a_cluster_has_blocks(length, arch):
    check(inputs([length], 8209, 7, 1, 64, torch.bfloat16), arch, seed=length, sm_count=40)


# A cache this long for its splits is read by bulk copies on sm_90: slots and SMs, of which there are four in one
# cluster (head_dim 128, a ring of two stages), then three that combine through global memory (head_dim 128: of one).
# Short lengths in it keep the executor quick.
LONG = pytest.mark.parametrize(("max_len", "sm_count"), [(8192 + 16, 4), (16384 + 16, 3)])


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("group", [1, 4, 7, 8, 16])
@LONG
def test_groups_in_a_long_cache(max_len, sm_count, group, head_dim, dtype, arch):
    check(inputs([333], max_len, group, 1, head_dim, dtype), arch, seed=group, sm_count=sm_count)


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 64, 65, 383, 384, 511, 512, 513, 1025, 1152, 1153, 1537, 2100])
@pytest.mark.parametrize("head_dim", [64, 128])
@LONG
def test_lengths_next_to_the_borders_of_a_long_cache(max_len, sm_count, head_dim, length, arch):
    check(inputs([length], max_len, 4, 1, head_dim, torch.bfloat16), arch, seed=length, sm_count=sm_count)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("length", [1, 129, 1300])
def test_one_split_of_a_long_cache(length, arch):
    """Over 32 KV heads have no clusters: 2048 keys of one split are 16 tiles a warp."""
    check(inputs([length], 2048, 66, 33, 64, torch.float16), arch, seed=length, runs=1)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_full_long_cache(arch):
    check(inputs([8208], 8208, 7, 1, 64, torch.bfloat16), arch, sm_count=4)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_long_cache_of_no_whole_tiles(arch):
    check(inputs([8209], 8209, 7, 1, 64, torch.bfloat16), arch, sm_count=4)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("scale", [-0.1, 0.0, 1.0])
def test_a_scale_of_ones_own(scale, arch):
    check(inputs([77], 130, 4, 2, 128, torch.float16), arch, scale=scale)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_same_bits_in_any_order(arch):
    given = inputs([300], 400, 8, 1, 128, torch.bfloat16)
    outputs = [check(given, arch, seed, sm_count=5, runs=1) for seed in range(9)]
    assert all(torch.equal(out, outputs[0]) for out in outputs)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("favourite", [None, 0, 64, 299, 599])
def test_scores_that_overflow_an_exponential(favourite, arch):
    q, k, v, kv_len = inputs([600], 600, 4, 1, 64, torch.bfloat16)
    q, k = torch.zeros_like(q), torch.zeros_like(k)
    q[..., 0] = q[..., 1] = 64.0
    k[..., 0] = 16.0
    if favourite is not None:
        k[..., 1] = -16.0
        k[:, :, favourite, 1] = 0.0
    check((q, k, v, kv_len), arch, sm_count=3, scale=1e4 / (64 * 16), runs=1)


# In the longest cache K and V come by bulk copies; its 3 splits have 384 keys a round of tiles. So they do in the PDL
# launch where clusters are few and the cache is whole tiles: two splits of 304 slots and of 1040.
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("newest", "max_len", "dim"),
    [(newest, 300, 64) for newest in (0, 15, 200, 289)]
    + [(newest, 304, dim) for newest in (0, 15, 16, 200, 255, 256, 303) for dim in (64, 128)]
    + [(newest, 1040, dim) for newest in (0, 127, 128, 1030) for dim in (64, 128)]
    + [(newest, 16400, 64) for newest in (0, 15, 16, 200, 383, 384, 767, 768, 1151, 1152, 1300)],
)
def test_chained_to_the_append_before_it(newest, max_len, dim, seed):
    """The newest slot comes from the launch just before; all older ones were there."""
    dtype, heads, kv_heads = torch.bfloat16, 7, 1
    q, k, v, kv_len = inputs([newest + 1], max_len, heads, kv_heads, dim, dtype)
    new_k, new_v = k[:, :, newest].clone(), v[:, :, newest].clone()
    expected = pk.reference.gqa_decode(q, k, v, kv_len)
    k[:, :, newest] = v[:, :, newest] = float("nan")
    # No rotation: cosines 1, sines 0.
    cos_sin = torch.cat((torch.ones(max_len, dim // 2), torch.zeros(max_len, dim // 2)), 1)
    with device(90, seed, sm_count=3) as dev:
        q_turned = dev.empty(*q.shape, dtype=dtype)
        k, v, kv_len = dev.to(k), dev.to(v), dev.to(kv_len)
        for programmatic in (False, True):
            dev.launch(
                "rope_kv_append", programmatic, q=dev.to(q), k=dev.to(new_k), v=dev.to(new_v), cos_sin=dev.to(cos_sin),
                position=dev.to(torch.tensor([newest], dtype=torch.int32)), q_out=q_turned, k_cache=k, v_cache=v,
                batch=1, n_heads=heads, n_kv_heads=kv_heads, head_dim=dim, max_len=max_len, max_position=max_len,
                dtype=dtype,
            )  # fmt: skip
            out, _ = launch(dev, [q_turned, k, v, kv_len], programmatic=True)
        dev.synchronize()
        assert_close(out, expected, dtype)
