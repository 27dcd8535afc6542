"""Plug-ins: what each kind of misbehaviour costs, in processes of their own; how they are found, loaded and checked."""

import json
import mmap
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from inputs.command_line import ROOT, assert_refused, run_here
from inputs.documents import whole
from inputs.fake_gpu import fake_gpu
from inputs.fork_server import true_processes
from inputs.user_plugins import ATTENTION, CPU, GEMV, GQA_DECODE, INT4_GEMV, gated, plugin
from inputs.workloads import workload

from bench.backends.op_plugin import GUARD_BYTES, Guarded
from bench.core.measure import Arm
from bench.core.processes import Outcome
from bench.int4 import plugged
from bench.plugins import plan as plugins
from bench.plugins.loading import Journal, load_layer, load_op, own_journal
from bench.plugins.plan import Plan, measure

SMALL = ["--model=tiny", "--device=cpu", "--ctx=16", "--steps=3", "--warmup=1", "--l2=warm", "--threads=1"]
MISBEHAVING = ROOT / "tests" / "inputs" / "plugins" / "misbehaving.py"


def bad(*names) -> str:
    return ",".join(f"{MISBEHAVING}:{name}" for name in names)


def measured(capsys, tmp_path, status, *arguments):
    """The document of a run in this process (plug-ins have their own), and what was printed."""
    output = tmp_path / "result.json"
    result = run_here(capsys, *arguments, f"--json={output}")
    assert result.status == status, result.out + result.err
    return json.loads(output.read_text()), result.out


# What they cost, for real.


def test_each_costs_its_own_arm_only(capsys, tmp_path):
    wrong_import = ROOT / "tests" / "inputs" / "plugins" / "raises_at_import.py"
    asked = f"sdpa,{ATTENTION}:Attention,{bad('Overruns', 'DiesInOneMode', 'Exits')},{wrong_import}:X"
    document, printed = measured(
        capsys, tmp_path, 1, "bench.layer", *SMALL, f"--backend={asked}", "--mode=eager,dispatch"
    )
    arms = {
        (arm["backend"].split(":")[1 if ":" in arm["backend"] else 0], arm["mode"]): arm for arm in document["arms"]
    }
    assert len(arms) == len(document["arms"]) == 2 * 6
    statuses = {key: arm["status"] for key, arm in arms.items()}
    assert statuses == {
        ("sdpa", "eager"): "ok", ("sdpa", "dispatch"): "ok",
        ("Attention", "eager"): "ok", ("Attention", "dispatch"): "unsupported",
        ("Overruns", "eager"): "wrong", ("Overruns", "dispatch"): "unsupported",
        ("DiesInOneMode", "eager"): "error", ("DiesInOneMode", "dispatch"): "ok",
        ("Exits", "eager"): "error", ("Exits", "dispatch"): "unsupported",
        ("X", "eager"): "error", ("X", "dispatch"): "error",
    }  # fmt: skip
    reasons = {name: arms[name, "eager"]["reason"] for name in ("Overruns", "DiesInOneMode", "Exits", "X")}
    assert reasons == {
        "Overruns": "wrote outside the attention's out: 2 bytes changed, the first 6 bytes past its end",
        "DiesInOneMode": "ended by SIGSEGV, while it was made",
        "Exits": "exit status 3, while it was checked",
        "X": "ImportError: libsomething.so.1: cannot open shared object file (raises_at_import.py:3)",
    }
    for arm in document["arms"]:
        assert len(arm["samples_us"]) == (3 if arm["status"] == "ok" else 0)
        assert bool(arm["wall_us"]) == (arm["status"] == "ok")
    assert arms["Attention", "eager"]["ratio_to_sdpa"]["p50"] > 0
    assert set(document["ladder"]) == {"sdpa", "attention_plugin.py:Attention"}
    assert "Ladder of attention_plugin.py:Attention" in printed and "error: misbehaving.py:Exits (eager)" in printed
    assert [entry["backend"] for entry in document["plugins"]][0] == "attention_plugin.py:Attention"
    assert all(len(entry["sha256"]) == 64 for entry in document["plugins"])


