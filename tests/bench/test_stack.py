"""bench.stack: the compiled layers around other attentions meet the reference, and a cell's crash is its own."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
import torch
from inputs import fake_peers
from inputs.command_line import assert_refused, flat, run_here
from inputs.documents import check_written, whole
from inputs.fake_gpu import fake_gpu
from inputs.workloads import CPU, gated, workload

from bench import layer
from bench.backends import by_name, registry
from bench.backends.compile import compiler_reason
from bench.backends.stack import _NativeCache
from bench.backends.torch_layer import TokenMajorCache
from bench.core import cli, environment, processes
from bench.core.kept import Kept
from bench.core.processes import Outcome
from bench.stack import __main__ as stack

SMALL = ["--model=tiny", "--device=cpu", "--ctx=16", "--l2=warm", "--steps=2", "--warmup=1"]
needs_compiler = pytest.mark.skipif(compiler_reason(CPU) is not None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    """One process compiles what would be in many: torch gives up on code that it has compiled eight times."""
    torch._dynamo.reset()


@pytest.fixture
def named(monkeypatch):
    """gated() finds the backends of the stack too."""
    monkeypatch.setattr("inputs.workloads.registry", by_name)


@pytest.fixture
def peers(monkeypatch, any_device, named):  # noqa: F811
    """Fakes of the three libraries."""
    for package in ("flash_attn", "flash_attn_interface", "flashinfer"):
        monkeypatch.setitem(sys.modules, package, getattr(fake_peers, package)())


def test_all_leaves_the_stack_s_own_out():
    assert set(by_name()) - set(registry()) == {
        "plain-native", "compile-fa2", "compile-fa3", "compile-flashinfer", "compile-native",
        "native-unified",
    }  # fmt: skip
    assert {backend for backend, _ in stack.GROUPS.values()} <= set(by_name())


@pytest.mark.parametrize("batch", [1, 3])
def test_native_attention_in_a_plain_layer(named, batch):
    arm = gated("plain-native", workload(batch=batch))
    assert (arm.status, arm.reason) == ("ok", None) and "pykernels::gqa_decode" in arm.kernels


# NaN lies in the slot of the step: an attention that a compiler moved before the append is `wrong`.
@needs_compiler
@pytest.mark.parametrize(("name", "batch"), [("compile-native", 2), ("compile-fa2", 2), ("compile-flashinfer", 2)])
def test_compiled_around_an_attention(peers, name, batch):
    arm = gated(name, workload(batch=batch, copies=1))
    assert (arm.status, arm.reason) == ("ok", None)
    assert arm.launches == 1 and arm.kernels[0].startswith("torch.compile of the layer around ")


@needs_compiler
def test_more_copies_of_a_layer_than_torch_compiles_code(named):
    with torch._dynamo.config.patch(recompile_limit=1):
        arm = gated("compile-native", workload(copies=2))
    assert (arm.status, arm.reason) == ("ok", None)


@needs_compiler
def test_the_compiler_copies_no_cache(monkeypatch, named):
    true, own = _NativeCache.over, []

    def over(self, q, k_cache, v_cache):
        own.append((k_cache.data_ptr(), v_cache.data_ptr()) == (self.k_cache.data_ptr(), self.v_cache.data_ptr()))
        return true(self, q, k_cache, v_cache)

    monkeypatch.setattr(_NativeCache, "over", over)
    assert gated("compile-native", workload(copies=1)).status == "ok"
    assert own and all(own)


@needs_compiler
def test_a_missing_append_is_found(monkeypatch, peers):
    monkeypatch.setattr(TokenMajorCache, "append", lambda self, k, v: None)
    arm = gated("compile-fa3", workload(copies=1))
    assert arm.status == "wrong" and "got nan" in arm.reason


def test_an_absent_library_is_its_attention_s_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    assert "flashinfer is not installed" in by_name()["compile-flashinfer"].availability(CPU)


class Layers:
    """run_module in this process; `ends` says by (backends, modes) what ends in place of that."""

    def __init__(self, monkeypatch, ends=None):
        self.seen, self.ends = [], ends or {}
        monkeypatch.setattr(stack, "run_module", self)

    def __call__(self, module, arguments, limit_s):
        assert module == "bench.layer"
        flags = dict(argument.lstrip("-").split("=", 1) for argument in arguments)
        self.seen.append((flags["backend"], flags["mode"]))
        if end := self.ends.get(self.seen[-1]):
            if isinstance(end, BaseException):
                raise end
            return end
        return Outcome("ok", None, cli.run(module, layer.command, arguments))


def load(path):
    return json.loads(path.read_text())


@needs_compiler
def test_on_the_cpu(capsys, tmp_path, monkeypatch):
    layers = Layers(monkeypatch)
    outputs = [f"--{kind}={tmp_path / f's.{suffix}'}" for kind, suffix in
               (("json", "json"), ("csv", "csv"), ("md", "md"), ("plot", "png"))]  # fmt: skip
    result = run_here(capsys, "bench.stack", *SMALL, "--attention=sdpa,native,fa2", *outputs)
    assert result.status == 0, result.err
    document = load(tmp_path / "s.json")
    check_written(document)
    assert (document["schema"], document["kind"], document["interrupted"]) == ("launchtax/1", "stack", False)
    assert (document["model"]["name"], document["ctx"], document["device"]) == ("tiny", 16, "cpu")
    cells = {(arm["attention"], arm["compiled"], arm["mode"]): arm for arm in document["arms"]}
    for attention in ("sdpa", "native"):
        for compiled in ("eager", "compile"):
            arm = cells[attention, compiled, "eager"]
            assert (arm["status"], arm["reason"]) == ("ok", None) and len(arm["samples_us"]) == 2
            assert arm["ratio_to_sdpa"]["p50"] > 0 and arm["max_rel_error"] < 0.1
            assert "nothing to capture on a CPU" in cells[attention, compiled, "graph"]["reason"]
    assert cells["sdpa", "reduce-overhead", "eager"]["status"] == "unsupported"
    assert "flash_attn is not installed" in cells["fa2", "compile", "graph"]["reason"]
    assert {cell for cell, arm in cells.items() if arm["crashed_in_the_paper"]} == stack.CRASHED_IN_THE_PAPER
    started = {backend for backends, _ in layers.seen for backend in backends.split(",")}
    assert started == {"sdpa", "compile", "plain-native", "compile-native"}, "none for what is not there"
    assert "native, compile: no graph" in result.out and "unsupported: " in flat(result.out)
    assert (tmp_path / "s.md").read_text().count("| crashed |") == 4
    assert (tmp_path / "s.csv").read_text().count("compile-native") == 2
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert run_here(capsys, "bench.report", str(tmp_path)).status == 0
    report = (tmp_path / "report" / "report.md").read_text()
    assert "## The software stack of one layer" in report and "| native | compile | no | " in report
    assert "figures/stack-s.png" in report


def test_a_crash_costs_its_cell_alone(capsys, monkeypatch, tmp_path):
    dead = Outcome("error", "ended by SIGSEGV", -11)
    pair = "sdpa,plain-native"
    layers = Layers(monkeypatch, {(pair, "eager,graph"): dead})
    output = tmp_path / "s.json"
    flags = ["--attention=native", "--compiled=eager", f"--json={output}"]
    result = run_here(capsys, "bench.stack", *SMALL, *flags)
    assert (result.status, result.err) == (1, "bench.stack: error: plain-native:graph: error: ended by SIGSEGV\n")
    assert layers.seen == [(pair, "eager,graph"), (pair, "eager"), (pair, "eager,graph")]
    eager, graph = load(output)["arms"]
    assert (eager["mode"], eager["status"]) == ("eager", "ok")
    assert (graph["mode"], graph["status"], graph["reason"]) == ("graph", "error", "error: ended by SIGSEGV")


def test_interrupted(capsys, monkeypatch, tmp_path):
    Layers(monkeypatch, {("sdpa,compile-native", "eager"): KeyboardInterrupt()})
    output = tmp_path / "s.json"
    flags = ["--attention=native", "--mode=eager", f"--json={output}"]
    result = run_here(capsys, "bench.stack", *SMALL, *flags)
    assert result.status == 130 and "INTERRUPTED" in result.out
    assert [arm["backend"] for arm in load(output)["arms"]] == ["plain-native"] and load(output)["interrupted"]


def without_times(arm):
    fleeting = ("samples_us", "wall_us", "host_us", "gbs", "share_of_spec", "share_of_read", "ratio_to_sdpa")
    return {name: value for name, value in arm.items() if name not in fleeting}


@needs_compiler
def test_killed_and_run_again(capsys, monkeypatch, tmp_path):
    flags = [*SMALL, "--attention=native", "--mode=eager", "--compile-jobs=0"]
    layers = Layers(monkeypatch)
    assert run_here(capsys, "bench.stack", *flags, f"--json={tmp_path / 'whole.json'}").status == 0
    flags.append(f"--keep={tmp_path / 'kept'}")
    Layers(monkeypatch, {("sdpa,compile-native", "eager"): SystemExit(137)})
    with pytest.raises(SystemExit):
        run_here(capsys, "bench.stack", *flags)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["layer-sdpa,plain-native-eager.json"]
    layers = Layers(monkeypatch)
    assert run_here(capsys, "bench.stack", *flags, f"--json={tmp_path / 'again.json'}").status == 0
    assert layers.seen == [("sdpa,compile-native", "eager")]
    whole, again = load(tmp_path / "whole.json"), load(tmp_path / "again.json")
    assert not again["interrupted"] and [arm["backend"] for arm in again["arms"]] == ["plain-native", "compile-native"]
    assert list(map(without_times, whole["arms"])) == list(map(without_times, again["arms"]))
    assert {name for name in whole if whole[name] != again[name]} <= {"arms", "command", "created", "environment",
                                                                      "ceiling"}  # fmt: skip
    layers = Layers(monkeypatch)
    assert run_here(capsys, "bench.stack", *flags, "--compiled=eager", "--seed=1").status == 0
    assert layers.seen == [("sdpa,plain-native", "eager")], "processes of other flags are others"


def test_a_crash_among_many_costs_its_cell_alone(capsys, monkeypatch, tmp_path):
    """sdpa's and native's four cells in one process; native's graph ends every process that has it."""
    dead, pair = Outcome("error", "ended by SIGSEGV", -11), "sdpa,plain-native"
    layers = Layers(monkeypatch, {(pair, "eager,graph"): dead})
    output = tmp_path / "s.json"
    flags = ["--attention=sdpa,native", "--compiled=eager", f"--json={output}"]
    result = run_here(capsys, "bench.stack", *SMALL, *flags)
    assert (result.status, result.err) == (1, "bench.stack: error: plain-native:graph: error: ended by SIGSEGV\n")
    assert layers.seen == [
        (pair, "eager,graph"), ("sdpa", "eager,graph"), (pair, "eager,graph"), (pair, "eager"), (pair, "eager,graph"),
    ]  # fmt: skip
    found = {(arm["attention"], arm["mode"]): arm for arm in load(output)["arms"]}
    assert found["sdpa", "eager"]["status"] == found["native", "eager"]["status"] == "ok"
    assert found["sdpa", "graph"]["status"] == "unsupported" and found["native", "graph"]["status"] == "error"


