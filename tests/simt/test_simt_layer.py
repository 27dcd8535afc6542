"""A decoder layer, and a whole step, of CUDA kernels on the SIMT executor: launches in order, and programmatic."""

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import assert_close, randn
from inputs.simt import ARCHS, device

import pykernels as pk

SPEC = pk.models.get("tiny")
CTX, POSITION = 200, 150


class Layer:
    """The tiny model's layer in device memory; steps are queued launch by launch."""

    def __init__(self, dev, batch: int, dtype: torch.dtype) -> None:
        self.dev, self.batch, self.dtype = dev, batch, dtype
        spec, kv = SPEC, (batch, SPEC.n_kv_heads, CTX, SPEC.head_dim)
        host = pk.LayerWeights.random(spec, dtype)
        x = randn(batch, spec.hidden, dtype=dtype)
        k, v = randn(*kv, dtype=dtype, seed=1), randn(*kv, dtype=dtype, seed=2)
        # The slot that the step fills, and all after it, are NaN.
        k[:, :, POSITION:] = v[:, :, POSITION:] = float("nan")
        cos_sin = pk.models.cos_sin_table(spec, CTX)
        position = torch.full((batch,), POSITION, dtype=torch.int32)
        self.expected = pk.reference.layer(spec, host, x, k, v, cos_sin, position)
        cpu = pk.DecodeLayer(spec, host, CTX, batch, dtype)
        cpu.set_position(POSITION)
        for there, here in ((cpu.x, x), (cpu.k_cache, k), (cpu.v_cache, v)):
            there.copy_(here)
        assert_close(cpu.forward("block"), self.expected[0], dtype, depth=2)

        self.weights = {name: dev.to(getattr(host, name)) for name in pk.LayerWeights.shapes(spec)}
        self.x, self.k, self.v = dev.to(x), dev.to(k), dev.to(v)
        self.cos_sin, self.position, self.kv_len = dev.to(cos_sin), dev.to(position), dev.to(position + 1)
        self.buffers = {
            name: dev.empty(batch, width, dtype=dtype)
            for name, width in dict(
                q=spec.n_heads * spec.head_dim, k_new=spec.n_kv_heads * spec.head_dim,
                v_new=spec.n_kv_heads * spec.head_dim, q_turned=spec.n_heads * spec.head_dim,
                attended=spec.n_heads * spec.head_dim, normed=spec.hidden, projected=spec.hidden, h=spec.hidden,
                gate=spec.intermediate, up=spec.intermediate, activated=spec.intermediate, out=spec.hidden,
            ).items()
        }  # fmt: skip
        self.heads = dict(n_heads=spec.n_heads, n_kv_heads=spec.n_kv_heads, head_dim=spec.head_dim, max_len=CTX)
        self.attention = dict(
            q=self.buffers["q_turned"], k_cache=self.k, v_cache=self.v, kv_len=self.kv_len,
            out=self.buffers["attended"], batch=batch, scale=spec.head_dim**-0.5, dtype=dtype, **self.heads,
        )  # fmt: skip
        workspace = dev.gqa_decode_workspace(**self.attention)
        self.attention |= dict(workspace=workspace, workspace_bytes=workspace.numel())

    def launch(self, op: str, **fields) -> None:
        self.dev.launch(op, self.programmatic, batch=self.batch, dtype=self.dtype, **fields)

    def gemv(self, x: str, weight: str, out: str, bias: str | None = None, residual=None) -> None:
        n_out, n_in = self.weights[weight].shape
        bias = self.weights[bias] if bias else None
        self.launch(
            "gemv", x=self.buffers[x], weight=self.weights[weight], bias=bias, residual=residual,
            out=self.buffers[out], in_features=n_in, out_features=n_out,
        )  # fmt: skip

    def rmsnorm(self, x, weight: str) -> None:
        self.launch(
            "rmsnorm", x=x, weight=self.weights[weight], out=self.buffers["normed"], hidden=SPEC.hidden,
            eps=SPEC.rms_eps,
        )  # fmt: skip

    def add(self, a, b: str, out: str) -> None:
        self.dev.launch(
            "add", self.programmatic, a=a, b=self.buffers[b], out=self.buffers[out], count=self.x.numel(),
            dtype=self.dtype,
        )  # fmt: skip

    def append(self, op: str, **fields) -> None:
        self.launch(
            op, cos_sin=self.cos_sin, position=self.position, q_out=self.buffers["q_turned"], k_cache=self.k,
            v_cache=self.v, max_position=CTX, **self.heads, **fields,
        )  # fmt: skip

    def step(self, fusion: str, programmatic: bool) -> None:
        """Queue the sequence of pk.DecodeLayer."""
        self.programmatic, b, w = programmatic, self.buffers, self.weights
        if fusion == "block":
            self.append(
                "qkv_gemv", x=self.x, norm_weight=w["input_norm"], q_weight=w["q_weight"], k_weight=w["k_weight"],
                v_weight=w["v_weight"], q_bias=w["q_bias"], k_bias=w["k_bias"], v_bias=w["v_bias"],
                hidden=SPEC.hidden, eps=SPEC.rms_eps,
            )  # fmt: skip
            self.dev.launch("gqa_decode", programmatic, **self.attention)
            self.gemv("attended", "o_weight", "h", residual=self.x)
            self.launch(
                "swiglu_gemv", x=b["h"], norm_weight=w["post_norm"], gate_weight=w["gate_weight"],
                up_weight=w["up_weight"], out=b["activated"], in_features=SPEC.hidden,
                out_features=SPEC.intermediate, eps=SPEC.rms_eps,
            )  # fmt: skip
            self.gemv("activated", "down_weight", "out", residual=b["h"])
            return
        self.rmsnorm(self.x, "input_norm")
        for part, out in (("q", "q"), ("k", "k_new"), ("v", "v_new")):
            self.gemv("normed", f"{part}_weight", out, f"{part}_bias" if w[f"{part}_bias"] is not None else None)
        self.append("rope_kv_append", q=b["q"], k=b["k_new"], v=b["v_new"])
        self.dev.launch("gqa_decode", programmatic, **self.attention)
        self.gemv("attended", "o_weight", "projected")
        self.add(self.x, "projected", "h")
        self.rmsnorm(b["h"], "post_norm")
        self.gemv("normed", "gate_weight", "gate")
        self.gemv("normed", "up_weight", "up")
        self.launch("silu_mul", gate=b["gate"], up=b["up"], out=b["activated"], features=SPEC.intermediate)
        self.gemv("activated", "down_weight", "projected")
        self.add(b["h"], "projected", "out")

    def check(self) -> None:
        out, k_row, v_row = self.expected
        assert_close(self.buffers["out"], out, self.dtype, depth=2)
        assert_close(self.k[:, :, POSITION], k_row, self.dtype, depth=2)
        assert_close(self.v[:, :, POSITION], v_row, self.dtype, depth=2)
        assert self.k[:, :, POSITION + 1 :].isnan().all()


