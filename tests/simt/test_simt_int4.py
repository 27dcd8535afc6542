"""The CUDA int4 GEMVs on the SIMT executor against the reference: groups, zero points, act-order, odd widths and rows,
what shared memory cannot hold at once, and cases that must be exact."""

import dataclasses

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import assert_close, randn
from inputs.int4_weights import GROUPS, int4, powers_of_two, shuffled
from inputs.simt import ARCHS, DTYPES, device
from inputs.simt_int4 import gemv_inputs, on_device, run_gemv
from torch import Tensor

import pykernels as pk
from bench.backends import int4 as int4_kernels
from bench.int4 import validate
from bench.int4.trials import trials

CPU = torch.device("cpu")
KINDS = [
    pytest.param(dict(symmetric=True), id="symmetric"),
    pytest.param(dict(symmetric=False), id="zeros"),
    pytest.param(dict(symmetric=False, act_order=True), id="act-order"),
]
MODEL_GROUPS = [32, 64, 128, -1]


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_in", "group_size"), GROUPS)
def test_any_group(n_in, group_size, kind, dtype, arch):
    x, weight = gemv_inputs(2, n_in, 37, dtype, group_size=group_size, **kind)
    with device(arch, seed=n_in + group_size) as dev:
        out = run_gemv(dev, x, weight)
    assert_close(out, pk.reference.int4_gemv(x, weight), dtype)


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("group_size", [128, 256, -1])
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize(("n_in", "n_out", "sm_count"), [(256, 1, 1), (768, 37, 2), (512, 300, 1), (2560, 75, 3)])
def test_the_fast_path(n_in, n_out, sm_count, batch, group_size, symmetric, dtype, arch):
    """What int4_gemv_fast.cuh takes: whole chunks of 128 columns. Warps without work, and units for two rounds."""
    group_size = group_size if n_in % group_size == 0 else -1
    x, weight = gemv_inputs(batch, n_in, n_out, dtype, group_size=group_size, symmetric=symmetric)
    bias, residual = randn(n_out, dtype=dtype, seed=2), randn(batch, n_out, dtype=dtype, seed=3)
    with device(arch, seed=batch, sm_count=sm_count) as dev:
        out = run_gemv(dev, x, weight, bias, residual, programmatic=batch % 2 == 0)
    assert_close(out, pk.reference.int4_gemv(x, weight, bias, residual), dtype)


@pytest.mark.parametrize("shared_kb", [64, 99, 163])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_fast_path_with_fewer_warps(batch, shared_kb):
    x, weight = gemv_inputs(batch, 4096, 70, torch.bfloat16)
    with device(80, sm_count=2, shared_bytes=shared_kb * 1024) as dev:
        out = run_gemv(dev, x, weight)
    assert_close(out, pk.reference.int4_gemv(x, weight), torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exponent", [-108, -60, -24, 0, 12, 15, 60, 108])
def test_x_of_any_magnitude(exponent, dtype):
    """x is scaled to integers by one power of two per 128 columns."""
    if dtype == torch.float16 and not -24 <= exponent <= 12:
        pytest.skip("float16 has no such numbers")
    weight = int4(9, 512, dtype=dtype, seed=4)
    weight.scales[:] = 2.0**-8 if exponent > 0 else 1.0
    x = torch.zeros(1, 512, dtype=dtype)
    x[0, 3], x[0, 200], x[0, 300:384] = 2.0**exponent, -(2.0**exponent), torch.randn(84).to(dtype)
    x[0, 300:384] *= 2.0 ** min(exponent, 10)
    with device(90) as dev:
        out = run_gemv(dev, x, weight)
    expected = x.double() @ weight.dequantize(torch.float64).T
    assert torch.allclose(out.double(), expected, rtol=2**-7 if dtype == torch.bfloat16 else 2**-9, atol=0) or (
        out.double() - expected
    ).abs().max() <= expected.abs().max() * 2.0**-9 + 2.0**-24 * (dtype == torch.float16)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_finite_number_is_not_lost(dtype, value):
    x, weight = gemv_inputs(2, 512, 40, dtype)
    x[1, 130] = value
    with device(90) as dev:
        out = run_gemv(dev, x, weight)
    assert_close(out[:1], pk.reference.int4_gemv(x[:1], weight), dtype)
    assert not out[1].isfinite().any()


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", range(1, 9))
@pytest.mark.parametrize("n_out", [1, 2, 16, 17, 130, 1031])
def test_any_batch_and_number_of_rows(n_out, batch, dtype, arch):
    x, weight = gemv_inputs(batch, 544, n_out, dtype, group_size=32, symmetric=False)
    bias = randn(n_out, dtype=dtype, seed=2) if batch % 2 else None
    residual = randn(batch, n_out, dtype=dtype, seed=3) if batch % 3 else None
    with device(arch, seed=batch, sm_count=1 + batch % 4) as dev:
        out = run_gemv(dev, x, weight, bias, residual)
    assert_close(out, pk.reference.int4_gemv(x, weight, bias, residual), dtype)


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [2, 6, 8])
@pytest.mark.parametrize("group_size", [32, -1])
def test_tensors_that_begin_anywhere(group_size, offset, kind, arch):
    dtype = torch.bfloat16
    x, weight = gemv_inputs(2, 288, 37, dtype, group_size=group_size, **kind)
    with device(arch) as dev:
        out = run_gemv(dev, x, weight, offset=offset)
    assert_close(out, pk.reference.int4_gemv(x, weight), dtype)


