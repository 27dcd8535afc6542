"""The main job, end to end on the tiny model: what it prints, writes and returns."""

import csv
import getpass
import itertools
import json
import math
import os
import signal
import socket
from pathlib import Path
from threading import Timer

import pytest
from inputs.command_line import ROOT, flat, run, run_here
from inputs.documents import check_written

import pykernels as pk
from bench.backends import registry

COLD = ["--model=tiny", "--device=cpu", "--ctx=64", "--steps=3", "--warmup=1"]
SMALL = [*COLD, "--l2=warm"]
KEYS = {
    "schema", "kind", "command", "created", "environment", "model", "ctx", "batch", "dtype", "device", "ceiling",
    "bytes", "ops", "arms", "ladder",
}  # fmt: skip
ARM_KEYS = {
    "backend", "mode", "fusion", "status", "reason", "kernels", "launches", "max_rel_error", "wall_us", "host_us",
    "device_us", "samples_us",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run with every output."""
    folder = tmp_path_factory.mktemp("layer")
    outputs = [f"--{kind}={folder}/layer.{suffix}" for kind, suffix in
               (("json", "json"), ("csv", "csv"), ("md", "md"), ("plot", "png"))]  # fmt: skip
    result = run("bench.layer", *COLD, *outputs)
    assert result.status == 0, result.err
    return folder, result, json.loads((folder / "layer.json").read_text())


def test_the_document(finished):
    _, _, document = finished
    assert document.keys() >= KEYS
    check_written(document)
    assert (document["schema"], document["kind"], document["interrupted"]) == ("launchtax/1", "layer", False)
    assert (document["ctx"], document["batch"], document["dtype"], document["device"]) == (64, 1, "bf16", "cpu")
    assert document["ceiling"].keys() >= {"spec_gbs", "read_gbs", "copy_gbs"}
    assert document["command"].startswith("python -m bench.layer --model=tiny --device=cpu")
    assert len(document["ops"]) == 14 + 5
    assert [row["mode"] for row in document["null"]] == ["eager", "pybind", "dispatch", "native"]


def test_the_arms(finished):
    _, _, document = finished
    assert list(dict.fromkeys(arm["backend"] for arm in document["arms"])) == list(registry())
    for arm in document["arms"]:
        assert arm.keys() >= ARM_KEYS
        if arm["status"] == "ok":
            assert arm["wall_us"]["n"] == len(arm["samples_us"]) == 3
            assert 0 < arm["wall_us"]["p20"] <= arm["wall_us"]["p50"] <= arm["wall_us"]["p80"]
            assert arm["kernels"] and arm["launches"] == len(arm["kernels"])
            assert 0 < arm["max_rel_error"] < 0.05
        else:
            assert arm["status"] == "unsupported" and arm["reason"] and arm["wall_us"] is None


def test_the_ladders_add_up_to_the_eager_time(finished):
    _, _, document = finished
    eager = {
        f"{arm['backend']}/{arm['fusion']}" if arm["fusion"] else arm["backend"]: arm["wall_us"]["p50"]
        for arm in document["arms"]
        if arm["mode"] == "eager" and arm["status"] == "ok"
    }
    assert document["ladder"].keys() == eager.keys() >= {"native/none", "native/block", "sdpa"}
    for name, parts in document["ladder"].items():
        assert math.fsum(part["us"] for part in parts) == pytest.approx(eager[name], rel=1e-6)
        # Compiled peers have no arm but eager on a CPU: nothing tells Python's share from the kernels'.
        first = "kernel" if name in ("flex", "compile") else "python"
        assert parts[0]["part"] == first and parts[-1]["part"] == "floor"


def test_nothing_of_the_machine_s_owner_is_in_it(finished):
    folder, _, _ = finished
    text = (folder / "layer.json").read_text().replace(str(folder), "")
    for private in (str(ROOT), str(Path.home()) + "/", socket.gethostname()):
        assert private not in text
    assert f'"{getpass.getuser()}"' not in text


def test_the_other_files(finished):
    folder, _, document = finished
    rows = list(csv.DictReader((folder / "layer.csv").open()))
    assert len(rows) == len(document["arms"]) + len(document["ops"])
    assert {row["model"] for row in rows} == {"tiny"}
    markdown = (folder / "layer.md").read_text()
    for words in ("### Ops", "### Arms", "### Ladder of native/block", "Reproduce: `python -m bench.layer"):
        assert words in markdown
    assert (folder / "layer.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(folder)) == ["layer.csv", "layer.json", "layer.md", "layer.png"]


def test_what_is_printed(finished):
    _, result, document = finished
    for name in document["ladder"]:
        assert f"Ladder of {name}:" in result.out
    for arm in document["arms"]:
        assert arm["backend"] in result.out
    assert result.err == ""  # no bar where there is no terminal


def test_eighty_columns_are_enough():
    result = run("bench.layer", *SMALL, "--backend=native,sdpa", columns=80)
    assert result.status == 0
    assert max(len(line) for line in result.out.splitlines()) <= 80


def test_list(capsys):
    result = run_here(capsys, "bench.layer", "--list")
    assert result.status == 0
    for name in (*registry(), *pk.models.names()):
        assert name in result.out


def test_a_wrong_arm_has_no_time_and_fails_the_run(capsys, monkeypatch, tmp_path):
    true = pk.reference.layer_rest

    def off_by_a_little(*args):
        parts = true(*args)
        return parts | {"out": parts["out"] + 0.5}

    monkeypatch.setattr(pk.reference, "layer_rest", off_by_a_little)
    output = tmp_path / "wrong.json"
    result = run_here(capsys, "bench.layer", *SMALL, "--backend=native", "--mode=native", f"--json={output}")
    assert result.status == 1
    words = flat(result.out)
    # The two fusions round differently: they may be wrong at one place or at two.
    assert "wrong: native/none" in words and "native/block (native)" in words and "beyond the tolerance" in words
    for arm in json.loads(output.read_text())["arms"]:
        assert arm["status"] == "wrong" and arm["wall_us"] is None and arm["samples_us"] == []


def test_ctrl_c_keeps_what_was_finished(monkeypatch, capsys, tmp_path):
    """In the midst of a run far too long, wherever it is then."""
    turns = itertools.count()

    def interrupt_later() -> None:
        if next(turns) == 100:
            Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr("bench.core.gpu_state.settle", interrupt_later)
    # A suite started in the background of a shell ignores Ctrl-C.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        flags = ["--steps=100000", "--backend=native,sdpa", f"--json={tmp_path}/cut.json"]
        result = run_here(capsys, "bench.layer", *SMALL, *flags)
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert result.status == 130 and "Traceback" not in result.err
    out = result.out
    assert os.listdir(tmp_path) == ["cut.json"]
    document = json.loads((tmp_path / "cut.json").read_text())
    assert document["interrupted"] is True
    assert "INTERRUPTED" in out and "Ladder of native/block" in out
    lengths = {len(arm["samples_us"]) for arm in document["arms"] if arm["status"] == "ok"}
    assert len(lengths) == 1 and 0 < lengths.pop() < 100000


def test_ctrl_c_before_anything_was_measured(monkeypatch, capsys, tmp_path):
    def cut(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.core.measure.gate", cut)
    result = run_here(capsys, "bench.layer", *SMALL, "--backend=native", f"--json={tmp_path}/none.json")
    assert result.status == 130
    assert result.err == "bench.layer: interrupted before anything was measured\n"
    assert os.listdir(tmp_path) == []


def test_ctrl_c_after_the_rounds_keeps_them(monkeypatch, capsys, tmp_path):
    def cut(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.core.measure.measure_host", cut)
    result = run_here(capsys, "bench.layer", *SMALL, "--backend=native", f"--json={tmp_path}/cut.json")
    assert result.status == 130
    arms = json.loads((tmp_path / "cut.json").read_text())["arms"]
    assert all(len(arm["samples_us"]) == 3 for arm in arms if arm["status"] == "ok")
