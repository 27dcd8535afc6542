"""The CUDA ops on a GPU: each against the reference; the layer in every way it can be driven. Skipped without a GPU.

Without a GPU the same kernels run on the SIMT executor (tests/simt, tests/native).
"""

import json
from dataclasses import replace

import pytest
import torch
from inputs.command_line import run_here
from inputs.helpers import GPU, assert_close, randn
from inputs.int4_weights import int4

import pykernels as pk
from bench.core import device_trace
from pykernels.layer import OP_LABELS, op_labels

pytestmark = pytest.mark.skipif(
    not (pk.runtime.build_info()["cuda"] and torch.cuda.is_available()), reason="needs a CUDA build and a GPU"
)

DTYPES = [pytest.param(torch.bfloat16, id="bf16"), pytest.param(torch.float16, id="fp16")]
BATCHES = [1, 2, 3, 8]


def on_gpu(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.cuda() for tensor in tensors]


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=dtype, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("hidden", [8, 520, 3584, 4096, 20000, 100, 7])
def test_rmsnorm(hidden, batch, dtype):
    x, weight = randn(batch, hidden, dtype=dtype), randn(hidden, dtype=dtype, seed=1)
    out = poisoned(batch, hidden, dtype=dtype)
    pk.ops.rmsnorm(*on_gpu(x, weight), 1e-6, out=out)
    assert_close(out, pk.reference.rmsnorm(x, weight, 1e-6), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("n_in", "n_out"),
    [(8, 1), (512, 3), (520, 129), (3584, 512), (4096, 4096), (18944, 515), (4104, 37), (7, 9), (100, 33)],
)
@pytest.mark.parametrize("extra", [False, True])
def test_gemv(n_in, n_out, batch, dtype, extra):
    x, weight = randn(batch, n_in, dtype=dtype), randn(n_out, n_in, dtype=dtype, seed=1, scale=n_in**-0.5)
    bias, residual = randn(n_out, dtype=dtype, seed=2), randn(batch, n_out, dtype=dtype, seed=3)
    given = [x, weight, bias, residual] if extra else [x, weight]
    out = poisoned(batch, n_out, dtype=dtype)
    pk.ops.gemv(*on_gpu(*given), out=out)
    assert_close(out, pk.reference.gemv(*given), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("n_in", "n_out"), [(512, 1408), (520, 33), (4096, 259), (4104, 21), (100, 7)])
@pytest.mark.parametrize("norm", [False, True])
def test_swiglu_gemv(n_in, n_out, batch, dtype, norm):
    x, norm_weight = randn(batch, n_in, dtype=dtype), randn(n_in, dtype=dtype, seed=1)
    gate, up = (randn(n_out, n_in, dtype=dtype, seed=seed, scale=n_in**-0.5) for seed in (2, 3))
    norm_weight = norm_weight if norm else None
    expected = pk.reference.swiglu_gemv(x, gate, up, norm_weight)
    out = poisoned(batch, n_out, dtype=dtype)
    pk.ops.swiglu_gemv(*on_gpu(x, gate, up), norm_weight=norm_weight.cuda() if norm else None, out=out)
    assert_close(out, expected, dtype, depth=2)