def test_a_time_limit_ends_what_hangs_and_what_is_too_slow(capsys, tmp_path):
    document, _ = measured(
        capsys, tmp_path, 1, "bench.layer", *SMALL, f"--backend=sdpa,{bad('Hangs', 'Slow')}",
        "--mode=eager", "--plugin-timeout-s=2",
    )  # fmt: skip
    sdpa, *others = document["arms"]
    assert sdpa["status"] == "ok" and sdpa["wall_us"]
    assert [arm["status"] for arm in others] == ["error", "error"]
    for arm, doing in zip(others, ("checked", "measured"), strict=True):
        limit, _, at = arm["reason"].partition(", while it was ")
        # On a machine that is busy enough it does not get as far, or not even to its file.
        assert limit == "was not done after 2 s" and at in (doing, "checked", "made", "loaded", "")


OP = ["bench.op", "--op=gqa_decode", "--model=tiny", "--device=cpu"]


def test_in_a_process_that_is_not_forked(capsys, tmp_path):
    with true_processes():
        document, _ = measured(capsys, tmp_path, 0, *OP, "--ctx=32", "--steps=2", f"--backend={ATTENTION}:Attention")
    assert {(row["backend"], row["status"]) for row in document["ops"]} == {("attention_plugin.py:Attention", "ok")}


def test_one_op(capsys, tmp_path):
    document, printed = measured(
        capsys, tmp_path, 1, *OP, "--ctx=32,40", "--steps=3",
        f"--backend=native,torch,{ATTENTION}:Attention,{bad('Dies')}",
    )  # fmt: skip
    found = {(row["backend"], row["mode"], row["shape"][-2:]): row for row in document["ops"]}
    assert len(found) == len(document["ops"]) == 2 * (2 + 1 + 2)
    for kv in ("32", "40"):
        right = found["attention_plugin.py:Attention", "eager", kv]
        assert right["time_us"]["n"] == 3 and right["ratio_to_torch"]["p50"] > 0
        died = found["misbehaving.py:Dies", "eager", kv]
        assert (died["status"], died["reason"]) == ("error", "ended by SIGSEGV, while it was checked")
    assert "error: misbehaving.py:Dies (eager): ended by SIGSEGV" in printed


def test_a_message_of_any_kind_is_a_line_of_a_table(tmp_path):
    (arm,) = gated(tmp_path, MISBEHAVING, "Rants", workload())
    assert arm.status == "error" and arm.reason.startswith("ValueError: \\udc80\\x1b[2J no luck no luck")
    assert arm.reason.isprintable() and len(arm.reason) < 600
    (arm,) = gated(tmp_path, MISBEHAVING, "HasNoWords", workload())
    assert arm.reason.startswith("WithoutWordsError (misbehaving.py:")


def test_its_memory_is_limited_and_its_address_space_is_not(tmp_path):
    """In a process that is thrown away: the limit stays."""
    if (process := os.fork()) == 0:
        status = 9
        try:
            now_gb = int(re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024e-9
            own_journal(str(tmp_path), now_gb + 0.5)
            mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0)
            held = bytearray(100 << 20)
            status = 1
            bytearray(1 << 30)
        except MemoryError:
            status = 0 if status == 1 and held else 8
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), "oom"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: 9"), "oom"),
        (RuntimeError("no"), "error"),
    ],
    ids=repr,
)
def test_what_finds_no_memory(error, status):
    arm = Arm("it", "eager")
    arm.fail(error)
    assert arm.status == status


# Who is to blame, by the notes that a process leaves.


def blamed(monkeypatch, leave, modes=("eager", "dispatch", "graph"), returncode=-11, reason="ended by SIGSEGV"):
    """The arms of a plug-in whose processes end after `leave(journal, modes)`; and which modes each was asked for."""
    asked = []

    def run_module(driver, flags, limit_s):
        given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
        asked.append(given["mode"].split(","))
        leave(Journal(plugins.Path(given["plugin-journal"])), asked[-1])
        return Outcome("error", reason, returncode)

    monkeypatch.setattr(plugins, "run_module", run_module)
    plan = Plan("bench.layer", [], modes, [], [], 10.0)
    found = measure(plan, plugin(MISBEHAVING, "Right"))
    return {arm.mode: (arm.status, arm.reason) for arm in found.failed}, asked


