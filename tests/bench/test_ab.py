"""bench.ab, end to end: sessions are processes, a bad one costs itself alone, an interrupt keeps the finished ones."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs.busy import HANG_S
from inputs.command_line import assert_refused, run_here, run_module_here, start
from inputs.documents import whole

from bench import ab
from bench.core import document
from bench.core.kept import Kept
from bench.core.processes import Outcome, run_module
from bench.study import sessions

SMALL = ["--a=native/none:native", "--b=native/block:native", "--model=tiny", "--ctx=16", "--steps=4", "--warmup=1"]


def test_two_sessions(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(ab, "run_module", run_module_here)
    output = tmp_path / "ab.json"
    result = run_here(capsys, "bench.ab", *SMALL, "--sessions=2", f"--json={output}")
    assert result.status == 0, result.err
    document = json.loads(output.read_text())
    assert (document["kind"], document["interrupted"], document["sessions_planned"]) == ("ab", False, 2)
    for session in document["sessions"]:
        assert session["status"] == "ok" and len(session["a"]["times_us"]) == 4
        assert session["speedup"] == session["a"]["p50_us"] / session["b"]["p50_us"]
        assert (session["a"]["launches"], session["b"]["launches"]) == (60, 24)
    assert [arm["arm"] for arm in document["arms"]] == ["a=native/none:native", "b=native/block:native"]
    assert document["arms"][0]["samples_us"] == [session["a"]["p50_us"] for session in document["sessions"]]
    assert document["analysis"]["verdict"] == "undecided" and document["analysis"]["speedup"]["n"] == 2
    assert document["registered"]["rule"]["name"] == "difference" and len(document["registered"]["sha256"]) == 64
    assert "UNDECIDED: 2 finished sessions, the rule asks for 5" in result.out


def test_the_median_of_the_sessions_that_have_a_clock():
    assert ab.median_of([4.0, None, 1.0, 3.0]) == 3.0
    assert ab.median_of([4.0, None, 1.0]) == 2.5, "of an even number the mean of the two in the middle"
    assert ab.median_of([None]) is None


def test_a_session_that_fails_costs_itself_alone(capsys, monkeypatch, tmp_path):
    true, calls = ab.run_module, iter(range(10))

    def sometimes(module, arguments, limit_s):
        number = next(calls)
        if number == 0:
            return Outcome("error", "ended by SIGSEGV", -11)
        if number == 1:
            return true(module, arguments, 0.05)
        return run_module_here(module, arguments, limit_s)

    monkeypatch.setattr(ab, "run_module", sometimes)
    output = tmp_path / "ab.json"
    result = run_here(capsys, "bench.ab", *SMALL, "--sessions=3", f"--json={output}")
    document = json.loads(output.read_text())
    assert [session["status"] for session in document["sessions"]] == ["error", "hang", "ok"]
    assert "session  0: error: ended by SIGSEGV" in result.out and "was not done after 0.05 s" in result.out
    assert document["analysis"]["speedup"]["n"] == 1 and result.status == 1


def test_a_run_without_a_session_fails(capsys, monkeypatch):
    monkeypatch.setattr(ab, "run_module", lambda *_: Outcome("error", "ended by SIGSEGV", -signal.SIGSEGV))
    result = run_here(capsys, "bench.ab", *SMALL, "--sessions=2")
    assert result.status == 1 and "UNDECIDED: no session finished" in result.out


def test_an_interrupt_keeps_the_finished_sessions(tmp_path):
    output = tmp_path / "ab.json"
    process = start("bench.ab", *SMALL, "--sessions=50", f"--json={output}")
    deadline = time.monotonic() + HANG_S
    while not output.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        out, _ = process.communicate(timeout=HANG_S)
    finally:
        process.kill()
    assert process.returncode == 130
    document = json.loads(output.read_text())
    assert document["interrupted"] and len(document["sessions"]) >= 1
    assert "session  0: a " in out


def test_kept_sessions_serve_other_pairs_and_survive_a_kill(capsys, monkeypatch, tmp_path):
    arms = "--arms=native/none:native,native/block:native,native/block:eager"
    flags = [*SMALL[2:], arms, "--sessions=2", f"--keep={tmp_path / 'kept'}"]
    process = start("bench.ab", *SMALL[:2], *flags)
    deadline = time.monotonic() + HANG_S
    while not (tmp_path / "kept" / "session-00.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("*.json")}
    assert len(stamps) == 1
    monkeypatch.setattr(ab, "run_module", run_module_here)
    assert run_here(capsys, "bench.ab", *SMALL[:2], *flags, f"--json={tmp_path / 'one.json'}").status == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "a finished session was measured again"
    assert len(list((tmp_path / "kept").iterdir())) == 2, "a dead process's claim was left"

    def none(module, arguments, limit_s):
        raise AssertionError("a session was measured again")

    monkeypatch.setattr(ab, "run_module", none)
    other = ["--a=native/block:eager", "--b=native/block:native", f"--json={tmp_path / 'two.json'}"]
    assert run_here(capsys, "bench.ab", *other, *flags).status == 0
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["arms_of_a_session"] == ["native/none:native", "native/block:native", "native/block:eager"]
    for before, after in zip(one["sessions"], two["sessions"], strict=True):
        assert before["b"] == after["b"] and before["a"]["launches"] == 60 and after["a"]["launches"] == 24
    monkeypatch.setattr(ab, "run_module", lambda *_: Outcome("error", "asked for", 3))
    again = run_here(capsys, "bench.ab", *other, *flags, "--seed=1")
    assert "session  1: error: asked for" in again.out, "sessions of other flags are others"


def test_two_in_one_folder_and_shares(capsys, monkeypatch, tmp_path):
    """Every session is measured once; the shares have no verdict, the command without --shard has."""
    monkeypatch.setattr(ab, "run_module", run_module_here)
    flags = [*SMALL, "--sessions=3", f"--keep={tmp_path / 'kept'}"]
    shares = [run_here(capsys, "bench.ab", *flags, f"--shard={index}/2") for index in (1, 2)]
    assert [share.status for share in shares] == [0, 0], shares[1].err
    assert shares[0].out.count("session ") == 2 and shares[1].out.count("session ") == 1
    assert "UNDECIDED" not in shares[0].out and "the same command's without --shard" in shares[0].out
    monkeypatch.setattr(ab, "run_module", lambda *_: Outcome("error", "measured again", 3))
    whole = run_here(capsys, "bench.ab", *flags, f"--json={tmp_path / 'ab.json'}")
    assert whole.status == 0 and "UNDECIDED: 3 finished sessions" in whole.out, whole.err
    assert [session["session"] for session in json.loads((tmp_path / "ab.json").read_text())["sessions"]] == [0, 1, 2]


def test_a_share_needs_a_folder_and_writes_no_document(capsys, tmp_path):
    assert_refused(run_here(capsys, "bench.ab", *SMALL, "--shard=1/2"), "--shard=1/2", "given with --keep")
    flags = [f"--keep={tmp_path}", f"--json={tmp_path / 'ab.json'}", "--shard=1/2"]
    assert_refused(run_here(capsys, "bench.ab", *SMALL, *flags), "--json=", "left out with --shard")


def test_an_arm_against_itself_through_the_whole_path(monkeypatch, tmp_path):
    """Synthetic processes of bench.step in which both arms are one, a hundred times five sessions: decided wrongly in
    at most five."""
    generator = np.random.default_rng(3)

    def clock(samples):
        p20, p50, p80 = np.percentile(samples, (20, 50, 80)).tolist()
        return dict(p20=p20, p50=p50, p80=p80, n=len(samples))

    def process(module, arguments, limit_s):
        mood = 4000 * np.exp(0.1 * generator.standard_normal())  # which the arms of a session share
        arms = [
            dict(
                status="ok", reason=None, wall_us=clock(samples), samples_us=samples.tolist(),
                host_us=None, device_us=None, launches=144, drift=None,
            )
            for samples in mood * np.exp(0.02 * generator.standard_normal((2, 30)))
        ]  # fmt: skip
        machine = dict(gpu=dict(name="NVIDIA H200"))
        shared = dict(kind="step", full_layers=28, dtype="bf16", device="cuda", weights="random", interrupted=False)
        output = next(text for text in arguments if text.startswith("--json="))
        document.write_json(Path(output[7:]), whole(dict(environment=machine, arms=arms, **shared)))
        return Outcome("ok", None, 0)

    monkeypatch.setattr(ab, "run_module", process)
    monkeypatch.setattr("bench.core.spread.RESAMPLES", 500)
    rules, digest = sessions.load_rules(sessions.DEFAULT_THRESHOLDS)
    arms = dict(a="native/block:graph", b="native/block:graph")
    plan = ab.Plan(
        arms, list(arms.values()), (0, 1), Kept(), 5, 1.0, torch.device("cpu"), rules, "", dict(sha256=digest), 2048, 1,
        [],
    )  # fmt: skip
    results = [ab.run(plan, range(5), lambda made: None) for _ in range(100)]
    assert {result["registered"]["rule"]["name"] for result in results} == {"difference"}
    verdicts = [result["analysis"]["verdict"] for result in results]
    assert verdicts.count("supported") <= 5 and all(result["analysis"]["speedup"]["n"] == 5 for result in results)


def test_the_usual_pair_is_launches_against_none(capsys, monkeypatch):
    monkeypatch.setattr(ab, "run_module", lambda *_: Outcome("error", "asked for", 3))
    result = run_here(capsys, "bench.ab", *SMALL[2:], "--sessions=1", "--device=cpu")
    assert "native/block:eager against native/block:native" in result.out


def test_a_wrong_arm_fails_the_session():
    step = dict(
        arms=[dict(status="ok", wall_us=None, reason=None), dict(status="wrong", wall_us=None, reason="beyond")]
    )
    assert ab.read_session(3, step, (1, 0)) == dict(session=3, status="wrong", reason="arm a: beyond")


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "error", "ended by SIGSEGV"),
        ("raise ValueError('no such thing')", "error", "ValueError: no such thing (victim.py:1)"),
        (
            "raise RuntimeError('CUDA error: no luck\\nCompile with DSA')",
            "error",
            "RuntimeError: CUDA error: no luck (victim.py:1)",
        ),
        ("import sys; print('one\\n  two', file=sys.stderr); sys.exit(3)", "error", "  two"),
        ("raise SystemExit(3)", "error", "exit status 3"),
        ("import time; time.sleep(60)", "hang", "was not done after 0.5 s"),
        ("", "ok", None),
    ],
)
def test_how_a_process_ends(tmp_path, monkeypatch, code, status, reason):
    (tmp_path / "victim.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    outcome = run_module("victim", [], 0.5 if status == "hang" else HANG_S)
    assert (outcome.status, outcome.reason) == (status, reason)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--a=native", ["--a=native", "backend[/fusion]:mode"]),
        ("--a=cuda:native", ["--a=cuda:native", "native, sdpa"]),
        ("--b=native/layer:native", ["--b=native/layer:native", "none, block"]),
        ("--b=sdpa/none:eager", ["--b=sdpa/none:eager", "without a fusion"]),
        ("--b=native:graph", ["--b=native/block:graph", "CUDA device"]),
        ("--sessions=0", ["--sessions=0", "1..1000"]),
        ("--limit-s=0", ["--limit-s=0", "a positive number of seconds"]),
        ("--rule=mine", ["--rule=mine", "launch-bound, memory-bound, difference"]),
        ("--thresholds=/nowhere.toml", ["/nowhere.toml", "thresholds file"]),
        ("--ctx=32768", ["--ctx=32768", "1..32763"]),
        ("--arms=native:eager", ["--a=native/none:native", "one of --arms: native/block:eager"]),
        ("--keep=/proc/nowhere", ["--keep=/proc/nowhere", "can be made"]),
        ("--model=gpt-2", ["--model=gpt-2"]),
    ],
)
def test_bad_arguments(capsys, flag, words):
    assert_refused(run_here(capsys, "bench.ab", *SMALL, flag), *words)
