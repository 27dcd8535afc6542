"""bench.ab, end to end: sessions are processes, a bad one costs itself alone, an interrupt keeps the finished ones."""

import json
import signal
import time

import pytest
from command_line import assert_refused, run_here, start

from bench import ab
from bench.study.processes import Outcome, run_module

SMALL = ["--a=native/none:native", "--b=native/block:native", "--model=tiny", "--ctx=16", "--steps=4", "--warmup=1"]


def test_two_sessions(capsys, tmp_path):
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
        return true(module, arguments, limit_s)

    monkeypatch.setattr(ab, "run_module", sometimes)
    output = tmp_path / "ab.json"
    result = run_here(capsys, "bench.ab", *SMALL, "--sessions=3", f"--json={output}")
    document = json.loads(output.read_text())
    assert [session["status"] for session in document["sessions"]] == ["error", "hang", "ok"]
    assert "session  0: error: ended by SIGSEGV" in result.out and "was not done after 0.05 s" in result.out
    assert document["analysis"]["speedup"]["n"] == 1 and result.status == 0


def test_an_interrupt_keeps_the_finished_sessions(tmp_path):
    output = tmp_path / "ab.json"
    process = start("bench.ab", *SMALL, "--sessions=50", f"--json={output}")
    deadline = time.monotonic() + 120
    while not output.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    document = json.loads(output.read_text())
    assert document["interrupted"] and len(document["sessions"]) >= 1
    assert "session  0: a " in out


def test_a_wrong_arm_fails_the_session():
    step = dict(
        arms=[dict(status="ok", wall_us=None, reason=None), dict(status="wrong", wall_us=None, reason="beyond")]
    )
    assert ab.read_session(3, step | {"arms": step["arms"][::-1]}) == dict(
        session=3, status="wrong", reason="arm a: beyond"
    )


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "error", "ended by SIGSEGV"),
        ("raise ValueError('no such thing')", "error", "ValueError: no such thing"),
        ("raise SystemExit(3)", "error", "exit status 3"),
        ("import time; time.sleep(60)", "hang", "was not done after 2 s"),
        ("", "ok", None),
    ],
)
def test_how_a_process_ends(tmp_path, monkeypatch, code, status, reason):
    (tmp_path / "victim.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = run_module("victim", [], 2)
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
        ("--model=gpt-2", ["--model=gpt-2"]),
    ],
)
def test_bad_arguments(capsys, flag, words):
    assert_refused(run_here(capsys, "bench.ab", *SMALL, flag), *words)
