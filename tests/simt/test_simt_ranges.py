"""CUDA kernels with index tensors out of range, on the SIMT executor: they read and write inside their tensors."""

import dataclasses

import pytest
import torch
from inputs.helpers import randn
from inputs.int4_weights import int4
from inputs.simt import ARCHS, device
from inputs.simt_gqa_decode import inputs, launch
from inputs.simt_int4 import run_gemv

BF16 = torch.bfloat16
MAX_LEN, MAX_POSITION, HEADS, KV_HEADS, DIM, HIDDEN = 16, 12, 4, 2, 64, 128
WRONG = [-1, -(1 << 31), 1 << 20, (1 << 31) - 1]

everywhere = pytest.mark.parametrize("arch", ARCHS)
wrong_values = pytest.mark.parametrize("wrong", WRONG)


def rope_fields(dev, wrong: int) -> dict:
    return dict(
        cos_sin=dev.to(randn(MAX_POSITION, DIM)), position=dev.to(torch.tensor([wrong], dtype=torch.int32)),
        q_out=dev.empty(1, HEADS, DIM, dtype=BF16), k_cache=dev.to(torch.zeros(1, KV_HEADS, MAX_LEN, DIM, dtype=BF16)),
        v_cache=dev.to(torch.zeros(1, KV_HEADS, MAX_LEN, DIM, dtype=BF16)), batch=1, n_heads=HEADS, n_kv_heads=KV_HEADS,
        head_dim=DIM, max_len=MAX_LEN, max_position=MAX_POSITION, dtype=BF16,
    )  # fmt: skip


@everywhere
@wrong_values
def test_rope_kv_append(wrong, arch):
    with device(arch) as dev:
        fields = rope_fields(dev, wrong)
        q, k, v = (dev.to(randn(1, heads, DIM, dtype=BF16)) for heads in (HEADS, KV_HEADS, KV_HEADS))
        dev.launch("rope_kv_append", q=q, k=k, v=v, **fields)
        dev.synchronize()
        # The last slot with angles is the one that is written.
        assert fields["v_cache"][0, :, MAX_POSITION - 1].equal(v[0])
        assert not fields["v_cache"][0, :, MAX_POSITION:].any()


@everywhere
@wrong_values
@pytest.mark.parametrize("width", [HIDDEN, HIDDEN + 4])
def test_qkv_gemv(width, wrong, arch):
    with device(arch) as dev:
        weights = {
            f"{name}_weight": dev.to(randn(heads * DIM, width, dtype=BF16))
            for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        }
        x, norm = (dev.to(randn(*shape, dtype=BF16)) for shape in ((1, width), (width,)))
        dev.launch("qkv_gemv", x=x, norm_weight=norm, hidden=width, eps=1e-6, **weights, **rope_fields(dev, wrong))
        dev.synchronize()


@everywhere
@pytest.mark.parametrize("wrong", [0, *WRONG])
@pytest.mark.parametrize("max_len", [MAX_LEN, 2048])
def test_gqa_decode(max_len, wrong, arch):
    with device(arch) as dev:
        q, k, v, _ = inputs([max_len], max_len, HEADS, KV_HEADS, DIM, BF16)
        kv_len = torch.tensor([wrong], dtype=torch.int32)
        out, _ = launch(dev, [dev.to(tensor) for tensor in (q, k, v, kv_len)])
        dev.synchronize()
        assert not out.isnan().any()  # all slots are read, and no other


@everywhere
@pytest.mark.parametrize("wrong", [*WRONG, 1 << 40, -(1 << 63)])
@pytest.mark.parametrize("hidden", [64, 65])
def test_embedding(hidden, wrong, arch):
    table = randn(5, hidden, dtype=BF16)
    with device(arch) as dev:
        out = dev.empty(1, hidden, dtype=BF16)
        dev.launch(
            "embedding", token=dev.to(torch.tensor([wrong])), table=dev.to(table), out=out, batch=1, hidden=hidden,
            vocab=5, dtype=BF16,
        )  # fmt: skip
        dev.synchronize()
        assert out[0].equal(table[4])


@everywhere
@wrong_values
def test_int4_gemv(wrong, arch):
    perm = torch.arange(HIDDEN, dtype=torch.int32)
    perm[5] = wrong
    weight = dataclasses.replace(int4(32, HIDDEN, dtype=BF16, group_size=32), perm=perm)
    x = randn(1, HIDDEN, dtype=BF16)
    with device(arch) as dev:
        out = run_gemv(dev, x, weight)
    perm[5] = HIDDEN - 1
    with device(arch) as dev:
        assert out.equal(run_gemv(dev, x, weight))
