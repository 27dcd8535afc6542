"""bench.report over folders of several machines, and what is said over nodes."""

import json
from pathlib import Path

import numpy as np
import pytest
from inputs.command_line import assert_refused, run_here
from inputs.rate_documents import cell as rate_cell
from inputs.rate_documents import rate_document

from bench.core import document
from bench.report import collect, fleet_sections
from bench.study import over_nodes

FLEET = Path(__file__).parents[2] / "bench" / "results" / "h200-fleet"


def clock(us: float) -> dict:
    return dict(p20=0.9 * us, p50=us, p80=1.1 * us, n=30)


def arm(backend, fusion, mode, samples, host=5.0) -> dict:
    us = float(np.median(samples))
    return dict(
        backend=backend, fusion=fusion, mode=mode, status="ok", reason=None, wall_us=clock(us), host_us=clock(host),
        device_us=None, samples_us=list(map(float, samples)), launches=144, launches_per_layer=5, share_of_read=0.9,
        drift=None, paper=dict(p50_ms=us / 1000, t_floor_ms=4.0, R_floor=4000 / us, bw_peak_gbs=3350.0),
    )  # fmt: skip


def controls(read=4000.0) -> dict:
    return dict(null_us=dict(native=2.1), null_host_us=dict(native=1.9), spin_asked_us=1000.0, spin_us=1002.0,
                read_gbs=read, clocks=None, reason=None)  # fmt: skip


def cell(gpu="NVIDIA H200", node="aaaaaaaa", ctx=2048, speedup=1.5, factor=1.0, seed=0, doubt=None, uuid="1") -> dict:
    noise = 1 + 0.002 * np.random.default_rng(seed).standard_normal((3, 30))
    eager, graph, sdpa = (us * factor * noise[i] for i, us in enumerate((6000 * speedup, 6000.0, 9000.0)))
    environment = dict(
        cpu=dict(model="A CPU"), gpu=dict(name=gpu, uuid=f"GPU-{uuid}"), torch=dict(version="2.13.0"),
        commit="0123456789abc", commit_dirty=False,
    )  # fmt: skip
    return dict(
        schema="launchtax/1", kind="step", created="2026-11-29T00:00:00+00:00", environment=environment,
        model=dict(name="llama-3.1-8b", n_layers=32), full_layers=32, ctx=ctx, batch=1, device="cuda", dtype="bf16",
        ladder={}, ops=[], title="one decode step", interrupted=False,
        arms=[arm("native", "block", "eager", eager, 900 * factor), arm("native", "block", "graph", graph),
              arm("sdpa", None, "graph", sdpa)],
        controls=dict(before=controls(), after=controls(4008.0), doubt=doubt), node=dict(name=node),
    )  # fmt: skip


def folders(tmp_path, **cells) -> collect.Folder:
    """A folder for each name, with its cells."""
    for name, documents in cells.items():
        (tmp_path / name).mkdir()
        for number, made in enumerate(documents):
            (tmp_path / name / f"cell{number}.json").write_text(json.dumps(made))
    return collect.load_folders([tmp_path / name for name in cells])


def table(section) -> list[list[str]]:
    return section.grids[0][1]


def test_r_floor_over_gpus_beside_the_paper_s(tmp_path):
    found = folders(tmp_path, h200=[cell(), cell(ctx=8192)], l4=[cell("NVIDIA L4", factor=0.8)])
    section = fleet_sections.ladder_section(found)
    headings, rows = section.grids[0]
    assert headings[:4] == ["", "arm", "H200", "L4"] and "H100, paper" in headings
    graph = next(row for row in rows if row[1] == "native/block:graph")
    assert graph[0] == "measured" and graph[2].startswith("0.66") and graph[3].startswith("0.83")
    published = rows[-1]
    assert published[:4] == ["published", "eager", "-", "-"] and published[4] == "0.260 (0.190 to 0.310, 12)"


def test_the_best_lever_of_each_gpu(tmp_path):
    found = folders(tmp_path, h200=[cell(speedup=1.2)], l4=[cell("NVIDIA L4", speedup=2.0)])
    best = {row[0]: (row[1], row[2]) for row in table(fleet_sections.lever_section(found)) if row[-1] == "best"}
    assert best["H200"][0] == "these kernels, in graphs" and float(best["H200"][1]) == pytest.approx(1.5, rel=2e-3)
    assert best["L4"][0] == "replay a graph, native" and float(best["L4"][1]) == pytest.approx(2, rel=2e-3)


def test_folders_side_by_side_by_mode(tmp_path):
    apart, packed = [cell(seed=1)], [cell(seed=1, factor=1.25)]
    packed[0]["arms"][1] = arm("native", "block", "graph", apart[0]["arms"][1]["samples_us"])
    found = folders(tmp_path, apart=apart, packed=packed)
    rows = {row[1]: row for row in table(fleet_sections.folders_section(found))}
    assert rows["eager"][3] == "1.2500" and rows["eager"][5] == "1.2500" and rows["eager"][0] == "packed"
    assert rows["graph"][2] == "2", "arms that both folders have"
    other_gpu = folders(tmp_path, one=[cell()], two=[cell(uuid="2")])
    assert fleet_sections.folders_section(other_gpu) is None


def test_controls_of_every_node_and_what_they_speak_against(tmp_path):
    found = folders(tmp_path, a=[cell(), cell(ctx=8192)], b=[cell(node="bbbbbbbb", doubt="it drifts")])
    section = fleet_sections.nodes_section(found)
    rows = {row[1].split()[0]: row for row in table(section)}
    assert rows["aaaaaaaa"][2] == "2" and rows["aaaaaaaa"][7] == "0.2%" and rows["aaaaaaaa"][8] == "0"
    assert rows["bbbbbbbb"][8] == "1" and "it drifts" in section.words[0]


