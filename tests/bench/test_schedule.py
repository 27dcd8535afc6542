"""Cells over nodes, without Ray: what is measured where, again elsewhere, by whom."""

import json
import os
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from inputs.documents import whole

from bench.core import claims
from bench.fleet import schedule
from bench.fleet.cells import Cell, Plan
from bench.fleet.schedule import Job, LostError, Schedule, Slot
from bench.fleet.trust import History, judge


def cell_document(cell, doubt=None, **more) -> dict:
    return whole({
        "kind": "step", "status": "ok", "reason": None, "arms": [], "cell_flags": ["--x"], "device": "cuda",
        "environment": {"gpu": {"name": "NVIDIA H200"}}, "controls": {"doubt": doubt}, "cell": cell.document, **more,
    })  # fmt: skip


@dataclass
class Nodes:
    """A cluster that ends a cell at every look; `says` has what a node makes of it."""

    slots_: list[Slot]
    says: dict = field(default_factory=dict)
    ran: list = field(default_factory=list)
    together: int = 0
    cancelled: list = field(default_factory=list)

    def slots(self):
        return list(self.slots_)

    def start(self, slot, cell):
        self.ran.append((slot.node, cell.ctx))
        return (slot, cell, len(self.ran))

    def wait(self, handles, seconds):
        self.together = max(self.together, len(handles))
        return handles[:1]

    def result(self, handle):
        slot, cell, _ = handle
        answer = self.says.get(slot.node, cell_document)
        return answer(cell)

    def cancel(self, handles):
        self.cancelled += handles


@pytest.fixture(autouse=True)
def lines(monkeypatch):
    monkeypatch.setattr(schedule, "line", lambda result: str(result["status"]))
    monkeypatch.setattr(schedule, "NODE_WAIT_S", 0.0)


def plan(folder, *contexts) -> Plan:
    return Plan(folder, [Cell("tiny", ctx, 1) for ctx in contexts], ["--x"], torch.device("cuda"), 1.0, False)


def run(cluster, of, kind=""):
    said: list[str] = []
    made = Schedule([Job(of, cell, kind) for cell in of.cells], cluster, said.append, poll_s=0.0)
    made.ended = made.run()
    made.said = said
    return made


def node(name, kind="", lanes=1):
    return [Slot(f"{name}/{lane}", name, kind) for lane in range(lanes)]


def written(folder) -> dict[int, dict]:
    found = (json.loads(path.read_text()) for path in folder.glob("*.json"))
    return {one["cell"]["ctx"]: one for one in found}


def test_every_cell_once_and_one_a_node(tmp_path):
    cluster = Nodes([*node("a"), *node("b")])
    made = run(cluster, plan(tmp_path, 1, 2, 3, 4, 5))
    assert made.ended and made.count.by_status == {"ok": 5} and cluster.together == 2
    assert sorted(ctx for _, ctx in cluster.ran) == [1, 2, 3, 4, 5] and written(tmp_path).keys() == {1, 2, 3, 4, 5}
    assert "left] tiny_ctx" in made.said[0] and made.said[-1].startswith("[5/5] ")
    assert sorted(os.listdir(tmp_path)) == [f"tiny_ctx{ctx}_b1.json" for ctx in (1, 2, 3, 4, 5)], "a claim was left"
    again = run(Nodes(node("a")), plan(tmp_path, 1, 2, 3, 4, 5))
    assert again.said == ["5 of 5 cells were finished before"] and again.count.by_status == {"ok": 5}


def test_packed_lanes_run_together(tmp_path):
    cluster = Nodes(node("a", lanes=3))
    run(cluster, plan(tmp_path, 1, 2, 3))
    assert cluster.together == 3


def test_a_lost_cell_is_placed_again_and_given_up_at_last(tmp_path):
    losing = [2]

    def sometimes(cell):
        if cell.ctx == 1 and losing:
            losing.pop()
            raise LostError("the node died")
        if cell.ctx == 2:
            raise LostError("the worker died")
        return cell_document(cell)

    made = run(Nodes(node("a"), {"a": sometimes}), plan(tmp_path, 1, 2, 3))
    assert made.count.by_status == {"ok": 2, "error": 1} and "tiny_ctx1_b1: lost on a: the node died" in made.said
    assert written(tmp_path)[2]["reason"] == "its worker was lost 3 times: the worker died"


def test_a_node_that_drifts_is_set_aside_and_its_cell_measured_elsewhere(tmp_path):
    def drifting(cell):
        return cell_document(cell, "the read ceiling moved by -5.0%", where="a")

    cluster = Nodes([*node("a"), *node("b")], {"a": drifting})
    made = run(cluster, plan(tmp_path, 1, 2, 3, 4))
    assert made.set_aside == {"a": "the read ceiling moved by -5.0%"} and made.count.by_status == {"ok": 4}
    assert [name for name, _ in cluster.ran].count("a") == 1, "nothing more is begun there"
    assert all("where" not in one for one in written(tmp_path).values())
    assert "node a is set aside: the read ceiling moved by -5.0%" in made.said


def test_without_another_node_the_cell_is_marked(tmp_path):
    made = run(Nodes(node("a"), {"a": lambda cell: cell_document(cell, "it drifts")}), plan(tmp_path, 1, 2))
    assert made.count.by_status == {"ok": 2} and made.set_aside == {"a": "it drifts"}
    assert all(one["controls"]["doubt"] == "it drifts" for one in written(tmp_path).values())


