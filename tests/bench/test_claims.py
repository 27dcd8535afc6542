"""Claims: a part is measured once by however many processes, and the dead keep nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from inputs.fork_server import script_command

from bench.core import claims

WORKER = """
import sys, time
from pathlib import Path
from bench.core import claims
folder, name = Path(sys.argv[1]), sys.argv[2]
for part, own in claims.parts(folder, [f"part{i}" for i in range(12)], lambda p: (folder / p).exists(), poll_s=0.01):
    if own:
        with (folder / "log").open("a") as log:
            log.write(f"{part} {name}\\n")
        time.sleep(0.005)
        (folder / part).write_text(name)
"""


def test_several_processes_share_the_parts(tmp_path):
    workers = [subprocess.Popen([*script_command(WORKER), str(tmp_path), str(i)]) for i in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    measured = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(measured) == sorted(f"part{i}" for i in range(12)), "a part was measured twice, or not"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_claim_is_held_until_it_is_given_back(tmp_path):
    claim = claims.take(tmp_path, "a_b1")
    assert claim and claim.held()
    assert claims.take(tmp_path, "a_b1") is None
    assert claims.take(tmp_path, "a_b2"), "another part"
    claim.give_back()
    assert not claim.held()
    assert claims.take(tmp_path, "a_b1")


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def other_s(folder: Path, age_s: float = 0.0, **holder) -> Path:
    path = folder / ".a.claim-0"
    path.write_text(json.dumps(holder))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_a_dead_process_s_claim_is_taken_over_at_once(tmp_path):
    other_s(tmp_path, machine=claims._machine(), pid=dead_pid(), started="1")
    claim = claims.take(tmp_path, "a")
    assert claim and claim.generation == 1 and claim.held()
    claim.give_back()
    assert os.listdir(tmp_path) == []


def test_a_process_that_has_the_dead_one_s_id_is_another(tmp_path):
    other_s(tmp_path, machine=claims._machine(), pid=os.getpid(), started="1")
    assert claims.take(tmp_path, "a")


@pytest.mark.parametrize(("age_s", "free"), [(0, False), (claims.STALE_S / 2, False), (claims.STALE_S + 5, True)])
@pytest.mark.parametrize("holder", [{"machine": "another host", "pid": 1, "started": "1"}, {}], ids=["host", "torn"])
def test_another_machine_s_claim_is_stale_when_nobody_touches_it(tmp_path, holder, age_s, free):
    other_s(tmp_path, age_s, **holder)
    assert (claims.take(tmp_path, "a") is not None) == free


def test_one_of_two_takes_over(tmp_path, monkeypatch):
    other_s(tmp_path, claims.STALE_S + 5, machine="another host")
    true, rivals = claims._stale, []

    def meanwhile(path):
        # Another process finds it stale too, and is faster.
        found = true(path)
        if not rivals:
            rivals.append(None)
            rivals[0] = claims.take(tmp_path, "a")
        return found

    monkeypatch.setattr(claims, "_stale", meanwhile)
    assert claims.take(tmp_path, "a") is None and rivals[0].held()


def test_who_slept_through_a_take_over_holds_nothing(tmp_path):
    claim = claims.take(tmp_path, "a")
    (tmp_path / ".a.claim-1").write_text("{}")
    assert not claim.held()
    claim.give_back()
    assert os.listdir(tmp_path) == [".a.claim-1"]


def test_a_held_claim_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT_S", 0.01)
    with claims.claimed(tmp_path, "a") as claim:
        os.utime(claim.path, (1, 1))
        for _ in range(1000):
            if claim.path.stat().st_mtime > 1:
                break
            time.sleep(0.01)
        assert claim.path.stat().st_mtime > 1
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_goes(tmp_path):
    (tmp_path / "a").touch()
    other_s(tmp_path, machine=claims._machine(), pid=dead_pid(), started="1")
    claims.work_file(tmp_path, "a").touch()
    for name, age_s in ((".launchtax-1", claims.STALE_S + 5), (".launchtax-2", 0)):  # one is being written
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    assert list(claims.parts(tmp_path, ["a"], lambda part: True)) == [("a", False)]
    assert sorted(os.listdir(tmp_path)) == [".launchtax-2", "a"]


def test_a_failed_part_is_not_tried_for_ever(tmp_path):
    assert list(claims.parts(tmp_path, ["a", "b"], lambda part: False)) == [("a", True), ("b", True)]
    assert list(claims.parts(None, ["a"], lambda part: False)) == [("a", True)]
