"""bench.attention's document: each fact once on disk, whole entries back; what is said of kernels and of refusals."""

import copy

import numpy as np
import pytest
from inputs.documents import whole

from bench.attention import document as attention_document
from bench.attention import plots as attention_plots
from bench.attention import results as attention_results
from bench.attention import tables as attention_tables
from bench.attention.arms import AttentionArm
from bench.attention.cases import cells
from bench.backends import registry
from bench.core import document
from pykernels import models

BACKENDS = ("native", "sdpa", "sdpa-math", "sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "fa2", "fa3", "flashinfer")


def kernel(name, us, **others):
    """What a trace says of a launch."""
    return {
        "name": name,
        "grid": [8, 4, 1],
        "block": [128, 1, 1],
        "us": us,
        "registers": 64,
        "shared_bytes": 0,
    } | others


def measured(cell, backend, mode, traced, random):
    """An arm's entry, with samples as long as real ones."""
    arm = AttentionArm(backend, mode, calls=int(random.integers(10, 99)))
    arm.kernels, arm.launches, arm.max_rel_error = [f"torch.ops.{backend}.forward"], 1, float(random.random())
    arm.samples_us, arm.host_samples_us = (random.random((2, 30)) * 100).tolist()
    arm.latency_samples_us = random.random(300).tolist() if mode == "eager" else []
    bandwidths = {"read_gbs": 4000 + float(random.random()), "spec_gbs": 4800.0}
    entry = attention_results.session_entry(arm, cell, 10**6, bandwidths, 62)
    if traced and mode == "eager":
        launches = [kernel(f"void {backend}::kernel_{i}<{'int, ' * 60}>", float(random.random()))
                    for i in range(16 if backend == "sdpa-math" else 2)]  # fmt: skip
        entry |= {"kernel_details": launches, "launches": len(launches), "trace_factor": float(random.random()),
                  "device_us": {"p20": 1 / 3, "p50": 1 / 3, "p80": 1 / 3, "n": 300}}  # fmt: skip
    return entry


def refused(cell, backend, mode, reason, status="unsupported"):
    arm = AttentionArm(backend, mode, status=status, reason=reason)
    return attention_results.session_entry(arm, cell, 10**6, {"read_gbs": None, "spec_gbs": 4800.0}, 62)


def of_entries(number, entries):
    """A session as it is on disk."""
    return {"session": number, "status": "ok", "reason": None, "lost": {}, "environment": None, "ceilings": {},
            "sdpa": {}, "throttled": {}, "entries": entries}  # fmt: skip


def session(number, where, random):
    entries = [
        refused(cell, backend, mode, f"refuses {cell.shape}: " + "why " * 150)
        if backend == "sdpa-efficient"
        else measured(cell, backend, mode, number == 0, random)
        for cell in where
        for backend in BACKENDS
        for mode in ("eager", "graph")
    ]
    return of_entries(number, entries)


@pytest.fixture(scope="module")
def three():
    """Three sessions of the default matrix of a GPU."""
    specs = [models.get(name) for name in ("qwen2.5-7b", "mistral-7b-v0.3", "llama-3.1-8b")]
    where, random = cells(specs, [2**n for n in range(10, 17)], [1, 4]), np.random.default_rng(0)
    return [session(number, where, random) for number in range(3)]


def on_disk(sessions, path):
    document.write_json(path, whole({"kind": "attention", **attention_document.packed(sessions)}))
    return document.load(path)


def test_three_sessions_of_the_default_matrix(three, tmp_path):
    before = copy.deepcopy(three)
    result = on_disk(three, tmp_path / "a.json")
    assert three == before, "who packs a running session must leave it whole"
    assert (tmp_path / "a.json").stat().st_size < 3e6
    assert attention_document.sessions(result) == three
    assert len(result["arms"]) == 28 * 9 * 2 == len(result["sessions"][2]["entries"])
    text = (tmp_path / "a.json").read_text()
    assert text.count("void fa3::kernel_1<") == 1
    assert text.count("refuses 28/4x128, kv 1024, batch 1: ") == 2, "of an eager arm and of a graph's, in no session"
    details = [attention_document.kernel_details(arm, result) for arm in result["arms"]]
    whole = [arm["kernel_details"] for arm in attention_results.over_sessions([one["entries"] for one in three])]
    assert details == whole and max(map(len, details)) == 16


def test_statistics_are_of_the_samples_that_are_kept(three):
    for entry in three[0]["entries"]:
        if entry["status"] == "ok":
            assert entry["wall_us"]["p50"] == np.median(entry["rounds_us"]) and len(entry["rounds_us"]) == 30


def test_an_arm_that_failed_in_one_session(three, tmp_path):
    (cell,) = cells([models.get("llama-3.1-8b")], [1024], [1])
    random = np.random.default_rng(1)
    sessions = [of_entries(number, [measured(cell, "fa3", "eager", number == 0, random)]) for number in range(3)]
    sessions[1]["entries"] = [refused(cell, "fa3", "eager", "at (0, 1): got nan", "wrong")]
    result = on_disk(sessions, tmp_path / "a.json")
    assert (result["arms"][0]["status"], result["arms"][0]["samples_us"]) == ("wrong", [])
    assert [entry["status"] for one in result["sessions"] for entry in one["entries"]] == ["ok", "wrong", "ok"]
    assert attention_document.sessions(result) == sessions


def test_a_document_of_before(three):
    """Entries that are whole, kernels named in each."""
    sessions = three[:1]
    result = {"arms": attention_results.over_sessions([sessions[0]["entries"]]), "sessions": sessions}
    assert attention_document.sessions(result) == sessions
    shape = result["arms"][0]["shape"]
    new = attention_document.packed(sessions)
    assert attention_tables.choices(result, shape) == attention_tables.choices(new, shape)


def one_cell(*arms):
    """A document whose arms are of one cell, or of those that they name."""
    common = {"shape": "s", "mode": "eager", "status": "ok", "choices": {}, "kernels": ["called"], "kernel_details": []}
    return {"arms": [common | arm for arm in arms], "sessions": [], "kernels": []}


def test_three_kernels_are_named_and_the_others_counted():
    math = [kernel("a", 1.0), kernel("b", 9.0), kernel("c", 0.25), kernel("d", 7.0), kernel("e", 8.0)]
    result = one_cell(
        {"backend": "sdpa-math", "kernel_details": math}, {"backend": "fa3", "choices": {"num_splits": [6]}}
    )
    short, called = attention_tables.choices(result, "s", 3)
    assert short == "sdpa-math: b 8x4x1 9.00 us; d 8x4x1 7.00 us; e 8x4x1 8.00 us; and 2 more, 1.2 us"
    assert called == "fa3: called; {'num_splits': [6]}"
    long, _ = attention_tables.choices(result, "s")
    assert [part.split()[0] for part in long.removeprefix("sdpa-math: ").split("; ")] == list("abcde")


def test_refusals_that_differ_in_numbers_are_one():
    pinned = ("No available kernel. Memory efficient kernel not used because: all must have the same num_heads. "
              "Query.sizes(): [1, 28, 1, 128], Key sizes(): [1, 4, {}, 128] instead. Flash attention kernel not used "
              "because: Flash attention has been runtime disabled. cuDNN attention kernel not used because: cuDNN "
              "attention has been runtime disabled.")  # fmt: skip
    refused = [
        {"backend": backend, "mode": mode, "shape": f"kv {kv}", "status": "unsupported", "reason": reason.format(kv)}
        for backend, reason in (("sdpa-efficient", pinned), ("fa2", "not installed"), ("fa3", "not installed"))
        for mode in ("eager", "graph")
        for kv in (1000, 4096)
    ]
    elsewhere = {"backend": "flex", "shape": "kv 4096", "status": "wrong", "reason": "at (0, 3): got 1.5e-03"}
    lines = attention_tables.refusals(one_cell(*refused, elsewhere, {"backend": "native", "shape": "kv 1000"}))
    assert lines == [
        "unsupported: sdpa-efficient:eager, sdpa-efficient:graph: No available kernel. Memory efficient kernel not "
        "used because: all must have the same num_heads. Query.sizes(): [1, 28, 1, 128], Key sizes(): [1, 4, 1000, "
        "128] instead. (so at kv 1000; elsewhere with other numbers)",
        "unsupported: fa2:eager, fa2:graph, fa3:eager, fa3:graph: not installed",
        "wrong: flex:eager (at kv 4096): at (0, 3): got 1.5e-03",
    ]


def test_no_two_backends_are_drawn_alike(three):
    names = [f"{name}{more}" for name in registry() for more in ("", "@2", " a plug-in")]
    assert len(set(attention_plots._styles(names).values())) == len(names)


def test_the_device_s_clock_is_drawn_beside_the_others(three):
    """And what has no floor, as an arm that ended its process, does not keep the picture from being drawn."""
    sessions = [session | {"lost": {}, "ceilings": {}, "throttled": {}} for session in three]
    result = {
        **attention_document.packed(sessions), "device": "cuda", "title": "t", "dtype": "bf16", "l2": "cold",
        "calls": 300, "warmup": 50, "sessions_planned": 3, "interrupted": False, "created": "t",
        "environment": {"gpu": {"name": "a GPU"}, "torch": {"version": "2"}},
    }  # fmt: skip
    bars, *_ = attention_plots.draw(result).axes
    labels = bars.get_legend_handles_labels()[1]
    assert "device, the kernels alone" in labels and "host, enqueuing alone" in labels
    shown = attention_tables.cells(result)[attention_tables.headline(result)]
    numbers = {text.get_text() for text in bars.texts}
    for entry in shown:
        if entry["device_us"]:
            assert attention_tables.microseconds(entry["device_us"]["p50"]) in numbers


def test_a_floor_a_context():
    def entry(ctx, at_read):
        return {"ctx": ctx, "floor_us": {"at_spec": 1.0, "at_read": at_read}}

    found = attention_tables.floors([entry(64, None), entry(64, 2.0), entry(64, 2.1), entry(32, 1.0), entry(16, None)])
    assert found == {64: 2.0, 32: 1.0}


def test_where_native_stands():
    """First, level, behind; of a second native it is neither, and a cell without a peer says nothing."""

    def arm(shape, backend, us, mode="graph"):
        return {"shape": shape, "backend": backend, "mode": mode, "wall_us": us and {"p50": us}, "ctx": 1, "batch": 1,
                "heads": shape, "layers": {}, "floor_us": {"at_read": None}}  # fmt: skip

    times = {
        "a": {"native": 9.0, "native@2": 8.0, "sdpa": 12.0, "xqa": 10.0}, "b": {"native": 10.03, "xqa": 10.0},
        "c": {"native": 10.2, "fa3": 10.0, "sdpa": 11.0}, "d": {"native": 1.0}, "e": {"sdpa": 1.0, "native": None},
    }  # fmt: skip
    arms = [arm(shape, name, us) for shape, of in times.items() for name, us in of.items()]
    arms += [arm("c", "native", 1.0, "eager"), arm("c", "fa3", 2.0, "eager")]
    assert attention_tables.standing({"device": "cuda", "arms": arms}) == [
        "native is the first or within 0.5% in 2 of 3 cells, graph",
        "not at c: 2.0% behind fa3",
    ]
    words = [attention_tables.behind_words(attention_tables.behind_the_peers(
        one for one in arms if (one["shape"], one["mode"]) == (shape, "graph"))) for shape in times]  # fmt: skip
    assert words == ["first by 10.0%", "0.3% behind xqa (level)", "2.0% behind fa3", "-", "-"]
