"""Sessions of bench.attention: each a process, which may crash, be interrupted or be killed, and is taken up again."""

import signal

import pytest
from inputs.attention_runs import HERE, ONE, SMALL, arms, load
from inputs.busy import HANG_S
from inputs.command_line import assert_refused, flat, run_here, start
from inputs.fork_server import true_processes

from bench.attention import __main__ as attention
from bench.attention import arms as attention_arms
from bench.attention import document as attention_document
from bench.core import cli, document
from bench.core.processes import Outcome


class Sessions:
    """run_module of sessions in this process; `ends` are how the first of them end in place of that."""

    def __init__(self, monkeypatch, ends):
        self.seen, self.ends = [], list(ends)
        monkeypatch.setattr(attention, "run_module", self)

    def __call__(self, module, arguments, limit_s):
        assert module == "bench.attention"
        self.seen.append(arguments)
        if self.ends and (end := self.ends.pop(0)):
            return end(arguments)
        status = cli.run(module, attention.command, arguments)
        return Outcome("ok" if status == 0 else "error", None, status)


def crash_in(backend):
    def end(arguments):
        path = next(a for a in arguments if a.startswith("--json=")).removeprefix("--json=")
        with open(path.replace(".json", ".running"), "w") as file:
            file.write(backend)
        return Outcome("error", "ended by SIGSEGV", -11)

    return end


def interrupt(arguments):
    raise KeyboardInterrupt


def test_a_crash_costs_its_backend_alone(capsys, monkeypatch, tmp_path):
    sessions = Sessions(monkeypatch, [crash_in("sdpa"), None, crash_in("")])
    output = tmp_path / "a.json"
    result = run_here(capsys, "bench.attention", *ONE, "--sessions=2", f"--json={output}")
    assert (result.status, result.err) == (1, "bench.attention: error: session 1: ended by SIGSEGV\n")
    document = load(output)
    first, second = document["sessions"]
    assert (first["status"], first["lost"]) == ("ok", {"sdpa": "error: ended by SIGSEGV"})
    assert {entry["backend"] for entry in first["entries"]} == {"native"}
    assert (second["status"], second["reason"], second["lost"]) == ("error", "ended by SIGSEGV", {})
    assert "sdpa ended its process and was left out" in flat(result.out)
    assert "--backend=native" in sessions.seen[1] and "--backend=native,sdpa" in sessions.seen[2]
    assert "--no-trace-kernels" in sessions.seen[2] and "--no-trace-kernels" not in sessions.seen[0]


def test_no_session_is_no_success(capsys, monkeypatch):
    monkeypatch.setattr(attention, "run_module", lambda *_: Outcome("error", "ended by SIGSEGV", -11))
    result = run_here(capsys, "bench.attention", *SMALL, "--sessions=2", "--backend=native,sdpa")
    assert result.status == 1 and "no session came to its end: ended by SIGSEGV" in result.err


def without_times(node):
    """A document without what is never twice the same, lists of times as their lengths."""
    fleeting = ("created", "command", "environment", "ceilings", "seconds", "trace_seconds", "interrupted", "floor_us")
    if isinstance(node, dict):
        clocks = {name: len(value) if isinstance(value, list) else bool(value)
                  for name, value in node.items() if name.endswith("_us")}  # fmt: skip
        return {name: without_times(value) for name, value in node.items() if name not in fleeting} | clocks
    return [without_times(item) for item in node] if isinstance(node, list) else node


def test_killed_and_run_again(capsys, monkeypatch, tmp_path):
    flags = [*ONE, "--sessions=3", f"--keep={tmp_path / 'kept'}"]
    Sessions(monkeypatch, [])
    assert run_here(capsys, "bench.attention", *ONE, "--sessions=3", f"--json={tmp_path / 'whole.json'}").status == 0

    def killed(arguments):
        raise SystemExit(137)

    Sessions(monkeypatch, [None, killed])
    with pytest.raises(SystemExit):
        run_here(capsys, "bench.attention", *flags, f"--json={tmp_path / 'killed.json'}")
    kept = document.load(tmp_path / "kept" / "session-00.json")
    sessions = Sessions(monkeypatch, [])
    result = run_here(capsys, "bench.attention", *flags, f"--json={tmp_path / 'again.json'}")
    assert result.status == 0 and "session 1 of 3: finished before" in result.out and len(sessions.seen) == 2
    assert "2 more: about " in result.out
    whole, again = (attention_document.sessions(load(tmp_path / f"{name}.json")) for name in ("whole", "again"))
    assert without_times(whole) == without_times(again)
    assert without_times(load(tmp_path / "whole.json")) == without_times(load(tmp_path / "again.json"))
    assert again[0] == attention_document.sessions(kept)[0] and not load(tmp_path / "again.json")["interrupted"]
    assert arms(load(tmp_path / "again.json"))["8/2x64, kv 16, batch 1", "native", "eager"]["wall_us"]["n"] == 3
    sessions = Sessions(monkeypatch, [])
    assert run_here(capsys, "bench.attention", *flags, "--backend=native").status == 0
    assert len(sessions.seen) == 3, "sessions of other flags are others"