@pairwise
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fusion", ["none", "block"])
@pytest.mark.parametrize("shared_kib", [227, 99])
def test_layer(shared_kib, fusion, dtype, batch, arch):
    """sm_120 has the instructions of sm_90 and 99 KB of shared memory a block."""
    with device(arch, seed=batch, shared_bytes=shared_kib * 1024) as dev:
        layer = Layer(dev, batch, dtype)
        layer.step(fusion, programmatic=False)
        dev.synchronize()
        layer.check()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fusion", ["none", "block"])
def test_two_steps_chained_programmatically(fusion, seed):
    """As mode graph-pdl runs them: every launch may start before the one ahead of it has ended. Two of the seeds with
    the shared memory of sm_120."""
    with device(90, seed, sm_count=3, shared_bytes=(99 if seed > 3 else 227) * 1024) as dev:
        layer = Layer(dev, 1, torch.bfloat16)
        for _ in range(2):
            layer.step(fusion, programmatic=True)
        dev.synchronize()
        layer.check()


class WholeStep(Layer):
    """That layer with a model's rest around it: embedding, final norm, lm_head and argmax, which steps on."""

    VOCAB = 4104  # enough for argmax to take a cluster of blocks

    def __init__(self, dev) -> None:
        super().__init__(dev, 1, torch.bfloat16)
        table, lm_head = (randn(self.VOCAB, SPEC.hidden, dtype=self.dtype, seed=seed) for seed in (8, 9))
        self.table, self.weights["lm_head"] = dev.to(table), dev.to(lm_head)
        self.weights["final_norm"] = self.weights["post_norm"]
        self.buffers["logits"] = dev.empty(1, self.VOCAB, dtype=self.dtype)
        self.token = dev.to(torch.tensor([7]))

    def step(self, fusion: str, programmatic: bool) -> None:
        """Queue the sequence of pk.DecodeModel."""
        self.programmatic = programmatic
        self.launch("embedding", token=self.token, table=self.table, out=self.x, hidden=SPEC.hidden, vocab=self.VOCAB)
        super().step(fusion, programmatic)
        self.rmsnorm(self.buffers["out"], "final_norm")
        self.gemv("normed", "lm_head", "logits")
        self.launch(
            "argmax", logits=self.buffers["logits"], token=self.token, position=self.position, kv_len=self.kv_len,
            vocab=self.VOCAB, max_len=CTX,
        )  # fmt: skip


@pytest.mark.parametrize("fusion", ["none", "block"])
def test_whole_steps_follow_one_another_programmatically(fusion):
    """As a captured step is replayed: the token, position and kv_len that a step leaves are the next one's."""
    steps, tokens = 2, []
    with device(90, sm_count=3) as dev:
        whole = WholeStep(dev)
        for _ in range(steps):
            whole.step(fusion, programmatic=False)
            dev.synchronize()
            tokens.append(int(whole.token))
            assert tokens[-1] == int(whole.buffers["logits"].argmax())
        logits, keys = whole.buffers["logits"].clone(), whole.k[:, :, POSITION : POSITION + steps].clone()
        assert len(set(tokens)) == steps and int(whole.position) == POSITION + steps == int(whole.kv_len) - 1
    for seed in range(3):
        with device(90, seed, sm_count=3) as dev:
            whole = WholeStep(dev)
            for _ in range(steps):
                whole.step(fusion, programmatic=True)
            dev.synchronize()
            assert int(whole.position) == POSITION + steps == int(whole.kv_len) - 1
            assert int(whole.token) == tokens[-1] and torch.equal(whole.buffers["logits"], logits)
            assert torch.equal(whole.k[:, :, POSITION : POSITION + steps], keys)
            assert whole.k[:, :, POSITION + steps :].isnan().all()
