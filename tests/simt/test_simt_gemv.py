"""The CUDA GEMVs on the SIMT executor: gemv, swiglu_gemv and qkv_gemv against the reference and the CPU ops."""

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import assert_close, randn
from inputs.simt import ARCHS, BATCHES, DTYPES, device
from inputs.simt_gemv import gemv_inputs, run_gemv

import pykernels as pk

# In, out: pieces of 512 and their rests, fewer rows than warps, an odd row, more units a block than are finished at
# once, rows longer than registers hold, rows that are not vectors.
SHAPES = [(8, 1), (512, 3), (520, 300), (1024, 64), (3584, 40), (1528, 66), (4104, 37), (7, 9), (100, 33), (513, 4)]


def both_close(out, cpu, expected, dtype, depth=1):
    """The executor's result and the CPU's are the reference's."""
    assert_close(out, expected, dtype, depth)
    assert_close(cpu, expected, dtype, depth)


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("n_in", "n_out"), SHAPES)
@pytest.mark.parametrize("extra", [False, True])
def test_gemv(n_in, n_out, batch, dtype, arch, extra):
    inputs = gemv_inputs(batch, n_in, n_out, dtype)
    inputs = inputs if extra else (*inputs[:2], None, None)
    with device(arch, seed=batch) as dev:
        out = run_gemv(dev, inputs, dtype)
    both_close(out, pk.ops.gemv(*inputs), pk.reference.gemv(*inputs), dtype)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("shared_kib", [99, 227])
@pytest.mark.parametrize("n_in", [1032, 4168])
@pytest.mark.parametrize("batch", range(2, 9))
def test_gemv_on_tensor_cores_at_every_batch(batch, n_in, shared_kib, arch):
    """Both kernels, x in registers and x a K tile at a time, of an sm_89's shared memory and of an sm_90's."""
    inputs = gemv_inputs(batch, n_in, 41, torch.bfloat16)
    with device(arch, seed=batch, sm_count=3, shared_bytes=shared_kib * 1024) as dev:
        out = run_gemv(dev, inputs, torch.bfloat16)
    both_close(out, pk.ops.gemv(*inputs), pk.reference.gemv(*inputs), torch.bfloat16)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("n_in", [1528, 4104])
def test_gemv_gives_the_same_bits_in_any_order(n_in, seed, arch):
    inputs = gemv_inputs(3, n_in, 66, torch.bfloat16)
    with device(arch) as dev:
        first = run_gemv(dev, inputs, torch.bfloat16)
    with device(arch, seed, sm_count=1 + seed % 5) as dev:
        assert torch.equal(run_gemv(dev, inputs, torch.bfloat16), first)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("offset", [2, 8])
def test_gemv_of_rows_that_begin_between_vectors(offset, arch):
    inputs = gemv_inputs(2, 520, 17, torch.bfloat16)
    with device(arch) as dev:
        out = run_gemv(dev, inputs, torch.bfloat16, offset)
    both_close(out, pk.ops.gemv(*inputs), pk.reference.gemv(*inputs), torch.bfloat16)


@pytest.mark.parametrize("arch", ARCHS)
def test_gemv_of_x_that_shared_memory_does_not_hold(arch):
    inputs = gemv_inputs(1, 33000, 9, torch.float16)
    with device(arch) as dev:
        out = run_gemv(dev, inputs, torch.float16)
    both_close(out, pk.ops.gemv(*inputs), pk.reference.gemv(*inputs), torch.float16)


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("n_in", "n_out"), [(512, 65), (520, 33), (2048, 18), (4104, 21), (100, 7), (8, 9)])
@pytest.mark.parametrize("norm", [False, True])
def test_swiglu_gemv(n_in, n_out, batch, dtype, arch, norm):
    x = randn(batch, n_in, dtype=dtype)
    norm_weight = randn(n_in, dtype=dtype, seed=1) if norm else None
    gate, up = (randn(n_out, n_in, dtype=dtype, seed=seed, scale=n_in**-0.5) for seed in (2, 3))
    with device(arch, seed=batch) as dev:
        out = dev.empty(batch, n_out, dtype=dtype)
        dev.launch(
            "swiglu_gemv", x=dev.to(x), norm_weight=dev.to(norm_weight), gate_weight=dev.to(gate),
            up_weight=dev.to(up), out=out, batch=batch, in_features=n_in, out_features=n_out, eps=1e-6, dtype=dtype,
        )  # fmt: skip
        dev.synchronize()
        out = out.clone()
    cpu = pk.ops.swiglu_gemv(x, gate, up, norm_weight=norm_weight)
    both_close(out, cpu, pk.reference.swiglu_gemv(x, gate, up, norm_weight), dtype, depth=2)