def test_a_failed_session_is_not_kept(capsys, monkeypatch, tmp_path):
    Sessions(monkeypatch, [None, crash_in("")])
    flags = [*ONE, "--sessions=2", f"--keep={tmp_path / 'kept'}"]
    result = run_here(capsys, "bench.attention", *flags)
    assert (result.status, result.err) == (1, "bench.attention: error: session 1: ended by SIGSEGV\n")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["session-00.json"]


def test_interrupted(capsys, monkeypatch, tmp_path):
    Sessions(monkeypatch, [None, interrupt])
    output = tmp_path / "a.json"
    result = run_here(capsys, "bench.attention", *ONE, "--sessions=2", f"--json={output}")
    assert result.status == 130 and "INTERRUPTED" in result.out
    assert load(output)["interrupted"] and len(load(output)["sessions"]) == 1


def test_an_interrupted_session_leaves_its_cells(capsys, monkeypatch, tmp_path):
    true = attention_arms.make_arms

    def cut(copies, plan, rotation, begin):
        if copies[0].ctx == 64:
            raise KeyboardInterrupt
        return true(copies, plan, rotation, begin)

    def cut_in_its_second_cell(arguments):
        with pytest.MonkeyPatch.context() as within:
            within.setattr("bench.attention.session.make_arms", cut)
            assert cli.run("bench.attention", attention.command, arguments) == 130
        raise KeyboardInterrupt

    Sessions(monkeypatch, [None, cut_in_its_second_cell])
    files = [f"--json={tmp_path / 'a.json'}", f"--md={tmp_path / 'a.md'}", f"--plot={tmp_path / 'a.png'}"]
    flags = [*SMALL, "--batch=1", "--backend=native,sdpa", "--sessions=3", f"--keep={tmp_path / 'kept'}", *files]
    result = run_here(capsys, "bench.attention", *flags)
    assert result.status == 130 and "session 1: error: was interrupted" in flat(result.out)
    result = load(tmp_path / "a.json")
    assert result["interrupted"] and [session["status"] for session in result["sessions"]] == ["ok", "error"]
    counted = {(arm["ctx"], arm["wall_us"]["n"]) for arm in result["arms"] if arm["wall_us"]}
    assert counted == {(33, 2), (64, 1)}
    assert "INTERRUPTED" in (tmp_path / "a.md").read_text() and (tmp_path / "a.png").exists()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["session-00.json"], "a part is not kept"


def test_terminated_as_by_ctrl_c(tmp_path):
    """A time limit ends a run by SIGTERM, and timeout sends it twice: what was finished is saved, as by a Ctrl-C.
    The driver and its sessions are started as a user starts them."""
    output = tmp_path / "a.json"
    with true_processes():
        driver = start("bench.attention", *ONE, "--sessions=50", f"--json={output}")
    for line in driver.stdout:
        if line.startswith("session 1 of 50"):
            break
    for _ in range(2):
        driver.send_signal(signal.SIGTERM)
    out, err = driver.communicate(timeout=HANG_S)
    assert driver.returncode == 130, err
    assert "INTERRUPTED" in out and load(output)["interrupted"] and load(output)["sessions"][0]["status"] == "ok"


def test_how_long_the_others_take():
    session = {"status": "ok", "seconds": 150.0, "trace_seconds": 50.0}
    assert attention.to_go(session, 2) == "; 2 more: about 3 min at its rate"
    assert attention.to_go(session | {"seconds": 80.0}, 1) == "; 1 more: about 30 s at its rate"
    assert attention.to_go(session, 0) == "" == attention.to_go(session | {"status": "error"}, 2)


def test_a_session_keeps_its_finished_cells(capsys, monkeypatch, tmp_path):
    output = tmp_path / "a.json"
    true, told = attention_arms.make_arms, []

    def cut(copies, plan, rotation, begin):
        told.append(copies[0].ctx)
        if len(told) == 2:
            raise KeyboardInterrupt
        return true(copies, plan, rotation, begin)

    monkeypatch.setattr("bench.attention.session.make_arms", cut)
    flags = [*HERE, "--batch=1", "--backend=native", f"--json={output}"]
    assert run_here(capsys, "bench.attention", *flags).status == 130
    assert {arm["ctx"] for arm in load(output)["arms"]} == {33}
    assert run_here(capsys, "bench.attention", *flags, "--resume").status == 0
    assert told == [33, 64, 64] and {arm["ctx"] for arm in load(output)["arms"]} == {33, 64}
    assert load(output)["sessions"][0]["status"] == "ok"
    refused = run_here(capsys, "bench.attention", *flags, "--resume", "--seed=1")
    assert_refused(refused, "--resume=", "--seed=0 and here --seed=1")
    assert_refused(run_here(capsys, "bench.attention", *flags, "--resume", "--sessions=2"), "--resume", "--keep")


def test_a_crash_of_the_second_name(monkeypatch, capsys, tmp_path):
    sessions = Sessions(monkeypatch, [crash_in("native@2")])
    result = run_here(capsys, "bench.attention", *ONE, "--aa=native,sdpa", "--sessions=1", "--mode=eager")
    assert (result.status, result.err.count("\n")) == (1, 1) and "native@2 ended the process of session 0" in result.err
    assert [flag for flag in sessions.seen[1] if flag.startswith("--aa")] == ["--aa=sdpa"]
