"""bench.attention: on the CPU for real, on a fake GPU for its clocks, and over sessions that go wrong."""

import numpy as np
import pytest
import torch
from inputs.attention_runs import HERE, ONE, SMALL, arms, load
from inputs.command_line import ROOT, assert_refused, flat, run_here
from inputs.documents import check_written
from inputs.fake_gpu import HOST_US, KERNEL_US, fake_gpu

import pykernels as pk
from bench.attention import __main__ as attention
from bench.attention import aa as attention_aa
from bench.attention import arms as attention_arms
from bench.attention import cases as attention_cases
from bench.attention import document as attention_document
from bench.attention import results as attention_results
from bench.attention import tables as attention_tables
from bench.attention.arms import AttentionArm, Plan
from bench.backends.compile import compiler_reason
from bench.backends.sdpa import Sdpa, choice_of
from bench.core import cli, environment
from bench.core.errors import UsageError
from bench.core.measure import Rotation


def test_on_the_cpu(capsys, tmp_path):
    outputs = [f"--{kind}={tmp_path / f'a.{suffix}'}" for kind, suffix in
               (("json", "json"), ("csv", "csv"), ("md", "md"), ("plot", "png"))]  # fmt: skip
    result = run_here(capsys, "bench.attention", *HERE, "--context-manager=outside,inside", *outputs)
    assert result.status == 0, result.err
    document = load(tmp_path / "a.json")
    check_written(document)
    assert (document["schema"], document["kind"], document["interrupted"]) == ("launchtax/1", "attention", False)
    found = arms(document)
    shape = "8/2x64, kv 33, batch 2"
    for backend, mode in (("native", "eager"), ("sdpa", "eager"), ("sdpa-math", "eager"), ("sdpa-flash", "eager"),
                          ("sdpa", "eager-inside"), ("sdpa-flash", "eager-inside")):  # fmt: skip
        arm = found[shape, backend, mode]
        assert (arm["status"], arm["reason"]) == ("ok", None)
        assert arm["samples_us"] == [arm["wall_us"]["p50"]] and arm["wall_us"]["sd"] is None
        assert arm["max_rel_error"] < 0.1 and arm["ratio_to_sdpa"]["wall_us"]["n"] == 1
        assert arm["total_us"] == {"tiny": pytest.approx(4 * arm["wall_us"]["p50"])}
    assert found[shape, "sdpa", "eager"]["ratio_to_sdpa"]["wall_us"]["p50"] == 1
    assert found[shape, "native", "eager"]["host_us"]["p50"] > 0
    assert "nothing to capture on a CPU" in found[shape, "sdpa", "graph"]["reason"]
    assert "CUDA devices only" in found[shape, "sdpa-cudnn", "eager"]["reason"]
    (session,) = attention_document.sessions(document)
    assert session["sdpa"][shape]["choice"] in ("FLASH_ATTENTION", "MATH")
    assert set(session["sdpa"][shape]["enabled"]) >= {"flash", "mem_efficient", "math", "cudnn"}
    raw = next(e for e in session["entries"] if (e["shape"], e["backend"]) == (shape, "native"))
    assert len(raw["rounds_us"]) == 4 == raw["calls_measured"]
    text = flat(result.out)
    for words in (
        "floor at read",
        "sdpa-flash (manager inside)",
        "8/2x64 (tiny), batch 2: eager",
        "SDPA's choice",
        "native is the first or within 0.5% in",
    ):
        assert words in text
    markdown = (tmp_path / "a.md").read_text()
    assert markdown.count("### 8/2x64, kv") == 4 and "Reproduce: `python -m bench.attention" in markdown
    assert (tmp_path / "a.csv").read_text().count("gqa_decode") == len(document["arms"])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "a.running").exists()
    assert run_here(capsys, "bench.report", str(tmp_path)).status == 0
    report = (tmp_path / "report" / "report.md").read_text()
    assert (
        "## Attention alone, over contexts" in report and ": 8/2x64 (tiny), batch 2: eager, us a call | kv 33" in report
    )
    assert "figures/contexts-a.png" in report
    assert (tmp_path / "report" / "figures" / "contexts-a.svg").read_text().count("<svg") == 1


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory):
    """A run on the fake GPU: the fake, the document, what was printed."""
    path = tmp_path_factory.mktemp("attention") / "a.json"
    flags = ["--device=cuda", "--model=tiny", "--ctx=64", "--batch=1", "--calls=60", "--warmup=2", "--sessions=0",
             "--backend=native,sdpa,sdpa-flash,fa3", "--context-manager=outside,inside"]  # fmt: skip
    with pytest.MonkeyPatch.context() as monkeypatch, fake_gpu(monkeypatch) as gpu:
        monkeypatch.delenv("PYKERNELS_FA3_LIB", raising=False)
        monkeypatch.setattr(
            attention_arms, "synchronised_sampler", lambda steps, rotation: lambda n: torch.full((n,), 7.0)
        )
        assert cli.run("bench.attention", attention.command, [*flags, f"--json={path}"]) == 0
    return gpu, load(path)