# Shared memory for fewer warps, for parts of the columns, for parts of the rows.
@pairwise
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("batch", "n_in", "n_out", "group_size", "shared_kb"),
    [
        (8, 4096, 70, 128, 99),
        (8, 2176, 70, 64, 99),
        (5, 2048, 66, 32, 64),
        (3, 1536, 90, 384, 50),
        (1, 8192, 300, 32, 99),
    ],
)
def test_what_shared_memory_cannot_hold_at_once(batch, n_in, n_out, group_size, shared_kb, kind, arch):
    dtype = torch.float16
    x, weight = gemv_inputs(batch, n_in, n_out, dtype, group_size=group_size, **kind)
    with device(arch, seed=1, sm_count=2, shared_bytes=shared_kb * 1024) as dev:
        out = run_gemv(dev, x, weight)
    assert_close(out, pk.reference.int4_gemv(x, weight), dtype)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("seed", range(12))
def test_the_same_bits_in_any_order_and_under_any_launch(seed, arch):
    x, weight = gemv_inputs(3, 1536, 66, torch.bfloat16, group_size=64, symmetric=False)
    with device(arch) as dev:
        first = run_gemv(dev, x, weight)
    with device(arch, seed) as dev:
        assert torch.equal(run_gemv(dev, x, weight, programmatic=seed % 2 == 1), first)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_chained_launches(seed, kind):
    """The second reads what the first writes, its weights before the first has ended."""
    dtype = torch.bfloat16
    x, first = gemv_inputs(2, 256, 288, dtype, group_size=32, **kind)
    second = int4(40, 288, 32, dtype=dtype, seed=5, **kind)
    with device(90, seed) as dev:
        between, out = dev.empty(2, 288, dtype=dtype), dev.empty(2, 40, dtype=dtype)
        for given, weight, to in ((dev.to(x), first, between), (between, second, out)):
            dev.launch(
                "int4_gemv", True, x=given, weight=on_device(dev, weight), out=to, batch=2,
                in_features=weight.in_features, out_features=weight.out_features, dtype=dtype,
            )  # fmt: skip
        dev.synchronize()
        assert_close(out, pk.reference.int4_gemv(between.clone(), second), dtype)


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group_size", MODEL_GROUPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [4, 8])
def test_one_hot_inputs_read_back_every_weight(rows, dtype, group_size, kind, arch):
    weight = int4(19, 256, group_size, dtype=torch.bfloat16, **kind).to(dtype)
    with device(arch) as dev:
        columns = [run_gemv(dev, x, weight) for x in torch.eye(256, dtype=dtype).split(rows)]
    # (q - zero) * scale has 16 significant bits at most: exact in float32, so rounded once.
    assert torch.equal(torch.cat(columns).T, weight.dequantize(dtype))


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("q", [0, 8, 15])
@pytest.mark.parametrize("zero", [0, 7, 8, 15, 16, None])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_nibbles_alike(dtype, zero, q, arch):
    zeros = None if zero is None else torch.full((5, 4), zero, dtype=torch.uint8)
    q_values, scales = torch.full((5, 256), q, dtype=torch.uint8), torch.full((5, 4), 0.25, dtype=dtype)
    weight = pk.Int4Weight.from_plain(pk.quant.QuantizedWeight(q_values, scales, zeros, 64))
    with device(arch) as dev:
        out = run_gemv(dev, torch.full((2, 256), 0.5, dtype=dtype), weight)
    assert (out == (q - (8 if zero is None else zero)) * 256 * 0.5 * 0.25).all()


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two_are_exact(dtype, symmetric, arch):
    weight, x, expected = powers_of_two(dtype, symmetric)
    with device(arch) as dev:
        out = run_gemv(dev, x, weight)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_of_zero(kind, arch):
    x, weight = gemv_inputs(3, 256, 17, torch.bfloat16, **kind)
    weight.scales[:9] = 0
    with device(arch) as dev:
        out = run_gemv(dev, x, weight)
    assert (out[:, :9] == 0).all()
    assert_close(out, pk.reference.int4_gemv(x, weight), torch.bfloat16)