@pytest.mark.parametrize("arch", ARCHS)
def test_swiglu_gemv_whose_normed_x_shared_memory_does_not_hold(arch):
    dtype = torch.bfloat16
    x, norm_weight = randn(1, 33000, dtype=dtype), randn(33000, dtype=dtype, seed=1)
    gate, up = (randn(9, 33000, dtype=dtype, seed=seed, scale=33000**-0.5) for seed in (2, 3))
    with device(arch) as dev:
        out = dev.empty(1, 9, dtype=dtype)
        dev.launch(
            "swiglu_gemv", x=dev.to(x), norm_weight=dev.to(norm_weight), gate_weight=dev.to(gate),
            up_weight=dev.to(up), out=out, batch=1, in_features=33000, out_features=9, eps=1e-6, dtype=dtype,
        )  # fmt: skip
        dev.synchronize()
        assert_close(out, pk.reference.swiglu_gemv(x, gate, up, norm_weight), dtype, depth=2)


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("hidden", "heads", "kv_heads", "head_dim"),
    [(512, 7, 1, 64), (1032, 4, 2, 64), (520, 1, 1, 128), (4104, 3, 1, 64), (50, 2, 1, 128)],
)
def test_qkv_gemv(hidden, heads, kv_heads, head_dim, batch, dtype, arch):
    max_len = 12
    x, norm_weight = randn(batch, hidden, dtype=dtype), randn(hidden, dtype=dtype, seed=1)
    rows = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    weights = [randn(n, hidden, dtype=dtype, seed=2 + i, scale=hidden**-0.5) for i, n in enumerate(rows)]
    biases = [randn(n, dtype=dtype, seed=5 + i) for i, n in enumerate(rows)]
    biases = biases if heads != 4 else [None] * 3
    cos_sin = randn(16, head_dim, seed=9)
    position = torch.tensor([(11, 0, 5, 3, 3, 10, 1, 7)[b] for b in range(batch)], dtype=torch.int32)
    nan = torch.full((batch, kv_heads, max_len, head_dim), float("nan"), dtype=dtype)
    with device(arch, seed=batch) as dev:
        q_out = dev.empty(batch, heads, head_dim, dtype=dtype)
        k_cache, v_cache = dev.to(nan), dev.to(nan)
        q_weight, k_weight, v_weight = (dev.to(weight) for weight in weights)
        q_bias, k_bias, v_bias = (dev.to(bias) for bias in biases)
        dev.launch(
            "qkv_gemv", x=dev.to(x), norm_weight=dev.to(norm_weight), q_weight=q_weight, k_weight=k_weight,
            v_weight=v_weight, q_bias=q_bias, k_bias=k_bias, v_bias=v_bias, cos_sin=dev.to(cos_sin),
            position=dev.to(position), q_out=q_out, k_cache=k_cache, v_cache=v_cache, batch=batch, hidden=hidden,
            n_heads=heads, n_kv_heads=kv_heads, head_dim=head_dim, max_len=max_len, max_position=16, eps=1e-6,
            dtype=dtype,
        )  # fmt: skip
        dev.synchronize()
        q_out, k_cache, v_cache = q_out.clone(), k_cache.clone(), v_cache.clone()
    cpu_k, cpu_v = nan.clone(), nan.clone()
    cpu_q = pk.ops.qkv_gemv(x, *weights, cos_sin, position, cpu_k, cpu_v, *biases, norm_weight=norm_weight, eps=1e-6)
    expected = pk.reference.qkv_gemv(x, norm_weight, 1e-6, *weights, cos_sin, position, head_dim, *biases)
    both_close(q_out, cpu_q, expected[0], dtype, depth=2)
    for cache, cpu_cache, rows_expected in ((k_cache, cpu_k, expected[1]), (v_cache, cpu_v, expected[2])):
        written = torch.zeros(batch, max_len, dtype=torch.bool)
        written[torch.arange(batch), position.long()] = True
        by_slot, cpu_by_slot = cache.transpose(1, 2), cpu_cache.transpose(1, 2)
        both_close(by_slot[written], cpu_by_slot[written], rows_expected, dtype, depth=2)
        assert by_slot[~written].isnan().all()
