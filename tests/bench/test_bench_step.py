"""A whole step, end to end on the tiny model: the protocol, the document, what a lack of memory does."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs.command_line import assert_refused, flat, run, run_here
from inputs.documents import check_written

import pykernels as pk
from bench.backends.steps import arms as step_arms
from bench.backends.steps import drivers as step_drivers
from bench.backends.steps import transformers as transformers_driver
from bench.core import floors, measure

SMALL = ["--model=tiny", "--ctx=32", "--steps=8", "--warmup=2"]
PAPER_KEYS = {
    "arch", "gpu", "ctx", "p50_ms", "step_times_ms", "weight_bytes", "kv_bytes_avg", "bytes_per_token_kv",
    "avg_ctx_during_measure", "bw_peak_gbs", "t_floor_ms", "R_floor", "n_layers", "source",
}  # fmt: skip
TINY = pk.models.get("tiny")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("step")
    outputs = [f"--json={folder}/step.json", f"--md={folder}/step.md", f"--plot={folder}/step.png"]
    result = run("bench.step", *SMALL, "--spec-gbs=100", *outputs)
    assert result.status == 0, result.err
    return folder, result, json.loads((folder / "step.json").read_text())


def test_the_document(finished):
    folder, result, document = finished
    check_written(document)
    assert (document["schema"], document["kind"], document["interrupted"]) == ("launchtax/1", "step", False)
    assert document["cache"].startswith("random K and V") and document["full_layers"] == 4
    assert document["kv_len"] == {"first": 32 + 2 + 1, "last": 32 + 2 + 8}
    assert {a["backend"] for a in document["arms"]} == {"native", "sdpa", "transformers"}
    ok = [arm for arm in document["arms"] if arm["status"] == "ok"]
    assert len(ok) == 2 * 4 + 2
    for arm in ok:
        assert arm["wall_us"]["n"] == 8 and 0 < arm["max_rel_error"] < 0.05
        assert arm["paper"].keys() == PAPER_KEYS
    theirs = next(arm["wall_us"]["p50"] for arm in ok if arm["backend"] == "transformers")
    assert all(arm["ratio_to_transformers"]["p50"] == theirs / arm["wall_us"]["p50"] for arm in ok)
    assert "times as fast as transformers" in result.out
    assert (folder / "step.png").read_bytes().startswith(b"\x89PNG")
    assert "one decode step of tiny, ctx 32" in result.out


def test_the_paper_s_keys(finished):
    _, _, document = finished
    arm = next(arm for arm in document["arms"] if arm["mode"] == "native" and arm["fusion"] == "block")
    cell = arm["paper"]
    assert cell["p50_ms"] == pytest.approx(arm["wall_us"]["p50"] / 1000)
    assert cell["avg_ctx_during_measure"] == np.mean(range(35, 43))
    assert cell["bytes_per_token_kv"] == 2 * 4 * 2 * 64 * 2
    assert cell["kv_bytes_avg"] == cell["bytes_per_token_kv"] * 38.5
    assert cell["t_floor_ms"] == pytest.approx((cell["weight_bytes"] + cell["kv_bytes_avg"]) / 100e9 * 1e3)
    assert cell["R_floor"] == pytest.approx(cell["t_floor_ms"] / cell["p50_ms"])


def test_launches_are_counted(finished):
    _, _, document = finished
    for arm in document["arms"]:
        if arm["status"] != "ok":
            continue
        if arm["backend"] == "native":
            assert arm["launches_per_layer"] == {"none": 14, "block": 5}[arm["fusion"]]
            assert arm["launches"] == 4 * arm["launches_per_layer"] + 4
        else:
            assert 14 < arm["launches_per_layer"] < arm["launches"] / 4 == sum(arm["kernels"].values()) / 4


def test_the_anatomy_covers_the_step(finished):
    _, _, document = finished
    for fusion in ("none", "block"):
        rows = [row for row in document["ops"] if row["fusion"] == fusion]
        assert sum(row["count"] for row in rows) == {"none": 14, "block": 5}[fusion] * 4 + 4
        assert sum(row["bytes"] for row in rows) == pytest.approx(document["bytes"]["step_streamed"][fusion])


def test_fewer_layers_are_said_aloud(capsys, tmp_path):
    output = tmp_path / "step.json"
    flags = ["--backend=native", "--mode=native", "--fusion=block", "--layers=2", "--shared-weights"]
    result = run_here(capsys, "bench.step", *SMALL, *flags, f"--json={output}")
    assert result.status == 0
    assert "2 of its 4 layers, all layers of one set of weights" in flat(result.out)
    document = json.loads(output.read_text())
    [arm] = document["arms"]
    assert (document["model"]["n_layers"], document["full_layers"]) == (2, 4)
    assert arm["launches"] == 14 and arm["paper"]["weight_bytes"] == replace(TINY, n_layers=2).weight_bytes()


@pytest.mark.parametrize("driver", ["bench.step", "bench.sweep"])
def test_arms_none_of_which_runs_here_are_refused_before_a_model_is_made(capsys, monkeypatch, tmp_path, driver):
    for name in ("bench.backends.steps.settings.StepModelSettings.make_model", "bench.fleet.local.run_cell"):
        monkeypatch.setattr(name, lambda *_: pytest.fail("something was begun"))
    where = [f"--out={tmp_path}/out"] if driver == "bench.sweep" else ["--model=tiny"]
    result = run_here(capsys, driver, *where, "--device=cpu", "--arm=native:graph,transformers:graph")
    assert_refused(
        result, "--arm=native:graph,transformers:graph: must be at least one arm that runs here: needs a CUDA"
    )
    assert "; is driven by its own Python forward only" in result.err and os.listdir(tmp_path) == []


def test_out_of_memory_is_a_status(capsys, tmp_path):
    output = tmp_path / "step.json"
    flags = ["--backend=native,sdpa", "--mode=eager,native", "--fusion=block", "--memory-limit-gb=0.01"]
    result = run_here(capsys, "bench.step", *SMALL, *flags, f"--json={output}")
    document = json.loads(output.read_text())
    assert result.status == 0 and "weights and cache need 0.02 GB, 0.01 GB are available" in flat(result.out)
    assert [arm["status"] for arm in document["arms"]] == ["oom", "oom", "oom", "unsupported"]
    assert document["memory"]["asked_bytes"] > 1e7 and document["memory"]["peak_bytes"] > 0


def test_a_wrong_arm_has_no_time_and_fails_the_run(capsys, monkeypatch, tmp_path):
    true = pk.reference.step

    def off_by_a_little(*args):
        logits, rows = true(*args)
        return logits + 0.5, rows

    monkeypatch.setattr(pk.reference, "step", off_by_a_little)
    output = tmp_path / "wrong.json"
    flags = ["--arm=native/none:native,sdpa:eager", f"--json={output}"]
    result = run_here(capsys, "bench.step", *SMALL, *flags)
    assert result.status == 1 and "beyond the tolerance" in flat(result.out)
    for arm in json.loads(output.read_text())["arms"]:
        assert arm["status"] == "wrong" and arm["wall_us"] is None and arm["paper"] is None


def test_a_token_that_is_not_the_argmax_is_wrong():
    """Right logits, and beside them another token: no failure of the arm, but a wrong result of it."""
    model = pk.DecodeModel(TINY, pk.ModelWeights.random(TINY), 40)
    reference = step_arms.Reference(model, 32)
    driver = step_drivers.NativeDriver(model, "block", "native")
    check = step_arms.StepCheck(driver, reference)
    assert check().ok
    step = driver.step
    driver.step = lambda: (step(), model.token.add_(1))
    comparison = check()
    assert not comparison.ok and comparison.max_rel_error <= comparison.tolerance
    right, got = re.fullmatch(
        r"token must be the argmax of the logits, \[(\d+)\], got \[(\d+)\]", comparison.message
    ).groups()
    assert int(got) == int(right) + 1


def test_a_local_folder(capsys, tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=32, max_position_embeddings=128, sliding_window=None, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    capsys.readouterr()
    output = tmp_path / "step.json"
    flags = ["--arm=native:native,transformers:eager", f"--weights={tmp_path / 'model'}", f"--json={output}"]
    result = run_here(capsys, "bench.step", *SMALL, *flags)
    document = json.loads(output.read_text())
    assert result.status == 0, result.out
    assert document["weights"] == "checkpoint" and document["model"]["tied_embeddings"]
    assert [arm["status"] for arm in document["arms"]] == ["ok", "ok"]
    assert document["arms"][0]["launches_per_layer"] == 5


def test_arms_share_weights_and_cache():
    model = pk.DecodeModel(TINY, pk.ModelWeights.random(TINY), 40)
    kept = {
        t.data_ptr() for layer in model.layers for t in (layer.k_cache, layer.v_cache, *layer.weights.named().values())
    }
    transformers = transformers_driver.TransformersDriver(model)
    parameters = {name: tensor.data_ptr() for name, tensor in transformers._module.named_parameters()}
    tables = {model.weights.embedding.data_ptr(), model.weights.lm_head.data_ptr(), model.weights.final_norm.data_ptr()}
    assert set(parameters.values()) <= kept | tables
    transformers.stand(30)
    with torch.inference_mode():
        transformers.step()
    assert transformers._cache.layers[0].layer.k_cache.data_ptr() in kept
    plain = step_drivers.TorchDriver(model)
    assert {view.k_cache.data_ptr() for view in plain._views} <= kept


def test_transformers_is_unsupported_where_it_is_not(monkeypatch):
    backend = step_arms.backends()["transformers"]
    assert backend.reason("graph", torch.device("cpu")) == "is driven by its own Python forward only"
    monkeypatch.setattr(transformers_driver, "find_spec", lambda name: None)
    assert "pip install transformers" in backend.reason("eager", torch.device("cpu"))


def test_every_driver_decodes_the_same_tokens():
    model = pk.DecodeModel(TINY, pk.ModelWeights.random(TINY, torch.float32), 64, 2, torch.float32)
    sequences = {}
    for name in step_arms.default_backends(int4=False):
        backend = step_arms.backends()[name]
        for mode in step_arms.STEP_MODES:
            if backend.reason(mode, model.device):
                continue
            for fusion in backend.fusions(("none", "block")):
                with torch.inference_mode(), backend.surroundings():
                    driver = backend.driver(model, mode, fusion, 20)
                    model.token.copy_(torch.tensor([5, 900]))
                    driver.stand(20)
                    tokens = []
                    for _ in range(10):
                        assert len(driver.run(1)) == 1
                        tokens.append(tuple(model.token.tolist()))
                sequences[name, mode, fusion] = tokens
    assert len(sequences) >= 8 + 3 + 1 and len(set(map(tuple, sequences.values()))) == 1
    assert len(set(next(iter(sequences.values())))) > 3


def test_the_timed_steps_follow_one_another():
    class Spy(step_drivers.Driver):
        def __init__(self):
            self.visited, self.position = [], None
            self._wall = measure.python_sampler([self.step], measure.Rotation(1))

        def stand(self, position):
            self.position = position

        def step(self):
            self.visited.append(self.position)
            self.position += 1

    spy = Spy()
    course = step_arms.Course(spy, 100)
    course.sample(5)
    assert spy.visited == [100, 101, 102, 103, 104]
    for expected in (105, 106, 107):
        spy.visited.clear()
        course.sample(2)
        assert spy.visited == [expected - 1, expected]


def test_step_bytes_are_those_of_the_whole_model():
    spec = pk.models.get("qwen2.5-7b")
    total = sum(op.bytes for op in floors.step_ops(spec, "block", 1, 2048, torch.bfloat16))
    # The weights less the embedding table, the cache, and activations of well under a thousandth.
    expected = spec.weight_bytes() - 2 * spec.vocab * spec.hidden + spec.kv_bytes(2048)
    assert 1 < total / expected < 1.001


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--layers=5"], ["--layers=5", "0..4"]),
        (["--backend=fa9"], ["--backend=fa9", "native, sdpa"]),
        (["--ctx=32768"], ["--ctx=32768", "in 1..32758", "one a step"]),
        (["--memory-limit-gb=-1"], ["--memory-limit-gb=-1", "positive"]),
        (["--shared-weights", "--weights=/nowhere"], ["/nowhere"]),
    ],
)
def test_bad_arguments(capsys, flags, words):
    assert_refused(run_here(capsys, "bench.step", *SMALL, *flags), *words)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_two_arms_fit_where_one_fits():
    # The study lost four cells because one arm's tensors were still there when the other made its own.
    def drive(max_len: int) -> tuple[int, int]:
        """Resident bytes with one arm that has run, and with three."""
        model = pk.DecodeModel(TINY, pk.ModelWeights.random(TINY), max_len)
        drivers, resident = [], []
        for name, mode, fusion in (
            ("native", "native", "block"),
            ("sdpa", "eager", None),
            ("transformers", "eager", None),
        ):
            with torch.inference_mode():
                drivers.append(step_arms.backends()[name].driver(model, mode, fusion, max_len - 3))
                drivers[-1].stand(max_len - 3)
                drivers[-1].run(2)
            resident.append(resident_bytes())
        return resident[0], resident[-1]

    drive(16)  # libraries, thread pools and their buffers
    one, three = drive(30_000)
    assert three - one < TINY.kv_bytes(30_000) / 4