def test_clocks_are_kept_apart(on_gpu):
    _, document = on_gpu
    found = {(backend, mode): arm for (_, backend, mode), arm in arms(document).items()}
    for backend in ("native", "sdpa", "sdpa-flash"):
        eager, graph = found[backend, "eager"], found[backend, "graph"]
        assert eager["latency_us"]["p50"] == 7 and eager["device_us"]["p50"] == KERNEL_US
        assert eager["host_us"]["p50"] > 0 and graph["latency_us"] is None and graph["wall_us"]["p50"] >= KERNEL_US
        (launch,) = attention_document.kernel_details(eager, document)
        assert launch["grid"] == [1, 1, 1] and launch["name"] and launch["us"] == KERNEL_US
        assert graph["launches"] == eager["launches"] == 1 and graph["kernel_details"] == []
    assert found["native", "graph"]["host_us"]["p50"] == pytest.approx(
        HOST_US / found["native", "graph"]["calls_a_sample"]
    )
    assert found["sdpa-flash", "eager-inside"]["latency_us"]["p50"] == 7
    assert (
        found["fa3", "eager"]["status"] == "unsupported" and "flash_attn_interface" in found["fa3", "eager"]["reason"]
    )


def test_a_graph_goes_round_the_copies(on_gpu):
    _, document = on_gpu
    (session,) = attention_document.sessions(document)
    raw = [e for e in session["entries"] if e["mode"] == "graph" and e["status"] == "ok"]
    assert raw and all(e["copies"] > 1 and e["calls_a_sample"] % e["copies"] == 0 for e in raw)
    assert all(e["calls_measured"] >= 60 for e in raw)


def test_limits():
    def entry(host, device, graph):
        clock = lambda us: {"p50": us, "sd": None, "n": 1} if us else None  # noqa: E731
        eager = {"host_us": clock(host), "device_us": clock(device)}
        return attention_tables.limit(eager, {"wall_us": clock(graph)} if graph else None)

    assert entry(20, 8, None) == "host" and entry(5, 8, None) == "kernel"
    assert entry(20, None, 30) == "kernel" and entry(None, 8, 8) == "-" and entry(20, None, None) == "-"


def test_shapes_that_models_share_are_measured_once():
    specs = [pk.models.get(name) for name in ("qwen2.5-7b", "mistral-7b-v0.3", "llama-3.1-8b")]
    found = attention_cases.cells(specs, [1024, 2048], [1, 4])
    assert len(found) == 8
    assert {tuple(spec.name for spec in cell.specs) for cell in found} == {
        ("qwen2.5-7b",), ("mistral-7b-v0.3", "llama-3.1-8b")
    }  # fmt: skip