KINDS = [dict(symmetric=True), dict(symmetric=False), dict(symmetric=False, act_order=True)]
# In, out, group size: those of the models among them.
INT4_SHAPES = [
    (32, 1, 32), (160, 17, -1), (544, 131, 32), (192, 40, 64), (3584, 512, 128), (4096, 515, 64), (4096, 259, 32),
    (14336, 130, 128), (18944, 258, 128), (3584, 18944, 128),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", range(1, 9))
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("n_in", "n_out", "group_size"), INT4_SHAPES)
def test_int4_gemv(n_in, n_out, group_size, kind, batch, dtype):
    x, weight = randn(batch, n_in, dtype=dtype), int4(n_out, n_in, group_size, dtype=dtype, **kind).to("cuda")
    bias, residual = randn(n_out, dtype=dtype, seed=2).cuda(), randn(batch, n_out, dtype=dtype, seed=3).cuda()
    given = dict(bias=bias, residual=residual) if batch % 2 else {}
    out = poisoned(batch, n_out, dtype=dtype)
    pk.ops.int4_gemv(x.cuda(), weight, **given, out=out)
    assert_close(out, pk.reference.int4_gemv(x.cuda(), weight, **given), dtype)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_hot_inputs_read_back_every_4_bit_weight(dtype, group_size, kind):
    weight = int4(37, 512, group_size, dtype=torch.bfloat16, **kind).to(dtype).to("cuda")
    columns = [pk.ops.int4_gemv(x, weight) for x in torch.eye(512, dtype=dtype, device="cuda").split(8)]
    assert torch.equal(torch.cat(columns).T, weight.dequantize(dtype))


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group_size", [32, 128, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_int4_gemv_errs_no_more_than_dequantising_first(dtype, group_size, symmetric):
    weight, x = int4(1024, 4096, group_size, symmetric, dtype), randn(8, 4096, dtype=dtype)
    expected = pk.reference.int4_gemv(x, weight)

    def error(out: torch.Tensor) -> float:
        return float((out.cpu().double() - expected).square().mean().sqrt())

    ours = error(pk.ops.int4_gemv(x.cuda(), weight.to("cuda")))
    assert ours <= 1.05 * error((x.float() @ weight.dequantize(torch.float32).T).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("n_in", "n_out", "group_size"), [(512, 1408, 128), (544, 33, 32), (4096, 259, 64)])
@pytest.mark.parametrize("share", [False, True], ids=["two orders", "one order"])
def test_int4_swiglu_gemv(n_in, n_out, group_size, kind, share, batch, dtype):
    x, norm_weight = on_gpu(randn(batch, n_in, dtype=dtype), randn(n_in, dtype=dtype, seed=1))
    gate, up = (int4(n_out, n_in, group_size, dtype=dtype, seed=seed, **kind).to("cuda") for seed in (2, 3))
    if share:
        up.perm = gate.perm
    norm_weight = norm_weight if batch != 2 else None
    out = poisoned(batch, n_out, dtype=dtype)
    pk.ops.int4_swiglu_gemv(x, gate, up, norm_weight=norm_weight, out=out)
    assert_close(out, pk.reference.int4_swiglu_gemv(x, gate, up, norm_weight), dtype, depth=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(28, 4), (32, 8), (8, 1), (6, 6), (12, 1), (32, 2)])
