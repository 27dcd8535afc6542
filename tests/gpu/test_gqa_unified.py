"""gqa_decode with a unified maximum on a GPU: fall-backs have online's bits, and are counted. Skipped without a GPU."""

import pytest
import torch
from inputs.helpers import GPU
from inputs.unified import PLANTS, check_unified, planted

import pykernels as pk

pytestmark = pytest.mark.skipif(
    not (pk.runtime.build_info()["cuda"] and torch.cuda.is_available()), reason="needs a CUDA build and a GPU"
)

# Of (lengths, max_len, query heads, KV heads, head_dim): one split, clusters, splits through global memory, bulk
# copies.
SHAPES = {
    "one split": ([70], 100, 4, 1, 128),
    "clusters": ([2000, 130], 2048, 28, 4, 128),
    "clusters of 64": ([1000], 1024, 32, 8, 64),
    "splits": ([16000], 16384, 28, 4, 128),
    "bulk copies": ([65000], 65536, 32, 8, 128),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_planted_scores(shape, dtype):
    for plant in (*PLANTS, None):
        given = planted(*SHAPES[shape], dtype, {(0, 0): plant} if plant else None)
        q, k, v, kv_len = (tensor.to(GPU) for tensor in given)
        online = pk.ops.gqa_decode(q, k, v, kv_len)
        workspace = pk.ops.gqa_decode_workspace(q, k, "unified")
        out = torch.full_like(q, float("nan"))
        pk.ops.gqa_decode(q, k, v, kv_len, softmax="unified", out=out, workspace=workspace)
        check_unified(out.cpu(), online.cpu(), pk.ops.gqa_decode_fallbacks(workspace), given)
        assert not workspace[64:].any(), "a launch leaves the workspace zero but for the count"


@pytest.mark.parametrize("ctx", [1000, 4000, 20000])
def test_a_layer_by_pdl(ctx):
    """The fall-back of every head gives online's bits in graphs of either kind, again and again."""
    spec = pk.models.get("qwen2.5-7b")
    online = pk.DecodeLayer(spec, pk.LayerWeights.random(spec, torch.bfloat16, GPU), ctx, device=GPU)
    layer = online.with_softmax("unified", 1e3)
    stream = torch.cuda.current_stream().cuda_stream
    for programmatic in (False, True):  # their plans differ, and so may their bits
        graphs = [pk.runtime.CudaGraph([of.program("block")], programmatic) for of in (online, layer)]
        graphs[0].replay(stream)
        expected = online.out.clone()
        layer.reset_fallbacks()
        for _ in range(3):
            layer.poison()
            graphs[1].replay(stream)
            torch.cuda.synchronize()
            assert torch.equal(layer.out, expected)
        assert layer.fallbacks == 3 * spec.n_heads


@pytest.mark.parametrize(
    ("heads", "head_dim", "message"),
    [(4, 96, "of head_dim 64 or 128 .*, got head_dim 96"), (1, 64, "of more heads than k_cache's 1 .*, got 1 heads")],
)
def test_heads_without_one(heads, head_dim, message):
    q = torch.zeros(1, heads, head_dim, dtype=torch.bfloat16, device=GPU)
    k = torch.zeros(1, 1, 64, head_dim, dtype=torch.bfloat16, device=GPU)
    kv_len = torch.tensor([64], dtype=torch.int32, device=GPU)
    with pytest.raises(ValueError, match=f"q must be {message}"):
        pk.ops.gqa_decode(q, k, k, kv_len, softmax="unified")
