"""One rule for exit statuses, whose line an error is, and what Ctrl-C leaves."""

import json

import pytest
from inputs.command_line import ROOT, assert_refused, flat, run_here
from inputs.documents import whole

import pykernels as pk
from bench import compare, layer, op
from bench.core import errors, processes, run
from bench.core.document import load
from bench.core.measure import Arm
from bench.core.progress import about
from bench.fleet import local
from bench.plugins import plan as plugins
from bench.plugins.loading import Plugin
from bench.plugins.user_file import run_file

ATTENTION = ROOT / "examples" / "attention_plugin.py"


def entry(status: str, reason: str | None = None, **keys: object) -> dict:
    return dict(backend="native", mode="eager", fusion=None, status=status, reason=reason) | keys


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (dict(arms=[entry("ok"), entry("unsupported", "no GPU")]), None),
        (dict(arms=[entry("oom", "asks for 9 GB")]), None),
        (dict(arms=[], ops=[]), None),
        (dict(arms=[entry("ok"), entry("wrong", "off by 1")]), "wrong: native:eager: off by 1"),
        (dict(arms=[entry("ok")], ops=[entry("error", "died")]), "error: native:eager: died"),
        (dict(arms=[entry("error", "died"), entry("error", "hung")]), "error: native:eager (and 1 more): died"),
        (dict(arms=[entry("unsupported", "needs a CUDA device")]), "nothing ran: needs a CUDA device"),
        (dict(sessions=[dict(session=2, status="hang", reason="was not done")]), "hang: session 2: was not done"),
    ],
)
def test_the_rule(document, words):
    assert run.failure(document) == words


def test_nothing_ran_is_no_success(capsys):
    flags = ["--model=tiny", "--ctx=32", "--device=cpu", "--backend=native", "--mode=graph", "--steps=2", "--l2=warm"]
    result = run_here(capsys, "bench.layer", *flags)
    assert result.status == 1 and "bench.layer: nothing ran: needs a CUDA device" in result.err