@pairwise
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group_size", MODEL_GROUPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [4, 8])
def test_errs_no_more_than_dequantising_first(batch, dtype, group_size, symmetric):
    """Root mean square error against the reference, beside that of a float32 product with the dequantised weight."""
    weight = int4(128, 2048, group_size, symmetric, dtype)
    x = randn(batch, 2048, dtype=dtype)
    expected = pk.reference.int4_gemv(x, weight)

    def error(out: Tensor) -> float:
        return float((out.double() - expected).square().mean().sqrt())

    with device(90) as dev:
        ours = error(run_gemv(dev, x, weight))
    assert ours <= 1.05 * error((x.float() @ weight.dequantize(torch.float32).T).to(dtype))


def run_swiglu(dev, x, gate, up, norm_weight) -> Tensor:
    (batch, n_in), n_out, dtype = x.shape, gate.out_features, x.dtype
    out, perms = dev.empty(batch, n_out, dtype=dtype), {}
    dev.launch(
        "int4_swiglu_gemv", x=dev.to(x), norm_weight=dev.to(norm_weight), gate=on_device(dev, gate, shared=perms),
        up=on_device(dev, up, shared=perms), out=out, batch=batch, in_features=n_in, out_features=n_out, eps=1e-6,
        dtype=dtype,
    )  # fmt: skip
    dev.synchronize()
    return out.clone()


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("batch", "n_in", "n_out", "group_size"), [(1, 512, 65, 128), (3, 544, 33, 32), (8, 192, 18, 64), (2, 160, 7, -1)]
)
def test_swiglu(batch, n_in, n_out, group_size, norm, kind, dtype, arch):
    x = randn(batch, n_in, dtype=dtype)
    gate, up = (int4(n_out, n_in, group_size, dtype=dtype, seed=seed, **kind) for seed in (1, 2))
    up.perm = gate.perm
    norm_weight = randn(n_in, dtype=dtype, seed=3) if norm else None
    with device(arch, seed=batch) as dev:
        out = run_swiglu(dev, x, gate, up, norm_weight)
    assert_close(out, pk.reference.int4_swiglu_gemv(x, gate, up, norm_weight), dtype, depth=2)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("shared_kb", [227, 64])
def test_gate_and_up_of_two_kinds(shared_kb, arch):
    dtype = torch.bfloat16
    x, norm_weight = randn(5, 1024, dtype=dtype), randn(1024, dtype=dtype, seed=3)
    gate = int4(50, 1024, dtype=dtype)
    values = int4(50, 1024, dtype=dtype, seed=2).dequantize(torch.float32)
    for other in (
        pk.Int4Weight.quantize(values, 32, False, dtype),  # other groups
        pk.Int4Weight.quantize(values, 128, False, dtype),  # the same groups, zero points on one side alone
        shuffled(pk.Int4Weight.quantize(values, 128, True, dtype)),  # act-order on one side alone
    ):
        for given in ((gate, other), (other, gate)):
            with device(arch, sm_count=2, shared_bytes=shared_kb * 1024) as dev:
                out = run_swiglu(dev, x, *given, norm_weight)
            assert_close(out, pk.reference.int4_swiglu_gemv(x, *given, norm_weight), dtype, depth=2)


