"""bench.report of layers at several batches: one table, one picture."""

import json

from inputs.command_line import ROOT, run_here
from inputs.documents import whole

from bench.core import document
from bench.report import batch_sections, collect


def layer(batch: int, us: float, **more) -> dict:
    def arm(backend: str, mode: str, times: float, fusion: str | None = None) -> dict:
        clock = dict(p20=0.9 * times, p50=times, p80=1.1 * times, n=30)
        return dict(
            backend=backend, fusion=fusion, mode=mode, status="ok", reason=None, wall_us=clock,
            share_of_read=100 / times, host_us=None, share_of_spec=None, max_rel_error=0.001, launches=5, kernels=[],
            samples_us=[times],
        )  # fmt: skip

    arms = [
        arm("native", "graph", us + 5, "block"),
        arm("native", "graph-pdl", us, "block"),
        arm("sdpa", "graph", 2 * us),
    ]
    return dict(
        schema="launchtax/1", kind="layer", created="2026-11-29T00:00:00+00:00", title="one decode layer of tiny",
        environment=dict(cpu=dict(model="A CPU"), gpu=dict(name="NVIDIA H200"), torch=dict(version="2.13.0")),
        model=dict(name="tiny", n_layers=2), ctx=64, batch=batch, dtype="bf16", device="cuda", ladder={}, ops=[],
        arms=arms, interrupted=False,
    ) | more  # fmt: skip


def test_layers_of_several_batches_are_one_table_and_one_picture(tmp_path):
    for name, result in {
        "b1": layer(1, 100), "b8": layer(8, 125), "b2": layer(2, 110), "other": layer(1, 100, ctx=128),
    }.items():  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(whole(result)))
    section = batch_sections.section(collect.load_folder(tmp_path))
    ((_, rows),) = section.grids
    cell = "NVIDIA H200, tiny, ctx 64, bf16"
    assert rows == [
        [cell, "native/block", "graph-pdl", "1", "100.0", "100.0%"],
        [cell, "native/block", "graph-pdl", "2", "110.0", "90.9%"],
        [cell, "native/block", "graph-pdl", "8", "125.0", "80.0%"],
        [cell, "sdpa", "graph", "1", "200.0", "50.0%"],
        [cell, "sdpa", "graph", "2", "220.0", "45.5%"],
        [cell, "sdpa", "graph", "8", "250.0", "40.0%"],
    ]
    ((stem, _, png, _),) = section.figures
    assert stem == "layer-batches" and png.startswith(b"\x89PNG")


def test_one_batch_alone_has_none(tmp_path):
    for name, result in {"b1": layer(1, 100), "again": layer(1, 100), "int4": layer(2, 50, quant=dict(
        group_size=128, zero_points=False, act_order=False))}.items():  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(whole(result)))
    assert batch_sections.section(collect.load_folder(tmp_path)) is None


def test_the_page_has_it(capsys, tmp_path):
    """Of a committed document, as if it were of two batches."""
    result = document.load(ROOT / "bench/results/h100-layer-qwen2.5-7b.json")
    for batch in (1, 4):
        (tmp_path / f"b{batch}.json").write_text(json.dumps(result | {"batch": batch}))
    done = run_here(capsys, "bench.report", str(tmp_path), "--no-svg")
    assert done.status == 0, done.err
    assert "## One decode layer over batches" in (tmp_path / "report" / "report.md").read_text()