def test_calls_of_a_sample():
    plan = Plan(["native"], ["eager"], ["outside"], 300, 50)
    assert plan.rounds == 30
    assert plan.calls_a_sample(10.0, 1, True) == 10 and plan.calls_a_sample(10.0, 4, True) == 12
    assert plan.calls_a_sample(10_000.0, 1, True) == 1 and plan.calls_a_sample(10_000.0, 3, True) == 3
    assert plan.calls_a_sample(10.0, 4, False) == 10 and plan.calls_a_sample(10_000.0, 99, False) == 1
    assert plan.single_calls(10.0) == 300 and plan.single_calls(1e6) == 30


def made(backends, managers=("outside",)):
    cell = attention_cases.cells([pk.models.get("tiny")], [40], [2])[0]
    inputs = attention_cases.Inputs(cell, torch.bfloat16, torch.device("cpu"), 0)
    begun = []
    found = attention_arms.make_arms([inputs], Plan(backends, ["eager"], managers, 4, 1), Rotation(1), begun.append)
    assert begun == [*backends, ""]
    return found


def test_a_wrong_kernel_is_never_timed(monkeypatch):
    true = attention_arms.registry()["sdpa"].attention

    def half(self, layer):
        cache = true(self, layer)
        kernel = cache.kernel
        cache.kernel = lambda q, k, v: kernel(q, k[:, :, ::2], v[:, :, ::2])
        return cache

    monkeypatch.setattr(Sdpa, "attention", half)
    native, sdpa = made(["native", "sdpa"])
    assert native.status == "ok"
    assert sdpa.status == "wrong" and sdpa.sampler is None and "got" in sdpa.reason


@pytest.mark.skipif(compiler_reason(torch.device("cpu")) is not None, reason="no C++ compiler")
def test_flex_compiles_every_shape():
    """Torch allows eight compilations of a function, unless told otherwise; here one, and two shapes."""
    torch._dynamo.reset()
    found = []
    with torch._dynamo.config.patch(recompile_limit=1):
        for cell in attention_cases.cells([pk.models.get("tiny")], [24, 40], [1]):
            inputs = attention_cases.Inputs(cell, torch.bfloat16, torch.device("cpu"), 0)
            plan = Plan(["flex"], ["eager"], ["outside"], 4, 1)
            found += attention_arms.make_arms([inputs], plan, Rotation(1), lambda name: None)
    assert [(arm.status, arm.reason) for arm in found] == [("ok", None)] * 2


def test_sdpa_s_refusal_in_its_own_words(monkeypatch):
    monkeypatch.setattr(attention_arms.registry()["sdpa-efficient"], "needs_cuda", False)
    outside, inside = made(["sdpa-efficient"], ("outside", "inside"))
    assert (outside.status, inside.status) == ("unsupported", "unsupported")
    assert outside.reason.startswith("No viable backend") and inside.reason == outside.reason


def test_default_sdpa_may_choose_what_it_is_told(capsys, tmp_path):
    output = tmp_path / "a.json"
    flags = ["--backend=sdpa,sdpa-flash", "--sdpa-from=mem_efficient,math", "--context-manager=outside,inside"]
    result = run_here(capsys, "bench.attention", *HERE, *flags, "--ctx=33", "--batch=1", f"--json={output}")
    assert result.status == 0, result.err
    document = load(output)
    ok = {(a["backend"], a["mode"]): a["kernels"] for a in document["arms"] if a["status"] == "ok"}
    assert set(ok) == {(name, mode) for name in ("sdpa", "sdpa-flash") for mode in ("eager", "eager-inside")}
    assert ok["sdpa", "eager"] == ["scaled_dot_product_attention, torch's choice MATH"]
    (state,) = document["sessions"][0]["sdpa"].values()
    assert state["choice"] == "MATH"
    names = ("flash", "mem_efficient", "math", "cudnn")
    assert [state["enabled"][name] for name in names] == [False, True, True, False]
    assert "default SDPA may choose mem_efficient, math only" in flat(result.out)
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.cudnn_sdp_enabled()


