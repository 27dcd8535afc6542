"""bench.op and bench.doctor, end to end on the tiny model."""

import json
from dataclasses import replace

import pytest
import torch
from inputs.command_line import run_here
from inputs.documents import check_written

import pykernels as pk
from bench.backends import op_cases, registry
from bench.backends.op_cases import OPS
from bench.core.copies import MOST_OPS, partly_warm, weight_copies

SMALL = ["--model=tiny", "--device=cpu", "--steps=3", "--warmup=1", "--ctx=64,100", "--l2=warm"]


def load(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("op", OPS)
def test_every_op(capsys, tmp_path, op):
    output = tmp_path / "op.json"
    result = run_here(capsys, "bench.op", f"--op={op}", *SMALL, "--mode=all", f"--json={output}")
    assert result.status == 0, result.out + result.err
    document = load(output)
    check_written(document)
    assert (document["schema"], document["kind"], document["title"]) == ("launchtax/1", "op", f"op {op}")
    assert {(row["backend"], row["mode"]) for row in document["ops"] if row["status"] == "ok"} >= {
        ("native", mode) for mode in ("eager", "pybind", "dispatch", "native")
    }
    for row in document["ops"]:
        if row["status"] == "ok":
            assert row["op"] == op and row["time_us"]["n"] == len(row["samples_us"]) == 3
            assert row["gbs"] == pytest.approx(row["bytes"] / row["time_us"]["p50"] / 1e3)
        else:
            assert (row["status"], row["reason"]) == ("unsupported", "torch has no such op")


def test_a_cold_run_rotates_copies(capsys, monkeypatch):
    from bench import op as driver

    prepared, true = [], driver.prepare

    def prepare(case, settings):
        prepared.append((case, true(case, settings)))
        return prepared[-1][1]

    cache = 4 << 20
    monkeypatch.setattr(driver, "prepare", prepare)
    monkeypatch.setattr("bench.core.copies.last_level_cache_bytes", lambda device: cache)
    assert run_here(capsys, "bench.op", "--op=gemv", *SMALL[:-1], "--l2=cold", "--mode=all").status == 0
    assert len(prepared) == 6
    for case, (copies, _) in prepared:
        assert len(copies) == min(2 * cache // case.cold_bytes + 2, MOST_OPS) > 2
        assert sum(not copy.out.isnan().any() for copy in copies) > 1, "one copy had every turn"


@pytest.mark.parametrize(
    ("n_bytes", "cache_mb", "available_gb", "most", "copies", "warm"),
    [
        (6_000_000, 50, 20, 20, 2 * 50 * 10**6 // 6_000_000 + 2, False),
        (6_000_000, 260, 20, 16, 16, True),
        (6_000_000, 260, 20, 512, 88, False),
        (6_000_000, 260, 0.1, 512, 4, True),
        (6_000_000, 260, 0.001, 512, 1, True),
        (600_000_000, 260, 20, 16, 1, False),
        (0, 260, 20, 16, 1, False),
    ],
)
def test_copies_are_bounded_by_their_number_and_by_memory(
    monkeypatch, n_bytes, cache_mb, available_gb, most, copies, warm
):
    cpu = torch.device("cpu")
    monkeypatch.setattr("bench.core.copies.last_level_cache_bytes", lambda device: cache_mb * 10**6)
    monkeypatch.setattr("bench.core.copies.available_bytes", lambda device: available_gb * 1e9)
    assert weight_copies(n_bytes, "cold", cpu, most) == copies and weight_copies(n_bytes, "warm", cpu, most) == 1
    assert partly_warm(n_bytes, copies, "cold", cpu) == warm and not partly_warm(n_bytes, 1, "warm", cpu)


@pytest.mark.parametrize("op", ["qkv_gemv", "int4_qkv_gemv"])
def test_models_of_the_same_sizes_and_other_features_are_no_one_case(op):
    tiny = replace(pk.models.get("tiny"), qkv_bias=False)
    specs = [tiny, replace(tiny, qk_norm="head"), replace(tiny, qk_norm="all"), replace(tiny, qkv_bias=True)]
    made = [op_cases.cases(op, spec, [32], 1, torch.bfloat16, 0, torch.device("cpu")) for spec in specs]
    assert len({case.shape for [case] in made}) == len(specs)


def test_contexts_are_swept(capsys, tmp_path):
    output = tmp_path / "op.json"
    assert run_here(capsys, "bench.op", "--op=gqa_decode", *SMALL, f"--json={output}").status == 0
    assert {row["shape"] for row in load(output)["ops"]} == {"8/2x64, kv 64", "8/2x64, kv 100"}


@pytest.mark.parametrize("op", ["gqa_decode", "rmsnorm"])
def test_batches_are_swept(capsys, tmp_path, op):
    output = tmp_path / "op.json"
    result = run_here(capsys, "bench.op", f"--op={op}", *SMALL, "--batch=1,3", f"--json={output}")
    assert result.status == 0 and ", batch 1, 3, " in result.out
    document = load(output)
    assert document["batch"] == [1, 3]
    shapes = {batch: {row["shape"] for row in document["ops"] if row["batch"] == batch} for batch in (1, 3)}
    assert shapes[1] and len(shapes[1]) == len(shapes[3]) and not shapes[1] & shapes[3]


def test_a_batch_out_of_range_is_refused(capsys):
    result = run_here(capsys, "bench.op", "--op=gemv", *SMALL, "--batch=1,9")
    assert result.status == 2 and "--batch=9: must be in 1..8" in result.err


def test_the_specified_bandwidth_can_be_given(capsys, tmp_path):
    output = tmp_path / "op.json"
    assert run_here(capsys, "bench.op", "--op=add", *SMALL, "--spec-gbs=123", f"--json={output}").status == 0
    document = load(output)
    assert document["ceiling"]["spec_gbs"] == 123 and document["ceiling"]["spec_source"] == "--spec-gbs"
    assert document["ops"][0]["share_of_spec"] == pytest.approx(document["ops"][0]["gbs"] / 123)


@pytest.mark.parametrize("op", ["null", "spin"])
def test_the_controls(capsys, tmp_path, op):
    output = tmp_path / "op.json"
    result = run_here(
        capsys, "bench.op", f"--op={op}", "--device=cpu", "--steps=3", "--duration-us=50,200", f"--json={output}"
    )
    assert result.status == 0
    assert "null op, us: eager" in result.out and "bandwidth" not in result.out
    document = load(output)
    assert [row["asked_us"] for row in document["spin"]] == [50, 200]
    assert [row["mode"] for row in document["null"]] == ["eager", "pybind", "dispatch", "native"]


def test_the_same_arm_twice(capsys):
    result = run_here(capsys, "bench.op", "--op=gemv", *SMALL, "--aa=2")
    assert result.status == 0
    assert result.out.startswith("A/A, gemv 1x512 -> 512, native: the 95% interval of the difference held zero in ")


def test_a_wrong_op_fails_the_run(capsys, monkeypatch):
    monkeypatch.setattr("pykernels.reference.add", lambda a, b: a.double() - b.double())
    result = run_here(capsys, "bench.op", "--op=add", *SMALL)
    assert result.status == 1 and "wrong" in result.out


def test_an_interrupted_sweep_keeps_its_finished_cases(capsys, monkeypatch, tmp_path):
    from bench import op as driver

    measured, true = [], driver.measure_case

    def cut(case, *args):
        if measured:
            raise KeyboardInterrupt
        measured.append(case)
        return true(case, *args)

    monkeypatch.setattr(driver, "measure_case", cut)
    output = tmp_path / "op.json"
    result = run_here(capsys, "bench.op", "--op=gemv", *SMALL, f"--json={output}")
    assert result.status == 130 and "INTERRUPTED" in result.out
    document = load(output)
    assert document["interrupted"] is True and len({row["label"] for row in document["ops"]}) == 1


def test_doctor(capsys, tmp_path):
    output = tmp_path / "doctor.json"
    result = run_here(capsys, "bench.doctor", f"--json={output}")
    assert result.status == 0
    document = load(output)
    assert [backend["name"] for backend in document["backends"]] == list(registry())
    for backend in document["backends"]:
        assert backend["name"] in result.out
        assert bool(backend["reason"]) != bool(backend["modes"])
