"""The CUDA gqa_decode of any head_dim on the SIMT executor: every group and slice of V, clusters of any size, PDL."""

import pytest
import torch
from inputs.covering import pairwise
from inputs.simt import ARCHS, DTYPES, device
from inputs.simt_gqa_decode import check, inputs, launch

# The head_dims of models, and those next to a border: one vector, over one slice of V, uneven slices, all of both.
DIMS = [8, 72, 80, 96, 112, 136, 192, 256]


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("group", [1, 4, 5, 7, 8, 16])
@pytest.mark.parametrize("length", [1, 54, 97, 300])
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_groups(kv_heads, length, group, dim, dtype, arch):
    """On sm_90 300 slots are 3 splits: a cluster whose parts are uneven."""
    check(inputs([length], 300, group * kv_heads, kv_heads, dim, dtype), arch, seed=group)


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("max_len", [16, 250, 640, 900, 1400, 2000])
@pytest.mark.parametrize("dim", [80, 112, 256])
@pytest.mark.parametrize("heads", [1, 3, 8])
def test_clusters_of_every_size(heads, dim, max_len, arch):
    check(inputs([max_len - 3], max_len, heads, 1, dim, torch.bfloat16), arch, seed=max_len, runs=1)


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 255, 256, 257, 385, 700])
@pytest.mark.parametrize("dim", [96, 136])
def test_several_tiles_of_a_warp(dim, length, arch):
    """8208 slots of one KV head are too many for a cluster; short lengths in them keep the executor quick."""
    check(inputs([length], 8208, 4, 1, dim, torch.float16), arch, seed=length, sm_count=1)


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[5, 260], [1, 33, 64, 65, 100, 128, 200, 260]], ids=len)
@pytest.mark.parametrize("dim", [96, 256])
def test_every_sequence_has_its_own_length(dim, lengths, dtype, arch):
    check(inputs(lengths, 260, 7, 1, dim, dtype), arch, sm_count=6)


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("length", [1, 54, 97, 300])
@pytest.mark.parametrize("dim", [64, 96, 128])
def test_as_many_kv_heads_as_query_heads(dim, length, arch):
    """33 KV heads: no cluster of a power of two holds a split of each, clusters of 3 do."""
    check(inputs([length], 300, 33, 33, dim, torch.bfloat16), arch, seed=length, sm_count=132, runs=1)


# On sm_90 caches of this length have three splits on CUDA cores and two, a power of two, on tensor cores.
@pairwise
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 97, 128, 129, 300])
@pytest.mark.parametrize("heads", [1, 3])
def test_cuda_cores(heads, length, dtype):
    check(inputs([length], 300, heads, heads, 128, dtype), 90, seed=length)


@pytest.mark.parametrize(("dim", "lengths"), [(72, [640]), (96, [639]), (120, [1, 640])])
def test_cuda_cores_of_any_head_dim(dim, lengths):
    """13 heads have clusters of 4 with one block an SM and of 5 with two, of 64 SMs."""
    heads = 13 if len(lengths) == 1 else 7
    check(inputs(lengths, 640, heads, heads, dim, torch.bfloat16), 90, seed=dim, runs=1)


def test_several_tiles_of_a_warp_on_cuda_cores():
    """5 heads have clusters of 8, or of 16 on CUDA cores, whose warps have two or three tiles."""
    check(inputs([4400], 4400, 5, 5, 128, torch.float16), 90, scale=0.3, runs=1)


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softcap", [0.5, 50.0])
@pytest.mark.parametrize("length", [1, 97, 300])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_a_soft_cap(dim, length, softcap, dtype, arch):
    """Scores of some 4 are halved and more by the first cap. Masked keys stay without weight."""
    check(inputs([length], 300, 4, 2, dim, dtype), arch, seed=length, scale=0.3, softcap=softcap)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_shared_memory_of_sm_120(arch):
    """99 KB a block: at head_dim 128 a ring for bulk copies has room for one stage. All else runs as on sm_90."""
    for dim, max_len in ((64, 8448), (128, 8448), (256, 300), (96, 300)):
        given = inputs([200], max_len, 8, 1, dim, torch.bfloat16)
        check(given, arch, runs=1, shared_bytes=99 * 1024)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dim", [112, 256])
def test_the_same_bits_in_any_order(dim, arch):
    given = inputs([300], 400, 8, 1, dim, torch.bfloat16)
    outputs = [check(given, arch, seed, sm_count=5, runs=1) for seed in range(6)]
    assert all(torch.equal(out, outputs[0]) for out in outputs)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_row_that_is_read_past_its_end_is_found(arch):
    """NaN in the slots next to the last valid key, and guard zones behind the caches: a load that is not left out
    where head_dim ends has one or the other."""
    for dim in (8, 40, 88, 136, 248):
        check(inputs([20], 20, 1, 1, dim, torch.bfloat16), arch, runs=1)


@pytest.mark.parametrize("head_dim", [4, 68, 264])
def test_other_head_dims_are_refused(head_dim):
    with device(90) as dev, pytest.raises(RuntimeError, match=f"a multiple of 8 up to 256, got {head_dim}"):
        launch(dev, [dev.to(tensor) for tensor in inputs([3], 9, 2, 1, head_dim, torch.bfloat16)])
