"""The study on the tiny model, as a stranger runs it: sweep, ab, compare, report."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from inputs.command_line import run_here, run_module_here

from bench import ab
from bench.fleet import cells


@pytest.fixture(autouse=True)
def processes_here(monkeypatch):
    """That each cell and session can be a process of its own is test_sweep's and test_ab's."""
    for driver in (ab, cells):
        monkeypatch.setattr(driver, "run_module", run_module_here)


def test_sweep_ab_compare_report(capsys, tmp_path):
    small = ["--model=tiny", "--steps=4", "--warmup=1"]
    for name, contexts in (("before", "32"), ("after", "16,32")):
        arms = "--arm=native/block:eager,native/block:native"
        flags = [f"--ctx={contexts}", "--batch=2", arms, f"--out={tmp_path / name}", "--no-controls"]
        assert run_here(capsys, "bench.sweep", *small, *flags).status == 0
    cell = "tiny_ctx32_b2.json"
    flags = ["--threshold=9", f"--json={tmp_path / 'after' / 'compare.json'}"]
    compared = run_here(
        capsys, "bench.compare", str(tmp_path / "before" / cell), str(tmp_path / "after" / cell), *flags
    )
    assert compared.status == 0, compared.err
    keys = [row["key"] for row in json.loads((tmp_path / "after" / "compare.json").read_text())["comparisons"]]
    assert keys == ["native block eager", "native block native"]
    arms = [
        "--a=native:eager",
        "--b=native:native",
        "--ctx=16",
        "--sessions=2",
        f"--json={tmp_path / 'after' / 'ab.json'}",
    ]
    assert run_here(capsys, "bench.ab", *small, *arms).status == 0
    result = run_here(capsys, "bench.report", str(tmp_path / "after"), f"--out={tmp_path / 'report'}")
    assert result.status == 0 and result.out.startswith("4 documents"), result.err
    page = (tmp_path / "report" / "report.html").read_text()
    for words in ("Whole steps and the memory floor", "native/block:native", "undecided", "Comparisons", "published"):
        assert words in page


@pytest.mark.usefixtures("no_pictures")
def test_gpu_study(capsys, tmp_path):
    """The script's commands are right for the drivers: each is run here, on the CPU, in the script's order."""
    log, out = tmp_path / "commands", tmp_path / "out"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nprintf \'%s\\n\' "$*" >> {log}\n[ "$2" != bench.ab ]\n')
    python.chmod(0o755)
    small = dict(
        MODEL="tiny", MODELS="tiny", ROW_MODEL="tiny", ROW_BATCHES="2", CTX="16", CONTEXTS="16", SESSIONS="1",
        ARMS="native/block:native", FLAGS="--device=cpu --steps=2 --warmup=1",
        PAIRS="native:native=native/none:native native/none:native=native:eager",
    )  # fmt: skip
    script = Path(__file__).resolve().parents[2] / "bench" / "gpu_study.sh"
    done = subprocess.run(["bash", script, out, python], env=os.environ | small, capture_output=True, text=True)
    assert done.returncode == 1 and "failed: ab native:native=native/none:native\n" in done.stdout
    commands = [line.split() for line in log.read_text().splitlines()]
    modules = [command[1] for command in commands]
    assert modules == ["bench.step", "bench.sweep", "bench.sweep", "bench.ab", "bench.ab", "bench.report"]
    for _, module, *flags in commands:
        result = run_here(capsys, module, *flags)
        assert result.status == 0, (module, result.err)
    assert {path.name for path in (out / "cells").iterdir()} == {"tiny_ctx16_b1.json", "tiny_ctx16_b2.json"}
    assert result.out.startswith("5 documents") and (out / "step.png").exists()
    first, second = (
        json.loads((out / f"ab-{name}.json").read_text())
        for name in ("native-native-native-none-native", "native-none-native-native-eager")
    )
    assert first["sessions"][0]["b"] == second["sessions"][0]["a"], "pairs share their sessions"


def test_gpu_study_runs_only_the_parts_that_are_wanted(tmp_path):
    done = subprocess.run(
        ["bash", Path(__file__).resolve().parents[2] / "bench" / "gpu_study.sh", tmp_path / "out", "echo"],
        env=os.environ | dict(PARTS="report", COLUMNS="80"), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "bench.report" in done.stdout and "bench.step" not in done.stdout