def test_on_a_gpu_an_op_that_failed_stands_beside_those_that_were_traced(monkeypatch, capsys, tmp_path):
    ended = Outcome("error", "ended by SIGSEGV", -11)
    monkeypatch.setattr(plugins, "run_module", lambda *arguments: ended)
    with fake_gpu(monkeypatch):
        document, _ = measured(
            capsys, tmp_path, 1, "bench.op", "--op=gqa_decode", "--model=tiny", "--device=cuda", "--ctx=32,40",
            "--steps=3", "--mode=eager,graph", f"--backend=native,{ATTENTION}:Attention",
        )  # fmt: skip
    assert len(document["ops"]) == 2 * 2 * 2
    for row in document["ops"]:
        if row["backend"] == "native":
            assert row["status"] == "ok" and row["device_us"]
        else:
            assert (row["status"], row["reason"], row["device_us"]) == ("error", "ended by SIGSEGV", None)


def test_the_mode_that_was_at_work_is_to_blame_and_the_others_are_tried_again(monkeypatch):
    def leave(journal, modes):
        journal.write("modes", {"eager": None, "dispatch": "has no tape", "graph": None})
        journal.note("measured", modes[-1])

    arms, asked = blamed(monkeypatch, leave)
    assert asked == [["eager", "dispatch", "graph"], ["eager"]]
    words = ("error", "ended by SIGSEGV, while it was measured")
    assert arms == {"eager": words, "graph": words, "dispatch": ("unsupported", "has no tape")}


def test_where_none_is_named_all_are(monkeypatch):
    arms, asked = blamed(monkeypatch, lambda journal, modes: None)
    assert len(asked) == 1 and arms == {mode: ("error", "ended by SIGSEGV") for mode in ("eager", "dispatch", "graph")}


def test_a_process_that_slips_away(monkeypatch):
    arms, _ = blamed(monkeypatch, lambda journal, modes: journal.note("loaded", ""), ["eager"], 0, None)
    assert arms["eager"] == ("error", "ended with exit status 0 before it was done, while it was loaded")