def test_the_manager_inside_leaves_default_sdpa_its_choice():
    q, k = torch.zeros(1, 8, 1, 64, dtype=torch.bfloat16), torch.zeros(1, 2, 40, 64, dtype=torch.bfloat16)
    for allowed, choice in ((["math"], "MATH"), (["flash", "math"], "FLASH_ATTENTION"), (["mem_efficient"], "ERROR")):
        plan = Plan(["sdpa"], ["eager"], ["inside"], 4, 1, allowed)
        with plan.sdpa_choice():
            assert choice_of(q, k, k) == choice
            with attention_arms._manager(Sdpa())():
                assert choice_of(q, k, k) == choice
    assert choice_of(q, k, k) == "FLASH_ATTENTION"


def test_sdpa_without_a_kernel_is_unsupported(capsys, tmp_path):
    output = tmp_path / "a.json"
    flags = ["--backend=native,sdpa", "--sdpa-from=mem_efficient", "--ctx=33", "--batch=1", f"--json={output}"]
    assert run_here(capsys, "bench.attention", *HERE, *flags).status == 0
    native, sdpa = (arm for arm in load(output)["arms"] if arm["mode"] == "eager")
    assert (native["status"], sdpa["status"]) == ("ok", "unsupported")
    assert sdpa["reason"].startswith("No viable backend")


def test_over_sessions():
    def one(backend, us, status="ok", mode="eager"):
        clock = {"p20": us, "p50": us, "p80": us, "n": 3} if status == "ok" else None
        return {
            "shape": "s", "backend": backend, "mode": mode, "status": status, "reason": "no",
            "layers": {"m": 2}, "kernel_details": [], "rounds_us": [us], "trace_factor": None, "wall_us": clock,
            "host_us": None, "latency_us": None, "device_us": None,
        }  # fmt: skip

    sessions = [[one("sdpa", 10.0), one("native", 5.0), one("sdpa", 20.0, mode="eager-inside")],
                [one("sdpa", 20.0), one("native", 5.0)],
                [one("sdpa", 30.0), one("native", 0.0, "wrong")]]  # fmt: skip
    found = {(arm["backend"], arm["mode"]): arm for arm in attention_results.over_sessions(sessions)}
    assert found["sdpa", "eager"]["wall_us"] == {"p50": 20.0, "sd": 10.0, "n": 3}
    assert found["sdpa", "eager"]["samples_us"] == [10.0, 20.0, 30.0] and found["sdpa", "eager"]["total_us"] == {
        "m": 40
    }
    assert found["native", "eager"]["status"] == "wrong" and found["native", "eager"]["wall_us"] is None
    assert found["sdpa", "eager-inside"]["ratio_to_sdpa"]["wall_us"] == {"p50": 0.5, "sd": None, "n": 1}


@pytest.mark.usefixtures("no_pictures")
def test_every_arm_at_three_group_sizes(capsys, tmp_path):
    outputs = [f"--json={tmp_path / 'g.json'}", f"--md={tmp_path / 'g.md'}"]
    flags = ["--gate", "--backend=native,sdpa,sdpa-math,sdpa-flash,sdpa-cudnn", "--heads=7/1x64,64/8x64"]
    result = run_here(capsys, "bench.attention", *HERE, *flags, *outputs)
    assert result.status == 0, result.err
    document = load(tmp_path / "g.json")
    assert document["gate_only"] and document["models"] == ["tiny"]
    assert {arm["group_size"] for arm in document["arms"]} == {4, 7, 8}
    passed = [arm for arm in document["arms"] if arm["status"] == "ok"]
    assert len(passed) == 4 * 3 * 4 and all(arm["wall_us"] is None and arm["max_rel_error"] < 0.1 for arm in passed)
    columns, rows = attention_tables.gate_grid(document)
    assert [name for name, _ in columns[2:]] == ["8/2x64, group 4", "7/1x64, group 7", "64/8x64, group 8"]
    by_arm = {(row[0], row[1]): row[2:] for row in rows}
    assert all(cell.startswith("ok, ") for cell in by_arm["sdpa-flash", "eager"])
    assert by_arm["sdpa-cudnn", "eager"] == ["unsupported"] * 3
    assert "| sdpa-math | eager | ok, " in (tmp_path / "g.md").read_text()
    assert run_here(capsys, "bench.report", str(tmp_path)).status == 0
    report = (tmp_path / "report" / "report.md").read_text()
    assert "| sdpa-math | eager | ok, " in report and "attention-contexts" not in report
    assert "CUDA devices only" in flat(result.out)
    assert_refused(run_here(capsys, "bench.attention", *HERE, "--gate", "--plot=x.png"), "--plot=x.png", "--gate")