def test_one_error_keeps_its_neighbours(monkeypatch):
    """What is measured beside an arm that failed is not measured again."""
    arms = [dict(backend=name, mode=mode, status="error" if (name, mode) == ("fa2", "graph") else "ok", reason="no")
            for name in ("sdpa", "fa2", "fa3") for mode in ("eager", "graph")]  # fmt: skip
    asked = []

    def run_layer(cells, plan):
        asked.append(cells)
        return {"arms": arms}, "ok: None"

    monkeypatch.setattr(stack, "run_layer", run_layer)
    cells = [(name, "eager", mode) for name in ("sdpa", "fa2", "fa3") for mode in ("eager", "graph")]
    entries, _ = stack.measure(cells, stack.Plan(cells, [], 1))
    assert [entry["status"] for entry in entries] == ["ok", "ok", "ok", "error", "ok", "ok"]
    assert asked == [cells, [("fa2", "eager", "graph")]]


def test_compiled_ahead(monkeypatch):
    seen, said = [], []
    monkeypatch.setattr(
        stack, "run_module", lambda _, flags, limit_s: seen.append(flags) or Outcome("hang", "no", None)
    )
    cells = [(*group, mode) for group, (_, modes) in stack.GROUPS.items() for mode in modes]
    plan = stack.Plan(cells, ["--steps=30"], 1, compile_jobs=3)
    stack.compile_ahead(plan, said.append)
    backends = {next(flag for flag in flags if flag.startswith("--backend=")) for flags in seen}
    assert backends == {f"--backend=sdpa,compile{name}" for name in ("", "-graphs", "-fa2", "-fa3", "-flashinfer",
                                                                     "-native")}  # fmt: skip
    assert len(seen) == 6 and all(flags[:3] == ["--steps=30", "--warmup=0", "--steps=2"] for flags in seen)
    assert said[0].startswith("compiled ahead: 6 processes, 3 at a time")
    assert len(plan.processes()) == 7 and len(plan.processes()[0]) == 15
    seen.clear()
    stack.compile_ahead(stack.Plan(cells, [], 1, compile_jobs=1), said.append)
    assert seen == []