OF_THE_PLUGIN = {"backend": "misbehaving.py:Right", "mode": "eager"}
RESULTS = {
    "not UTF-8": (b"\xff\xfe{}", "'utf-8' codec can't decode"),
    "no JSON": (b"{", "Expecting property name"),
    "NaN": (b'{"schema": "launchtax/1", "arms": NaN}', "NaN is no JSON"),
    "a list": (b"[1]", "schema must be launchtax/1, got None"),
    "of another schema": (b'{"schema": "\\u001b[2J"}', "schema must be launchtax/1, got '"),
    "nested": (b"[" * 10**6, "recursion"),
    "too large": (1 << 40, "must be at most 256 MiB, got 1048576 MiB"),
    "a pipe": (os.mkfifo, "must be a regular file, and that is a pipe"),
    "a folder": (os.mkdir, "must be a regular file, and that is a folder"),
    "without keys": (b'{"schema": "launchtax/1"}', "kind: must be one of "),
    "of another type": (b'{"schema": "launchtax/1", "interrupted": "no"}', "kind: must be one of "),
    "without entries": ({"arms": []}, "left a result document without an entry of its own"),
    "of others": ({"arms": [{"backend": "sdpa"}]}, "without an entry of its own"),
    "a number": ({"arms": 3}, "arms: must be "),
    "entries of another type": ({"arms": [3]}, "arms[0]: must be "),
    "arms of another type": ({"arms": {"a": 1}}, "arms: must be "),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_that_is_none_is_an_error_of_its_arms(monkeypatch, name):
    content, words = RESULTS[name]

    def leave(journal, modes):
        path = journal.folder / "result.json"
        if callable(content):
            content(path)
        elif isinstance(content, int):
            path.touch()
            os.truncate(path, content)
        else:
            kind = {"kind": "layer", "interrupted": False}
            made = content if isinstance(content, bytes) else json.dumps(whole(kind | content)).encode()
            path.write_bytes(made)

    arms, _ = blamed(monkeypatch, leave, ["eager"], 0, None)
    status, reason = arms["eager"]
    assert status == "error" and reason.startswith("left a result document") and words in reason
    assert len(reason) < 600 and reason.isprintable() and "/tmp" not in reason


NOTES = [b"\xff\x00", b"[" * 10**5, b"3", b'"\\ud800"', b"{}\n[]\n3\n", b'{"case": 1}\n', os.mkfifo, os.mkdir, None]


@pytest.mark.parametrize("content", NOTES, ids=repr)
def test_notes_of_any_kind_are_read(monkeypatch, content):
    """None: the folder itself is gone."""

    def leave(journal, modes):
        if content is None:
            shutil.rmtree(journal.folder)
            return
        for name in ("state", "modes", "lost", "raised", "begun", "trials"):
            content(journal.folder / name) if callable(content) else (journal.folder / name).write_bytes(content)

    arms, _ = blamed(monkeypatch, leave, ["eager"])
    assert arms["eager"][0] == "error" and arms["eager"][1].isprintable()

    def run_module(driver, flags, limit_s):
        leave(Journal(Path(flags[-2].partition("=")[2])), [])
        return Outcome("error", "ended by SIGSEGV", -11)

    monkeypatch.setattr(plugged, "run_module", run_module)
    tried = plugged.validate("bench.int4", plugin(MISBEHAVING, "Right"), [], 1.0)
    assert tried.found == [] and tried.ended


def test_a_plugin_that_deletes_its_file(monkeypatch, tmp_path):
    path = tmp_path / "gone.py"
    path.write_text("x")
    monkeypatch.setattr(plugins, "run_module", lambda *_: path.unlink() or Outcome("error", "ended by SIGSEGV", -11))
    found = measure(Plan("bench.layer", [], ["eager"], [], [], 10.0), plugin(path, "X"))
    assert len(found.describe(1.0)["sha256"]) == 64


def test_notes_outlive_what_ends_the_process_and_nothing_else(tmp_path):
    journal, reader = Journal(tmp_path), Journal(tmp_path)
    with journal.during("measured", "eager"):
        with pytest.raises(ValueError), journal.during("checked", "eager"):
            assert reader.state() == ("checked", "eager")
            raise ValueError
        assert reader.state() == ("measured", "eager")
    assert reader.state() == ("", "")
    with pytest.raises(SystemExit), journal.during("checked", "graph"):
        raise SystemExit(0)
    assert reader.state() == ("checked", "graph")


def test_a_device_that_is_lost_ends_the_process_with_its_words(monkeypatch, tmp_path):
    def synchronize():
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(os, "_exit", lambda status: sys.exit(status))
    journal = Journal(tmp_path)
    with pytest.raises(SystemExit), journal.during("checked", "eager"):
        raise RuntimeError("in the middle of it")
    assert journal.state() == ("checked", "eager")
    assert journal.read("lost") == "RuntimeError: CUDA error: an illegal memory access was encountered"


# The gate.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("position", [0, 20, 39])
def test_the_example_is_right(tmp_path, position, dtype):
    (arm,) = gated(tmp_path, ATTENTION, "Attention", workload(batch=2, position=position, dtype=dtype))
    assert (arm.status, arm.reason, len(arm.samples_us)) == ("ok", None, 2)
    assert "attention_plugin.py:Attention.attend" in arm.kernels


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("NotANumber", "wrong", "got nan"),
        ("WritesNothing", "wrong", "got nan"),
        ("Underruns", "wrong", "wrote outside the attention's out: 2 bytes changed, the first 0 bytes before"),
        ("SpoilsTheCache", "wrong", "wrote into k_cache outside its slot 20: 1 elements changed, the first at [0, 1, "),
        ("Raises", "error", "ValueError: no such luck"),
        ("Unchecked", "error", "its arm has no check"),
    ],
)  # fmt: skip
def test_what_is_wrong_gets_no_time(tmp_path, name, status, words):
    (arm,) = gated(tmp_path, MISBEHAVING, name, workload(batch=1, copies=1))
    assert arm.status == status and words in arm.reason and arm.samples_us == []


def test_the_layers_own_output_is_guarded_too(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from bench.backends.native import Native\n"
        "class Mine(Native):\n"
        "    def arm(self, workload, mode, fusion):\n"
        "        out = workload.layers[0].out\n"
        "        out.as_strided((1,), (1,), out.storage_offset() + out.numel()).fill_(1)\n"
        "        return super().arm(workload, mode, fusion)\n"
    )
    (arm,) = gated(tmp_path, path, "Mine", workload(batch=2), ["native"])
    assert arm.status == "wrong" and arm.reason.startswith("wrote outside the layer's out: 2 bytes changed")


