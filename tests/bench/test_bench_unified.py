"""--softmax and --phi of the drivers: native-unified, its fall-backs in the document, and the tables of the page."""

import json

import pytest
from inputs.command_line import assert_refused, run_here
from inputs.documents import check_written

from bench.core.unified import UNIFIED
from bench.report import flashdecoding_tables as tables

TINY = ("--model=tiny", "--device=cpu", "--dtype=fp32", "--warmup=1")
# Each driver over native alone, and its flag of so many steps.
RUNS = {
    "bench.layer": ("--backend=native", "--ctx=48", "--mode=eager,native", "--steps=2", "--l2=warm"),
    "bench.op": ("--op=gqa_decode", "--backend=native", "--ctx=48", "--mode=native", "--steps=2", "--l2=warm"),
    "bench.step": ("--backend=native", "--ctx=20", "--mode=native", "--fusion=block", "--steps=2"),
    "bench.attention": ("--backend=native", "--ctx=48", "--mode=eager", "--batch=1", "--calls=4", "--sessions=0"),
}


def entries(capsys, tmp_path, driver, *flags):
    """By backend, the entries of a run that has to succeed."""
    output = tmp_path / "document.json"
    result = run_here(capsys, driver, *TINY, *RUNS[driver], *flags, f"--json={output}")
    assert result.status == 0, result.err
    document = json.loads(output.read_text())
    check_written(document)
    found: dict[str, list[dict]] = {}
    for entry in document["ops" if driver == "bench.op" else "arms"]:
        found.setdefault(entry["backend"], []).append(entry)
    return found


@pytest.mark.parametrize("driver", RUNS)
def test_online_and_unified(capsys, tmp_path, driver):
    found = entries(capsys, tmp_path, driver, "--softmax=online,unified")
    assert list(found) == ["native", UNIFIED]
    assert all("unified" not in entry for entry in found["native"])
    for entry in found[UNIFIED]:
        assert entry["status"] == "ok"
        unified = entry["unified"]
        assert (unified["phi_from"], unified["fallbacks_per_step"], unified["in_range"]) == ("calibrated", 0, 1)
        assert unified["low"] < unified["high"]


@pytest.mark.parametrize("driver", RUNS)
def test_a_phi_that_fits_nothing(capsys, tmp_path, driver):
    """Every (sequence, head) falls back, and results are right all the same."""
    found = entries(capsys, tmp_path, driver, "--softmax=unified", "--phi=1000")
    assert list(found) == [UNIFIED]
    for entry in found[UNIFIED]:
        unified = entry["unified"]
        assert entry["status"] == "ok"
        assert unified["fallbacks_per_step"] == unified["pairs"] > 0
        assert unified == {"phi": 1000.0, "phi_from": "given", "pairs": unified["pairs"],
                           "fallbacks_per_step": unified["pairs"]}  # fmt: skip


@pytest.mark.parametrize(
    ("driver", "flags", "words"),
    [
        ("bench.layer", ["--softmax=lazy"], ("--softmax=lazy", "all, or of online, unified")),
        ("bench.layer", ["--backend=sdpa", "--softmax=unified"], ("--softmax=unified", "native is not among")),
        ("bench.layer", ["--phi=1"], ("--phi=1", "auto where no backend has a unified maximum")),
        ("bench.step", ["--softmax=unified", "--phi=1,2"], ("--phi=1,2", "auto, or one number")),
        ("bench.attention", ["--softmax=unified", "--phi=nan"], ("--phi=nan", "in -1e+06..1e+06")),
        ("bench.op", ["--op=gemv", "--softmax=unified"], ("--softmax=unified", "online, but for --op=gqa_decode")),
        ("bench.step", ["--arm=native/block:native", "--softmax=unified"], ("--softmax=unified", "left out")),
    ],
)  # fmt: skip
def test_refusals(capsys, driver, flags, words):
    given = [flag for flag in RUNS[driver] if flag.split("=")[0] not in {one.split("=")[0] for one in flags}]
    assert_refused(run_here(capsys, driver, *TINY, *given, *flags), *words)


def test_an_arm_by_its_name(capsys, tmp_path):
    flags = ["--arm=native-unified/block:native,native/block:native"]
    assert list(entries(capsys, tmp_path, "bench.step", *flags)) == [UNIFIED, "native"]


def cell(backend, us, **more):
    entry = {"backend": backend, "mode": "graph", "heads": "28/4x128", "batch": 1, "ctx": 2048}
    return entry | {"wall_us": {"p50": us}} | more


def test_the_pages_tables():
    counted = {"unified": {"fallbacks_per_step": 0.5, "pairs": 28}}
    document = {"arms": [cell("native", 6.0), cell(UNIFIED, 5.0, **counted), cell("sdpa-flash", 10.0)]}
    documents = {f"ab/h200-flashdecoding-{what}": document for what in ("attention", "fallback")}
    assert tables.unified(documents)[-1] == "| 28/4 | 1 | 2K | 6.00 | 5.00 | 10.00 | 1.20 | 2.00 | 0.5 of 28 |"
    assert tables.fallbacks(documents)[-1] == "| 28/4 | 1 | 2K | 6.00 | 5.00 | 0.83 | 0.5 |"
    assert tables.TABLES["unified"]({}) == [tables.NOT_MEASURED]
    arms = [
        {"backend": "sdpa", "fusion": None, "mode": "graph", "wall_us": {"p50": 6000.0}},
        {"backend": UNIFIED, "fusion": "block", "mode": "graph", "wall_us": {"p50": 3000.0}},
    ]
    names = [f"ab/h200-flashdecoding-{what}-b{batch}" for what in ("layer", "step") for batch in (1, 8)]
    rows = tables.TABLES["together"](dict.fromkeys(names, {"arms": arms}))
    assert rows[3] == "| the same in a graph |" + 4 * " 6,000 (1.00) |"
    assert "| flat GEMM, fusion, unified maximum |" + 4 * " 3,000 (2.00) |" in rows
    assert "| and PDL, unified |" + 4 * " - |" in rows
    assert tables.TABLES["together"](dict.fromkeys(names[1:], {"arms": arms})) == [tables.NOT_MEASURED]
