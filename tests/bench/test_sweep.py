"""bench.sweep: one document a cell; killed and run again, finished cells stay; a bad cell costs itself alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from inputs.busy import HANG_S
from inputs.command_line import ROOT, assert_refused, flat, run_here, run_module_here, start
from inputs.ray_nodes import stub_path

from bench.core import claims, processes
from bench.core.files import TEMPORARY
from bench.core.kept import flags_of_any_device
from bench.core.processes import Outcome
from bench.fleet import cells as fleet_cells

SMALL = ["--model=tiny", "--batch=1", "--steps=2", "--warmup=1", "--arm=native/block:native", "--no-controls"]


def cells(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("tiny*.json"))}


def leave_a_claim(folder: Path, name: str, dead_pid: int) -> None:
    holder = {"machine": claims._machine(), "pid": dead_pid, "started": "1"}
    (folder / f".{name}.claim-0").write_text(json.dumps(holder))


def test_killed_and_run_again(capsys, monkeypatch, tmp_path):
    contexts = (8, 16, 24, 32, 40)
    flags = [*SMALL, f"--ctx={','.join(map(str, contexts))}", f"--out={tmp_path}"]
    process = start("bench.sweep", *flags)
    deadline = time.monotonic() + HANG_S
    while not list(tmp_path.glob("tiny*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    before = cells(tmp_path)
    assert before
    if len(before) == len(contexts):
        pytest.skip(f"too busy a machine, load {os.getloadavg()[0]:.0f}: the sweep was done before it was killed")
    for cell in before.values():
        assert cell["command"].startswith("python -m bench.step --model=tiny") and str(tmp_path) not in cell["command"]
        assert cell["arms"][0]["status"] == "ok" and len(cell["arms"][0]["paper"]["step_times_ms"]) == 2
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("tiny*.json")}
    for name in before:  # a process killed between its document and the end of its claim
        leave_a_claim(tmp_path, name, process.pid)
    monkeypatch.setattr(fleet_cells, "run_module", run_module_here)
    second = run_here(capsys, "bench.sweep", *flags)
    assert second.status == 0, second.err
    assert f"{len(before)} of 5 cells were finished before" in second.out
    assert "left]" in second.out and second.out.endswith("5 ok\n")
    assert sorted(cells(tmp_path)) == sorted(f"tiny_ctx{ctx}_b1" for ctx in contexts)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "a finished cell was measured again"
    # A file that was being written when the sweep died goes when it is two minutes old.
    left = [name for name in os.listdir(tmp_path) if not name.startswith(TEMPORARY)]
    assert sorted(left) == [f"{name}.json" for name in sorted(cells(tmp_path))], "something was left"


def test_a_hang_and_a_crash_cost_themselves_alone(capsys, monkeypatch, tmp_path):
    true = processes.run_module

    def sometimes(module, arguments, limit_s):
        if "--ctx=8" in arguments:
            return true(module, arguments, 0.001)
        if "--ctx=16" in arguments:
            return Outcome("error", "ended by SIGSEGV", -signal.SIGSEGV)
        return run_module_here(module, arguments, limit_s)

    monkeypatch.setattr(fleet_cells, "run_module", sometimes)
    flags = [*SMALL, "--ctx=8,16,24", f"--out={tmp_path}"]
    result = run_here(capsys, "bench.sweep", *flags)
    assert result.status == 1 and "1 hang, 1 error, 1 ok" in result.out
    assert "tiny_ctx8_b1: hang: was not done after 0.001 s" in result.out
    assert "tiny_ctx16_b1: error: ended by SIGSEGV" in result.out
    assert "3 of 3 cells were finished before" in run_here(capsys, "bench.sweep", *flags).out
    monkeypatch.setattr(fleet_cells, "run_module", run_module_here)
    result = run_here(capsys, "bench.sweep", *flags, "--again")
    assert "1 of 3 cells were finished before" in result.out and "3 ok" in result.out


def test_a_document_that_is_none_is_its_cell_s_error(capsys, monkeypatch, tmp_path):
    def leave(module, arguments, limit_s):
        (path,) = [flag.removeprefix("--json=") for flag in arguments if flag.startswith("--json=")]
        if "--ctx=8" not in arguments:
            return run_module_here(module, arguments, limit_s)
        Path(path).write_text('{"schema": "launchtax/1"}')
        return Outcome("ok", None, 0)

    monkeypatch.setattr(fleet_cells, "run_module", leave)
    result = run_here(capsys, "bench.sweep", *SMALL, "--ctx=8,16", f"--out={tmp_path}")
    assert result.status == 1 and "1 error" in result.out and "1 ok" in result.out
    assert "tiny_ctx8_b1: error: " in result.out and "kind: must be step" in flat(result.out)


def test_a_sweep_of_which_nothing_came_fails(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(fleet_cells, "run_module", lambda *_: Outcome("error", "ended by SIGSEGV", -signal.SIGSEGV))
    result = run_here(capsys, "bench.sweep", *SMALL, "--ctx=8,16", f"--out={tmp_path}")
    assert result.status == 1 and "2 error" in result.out


def test_out_of_memory_is_a_status(capsys, tmp_path):
    flags = [*SMALL, "--ctx=8,4000", "--memory-limit-gb=0.026", f"--out={tmp_path}"]
    result = run_here(capsys, "bench.sweep", *flags)
    assert result.status == 0 and "1 ok, 1 oom" in result.out
    assert "tiny_ctx4000_b1: oom: " in result.out and "needs 0.03 GB, peak 0." in result.out
    memory = cells(tmp_path)["tiny_ctx4000_b1"]["memory"]
    assert memory["asked_bytes"] == memory["weight_bytes"] + memory["kv_bytes"] > 0.026e9
    assert "2 of 2 cells were finished before" in run_here(capsys, "bench.sweep", *flags).out


def test_two_arms_fit_where_one_fits(capsys, tmp_path):
    # The limit is that of one arm to the byte: weights and one cache. What an arm kept for itself would not fit.
    one = run_here(capsys, "bench.sweep", *SMALL, "--ctx=8", f"--out={tmp_path / 'one'}")
    asked = cells(tmp_path / "one")["tiny_ctx8_b1"]["memory"]["asked_bytes"]
    limit = f"--memory-limit-gb={asked / 1e9 + 1e-9:.9f}"
    both = ["--arm=native/block:native,native/none:native,sdpa:eager,transformers:eager", "--ctx=8", limit]
    two = run_here(capsys, "bench.sweep", *SMALL[:-2], "--no-controls", *both, f"--out={tmp_path / 'two'}")
    assert (one.status, two.status) == (0, 0)
    cell = cells(tmp_path / "two")["tiny_ctx8_b1"]
    assert [arm["status"] for arm in cell["arms"]] == ["ok"] * 4 and cell["memory"]["asked_bytes"] == asked


def test_other_flags_are_another_cell(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(fleet_cells, "run_module", run_module_here)
    flags = [*SMALL, "--ctx=8", f"--out={tmp_path}"]
    run_here(capsys, "bench.sweep", *flags)
    assert "were finished before" not in run_here(capsys, "bench.sweep", *flags, "--seed=1").out
    (tmp_path / "tiny_ctx8_b1.json").write_text("{ torn")
    assert "were finished before" not in run_here(capsys, "bench.sweep", *flags).out


def test_two_sweeps_in_one_folder(tmp_path):
    """Started at once, each cell is measured by one of them, and both end with all of them."""
    flags = [*SMALL, "--ctx=8,16,24", f"--out={tmp_path}"]
    both = [start("bench.sweep", *flags) for _ in range(2)]
    outs = [process.communicate(timeout=HANG_S)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    said = [line.partition("] ")[2] for out in outs for line in out.splitlines() if line.startswith("[")]
    measured = [line.partition(":")[0] for line in said if "another process" not in line]
    assert sorted(measured) == sorted(f"tiny_ctx{ctx}_b1" for ctx in (8, 16, 24))
    assert all(out.endswith("3 ok\n") for out in outs)
    assert sorted(os.listdir(tmp_path)) == sorted(f"{name}.json" for name in measured), "something was left"


def test_the_shares_of_a_sweep_make_its_folder(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(fleet_cells, "run_module", run_module_here)
    flags = [*SMALL, "--ctx=8,16,24", f"--out={tmp_path}"]
    for index in (2, 1):
        assert run_here(capsys, "bench.sweep", *flags, f"--shard={index}/2").status == 0
    assert len(cells(tmp_path)) == 3
    assert "3 of 3 cells were finished before" in run_here(capsys, "bench.sweep", *flags).out


def test_an_array_job(tmp_path):
    """examples/slurm_array.sh as Slurm runs it: tasks at once, each with its number and their count."""
    flags = [str(tmp_path), *SMALL, "--device=cpu", "--ctx=8,9,10,11,12"]
    tasks = [
        subprocess.Popen(
            ["bash", ROOT / "examples" / "slurm_array.sh", *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2", "PYTHON": sys.executable,
                              "PYTHONPATH": stub_path()},
        )
        for task in (1, 2)
    ]  # fmt: skip
    outs = [task.communicate(timeout=HANG_S)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0]
    assert sorted(out.splitlines()[-1] for out in outs) == ["2 ok", "3 ok"]
    assert len(cells(tmp_path)) == 5


def test_a_context_that_one_model_has_no_positions_for_costs_itself_alone(capsys, monkeypatch, tmp_path):
    ran: list[tuple[str, str]] = []

    def none(module, arguments, limit_s):
        ran.append(tuple(arguments[:2]))
        return Outcome("hang", "was not done", None)

    monkeypatch.setattr(fleet_cells, "run_module", none)
    flags = ["--ctx=16,4096", "--batch=1", "--steps=2", "--warmup=1", "--device=cpu", "--no-controls"]
    result = run_here(capsys, "bench.sweep", "--model=tiny,openvla-7b", *flags, f"--out={tmp_path}")
    assert result.status == 1 and "3 hang" in result.out, result.err
    words = "--ctx=4096: must be in 1..4093: openvla-7b has 4096 positions, one a step"
    assert result.out.startswith(f"openvla-7b, ctx 4096 is left out: {words}\n")
    assert ran == [("--model=tiny", "--ctx=16"), ("--model=tiny", "--ctx=4096"), ("--model=openvla-7b", "--ctx=16")]
    alone = run_here(capsys, "bench.sweep", "--model=openvla-7b", *flags, "--ctx=4096,8192", f"--out={tmp_path}")
    assert_refused(alone, words)


def test_a_cell_is_the_same_on_every_gpu_of_a_machine():
    flags = ["--dtype=bf16", "--device=cuda:1", "--steps=2"]
    assert flags_of_any_device(flags, "cuda") == ["--dtype=bf16", "--device=cuda", "--steps=2"]


def test_the_study_s_matrix():
    models = ("qwen2.5-7b", "mistral-7b-v0.3", "llama-3.1-8b")
    names = {fleet_cells.Cell(model, ctx, batch).name for model in models for ctx in (2048, 16384) for batch in (1, 4)}
    assert len(names) == 12 and "qwen2.5-7b_ctx2048_b1" in names


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65.4, "1:05"), (3723, "1:02:03")])
def test_duration(seconds, text):
    assert fleet_cells.duration(seconds) == text


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--model=gpt-2", ["--model=gpt-2", "qwen2.5-7b"]),
        ("--ctx=0", ["--ctx=0", "1..32765"]),
        ("--ctx=a", ["--ctx=a", "an integer"]),
        ("--batch=9", ["--batch=9", "1..8"]),
        ("--arm=x", ["--arm=x", "backend[/fusion]:mode"]),
        ("--limit-s=0", ["--limit-s=0", "a positive number of seconds"]),
        ("--layers=9", ["--layers=9", "0..4"]),
        ("--out=/proc/nowhere", ["--out=/proc/nowhere", "can be made"]),
    ],
)
def test_bad_arguments(capsys, tmp_path, flag, words):
    assert_refused(run_here(capsys, "bench.sweep", *SMALL, f"--out={tmp_path / 'new'}", flag), *words)