def run_qkv(dev, given: dict, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    batch, hidden = given["x"].shape
    kv_heads, max_len, head_dim = given["k_cache"].shape[1:]
    heads = given["q"].out_features // head_dim
    perms = {}
    weights = {name: on_device(dev, given[name], shared=perms) for name in "qkv"}
    tensors = {name: dev.to(value) for name, value in given.items() if not isinstance(value, pk.Int4Weight)}
    q_out = dev.empty(batch, heads, head_dim, dtype=dtype)
    dev.launch(
        "int4_qkv_gemv", **weights, **tensors, q_out=q_out, batch=batch, hidden=hidden, n_heads=heads,
        n_kv_heads=kv_heads, head_dim=head_dim, max_len=max_len, max_position=given["cos_sin"].shape[0], eps=1e-6,
        dtype=dtype,
    )  # fmt: skip
    dev.synchronize()
    return q_out.clone(), tensors["k_cache"].clone(), tensors["v_cache"].clone()


def check_qkv(given: dict, arch: int, seed: int) -> None:
    dtype, position = given["x"].dtype, given["position"]
    with device(arch, seed=seed) as dev:
        q_out, k_cache, v_cache = run_qkv(dev, given, dtype)
    biases = [given[f"{name}_bias"] for name in "qkv"]
    expected = pk.reference.int4_qkv_gemv(
        given["x"], given["norm_weight"], 1e-6, *(given[name] for name in "qkv"), given["cos_sin"], position,
        given["k_cache"].shape[3], *biases,
    )  # fmt: skip
    assert_close(q_out, expected[0], dtype, depth=2)
    written = torch.zeros(len(position), k_cache.shape[2], dtype=torch.bool)
    written[torch.arange(len(position)), position.long()] = True
    for cache, rows in ((k_cache, expected[1]), (v_cache, expected[2])):
        by_slot = cache.transpose(1, 2)
        assert_close(by_slot[written], rows, dtype, depth=2)
        assert by_slot[~written].isnan().all()


def qkv_inputs(batch, hidden, heads, kv_heads, head_dim, dtype, bias=True, **kind) -> dict:
    rows = dict(q=heads * head_dim, k=kv_heads * head_dim, v=kv_heads * head_dim)
    given = dict(x=randn(batch, hidden, dtype=dtype), norm_weight=randn(hidden, dtype=dtype, seed=1))
    for seed, (name, n_rows) in enumerate(rows.items(), 2):
        given[name] = int4(n_rows, hidden, dtype=dtype, seed=seed, **kind)
        given[f"{name}_bias"] = randn(n_rows, dtype=dtype, seed=seed + 3) if bias else None
    given["k"].perm = given["v"].perm = given["q"].perm
    given["cos_sin"] = randn(16, head_dim, seed=9)
    given["position"] = torch.tensor([11, 0, 5, 3, 3, 10, 1, 7][:batch], dtype=torch.int32)
    nan = torch.full((batch, kv_heads, 12, head_dim), float("nan"), dtype=dtype)
    return given | dict(k_cache=nan, v_cache=nan)


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("batch", "hidden", "heads", "kv_heads", "head_dim", "group_size"),
    [(1, 512, 7, 1, 64, 128), (2, 1056, 4, 2, 64, 32), (3, 192, 1, 1, 128, 64), (8, 96, 2, 1, 8, -1)],
)
def test_qkv(batch, hidden, heads, kv_heads, head_dim, group_size, kind, dtype, arch):
    given = qkv_inputs(batch, hidden, heads, kv_heads, head_dim, dtype, bias=batch != 2, group_size=group_size, **kind)
    check_qkv(given, arch, batch)


@pytest.mark.parametrize("arch", ARCHS)
def test_three_weights_of_three_kinds(arch):
    dtype = torch.float16
    given = qkv_inputs(2, 256, 4, 2, 64, dtype, group_size=128)
    values = {name: given[name].dequantize(torch.float32) for name in "kv"}
    given["k"] = pk.Int4Weight.quantize(values["k"], 32, False, dtype)
    given["v"] = shuffled(pk.Int4Weight.quantize(values["v"], 128, False, dtype))
    check_qkv(given, arch, 1)
    given["q"] = dataclasses.replace(given["q"], perm=given["v"].perm)  # q and v read x alike now
    check_qkv(given, arch, 2)


@pytest.mark.parametrize(("dtype", "arch"), list(zip(DTYPES, ARCHS, strict=True)))
def test_the_trials_of_a_validation(dtype, arch):
    """`bench.int4 --validate` of the CUDA kernels on the executor: every case, few of the one-hot inputs, and without
    the many rows, which take it minutes."""

    class OnExecutor(int4_kernels.registry()["native"]):
        def run(self, x: Tensor) -> Tensor:
            with device(arch, seed=x.shape[0]) as dev:
                return run_gemv(dev, x, self._weight)

    found = []
    for trial in trials(dtype, (32, 128), (True, False), 2):
        if trial.case == "many rows" or trial.weight.out_features * trial.weight.in_features > 600_000:
            continue
        found.append(validate.run_trial(OnExecutor, dataclasses.replace(trial, inputs=trial.inputs[::64]), CPU))
    assert not validate.failed(found)
    assert {one.case for one in found} == {
        "random", "one-hot", "powers of two", "all 0", "all 15", "zero scale", "zero points of 0", "large inputs",
        "ragged", "act-order",
    }  # fmt: skip
