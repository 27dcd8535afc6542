"""The small CUDA kernels on the SIMT executor: rmsnorm, add, silu_mul, embedding, argmax, rope_kv_append, controls."""

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import assert_close, randn
from inputs.simt import ARCHS, BATCHES, DTYPES, device

import pykernels as pk

everywhere = pytest.mark.parametrize("arch", ARCHS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
batches = pytest.mark.parametrize("batch", BATCHES)


@pairwise
@everywhere
@dtypes
@batches
@pytest.mark.parametrize("hidden", [1, 7, 8, 100, 520, 3584, 4099])
def test_rmsnorm(hidden, batch, dtype, arch):
    x, weight = randn(batch, hidden, dtype=dtype), randn(hidden, dtype=dtype, seed=1)
    expected = pk.reference.rmsnorm(x, weight, 1e-6)
    with device(arch, seed=hidden) as dev:
        out = dev.empty(batch, hidden, dtype=dtype)
        dev.launch(
            "rmsnorm", x=dev.to(x), weight=dev.to(weight), out=out, batch=batch, hidden=hidden, eps=1e-6, dtype=dtype
        )
        dev.synchronize()
        assert_close(out, expected, dtype)
    assert_close(pk.ops.rmsnorm(x, weight, 1e-6), expected, dtype)


@everywhere
def test_rmsnorm_of_a_row_longer_than_registers_keep(arch):
    x, weight = randn(1, 20000, dtype=torch.bfloat16), randn(20000, dtype=torch.bfloat16, seed=1)
    with device(arch) as dev:
        out = dev.empty(1, 20000, dtype=torch.bfloat16)
        dev.launch(
            "rmsnorm", x=dev.to(x), weight=dev.to(weight), out=out, batch=1, hidden=20000, eps=1e-5,
            dtype=torch.bfloat16,
        )  # fmt: skip
        dev.synchronize()
        assert_close(out, pk.reference.rmsnorm(x, weight, 1e-5), torch.bfloat16)


@pairwise
@everywhere
@dtypes
@pytest.mark.parametrize("offset", [0, 2])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (1, 2048), (8, 264), (2, 2049)])
def test_add_and_silu_mul(shape, offset, dtype, arch):
    a, b = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype, seed=1)
    with device(arch) as dev:
        on_device = dev.to(a, offset), dev.to(b, offset)
        total, product = (dev.empty(*shape, dtype=dtype, offset=offset) for _ in range(2))
        dev.launch("add", a=on_device[0], b=on_device[1], out=total, count=a.numel(), dtype=dtype)
        dev.launch(
            "silu_mul", gate=on_device[0], up=on_device[1], out=product, batch=shape[0], features=shape[1], dtype=dtype
        )
        dev.synchronize()
        assert torch.equal(total, pk.ops.add(a, b))
        assert_close(total, pk.reference.add(a, b), dtype)
        assert_close(product, pk.reference.silu_mul(a, b), dtype)
    assert_close(pk.ops.silu_mul(a, b), pk.reference.silu_mul(a, b), dtype)


@pairwise
@everywhere
@dtypes
@batches
@pytest.mark.parametrize("hidden", [1, 8, 100, 2056])
def test_embedding(hidden, batch, dtype, arch):
    table = randn(11, hidden, dtype=dtype)
    token = torch.tensor([10, 0, 3, 3, 7, 1, 9, 5][:batch])
    with device(arch) as dev:
        out = dev.empty(batch, hidden, dtype=dtype)
        dev.launch(
            "embedding", token=dev.to(token), table=dev.to(table), out=out, batch=batch, hidden=hidden, vocab=11,
            dtype=dtype,
        )  # fmt: skip
        dev.synchronize()
        assert torch.equal(out, table[token])
    assert torch.equal(pk.ops.embedding(token, table), table[token])


def steps(dev, logits: torch.Tensor, offset: int = 0, positions=None, max_len: int = 0, launches: int = 1, **flags):
    """argmax so many times in a row. Returns the tokens, and position and kv_len where positions are given."""
    batch, vocab = logits.shape
    token = dev.empty(batch, dtype=torch.int64)
    position, kv_len = None, None
    if positions:
        position = dev.to(torch.tensor(positions, dtype=torch.int32))
        kv_len = dev.to(torch.tensor(positions, dtype=torch.int32) + 1)
    on_device = dev.to(logits, offset)
    for _ in range(launches):
        dev.launch(
            "argmax", logits=on_device, token=token, position=position, kv_len=kv_len, batch=batch, vocab=vocab,
            max_len=max_len, dtype=logits.dtype, **flags,
        )  # fmt: skip
    dev.synchronize()
    return token.tolist(), *(t.tolist() for t in (position, kv_len) if t is not None)


@pairwise
@everywhere
@dtypes
@batches
@pytest.mark.parametrize("offset", [0, 2])
@pytest.mark.parametrize("vocab", [1, 7, 8, 520, 4097, 20480])
def test_argmax(vocab, offset, batch, dtype, arch):
    # Few different values, so that most of the largest are ties, in several blocks.
    logits = randn(batch, vocab, dtype=dtype, scale=0.3).round().to(dtype)
    with device(arch, seed=vocab + batch) as dev:
        [token] = steps(dev, logits, offset)
    assert token == pk.ops.argmax(logits).tolist() == pk.reference.argmax(logits).tolist()