def test_a_wrong_arm_fails_its_gate(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("bench.backends.sdpa.F.scaled_dot_product_attention", lambda q, k, v, enable_gqa: q)
    flags = ["--gate", "--backend=native,sdpa", "--mode=eager", f"--json={tmp_path / 'g.json'}"]
    assert run_here(capsys, "bench.attention", *HERE, *flags).status == 1
    columns, rows = attention_tables.gate_grid(load(tmp_path / "g.json"))
    assert rows[0][2].startswith("ok, ") and rows[1] == ["sdpa", "eager", "wrong"]


def test_a_backend_under_two_names(capsys, tmp_path):
    output = tmp_path / "a.json"
    flags = ["--backend=native,sdpa", "--aa=native", "--mode=eager", f"--json={output}"]
    result = run_here(capsys, "bench.attention", *HERE, *flags)
    assert result.status == 0, result.err
    document = load(output)
    assert {arm["backend"] for arm in document["arms"]} == {"native", "sdpa", "native@2"}
    assert len(document["aa"]) == 4 and {one["backend"] for one in document["aa"]} == {"native"}
    assert all(one["held"] is None and len(one["sessions"]) == 1 for one in document["aa"])
    assert "A/A, native and native@2, eager: the 95% interval over rounds held zero in " in flat(result.out)


def test_what_an_aa_says():
    def entries(shift_us, seed):
        noise = np.random.default_rng(seed).normal(10, 0.1, (2, 30))
        return [
            dict(shape="s", backend=name, mode="graph", rounds_us=(noise[i] + i * shift_us).tolist())
            for i, name in enumerate(("native", "native@2"))
        ]

    (alike,) = attention_aa.compare([entries(0.0, seed) for seed in range(3)])
    assert alike["held"] and sum(session["held"] for session in alike["sessions"]) >= 2
    (shifted,) = attention_aa.compare([entries(1.0, seed) for seed in range(3)])
    assert not shifted["held"] and not any(session["held"] for session in shifted["sessions"])
    assert shifted["mean_us"] == pytest.approx(1, abs=0.1) and shifted["low_us"] > 0.5
    assert shifted["sessions"][0]["relative"] == pytest.approx(0.1, abs=0.02)
    total, cell = attention_aa.lines([shifted])
    assert "held zero in 0 of 3 (cells x sessions), that over sessions in 0 of 1 cells" in total
    assert cell.startswith("  s: +")
    assert attention_aa.compare([entries(0.0, 0)[:1]]) == []


def test_plugins_join_a_session(capsys, tmp_path):
    folder, output = ROOT / "tests" / "inputs" / "plugins", tmp_path / "a.json"
    bad = [f"{folder}/misbehaving.py:{name}" for name in ("Overruns", "Exits")]
    flags = [f"--backend=native,sdpa,{ROOT}/examples/attention_plugin.py:Attention,{','.join(bad)}"]
    result = run_here(capsys, "bench.attention", *ONE[:-1], *flags, "--mode=eager", "--sessions=0", f"--json={output}")
    assert result.status == 1, result.err  # one of them is wrong
    document = load(output)
    found = {arm["backend"]: arm for arm in document["arms"]}
    right = found["attention_plugin.py:Attention"]
    assert right["status"] == "ok" and right["wall_us"] and right["ratio_to_sdpa"]["wall_us"]["n"] == 1
    beside = right["sdpa_beside"]["wall_us"]["p50"]
    assert right["ratio_to_sdpa"]["wall_us"]["p50"] == pytest.approx(beside / right["wall_us"]["p50"])
    assert found["native"]["wall_us"] and found["sdpa"]["wall_us"]
    assert found["misbehaving.py:Overruns"]["reason"].startswith("wrote outside the attention's out: 2 bytes changed")
    exits = found["misbehaving.py:Exits"]
    assert (exits["status"], exits["reason"]) == ("error", "exit status 3, while it was checked")
    assert exits["floor_us"] == found["native"]["floor_us"]
    assert [one["backend"] for one in document["sessions"][0]["plugins"]] == [
        "attention_plugin.py:Attention", "misbehaving.py:Overruns", "misbehaving.py:Exits",
    ]  # fmt: skip


@pytest.mark.parametrize("sessions", [0, 2])
def test_a_plugin_that_is_none_ends_the_run_before_anything_is_measured(capsys, monkeypatch, sessions):
    begun = []
    for name in ("run_here", "run_session"):
        monkeypatch.setattr(attention, name, lambda *_: begun.append(1))
    words = "--backend=x.py:X: X lacks attend"
    monkeypatch.setattr(attention.plugins, "measure_all", lambda plan: (_ for _ in ()).throw(UsageError(words)))
    result = run_here(capsys, "bench.attention", *SMALL, f"--sessions={sessions}")
    assert (result.status, begun) == (2, []) and words in result.err


def test_a_plugin_that_came_to_nothing_is_not_tried_in_every_session(capsys, monkeypatch, tmp_path):
    tried = []

    def hangs(plan, plugin):
        tried.append(plugin.name)
        arms = [AttentionArm(plugin.label, "eager", status="error", reason="was not done after 300 s")]
        return attention.plugins.Found(plugin, failed=arms)

    monkeypatch.setattr(attention.plugins, "measure", hangs)
    output = tmp_path / "a.json"
    flags = [f"--backend=native,{ROOT}/examples/attention_plugin.py:Attention", "--mode=eager", f"--json={output}"]
    monkeypatch.setattr(attention, "run_session", lambda number, *_: (
        {"session": number, "status": "ok", "reason": None, "lost": {}, "environment": environment.collect(),
         "ceilings": {}, "sdpa": {}, "throttled": {}, "trace_seconds": 0.0, "entries": []}, False))  # fmt: skip
    assert run_here(capsys, "bench.attention", *ONE[:-1], *flags, "--sessions=3").status == 1
    assert tried == ["Attention"]
    assert [len(session["entries"]) for session in load(output)["sessions"]] == [1, 1, 1]
    (arm,) = load(output)["arms"]
    assert (arm["status"], arm["reason"]) == ("error", "was not done after 300 s")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--model=gpt-2", ["--model=gpt-2", "qwen2.5-7b"]),
        ("--ctx=0", ["--ctx=0", "1..131072"]),
        ("--batch=9", ["--batch=9", "1..8"]),
        ("--backend=compile", ["--backend=compile", "flashinfer"]),
        ("--mode=pybind", ["--mode=pybind", "eager, native, graph"]),
        ("--context-manager=both", ["--context-manager=both", "outside, inside"]),
        ("--calls=1", ["--calls=1", "2.."]),
        ("--seed=99999999999999999999", ["--seed=99999999999999999999", "0..2147483647"]),
        ("--sdpa-from=efficient", ["--sdpa-from=efficient", "flash, mem_efficient, math, cudnn"]),
        ("--limit-s=0", ["--limit-s=0", "a positive number of seconds"]),
        ("--heads=64/7", ["--heads=64/7", "a multiple of the KV heads"]),
        ("--heads=64/8x4", ["--heads=64/8x4", "64/8x128"]),
        ("--aa=fa9", ["--aa=fa9", "flashinfer"]),
        ("--backend=none.py:Mine", ["--backend=none.py:Mine", "a file that exists"]),
        ("--plugin-timeout-s=0", ["--plugin-timeout-s=0.0", "a positive number"]),
        ("--resume", ["--resume", "--json"]),
        ("--keep=folder", ["--keep=folder", "--sessions=0"]),
    ],
)
def test_bad_arguments(capsys, flag, words):
    assert_refused(run_here(capsys, "bench.attention", *HERE, flag), *words)