def test_when_all_nodes_drift_the_cells_are_marked_and_the_run_ends(tmp_path):
    both = dict.fromkeys("ab", lambda cell: cell_document(cell, "it drifts"))
    made = run(Nodes([*node("a"), *node("b")], both), plan(tmp_path, 1, 2, 3))
    assert made.ended and made.count.by_status == {"ok": 3} and made.set_aside.keys() == {"a", "b"}


def test_cells_go_to_nodes_of_their_kind(tmp_path):
    of = plan(tmp_path, 1, 2)
    cluster = Nodes([*node("h", "H200"), *node("l", "L4")])
    jobs = [Job(of, cell, "L4") for cell in of.cells]
    assert Schedule(jobs, cluster, lambda text: None, 0.0).run()
    assert {name for name, _ in cluster.ran} == {"l"}


def test_without_a_node_the_run_ends_and_says_what_is_done(tmp_path):
    made = run(Nodes([]), plan(tmp_path, 1))
    assert not made.ended and made.count.cells == 0


@pytest.mark.parametrize("killed", [False, True])
def test_a_cell_that_another_process_has_is_left_to_it(monkeypatch, tmp_path, killed):
    monkeypatch.setattr(schedule, "NODE_WAIT_S", 60.0)
    of = plan(tmp_path, 1, 2)
    claim = claims.take(tmp_path, "tiny_ctx1_b1")
    cluster = Nodes(node("a"))
    true = cluster.wait

    def wait(handles, seconds):
        if not handles and claim.held():  # the other one is done by now
            (tmp_path / "tiny_ctx1_b1.json").write_text(json.dumps(cell_document(of.cells[0])))
            claim.give_back()
            if killed:
                dead_driver_s(tmp_path)
        return true(handles, seconds)

    cluster.wait = wait
    made = Schedule([Job(of, cell, "") for cell in of.cells], cluster, print, 0.0)
    assert made.run() and made.count.by_status == {"ok": 2}
    assert [ctx for _, ctx in cluster.ran] == [2]
    assert sorted(os.listdir(tmp_path)) == ["tiny_ctx1_b1.json", "tiny_ctx2_b1.json"]


def dead_driver_s(folder) -> None:
    """A claim on the first cell, of a driver that was killed before it could give it back."""
    holder = {"machine": claims._machine(), "pid": os.getpid(), "started": "an earlier process of that id"}
    (folder / ".tiny_ctx1_b1.claim-0").write_text(json.dumps(holder))


def test_the_claim_of_a_driver_that_died_with_a_finished_cell_goes(tmp_path):
    of = plan(tmp_path, 1, 2)
    (tmp_path / "tiny_ctx1_b1.json").write_text(json.dumps(cell_document(of.cells[0])))
    dead_driver_s(tmp_path)
    assert run(Nodes(node("a")), of).count.by_status == {"ok": 2}
    assert sorted(os.listdir(tmp_path)) == ["tiny_ctx1_b1.json", "tiny_ctx2_b1.json"]


def test_ctrl_c_ends_what_runs_and_gives_the_claims_back(tmp_path):
    cluster = Nodes([*node("a"), *node("b")])

    def wait(handles, seconds):
        raise KeyboardInterrupt

    cluster.wait = wait
    with pytest.raises(KeyboardInterrupt):
        run(cluster, plan(tmp_path, 1, 2, 3))
    assert len(cluster.cancelled) == 2 and os.listdir(tmp_path) == []


def controls(read_gbs, *reasons) -> dict:
    return {"read_gbs": read_gbs, "clocks": {"clock_event_reasons": ["GpuIdle", *reasons]}}


@pytest.mark.parametrize(("drift", "found"), [(0.05, True), (-0.05, True), (0.01, False), (0.0, False)])
@pytest.mark.parametrize("shape", ["step within a cell", "step between cells", "slow"])
def test_controls_that_drift_by_5_percent_are_found_and_1_is_not(drift, found, shape):
    """Twenty cells on a ceiling with the noise of an idle GPU, 0.3%; it moves at the tenth, or over all of them."""
    noise = np.random.default_rng(0).normal(0, 0.003, (20, 2))
    history, doubts = History(), []
    for cell in range(20):
        moved = {"step within a cell": [cell >= 10, cell >= 9], "step between cells": [cell >= 10] * 2,
                 "slow": [cell / 19] * 2}[shape]  # fmt: skip
        before, after = (
            controls(4000 * (1 + drift * float(m)) * (1 + e)) for m, e in zip(moved, noise[cell], strict=True)
        )
        doubts.append(judge(history, "cuda", before, after)["doubt"])
    assert any(doubts) == found, doubts
    if found and shape != "slow":
        assert doubts[:9] == [None] * 9 and "the read ceiling moved by" in next(filter(None, doubts))


def test_throttled_clocks_are_found():
    doubt = judge(History(), "cuda", controls(4000), controls(4000, "HwThermalSlowdown"))["doubt"]
    assert doubt == "the clocks were throttled: HwThermalSlowdown"
    assert judge(History(), "cuda", controls(4000, "SwPowerCap"), controls(None))["doubt"] is None


def test_a_cpu_s_controls_are_kept_and_not_judged():
    found = judge(History(), "cpu", controls(10), controls(5))
    assert found == {"before": controls(10), "after": controls(5), "doubt": None}
