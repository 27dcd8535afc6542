"""A full disk, and a full stdout: one line, status 1, what is finished is not lost, what can be written is."""

import errno
import json
import os
import sys

import pytest
import torch
from inputs.command_line import run_here
from inputs.documents import whole

from bench.core import document, environment, files, streams
from bench.core.errors import WriteError
from bench.core.kept import Kept
from bench.core.processes import Outcome
from bench.fleet import cells


def full_for(monkeypatch, *endings: str) -> None:
    """write_atomically() has no room for files of these endings."""
    true = files.write_atomically

    def write(path, content):
        if path.name.endswith(endings):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        true(path, content)

    for module in (document, files):
        monkeypatch.setattr(module, "write_atomically", write)


def test_one_output_that_fails_does_not_stop_the_others(capsys, monkeypatch, tmp_path):
    full_for(monkeypatch, "a.json")
    flags = ["--op=silu_mul", "--model=tiny", "--l2=warm", "--mode=native", "--steps=2", "--warmup=0", "--device=cpu"]
    paths = {flag: tmp_path / f"a.{flag}" for flag in ("json", "csv", "md")}
    result = run_here(capsys, "bench.op", *flags, *(f"--{flag}={path}" for flag, path in paths.items()))
    assert result.status == 1
    assert result.err == f"bench.op: not written: {paths['json']} (No space left on device)\n"
    assert not paths["json"].exists() and paths["csv"].exists() and paths["md"].exists()


def test_a_report_writes_what_it_can(capsys, monkeypatch, tmp_path):
    document.write_json(tmp_path / "a.json", whole(dict(kind="layer")))
    from bench.report import __main__ as report

    full_for(monkeypatch, ".html")
    monkeypatch.setattr(report, "write_atomically", document.write_atomically)
    result = run_here(capsys, "bench.report", str(tmp_path), "--no-svg")
    assert result.status == 1 and result.err.count("\n") == 1 and "report.html (No space left on device)" in result.err
    assert (tmp_path / "report" / "report.md").exists()


def test_a_kept_session_that_cannot_be_written_ends_nothing(capsys, monkeypatch, tmp_path):
    full_for(monkeypatch, ".json")
    Kept(tmp_path, "step").save("session-00", whole(dict(kind="step")), [])
    assert "session-00.json: cannot be written: No space left on device" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_measured_cell_is_kept_for_the_next_run(monkeypatch, tmp_path):
    """The disk is full when the cell's document is to be written: what its process wrote stays, and is taken up."""
    ran = []

    def run_module(module, arguments, limit_s):
        ran.append(arguments)
        output = next(text for text in arguments if text.startswith("--json=")).removeprefix("--json=")
        command = " ".join(["python -m bench.step", *arguments])
        made = whole(dict(kind="step", command=command, environment=environment.collect(), title="measured"))
        with open(output, "w") as file:
            json.dump(made, file)
        return Outcome("ok", None, 0)

    monkeypatch.setattr(cells, "run_module", run_module)
    cell, device = cells.Cell("tiny", 16, 1), torch.device("cpu")
    plan = cells.Plan(tmp_path, [cell], ["--steps=2"], device, 1.0, False, controls=False)
    measurer = cells.Measurer(device, False)
    with monkeypatch.context() as full:
        full_for(full, "tiny_ctx16_b1.json")
        with pytest.raises(WriteError, match="No space left on device.*running.json holds it"):
            cells.run_cell(plan, cell, measurer)
    assert os.listdir(tmp_path) == [".tiny_ctx16_b1.running.json"]
    cells.run_cell(plan, cell, measurer)
    assert len(ran) == 1 and os.listdir(tmp_path) == ["tiny_ctx16_b1.json"] and cells.finished(plan, cell)
    (tmp_path / ".tiny_ctx16_b1.running.json").write_text("{")
    cells.run_cell(plan, cell, measurer)
    assert len(ran) == 2, "what is half written is measured anew"


def test_a_full_stdout_ends_no_run(capsys, monkeypatch, tmp_path):
    """The document is written; stderr and the exit status say that what was printed is not whole."""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        output = tmp_path / "a.json"
        result = run_here(
            capsys, "bench.op", "--op=null", "--steps=2", "--warmup=0", "--device=cpu", f"--json={output}"
        )
    assert result.status == 1 and output.exists()
    assert result.err == "bench.op: stdout: No space left on device: what was printed is not whole\n"


def test_letters_that_an_encoding_lacks_are_spelled_out(monkeypatch, tmp_path):
    with open(tmp_path / "out", "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with streams.tolerant_stdout():
            print("größer")
    assert (tmp_path / "out").read_text() == "gr\\xf6\\xdfer\n"