@pairwise
@everywhere
@dtypes
@pytest.mark.parametrize("vocab", [40, 20480])
def test_argmax_of_what_is_not_a_number_or_not_finite(vocab, dtype, arch):
    logits = randn(6, vocab, dtype=dtype)
    logits[1] = -float("inf")
    logits[2, [vocab - 1, vocab // 2, vocab // 2 + 1]] = float("nan")
    logits[3, vocab - 2] = float("nan")
    logits[3, 0] = float("inf")
    logits[4] = 0.0
    logits[4, ::2] = -0.0
    logits[5, vocab - 3 :] = float("inf")
    with device(arch, seed=vocab) as dev:
        [token] = steps(dev, logits)
    assert token[1:] == [0, vocab // 2, vocab - 2, 0, vocab - 3]
    assert token == pk.ops.argmax(logits).tolist() == pk.reference.argmax(logits).tolist()


@everywhere
@pytest.mark.parametrize("programmatic", [False, True])
def test_argmax_steps_the_sequences_on_up_to_the_last_slot(programmatic, arch):
    logits = randn(3, 4096, dtype=torch.bfloat16)
    for launches, positions in ((1, [1, 8, 8]), (2, [2, 8, 8]), (9, [8, 8, 8])):
        with device(arch, seed=launches) as dev:
            found = steps(dev, logits, 0, [0, 7, 8], 9, launches, programmatic=programmatic)
        assert found == (logits.argmax(-1).tolist(), positions, [position + 1 for position in positions])


@pairwise
@everywhere
@dtypes
@batches
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(1, 1, 64), (7, 1, 128), (8, 2, 64), (4, 4, 96)])
def test_rope_kv_append(heads, kv_heads, head_dim, batch, dtype, arch):
    max_len = 9
    q = randn(batch, heads, head_dim, dtype=dtype)
    k, v = (randn(batch, kv_heads, head_dim, dtype=dtype, seed=seed) for seed in (1, 2))
    cos_sin = randn(20, head_dim, seed=3)
    position = torch.tensor([8, 0, 4, 4, 1, 7, 2, 8][:batch], dtype=torch.int32)
    nan = torch.full((batch, kv_heads, max_len, head_dim), float("nan"), dtype=dtype)
    with device(arch, seed=batch) as dev:
        q_out, k_cache, v_cache = dev.empty(*q.shape, dtype=dtype), dev.to(nan), dev.to(nan)
        dev.launch(
            "rope_kv_append", q=dev.to(q), k=dev.to(k), v=dev.to(v), cos_sin=dev.to(cos_sin),
            position=dev.to(position), q_out=q_out, k_cache=k_cache, v_cache=v_cache, batch=batch, n_heads=heads,
            n_kv_heads=kv_heads, head_dim=head_dim, max_len=max_len, max_position=20, dtype=dtype,
        )  # fmt: skip
        dev.synchronize()
        q_out, k_cache, v_cache = q_out.clone(), k_cache.clone(), v_cache.clone()
    cpu_k, cpu_v = nan.clone(), nan.clone()
    cpu_q = pk.ops.rope_kv_append(q, k, v, cos_sin, position, cpu_k, cpu_v)
    expected = pk.reference.rope_kv_append(q, k, v, cos_sin, position)
    rows = torch.arange(batch), slice(None), position.long()
    for got, wanted in zip((q_out, k_cache[rows], v_cache[rows]), expected, strict=True):
        assert_close(got, wanted, dtype)
    for got, wanted in zip((cpu_q, cpu_k[rows], cpu_v[rows]), expected, strict=True):
        assert_close(got, wanted, dtype)
    for cache in (k_cache, v_cache):
        cache[rows] = float("nan")
        assert cache.isnan().all()


@everywhere
@pytest.mark.parametrize("size", [64, 4096, 64 * 1025, 1 << 20])
def test_ceilings(size, arch):
    src = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    with device(arch, seed=size, sm_count=3) as dev:
        on_device, out, sink = dev.to(src), dev.empty(size, dtype=torch.uint8), dev.empty(8, dtype=torch.int64)
        sink.zero_()
        dev.launch("ceiling_read", src=on_device, sink=sink, bytes=size)
        dev.launch("ceiling_copy", src=on_device, out=out, bytes=size)
        dev.synchronize()
        assert torch.equal(out, src)
        assert int(sink[0]) == int(src.view(torch.int64).sum())
        assert (sink[1:] == 0).all()


@everywhere
def test_null_and_spin(arch):
    with device(arch) as dev:
        dev.launch("null")
        dev.launch("spin", duration_us=50.0)
        dev.launch("null", programmatic=True)
        dev.synchronize()


@everywhere
def test_float32_is_refused(arch):
    with device(arch) as dev, pytest.raises(RuntimeError, match="add: on CUDA, tensors must be bfloat16 or float16"):
        dev.launch("add", dtype=torch.float32, count=8)