@pytest.mark.parametrize("offset", [-GUARD_BYTES, -1, 20, 20 + GUARD_BYTES - 1])
def test_guards_reach_as_far_as_they_say(offset):
    guarded = Guarded("it", (5,), torch.float32, CPU)
    assert guarded.overrun() is None and guarded.tensor.isnan().all()
    guarded._bytes[GUARD_BYTES + offset] = 0
    where = f"{-1 - offset} bytes before its begin" if offset < 0 else f"{offset - 20} bytes past its end"
    assert guarded.overrun() == f"wrote outside it: 1 bytes changed, the first {where}"


# What is no plug-in.


@pytest.mark.parametrize("driver", ["bench.layer", "bench.op"])
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("none.py:Mine", "must be a file that exists, and none.py is none"),
        ("tests/plugins.py:Mine", "is none"),
        ("none.cu:mine", "must be a file that exists"),
        (f"{GQA_DECODE}:mine", "has no __global__ mine: it has gqa_decode"),
        (f"{MISBEHAVING}:", "must be FILE.py:Class or FILE.cu:kernel"),
        (f"{MISBEHAVING}", "FILE.py:Class or FILE.cu:kernel"),
        ("Mine", "FILE.py:Class or FILE.cu:kernel"),
    ],
)
def test_a_bad_name(capsys, driver, asked, words):
    assert_refused(run_here(capsys, driver, f"--backend={asked}"), f"--backend={asked}", words)


def test_two_of_one_name(capsys, tmp_path):
    shutil.copy(ATTENTION, tmp_path)
    both = [f"{folder / 'attention_plugin.py'}:Attention" for folder in (ATTENTION.parent, tmp_path)]
    result = run_here(capsys, "bench.layer", f"--backend={','.join(both)}")
    assert_refused(result, both[1], "must be the only plug-in that is called attention_plugin.py:Attention")


def test_a_file_without_the_class_is_refused_by_the_run(capsys, tmp_path):
    asked = f"{MISBEHAVING}:NoBackend"
    result = run_here(capsys, "bench.layer", *SMALL, f"--backend=sdpa,{asked}", f"--json={tmp_path}/none.json")
    assert_refused(result, f"--backend={asked}: must be a subclass of bench.backends.AttentionPlugin or Backend")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "name", "words"),
    [
        (MISBEHAVING, "Nobody", "must name a class of the file, which has Right, NotANumber"),
        (MISBEHAVING, "element", "must name a class of the file"),
        (MISBEHAVING, "Incomplete", "Incomplete lacks attend"),
        (MISBEHAVING, "OtherArguments", "attend must take q, k_cache, v_cache, kv_len, out"),
        (GEMV, "gemv", "computes op gemv, and a layer takes gqa_decode"),
        (INT4_GEMV, "int4_gemv", "computes op int4_gemv, and a layer takes gqa_decode"),
    ],
)
def test_a_class_of_another_interface(tmp_path, path, name, words):
    with pytest.raises(ValueError, match=words):
        load_layer(plugin(path, name), Journal(tmp_path), CPU)
    assert words in Journal(tmp_path).read("refused")


@pytest.mark.parametrize(
    ("path", "name", "op", "words"),
    [
        (GQA_DECODE, "gqa_decode", "gemv", "computes op gqa_decode, and --op is gemv"),
        (INT4_GEMV, "int4_gemv", "int4_gemv", "is a 4-bit kernel, which bench.int4 takes, by --kernel"),
        (
            MISBEHAVING,
            "DiesInOneMode",
            "gqa_decode",
            "must be a subclass of bench.backends.AttentionPlugin or OpPlugin",
        ),
    ],
)
def test_a_class_of_another_op(tmp_path, path, name, op, words):
    with pytest.raises(ValueError, match=words):
        load_op(plugin(path, name), Journal(tmp_path), op)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_the_time_limit_is_checked(capsys, value):
    result = run_here(capsys, "bench.layer", f"--plugin-timeout-s={value}")
    assert_refused(result, f"--plugin-timeout-s={float(value)}", "a positive number of seconds")


@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--op=null"], "--op=null"), (["--op=gqa_decode", "--aa=3"], "--aa"),
     (["--op=gqa_decode", "--mode=native"], "with one of eager, graph")],
)  # fmt: skip
def test_runs_of_one_op_that_take_no_plugin(capsys, flags, words):
    result = run_here(capsys, "bench.op", "--device=cpu", "--model=tiny", *flags, f"--backend={ATTENTION}:Attention")
    assert_refused(result, words)