@pytest.mark.parametrize("lengths", [[1], [2], [63], [64], [65], [1000], [2048], [5, 1, 1500], [700] * 8])
def test_gqa_decode(lengths, heads, kv_heads, head_dim, dtype):
    batch, max_len = len(lengths), 2048
    q = randn(batch, heads, head_dim, dtype=dtype)
    k, v = (randn(batch, kv_heads, max_len, head_dim, dtype=dtype, seed=seed) for seed in (1, 2))
    for b, length in enumerate(lengths):
        k[b, :, length:] = float("nan")
        v[b, :, length:] = float("nan")
    kv_len = torch.tensor(lengths, dtype=torch.int32)
    expected = pk.reference.gqa_decode(q, k, v, kv_len)
    tensors = on_gpu(q, k, v, kv_len)
    workspace = pk.ops.gqa_decode_workspace(tensors[0], tensors[1])
    for _ in range(2):  # the second call finds the counters as the first left them
        out = poisoned(batch, heads, head_dim, dtype=dtype)
        pk.ops.gqa_decode(*tensors, out=out, workspace=workspace)
        assert_close(out, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("vocab", [1, 7, 520, 4097, 128256, 152064])
def test_argmax(vocab, batch, dtype):
    logits = randn(batch, vocab, dtype=dtype, scale=0.3).round().to(dtype)  # ties
    if vocab > 7:
        logits[-1, [5, vocab // 2, vocab - 1]] = float("nan")
    position = torch.tensor([0, 7, 8, 3, 3, 3, 3, 3][:batch], dtype=torch.int32)
    on_device = on_gpu(logits, position, position + 1)
    for _ in range(2):
        token = pk.ops.argmax(*on_device, max_len=9)
        assert torch.equal(token.cpu(), pk.reference.argmax(logits))
    assert on_device[1].tolist() == (position + 2).clamp(max=8).tolist()
    assert on_device[2].tolist() == (position + 3).clamp(max=9).tolist()


def check_step(layer: pk.DecodeLayer, fusion: str, norms: int = 0) -> None:
    """A step at position 250, with NaN behind it, against the reference. `norms`: more than a Llama layer has, ahead of
    the cache's rows; the output has twice as many."""
    layer.set_position(250)
    layer.k_cache[:, :, 251:] = float("nan")
    layer.v_cache[:, :, 251:] = float("nan")
    expected, k_row, v_row = pk.reference.layer(
        layer.spec, layer.weights, layer.x, layer.k_cache, layer.v_cache, layer.cos_sin, layer.position
    )
    layer.poison()
    layer.forward(fusion)
    assert_close(layer.out, expected, layer.dtype, depth=2 + 2 * norms)
    assert_close(layer.k_cache[:, :, 250], k_row, layer.dtype, depth=2 + norms)
    assert_close(layer.v_cache[:, :, 250], v_row, layer.dtype, depth=2)
    assert layer.k_cache[:, :, 251:].isnan().all()
    for cache in (layer.k_cache, layer.v_cache):  # later steps attend to all of it
        cache[:, :, 251:] = cache[:, :, :49]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("fusion", OP_LABELS)
@pytest.mark.parametrize("name", ["tiny", "qwen2.5-7b", "llama-3.1-8b"])
def test_layer(name, fusion, batch, dtype):
    if name != "tiny" and (batch not in (1, 3) or dtype != torch.bfloat16):
        pytest.skip("the reference takes seconds")
    spec = pk.models.get(name)
    layer = pk.DecodeLayer(spec, pk.LayerWeights.random(spec, dtype, "cuda"), 300, batch, dtype, "cuda")
    check_step(layer, fusion)


_TINY = replace(pk.models.get("tiny"), qkv_bias=False)
FEATURES = {
    "qk norm": pk.models.get("qwen3-0.6b"),
    "qk norm of all heads, norms behind": replace(_TINY, qk_norm="all", pre_norms=False, post_norms=True),
    "offset, gelu, norms": replace(_TINY, norm_offset=1.0, gelu=True, qk_norm="head", post_norms=True),
    "multipliers": replace(_TINY, attention_scale=0.05, residual_scale=0.3),
    "soft cap": replace(_TINY, attention_softcap=1.5),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("fusion", [*OP_LABELS, "int4"])
@pytest.mark.parametrize("features", FEATURES)
def test_layer_of_other_features(features, fusion, batch):
    spec, dtype = FEATURES[features], torch.bfloat16
    weights = pk.LayerWeights.random(spec, dtype, "cuda")
    weights, fusion = (weights.quantize(64), "block") if fusion == "int4" else (weights, fusion)
    layer = pk.DecodeLayer(spec, weights, 300, batch, dtype, "cuda")
    check_step(layer, fusion, norms=1)
    check_every_mode(layer, layer.program(fusion), fusion)


def check_every_mode(layer: pk.DecodeLayer, program: pk.runtime.Program, fusion: str) -> None:
    graphs = [pk.runtime.CudaGraph([program], programmatic) for programmatic in (False, True)]
    assert [graph.kernels for graph in graphs] == [len(program)] * 2
    stream = torch.cuda.current_stream().cuda_stream
    for position in (299, 0, 77, 78):
        layer.set_position(position)
        layer.forward(fusion)
        eager = layer.out.clone()
        for step in (lambda: program.run(stream), lambda: program.run(stream, True),
                     lambda: graphs[0].replay(stream), lambda: graphs[1].replay(stream)):  # fmt: skip
            for _ in range(3):
                layer.poison()
                step()
                assert torch.equal(layer.out, eager)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("fusion", OP_LABELS)
def test_a_captured_step_decodes_a_sequence_by_itself(fusion, batch):
    """Every way to drive a whole step writes the same tokens and logits, bit for bit; each step's logits are the
    reference's for the cache that the steps before it left, and its token is their argmax."""
    steps, start, spec = 24, 40, pk.models.get("tiny")
    model = pk.DecodeModel(spec, pk.ModelWeights.random(spec, device="cuda"), 80, batch, device="cuda")
    program, stream = model.program(fusion), torch.cuda.current_stream().cuda_stream
    model.set_position(79)
    tape = model.tape(fusion)
    graphs = [pk.runtime.CudaGraph([program], programmatic) for programmatic in (False, True)]
    assert [graph.kernels for graph in graphs] == [len(program)] * 2
    caches = [(layer.k_cache, layer.v_cache) for layer in model.layers]

    def decode(step, checked: bool = False) -> torch.Tensor:
        model.token.copy_(torch.arange(batch) * 37 + 5)
        model.set_position(start)
        for cache in (cache for pair in caches for cache in pair):
            cache[:, :, start:] = float("nan")
        tokens = []
        for _ in range(steps):
            if checked:
                angles = [layer.cos_sin for layer in model.layers]
                expected, _ = pk.reference.step(spec, model.weights, model.token, caches, angles, model.position)
            model.poison()
            step()
            tokens.append(model.token.clone())
            if checked:
                comparison = pk.reference.compare(model.logits, expected, torch.bfloat16, depth=4)
                assert comparison.ok, comparison.message
                assert torch.equal(model.token, pk.reference.argmax(model.logits))
        assert model.position.tolist() == [start + steps] * batch
        assert model.kv_len.tolist() == [start + steps + 1] * batch
        return torch.stack(tokens, dim=1)

    expected = decode(lambda: model.forward(fusion), checked=True)
    logits = model.logits.clone()
    assert len(expected.unique()) >= 8, "a sequence that repeats itself shows nothing"
    for step in (lambda: program.run(stream), lambda: program.run(stream, True), tape.run,
                 lambda: graphs[0].replay(stream), lambda: graphs[1].replay(stream)):  # fmt: skip
        assert torch.equal(decode(step), expected)
        assert torch.equal(model.logits, logits)
    # And with nothing between the steps.
    for graph in graphs:
        model.token.copy_(torch.arange(batch) * 37 + 5)
        model.set_position(start)
        pk.runtime.cuda_timed_loop([graph], stream, 0, steps)
        assert torch.equal(model.token, expected[:, -1]) and torch.equal(model.logits, logits)


def test_host_time_of_a_step_that_would_fill_the_launch_queue():
    """A blocking kernel lasts ten seconds at most, and the queue holds about 1,024 launches."""
    x, out = torch.zeros(2, 8, device=GPU, dtype=torch.bfloat16), torch.zeros(2, 8, device=GPU, dtype=torch.bfloat16)
    with pk.runtime.record() as program:
        for _ in range(1100):
            pk.ops.add(x, x, out=out)
    stream = torch.cuda.current_stream(GPU).cuda_stream
    assert max(pk.runtime.cuda_host_loop([program], stream, 1, 2)) < 5e6


@pytest.mark.parametrize("batch", [1, 3])
def test_bench_step(capsys, tmp_path, batch):
    output = tmp_path / "step.json"
    few = ["--model=tiny", "--ctx=100", "--steps=12", "--backend=native,sdpa", f"--batch={batch}", f"--json={output}"]
    result = run_here(capsys, "bench.step", f"--device={GPU}", *few)
    assert result.status == 0, result.out
    n_layers, per_layer = pk.models.get("tiny").n_layers, {"none": 14, "block": 5}
    document = json.loads(output.read_text())
    arms = [arm for arm in document["arms"] if arm["status"] != "unsupported"]
    assert [(arm["status"], arm["reason"]) for arm in arms] == [("ok", None)] * (2 * 7 + 3), (
        "native in seven modes at two fusions; sdpa eager, native and graph"
    )
    for arm in arms:
        assert arm["wall_us"]["p50"] > 0 and arm["host_us"]["p50"] > 0
        if device_trace.reason() is None and arm["mode"] != "graph-loop":
            assert arm["device_reason"] is None and arm["device_us"]["p50"] > 0
            if arm["backend"] == "native":
                assert arm["launches"] == n_layers * per_layer[arm["fusion"]] + 4
                assert arm["launches_per_layer"] == per_layer[arm["fusion"]]
            else:
                assert arm["launches"] > n_layers * arm["launches_per_layer"] > n_layers * 14
    assert document["memory"]["peak_bytes"] > 0


@pytest.mark.skipif(pk.runtime.timestamps_reason() is not None, reason="needs a build with in-kernel timestamps")
@pytest.mark.parametrize(
    "flags", [["--fusion=block,none"], ["--batch=3"], ["--quant=int4"], ["--quant=int4", "--group=32", "--batch=3"]]
)
def test_bench_inside(capsys, tmp_path, flags):
    output = tmp_path / "inside.json"
    few = ["--model=tiny", "--ctx=300", "--steps=12", *flags, f"--json={output}"]
    result = run_here(capsys, "bench.inside", f"--device={GPU}", *few)
    assert result.status == 0, result.out + result.err
    arms = [arm for arm in json.loads(output.read_text())["arms"] if arm["status"] != "unsupported"]
    assert [(arm["status"], arm["reason"]) for arm in arms] == [("ok", None)] * len(arms) and arms
    for arm in arms:
        assert (arm["replays"], arm["replays_left_out"], arm["records_lost"]) == (12, 0, 0)
        assert 200 < arm["sm_mhz"]["low"] <= arm["sm_mhz"]["high"] < 1.1 * arm["sm_mhz"]["low"] < 4000
        for entry in arm["kernels"]:
            passed = [time for time in entry["points"].values() if time]
            assert entry["inside_us"]["p20"] > 0 and all(time["p20"] >= 0 for time in passed)
            assert sum(time["mean"] for time in passed) == pytest.approx(entry["inside_us"]["mean"])
        assert 0.5 < arm["accounted_us"] / arm["wall_us"]["mean"] < 1.02


@pytest.mark.parametrize("fusion", OP_LABELS)
def test_every_mode_gives_the_same_bits_and_positions_advance(fusion):
    spec = pk.models.get("llama-3.1-8b")
    layer = pk.DecodeLayer(spec, pk.LayerWeights.random(spec, device="cuda"), 300, device="cuda")
    check_every_mode(layer, layer.program(fusion), fusion)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("name", ["tiny", "qwen2.5-7b", "llama-3.1-8b"])
def test_int4_layer(name, group_size, symmetric, batch, dtype):
    if name != "tiny" and (batch not in (1, 3) or dtype != torch.bfloat16 or group_size not in (32, 128)):
        pytest.skip("the reference takes seconds")
    spec = pk.models.get(name)
    weights = pk.LayerWeights.random(spec, dtype, "cuda").quantize(group_size, symmetric)
    layer = pk.DecodeLayer(spec, weights, 300, batch, dtype, "cuda")
    check_step(layer, "block")


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_every_mode_of_a_4_bit_layer_gives_the_same_bits_and_positions_advance(symmetric):
    spec = pk.models.get("llama-3.1-8b")
    weights = pk.LayerWeights.random(spec, device="cuda").quantize(128, symmetric)
    layer = pk.DecodeLayer(spec, weights, 300, device="cuda")
    program = layer.program("block")
    assert program.ops == [op for op, _ in op_labels("block", int4=True)]
    check_every_mode(layer, program, "block")


def test_float32_is_refused():
    x, weight = on_gpu(randn(1, 64), randn(8, 64))
    with pytest.raises(ValueError, match="gemv: on CUDA, tensors must be bfloat16 or float16, got float32"):
        pk.ops.gemv(x, weight)