def test_interrupted_while_compiling_ahead(monkeypatch, tmp_path):
    """Its processes, of other threads, end with it, and those that wait for their turn are not begun."""
    victim = tmp_path / "victim.py"
    victim.write_text(f"import os, time\nopen(f'{tmp_path}/{{os.getpid()}}.begun', 'w').close()\ntime.sleep(600)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(stack, "run_module", lambda *_: processes.run_module("victim", [], 300))
    cells = [(name, "compile", "eager") for name in ("sdpa", "fa2", "native")]

    def interrupt():
        while len(list(tmp_path.glob("*.begun"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            stack.compile_ahead(stack.Plan(cells, [], 300, compile_jobs=2), lambda words: None)
    finally:
        signal.signal(signal.SIGINT, earlier)
    begun = [path.stem for path in tmp_path.glob("*.begun")]
    assert len(begun) == 2 and not any(Path("/proc", pid).exists() for pid in begun)


def test_what_is_kept_is_not_compiled_ahead(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(stack, "run_layer", lambda cells, plan: seen.append((cells, plan.kept)))
    cells = [(name, "compile", "eager") for name in ("sdpa", "fa2", "native")]
    plan = stack.Plan(cells, ["--steps=30"], 1, compile_jobs=2, kept=Kept(tmp_path, "layer"))
    name, flags = stack.process_of(cells[:1], plan)
    plan.kept.save(name, whole({"kind": "layer", "environment": environment.collect()}), flags)
    stack.compile_ahead(plan, lambda words: None)
    assert seen == [([cell], Kept()) for cell in cells[1:]], "and what is measured on the way is kept nowhere"


def test_graphs_on_a_gpu(monkeypatch, capsys, tmp_path):
    Layers(monkeypatch)
    output = tmp_path / "s.json"
    with fake_gpu(monkeypatch):
        flags = ["--attention=native", "--compiled=eager", f"--json={output}"]
        result = run_here(capsys, "bench.stack", *SMALL, "--device=cuda", *flags)
    assert result.status == 0, result.out + result.err
    cells = {(arm["backend"], arm["mode"]): arm for arm in load(output)["arms"]}
    assert len(cells) == 2
    for arm in cells.values():
        assert (arm["status"], arm["reason"]) == ("ok", None) and arm["device_us"]["p50"] > 0


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--attention=flash", ["--attention=flash", "flashinfer"]),
        ("--compiled=yes", ["--compiled=yes", "reduce-overhead"]),
        ("--mode=pybind", ["--mode=pybind", "eager, native, graph"]),
        ("--ctx=0", ["--ctx=0", "1..32768"]),
        ("--compile-jobs=-2", ["--compile-jobs=-2", "-1..64"]),
        ("--limit-s=-1", ["--limit-s=-1", "a positive number of seconds"]),
        ("--keep=/proc/nowhere", ["--keep=/proc/nowhere", "can be made"]),
    ],
)
def test_bad_arguments(capsys, flag, words):
    assert_refused(run_here(capsys, "bench.stack", *SMALL, flag), *words)


def test_no_cell_is_no_success(capsys, monkeypatch):
    monkeypatch.setattr(stack, "run_module", lambda *_: Outcome("error", "ended by SIGSEGV", -11))
    result = run_here(capsys, "bench.stack", *SMALL, "--attention=native", "--compiled=eager")
    assert result.status == 1
    assert result.err == "bench.stack: error: plain-native:eager (and 1 more): error: ended by SIGSEGV\n"


def test_nothing_chosen(capsys):
    refused = run_here(capsys, "bench.stack", *SMALL, "--attention=fa2", "--compiled=reduce-overhead")
    assert_refused(refused, "--compiled=reduce-overhead", "--attention=fa2")
