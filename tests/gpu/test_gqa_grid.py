"""gqa_decode on a GPU over the grid of FlashInfer's own decode test, against float32. Skipped without a GPU."""

import pytest
import torch
from inputs.helpers import assert_close

import pykernels as pk

pytestmark = pytest.mark.skipif(
    not (pk.runtime.build_info()["cuda"] and torch.cuda.is_available()), reason="needs a CUDA build and a GPU"
)

KV_LENS = [54, 97, 512, 2048, 16384]
GROUPS = [1, 4, 5, 7, 8, 16]


def float32_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """q [1, n_heads, head_dim]; k, v [1, n_kv_heads, kv_len, head_dim] in float32."""
    grouped = q.float().view(1, k.shape[1], -1, q.shape[2])
    weights = torch.softmax(grouped @ k.transpose(2, 3) * q.shape[2] ** -0.5, dim=-1)
    return (weights @ v).view(q.shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("kv_heads", [4, 8, 32])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_flashinfers_decode_grid(head_dim, kv_heads, dtype):
    """Every length in a cache that it fills, and in one whose other slots are NaN."""
    generator = torch.Generator("cuda").manual_seed(head_dim + kv_heads)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda").to(dtype)

    for kv_len in KV_LENS:
        for spare in (0, 10):  # 64 slots, of 54: whole tiles
            k, v = (randn(1, kv_heads, kv_len + spare, head_dim) for _ in range(2))
            k[:, :, kv_len:] = v[:, :, kv_len:] = float("nan")
            keys, values = (cache[:, :, :kv_len].float() for cache in (k, v))
            length = torch.tensor([kv_len], dtype=torch.int32, device="cuda")
            for group in GROUPS:
                q = randn(1, kv_heads * group, head_dim)
                out = torch.full_like(q, float("nan"))
                pk.ops.gqa_decode(q, k, v, length, out=out)
                assert_close(out, float32_attention(q, keys, values).double(), dtype)