def test_energy_a_token(tmp_path):
    measured = rate_cell(0, hz=30.0, centre_us=1000.0) | dict(energy=dict(watts=500.0, joules_per_token=3.25))
    rate = rate_document([measured, measured | dict(energy=None)])
    (row,) = table(fleet_sections.energy_section(folders(tmp_path, a=[rate])))
    assert row[0] == "H200" and row[-2:] == ["500.0", "3.25"]


def samples(ratio: float, rng) -> tuple[np.ndarray, np.ndarray]:
    b = 1000 * np.exp(0.01 * rng.standard_normal(30))
    return ratio * b * np.exp(0.003 * rng.standard_normal(30)), b


def test_rounds_are_not_nodes():
    """Six nodes that differ by 3%: the interval holds the truth in most of forty draws, where one that takes every
    round for itself does not."""
    rng, held, naive = np.random.default_rng(1), 0, 0
    for _ in range(40):
        truths = 1.3 * np.exp(0.03 * rng.standard_normal(6))
        by_node = {str(number): [samples(truth, rng)] for number, truth in enumerate(truths)}
        found = over_nodes.compare(by_node)
        held += found.low <= 1.3 <= found.high
        logs = np.concatenate([np.log(a) - np.log(b) for ((a, b),) in by_node.values()])
        naive += abs(logs.mean() - np.log(1.3)) < 1.96 * logs.std() / np.sqrt(len(logs))
        assert found.nodes == 6 and found.rounds == 180 and found.between > 0.005
    assert held >= 32 and naive <= 24, (held, naive)


def test_nodes_that_are_alike():
    rng = np.random.default_rng(2)
    found = over_nodes.compare({name: [samples(1.3, rng)] for name in "abcd"})
    assert found.low < 1.3 < found.high and found.high - found.low < 0.01 and found.between < 0.003
    same = over_nodes.compare({name: [([2.0, 2.0], [1.0, 1.0])] for name in "ab"})
    assert (same.ratio, same.between) == (2.0, 0.0)
    with pytest.raises(ValueError, match="needs two of them, got 1"):
        over_nodes.compare({"a": [samples(1.3, rng)]})


@pytest.mark.parametrize(
    ("model", "slow", "fast"),
    [
        ("llama-3.1-8b", "native/block:graph", "native/block:graph-pdl"),
        ("qwen2.5-7b", "sdpa:graph", "native/block:graph"),
    ],
)
def test_a_fit_stays_among_its_rounds(model, slow, fast):
    """Measured on two H200. By gradients the fit ended far from every round, with no interval or in an overflow."""
    by_node, ratios = {}, []
    for name in ("apart", "at-once", "ray", "pack"):
        result = document.load(FLEET / name / f"{model}_ctx2048_b1.json.gz")
        arms = fleet_sections.arms_of(result)
        pair = arms[slow]["samples_us"], arms[fast]["samples_us"]
        by_node.setdefault(fleet_sections.node_of(result), []).append(pair)
        ratios.append(np.median(pair[0]) / np.median(pair[1]))
    found = over_nodes.compare(by_node)
    assert found.nodes == 2 and min(ratios) * 0.999 < found.ratio < max(ratios) * 1.001
    assert found.low < found.ratio < found.high < found.low * 1.1


def test_a_gpu_is_one_node_whatever_ray_calls_it(tmp_path):
    made = [cell() | dict(node=dict(name="machine", ray=ray)) for ray in ("first", "second")]
    assert {fleet_sections.node_of(one) for one in made} == {"machine GPU-1"}
    assert fleet_sections.node_of(made[0] | dict(device="cpu")) == "first"
    found = folders(tmp_path, one=made[:1], two=made[1:])
    assert fleet_sections.over_nodes_section(found) is None
    assert [row["device"] for row in collect.step_rows(found)][::3] == ["NVIDIA H200, one", "NVIDIA H200, two"]


def test_the_section_over_nodes_leaves_doubted_cells_out(monkeypatch, tmp_path):
    cells = [cell(node=name, seed=i, speedup=1.5 + 0.01 * i) for i, name in enumerate("abc")]
    found = folders(tmp_path, a=cells, b=[cell(node="d", speedup=9.0, doubt="it drifts")])
    rows = table(fleet_sections.over_nodes_section(found))
    replay = next(row for row in rows if row[4] == "replay a graph, native")
    assert replay[-1] == "3" and float(replay[5]) == pytest.approx(1.51, abs=0.01)
    monkeypatch.setattr(over_nodes, "reason", lambda: "needs statsmodels")
    assert "needs statsmodels" in fleet_sections.over_nodes_section(found).words[0]
    assert fleet_sections.over_nodes_section(folders(tmp_path, alone=[cell()])) is None


def test_the_driver_merges_folders(capsys, tmp_path):
    folders(tmp_path, h200=[cell()], l4=[cell("NVIDIA L4", node="b")])
    both = [str(tmp_path / name) for name in ("h200", "l4")]
    result = run_here(capsys, "bench.report", *both, f"--out={tmp_path / 'report'}", "--no-svg")
    assert result.status == 0 and result.out.startswith("2 documents"), result.err
    page = (tmp_path / "report" / "report.md").read_text()
    for words in ("R_floor over GPUs", "The best lever of each GPU", "Controls of every node", "NVIDIA L4"):
        assert words in page
    assert_refused(run_here(capsys, "bench.report", both[0], both[0]), "DIR", "given once")
    assert_refused(run_here(capsys, "bench.report", both[0], str(tmp_path / "none")), "DIR", "a folder that exists")