def test_the_line_of_a_plugin_that_an_error_came_through(tmp_path):
    path = tmp_path / "kernel.py"
    path.write_text("import math\n\n\ndef inner():\n    math.sqrt(-1)\n\n\ndef call():\n    inner()\n")
    module = run_file(path)
    with pytest.raises(ValueError) as raised:
        module.call()
    assert errors.one_line(raised.value).endswith(" (kernel.py:5)")
    try:
        raise ValueError("ours")
    except ValueError as error:
        assert errors.one_line(error) == "ValueError: ours"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('Traceback (most recent call last):\n  File "/home/u/k.py", line 7, in <module>\n    f()\n'
         f'  File "{ROOT}/bench/core/cli.py", line 3, in f\n    g()\nRuntimeError: it broke\n',
         "RuntimeError: it broke (k.py:7)"),
        (f'Traceback (most recent call last):\n  File "{ROOT}/bench/layer.py", line 9, in <module>\nValueError: x\n',
         "ValueError: x"),
        ("Traceback (most recent call last):\n  File \"/u/k.py\", line 3\n    def\n       ^\n"
         "SyntaxError: invalid syntax (k.py, line 3)\n", "SyntaxError: invalid syntax (k.py, line 3)"),
        ("a warning\nthe last line\n", "the last line"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_last_words_name_the_users_line(text, words):
    assert processes._last_words(text) == words


def test_a_syntax_error_of_a_plugin_fails_the_run(capsys, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("x = 1\ndef f(:\n")
    flags = ["--model=tiny", "--ctx=32", "--device=cpu", "--mode=eager", "--steps=2", "--l2=warm"]
    result = run_here(capsys, "bench.layer", *flags, f"--backend={path}:F")
    assert result.status == 1 and "SyntaxError" in result.err and "broken.py" in result.err and "2" in result.err


# What Ctrl-C leaves.


def found_of(label_entries: list[dict], **keys: object) -> plugins.Found:
    plugin = Plugin(ATTENTION, "Attention", f"{ATTENTION}:Attention")
    document = dict(
        arms=label_entries, ops=label_entries, created="2026-11-29T00:00:00+00:00", ceiling=None, interrupted=False
    )
    return plugins.Found(plugin, document=document, **keys)


def test_finished_plugins_are_kept(monkeypatch):
    seen = []

    def measure(plan, plugin):
        seen.append(plugin)
        return (
            plugins.Found(plugin, document={"arms": []}) if len(seen) == 1 else plugins.Found(plugin, interrupted=True)
        )

    monkeypatch.setattr(plugins, "measure", measure)
    three = [Plugin(ATTENTION, name, name) for name in ("A", "B", "C")]
    found = plugins.measure_all(plugins.Plan("bench.layer", three, ["eager"], [], [], 1.0))
    assert [one.plugin.name for one in found] == ["A", "B"] and found[-1].interrupted
    seen[:] = three[:1]
    with pytest.raises(KeyboardInterrupt):
        plugins.measure_all(plugins.Plan("bench.layer", three, ["eager"], [], [], 1.0))


def test_a_layer_keeps_them_too(capsys, monkeypatch, tmp_path):
    label = "attention_plugin.py:Attention"
    clock = {"p20": 1.0, "p50": 2.0, "p80": 3.0, "n": 3}
    arm = entry("ok", backend=label, wall_us=clock, host_us=None, device_us=None, samples_us=[1.0, 2.0, 3.0],
                kernels=[], launches=3, max_rel_error=0.0, bytes=10, gbs=1.0, share_of_spec=None,
                share_of_read=0.1, mode="eager")  # fmt: skip
    monkeypatch.setattr(plugins, "measure_all", lambda plan: [found_of([arm], interrupted=True)])
    monkeypatch.setattr(layer, "make_layers", lambda settings: pytest.fail("something was begun"))
    flags = ["--model=tiny", "--ctx=32", "--device=cpu", "--mode=eager", f"--json={tmp_path / 'a.json'}"]
    result = run_here(capsys, "bench.layer", *flags, f"--backend=sdpa,{ATTENTION}:Attention")
    assert result.status == 130 and "INTERRUPTED" in result.out and label in flat(result.out)
    document = load(tmp_path / "a.json")
    assert [one["backend"] for one in document["arms"]] == [label] and document["interrupted"]


def test_shapes_that_were_finished_before_a_time_limit_are_kept():
    shape = dict(label="attention", shape="kv 32")
    saved = entry("ok", backend="attention_plugin.py:Attention", **shape)
    found = plugins.Found(
        Plugin(ATTENTION, "Attention", "x"), kept=[dict(ops=[saved])],
        failed=[Arm("attention_plugin.py:Attention", "eager", status="error", reason="was not done after 1 s")],
    )  # fmt: skip
    assert found.of_shape(shape) == {("attention_plugin.py:Attention", "eager"): saved}
    assert found.failed_of(shape) == []
    (lost,) = found.failed_of(dict(label="attention", shape="kv 64"))
    assert lost.reason == "was not done after 1 s" and lost is not found.failed[0]


def test_a_sweep_says_what_was_finished(capsys, monkeypatch, tmp_path):
    def run_cell(plan, cell, measurer):
        if cell.ctx == 64:
            raise KeyboardInterrupt
        (plan.out / f"{cell.name}.json").write_text(json.dumps(whole(dict(kind="step", status="ok"))))

    monkeypatch.setattr(local, "run_cell", run_cell)
    monkeypatch.setattr(local, "line", lambda *_: "ok: fast")
    flags = ["--model=tiny", "--ctx=32,64", "--batch=1", "--device=cpu", f"--out={tmp_path / 'out'}"]
    result = run_here(capsys, "bench.sweep", *flags)
    assert result.status == 130 and "1 of 2 cells are finished and saved" in result.out and "1 ok" in result.out
    flags[1] = "--ctx=64"
    result = run_here(capsys, "bench.sweep", *flags[:-1], f"--out={tmp_path / 'none'}")
    assert result.status == 130 and "before anything was measured" in result.err


def test_a_duration_is_never_nothing():
    assert (about(0.2), about(34.4), about(150.0), about(9000.0)) == ("1 s", "34 s", "2 min", "2.5 h")


# What is printed is what it says.


def test_other_workloads_are_not_compared(capsys, tmp_path):
    def document(ctx: int) -> str:
        arms = [dict(backend="native", mode="eager", fusion="none", status="ok", samples_us=[1.0, 1.1, 1.2, 1.3])]
        content = whole(dict(kind="layer", ctx=ctx, model=dict(name="tiny"), arms=arms))
        path = tmp_path / f"{ctx}.json"
        path.write_text(json.dumps(content))
        return str(path)

    files = document(2048), document(8192)
    assert_refused(run_here(capsys, "bench.compare", *files), "different workloads (ctx 2048 and 8192)", "--across")
    assert run_here(capsys, "bench.compare", *files, "--across").status == 0
    assert compare.workload_differences(load(tmp_path / "2048.json"), load(tmp_path / "2048.json")) == []


def test_an_op_names_its_models(capsys, tmp_path):
    settings = op.Settings(op="rmsnorm", model="qwen2.5-7b,llama-3.1-8b,mistral-7b-v0.3,tiny", device="cpu")
    by_shape = {case.shape: case.models for case in op._cases(settings)}
    assert by_shape["1x4096"] == ("llama-3.1-8b", "mistral-7b-v0.3") and by_shape["1x512"] == ("tiny",)
    flags = ["--op=rmsnorm", "--model=tiny", "--device=cpu", "--steps=3", "--mode=cpp", "--l2=warm"]
    result = run_here(capsys, "bench.op", *flags, f"--csv={tmp_path / 'a.csv'}", f"--md={tmp_path / 'a.md'}")
    assert result.status == 0
    header, row, *_ = (tmp_path / "a.csv").read_text().splitlines()
    cells = dict(zip(header.split(","), row.split(","), strict=True))
    assert (cells["model"], cells["ctx"], cells["mode"]) == ("tiny", "", "native")
    assert "| model |" in (tmp_path / "a.md").read_text()


def test_a_plugins_ratio_is_to_this_runs_sdpa():
    from bench.core import results

    of_plugin = entry("ok", backend="k.py:K", samples_us=[2.0, 2.0, 2.0], ratio_to_sdpa=dict(p50=9.0))
    this_run = Arm("sdpa", "eager")
    this_run.samples_us = [4.0, 4.0, 4.0]
    found = results.refer_to_this_run(of_plugin, [this_run])
    assert found["ratio_to_sdpa"]["p50"] == 2.0 and found["in_its_process"] == {"ratio_to_sdpa": dict(p50=9.0)}
    assert "ratio_to_sdpa" not in results.refer_to_this_run(of_plugin, [])


def test_old_documents_have_todays_ratios(tmp_path):
    ratio = dict(p50=2.0, low=1.0, high=3.0)
    (tmp_path / "a.json").write_text(json.dumps(whole(dict(kind="layer", arms=[dict(speedup_over_sdpa=ratio)]))))
    (arm,) = load(tmp_path / "a.json")["arms"]
    assert arm["ratio_to_sdpa"] == ratio and "speedup_over_sdpa" not in arm


def test_a_report_shows_the_main_jobs_documents(capsys, tmp_path):
    document = load(ROOT / "bench" / "results" / "h200-layer-llama-3.1-8b.json.gz")
    document["environment"]["cpu"] |= {"load_average_1min": 99.0, "cpus_usable": 2}
    document["arms"][0]["share_of_read"] = 3.66
    (tmp_path / "layer.json").write_text(json.dumps(document))
    assert run_here(capsys, "bench.report", str(tmp_path), "--no-svg").status == 0
    page = (tmp_path / "report" / "report.md").read_text()
    assert "BUSY: load average 99.0 on 2 CPUs" in page and "ABOVE THE READ CEILING: 1 of" in page and "366" in page
    assert "## One decode layer" in page and "sdpa graph / this" in page and "graph-pdl" in page
    assert "| native/none | launch |" in page and "hidden: host work" in page
    assert "## Cost" not in page, "a layer's documents have no cost of a token"


def test_plugins_alone_are_checked_alone(capsys, tmp_path):
    flags = ["--gate", f"--backend={ATTENTION}:Attention", "--sessions=1", "--device=cpu", "--ctx=64", "--batch=1",
             "--mode=eager", "--l2=warm"]  # fmt: skip
    result = run_here(capsys, "bench.attention", *flags, f"--json={tmp_path / 'a.json'}")
    assert result.status == 0, result.err
    assert {arm["backend"] for arm in load(tmp_path / "a.json")["arms"]} == {"attention_plugin.py:Attention"}


# What the library says of bad arguments.


def test_int4_arguments_that_are_none():
    import torch

    x, dense = torch.zeros(1, 512), torch.zeros(64, 512)
    with pytest.raises(ValueError, match=r"pykernels::int4_gemv: weight must be an Int4Weight, got Tensor"):
        pk.ops.int4_gemv(x, dense)
    with pytest.raises(ValueError, match=r"group_size must be at most in_features \(512\), .* got 1024"):
        pk.Int4Weight.quantize(dense, group_size=1024)
    with pytest.raises(ValueError, match="there is no such folder"):
        pk.Int4Weight.from_folder("/nowhere/at/all", "model.layers.0.mlp.up_proj")


def test_a_layer_takes_its_own_models_weights_only():
    weights = pk.LayerWeights.random(pk.models.get("tiny"))
    with pytest.raises(ValueError, match=r"weights: \w+ must be \[\d+.*\] \(qwen2.5-7b\), got \[\d+"):
        pk.DecodeLayer(pk.models.get("qwen2.5-7b"), weights, ctx=16)


def test_inside_asks_for_a_gpu_before_a_build(capsys):
    result = run_here(capsys, "bench.inside", "--device=cpu", "--model=tiny")
    assert_refused(result, "--device=cpu: must be cuda, with a GPU")
