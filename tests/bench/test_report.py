"""bench.report: every kind of document finds its table and picture, published figures are marked, the page is whole."""

import gzip
import json
import re
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest
from inputs.command_line import assert_refused, run_here
from inputs.documents import whole

from bench.report import collect, figures, kernel_figures
from bench.study import cost, paper, sessions

ENVIRONMENT = dict(
    cpu=dict(model="A CPU"),
    gpu=dict(name="NVIDIA H100 80GB HBM3"),
    torch=dict(version="2.13.0"),
    commit="0123456789abc",
    commit_dirty=False,
)
COMMON = dict(
    schema="launchtax/1",
    created="2026-11-24T00:00:00+00:00",
    environment=ENVIRONMENT,
    model=dict(name="qwen2.5-7b", n_layers=28),
    full_layers=28,
    ctx=2048,
    batch=1,
    device="cuda",
    dtype="bf16",
)


def clock(us: float) -> dict:
    return dict(p20=0.9 * us, p50=us, p80=1.1 * us, n=30)


def arm(mode: str, us: float, **more) -> dict:
    floor = 4581.0
    cell = dict(p50_ms=us / 1000, t_floor_ms=floor / 1000, R_floor=floor / us, bw_peak_gbs=3350.0)
    return (
        dict(
            backend="native",
            fusion="block",
            mode=mode,
            status="ok",
            reason=None,
            wall_us=clock(us),
            paper=cell,
            launches=144,
            launches_per_layer=5,
            share_of_read=0.9,
            drift=dict(drifting=mode == "eager", change=0.1, p_trend=0, p_step=0),
        )
        | more
    )


def step(**more) -> dict:
    parts = {"python": 1000.0, "kernel": -100.0, "floor": 9100.0}
    ladder = [dict(part=part, us=us, low=us, high=us, hidden=False) for part, us in parts.items()]
    ops = [
        dict(fusion="block", label="lm_head", time_us=clock(300)),
        dict(fusion="block", label="o x28", time_us=clock(900)),
    ]
    failed = dict(status="oom", reason="no room", wall_us=None, paper=None)
    profile = dict(bw_util=0.573, bw_util_profiled=0.55, inflation=1.04, cpu_cuda_ratio=0.12)
    over_sdpa = dict(p50=1.372, low=1.36, high=1.38)
    over = dict(ratio_to_sdpa_graph=over_sdpa, ratio_to_transformers=dict(p50=1.854, low=1.8, high=1.9))
    graph = arm("graph", 8_000, launch_gap_share=0.021, profile=profile, **over)
    arms = [arm("eager", 10_000), graph, arm("native", 9_000), arm("pybind", 1) | failed]
    memory = dict(asked_bytes=30 * 10**9, peak_bytes=20 * 10**9)
    return whole(COMMON | dict(kind="step", arms=arms, ladder={"native/block": ladder}, ops=ops, memory=memory) | more)


def ab() -> dict:
    values = 8000 * (1 + 0.01 * np.arange(10))
    rule = next(rule for rule in sessions.load_rules(sessions.DEFAULT_THRESHOLDS)[0] if rule.name == "launch-bound")
    return whole(
        COMMON
        | dict(
            kind="ab",
            title="a against b, one decode step",
            registered=dict(rule=msgspec.structs.asdict(rule)),
            arms=[
                dict(arm="a=native/block:eager", samples_us=(1.26 * values).tolist()),
                dict(arm="b=native/block:graph", samples_us=values.tolist()),
            ],
            analysis=sessions.analyse(1.26 * values, values, rule),
        )
    )


BLOCK = (
    ("norm+qkv+rope", 18.1),
    ("attention", 6.2),
    ("o+residual", 9.1),
    ("norm+gate+up", 71.0),
    ("down+residual", 34),
)


def timeline(overlap: float) -> list[dict]:
    """A block whose kernels begin that much before the one ahead has ended."""
    kernels, at = [], 0.0
    for label, us in BLOCK:
        kernels.append(dict(label=label, start_us=at, end_us=at + us))
        at += us - overlap
    return kernels


def layer(**more) -> dict:
    ops = [dict(fusion="block", label=label, time_us=None, device_us=clock(us)) for label, us in BLOCK]
    return whole(COMMON | dict(kind="layer", ops=ops, arms=[]) | more)


def int4() -> dict:
    def entry(backend: str, mode: str, us: float | None, ratio: float, ideal: float, binds: str) -> dict:
        interval = dict(p50=ratio, low=0.95 * ratio, high=1.05 * ratio)
        return dict(
            backend=backend, mode=mode, op="int4_gemv", label="gate", shape="1x3584 -> 18944", status="ok",
            time_us=us and clock(us), share_of_read=0.8, ratio_to_dense=us and interval, ideal_ratio=ideal, binds=binds,
            bytes=10**6,
        )  # fmt: skip

    ops = [
        entry("bf16", "graph", 33.0, 1.0, 1.0, "bandwidth"),
        entry("native", "graph", 10.1, 3.27, 3.76, "bandwidth"),
        entry("native", "eager", 20.0, 1.65, 3.76, "launch"),
        entry("marlin", "graph", 14.0, 2.36, 3.82, "dequantisation"),
        entry("torch", "graph", None, 1.0, 1.0, ""),
    ]
    return whole(COMMON | dict(kind="int4", ops=ops, arms=[]))


def op() -> dict:
    rows = [
        dict(backend="native", mode="graph", op="gqa_decode", shape="28/4x128, kv 2048", time_us=clock(9.0)),
        dict(backend="torch", mode="eager", op="gqa_decode", shape="28/4x128, kv 2048", time_us=None),
    ]
    of_each = dict(
        label="attention", models=["qwen2.5-7b"], bytes=8 * 10**6, floor_us=2.0, gbs=900.0, share_of_spec=0.2,
        share_of_read=0.25, status="ok", reason=None, fusion=None,
    )  # fmt: skip
    return whole(COMMON | dict(kind="op", title="op gqa_decode", ops=[of_each | row for row in rows]))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cells").mkdir()
    hung = whole(COMMON | dict(kind="step", ctx=4096, arms=[], status="hang", reason="was not done after 1 s"))
    contents = {"cells/step": step(), "cells/hung": hung, "ab": ab(), "op": op(), "layer": layer(), "int4": int4()}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "cells" / ".running.json").write_text("{")
    return tmp_path


class Page(HTMLParser):
    """What a page refers to, and its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources, self.published, self.scripts = [], 0, 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.sources += [attributes[name] for name in ("src",) if name in attributes]
        self.published += attributes.get("class") == "published"
        self.scripts += tag in ("script", "link")


def test_the_whole_report(capsys, folder):
    result = run_here(
        capsys, "bench.report", str(folder), f"--out={folder}/out", "--title=A <title>", "--price=H100=2.00"
    )
    assert result.status == 0, result.err
    assert result.out.startswith("6 documents")
    stems = {"floor-ratio", "ladder", "anatomy", "gantt", "speedup", "sessions", "attention", "int4", "cost"}
    files = {path.name for path in (folder / "out" / "figures").iterdir()}
    assert files == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    markdown = (folder / "out" / "report.md").read_text()
    assert markdown.startswith("# A <title>, 2026-11-24\n"), "the day of the documents"
    for words in (
        "Left out: other.json: schema must be launchtax/1, got None.",
        "| measured | NVIDIA H100 80GB HBM3 | qwen2.5-7b | 2048 | 1 | "
        "native/block:graph | 8.000 | 4.581 | 0.573 | 90.0% | 2.1% | 1.37 | 1.85 | 144 | 5 |",
        "native/block:graph | 0.573 | 0.550 | 1.040 | 0.120 |",
        "| published | H100 | - | - | - | eager | 0.269 | - | 3.200 | 0.750 |",
        "gate, 1x3584 -> 18944, graph | native | 10.10 | 80.0% | 3.27 | 3.11 to 3.43 | 3.76 | bandwidth |",
        "| published | H100 | qwen2.5-7b | 2048 | 1 | graph | 11.78",
        "native/block: eager / graph | 1.250",
        "**supported**",
        "| published | H100 | qwen2.5-7b | 2048 | 1 | eager / graph | 1.259 | 1.253 to 1.267",
        "Drifted while they were measured",
        "oom | no room | 30.00 / 20.00",
        "hang | was not done after 1 s",
        "| published | H100 | flashinfer | llama-3.1-8b, ctx 2048 | 48.20 |",
        "as given, --price",
    ):
        assert words in markdown, words
    for name in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        assert (folder / "out" / name).exists()
    text = (folder / "out" / "report.html").read_text()
    page = Page(text)
    assert len(page.sources) == len(stems) and all(s.startswith("data:image/png;base64,") for s in page.sources)
    assert page.scripts == 0 and page.published > 20 and "A &lt;title&gt;" in text
    assert (folder / "out" / "figures" / "cost.svg").read_text().count("<svg") == 1


@pytest.mark.usefixtures("no_pictures")
def test_the_report_is_not_read_back(capsys, folder):
    for _ in range(2):
        assert run_here(capsys, "bench.report", str(folder)).out.startswith("6 documents")


def test_the_blocks_of_a_report(tmp_path):
    """A trace is taken where there is one; else the ops of native, end to end. Of a model's cells the smallest."""
    timelines = {"native/block:graph": timeline(0), "native/block:graph-pdl": timeline(2.5), "sdpa:eager": timeline(0),
                 "native-dense/block:graph": timeline(0)}  # fmt: skip
    small = step(ops=[dict(fusion="block", label="o x28", count=28, time_us=clock(280)),
                      dict(fusion="block", label="lm_head", count=1, time_us=clock(300))])  # fmt: skip
    contents = dict(traced=layer(timelines=timelines, ctx=1024), longer=layer(), small=small, large=step(batch=4))
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    rows = collect.block_rows(collect.load_folder(tmp_path))
    assert [(row["arm"], row["overlaps"]) for row in rows] == [
        ("native/block:graph", False), ("native/block:graph-pdl", True), ("native-dense/block:graph", False),
        ("native/block", False),
    ]  # fmt: skip
    assert [row["named"] for row in rows] == [True, True, False, True], "the others' labels are long symbols"
    assert rows[0]["kernels"] == timeline(0) and "ctx 1024" in rows[0]["title"]
    assert rows[3]["kernels"] == [dict(label="o", start_us=0, end_us=10)] and "timed alone" in rows[3]["title"]
    figure = kernel_figures.gantt(rows)
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    assert widths[1] == [10] and np.allclose(widths[0], 3 * [us for _, us in BLOCK])


def test_a_block_of_more_kernels_than_there_are_colours():
    kernels = [dict(label=f"k{i}", start_us=10.0 * i, end_us=10.0 * (i + 1)) for i in range(41)]
    kernels[-1]["end_us"] = 1000.0  # wide enough for its letters
    figure = kernel_figures.gantt([dict(title="", arm="native:graph", kernels=kernels, named=True, overlaps=False)])
    last = [text for text in figure.axes[0].texts if text.get_text() == "k40"]
    assert len(last) == 1 and last[0].get_color() == "black", "on grey, as all that have no colour of their own"


def test_of_a_cell_the_fullest_document_is_drawn(tmp_path):
    few = step(arms=[arm("graph", 8_000)])
    for name, content in dict(a=few, b=step(), c=step(ctx=4096), d=step(batch=4), e=few | dict(batch=4)).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    drawn = collect.distinct_steps(collect.load_folder(tmp_path).of_kind("step"))
    assert [(result["batch"], result["ctx"], len(result["arms"])) for result in drawn] == [
        (1, 2048, 4), (1, 4096, 4), (4, 2048, 4),
    ]  # fmt: skip


def test_the_picture_of_costs_has_a_backend_s_cheapest_arm(folder):
    rows = cost.measured(collect.step_rows(collect.load_folder(folder)), cost.prices())
    assert len(rows) == 3
    labels = [label.get_text() for label in figures.cost(rows).axes[0].get_yticklabels()]
    assert labels == ["H100: native/block:graph, qwen2.5-7b, ctx 2048, b1"]


def test_every_arm_has_a_column_of_its_own(folder):
    rows = collect.step_rows(collect.load_folder(folder))
    lines = [line for line in figures.floor_ratio(rows).axes[0].lines if line.get_label().startswith("measured")]
    assert [line.get_label() for line in lines] == [f"measured: native/block:{m}" for m in ("eager", "native", "graph")]
    at = [float(line.get_xdata()[0]) for line in lines]
    assert at == sorted(set(at)) and at[1] == 3350.0


def test_a_legend_of_many_arms_has_room(folder):
    one = next(row for row in collect.step_rows(collect.load_folder(folder)) if row["R_floor"])
    figure = figures.floor_ratio([one | {"arm": f"library {i}:graph"} for i in range(45)])
    figure.draw_without_rendering()
    axes = figure.axes[0]
    box, whole_figure = axes.get_legend().get_window_extent(), figure.bbox
    assert box.y0 >= whole_figure.y0 and box.y1 <= whole_figure.y1 and box.x1 <= whole_figure.x1
    beside = [line.get_xdata()[0] for line in axes.lines if line.get_label().startswith("measured")]
    assert 1 < max(beside) / min(beside) < 1.31, "columns of one device stay beside its bandwidth"


@pytest.mark.usefixtures("no_pictures")
def test_no_svg(capsys, folder):
    assert run_here(capsys, "bench.report", str(folder), f"--out={folder}/out", "--no-svg").status == 0
    assert {path.suffix for path in (folder / "out" / "figures").iterdir()} == {".png"}


@pytest.mark.usefixtures("no_pictures")
def test_an_empty_kind_has_no_section(capsys, tmp_path):
    (tmp_path / "op.json").write_text(json.dumps(op()))
    # A title that is no UTF-8, as a shell may give it, is spelled out.
    assert run_here(capsys, "bench.report", str(tmp_path), "--title=a\udcff").status == 0
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "a\\udcff" in markdown
    assert "## Attention alone" in markdown and "## Whole steps" not in markdown and "## Speed-up" not in markdown


def test_an_unpriced_device_is_named(folder):
    rows = [row | {"device_name": "Unheard of"} for row in collect.step_rows(collect.load_folder(folder))]
    assert cost.measured(rows, cost.prices()) == []


def test_documents_come_in_the_order_of_their_numbers(tmp_path):
    for ctx in (16384, 2048, 4096):
        (tmp_path / f"m_ctx{ctx}_b1.json").write_text(json.dumps(step(ctx=ctx)))
    assert [result["ctx"] for result in collect.load_folder(tmp_path).documents] == [2048, 4096, 16384]


def test_costs():
    known = cost.prices(["L4=0.60"])
    rows = {(row.gpu, row.arm, row.batch): row for row in cost.published(known)}
    # 17.36 ms at 0.60 USD/h, and four tokens of 14.75 ms at 3.50.
    assert rows["L4", "ExLlamaV2 4.25 bpw", 1].usd_per_million_tokens == pytest.approx(17.36e3 / 3600 * 0.60)
    assert rows["H100", "graph", 4].usd_per_million_tokens == pytest.approx(14.75e3 / 3600 * 3.50 / 4)
    assert rows["L4", "eager", 1].price.source == "--price"
    assert {row.origin for row in rows.values()} == {"published"}
    assert cost.price_of("NVIDIA L40S", known) is None
    assert all(
        price.usd_per_hour > 0 and re.match(r"20\d\d-\d\d", price.date) and price.source for price in cost.prices()
    )
    assert cost.price_of("NVIDIA H100 80GB HBM3", known).usd_per_hour == paper.value("price_h100")


@pytest.mark.parametrize(
    "flag", ["--price=H100", "--price=H100=free", "--price==3", "--price=H100=-1", "--price=H100=nan"]
)
def test_bad_prices(capsys, folder, flag):
    assert_refused(run_here(capsys, "bench.report", str(folder), flag), flag, "GPU=USD_per_hour")


def test_bad_folders(capsys, tmp_path):
    assert_refused(run_here(capsys, "bench.report", str(tmp_path / "none")), "DIR", "a folder that exists")
    assert_refused(run_here(capsys, "bench.report", str(tmp_path)), "DIR", "result documents")


def test_what_is_excluded_is_not_read(capsys, folder):
    def files(*patterns: str) -> set[str]:
        return {result["file"] for result in collect.load_folder(folder, patterns).documents}

    everything = {"ab", "cells-hung", "cells-step", "int4", "layer", "op"}
    assert files() == everything
    for name in ("cells", "cells/", "c*s", "cells/*"):
        assert files(name) == everything - {"cells-hung", "cells-step"}, name
    assert files("cells/hung.json", "ab.json") == everything - {"cells-hung", "ab"}
    several = collect.load_folders([folder, folder / "cells"], ["ab.json"])
    assert len(several.documents) == 7, "named in one of the folders"
    for unknown in ("cell", "", "hung.json"):
        assert_refused(run_here(capsys, "bench.report", str(folder), f"--exclude={unknown}"), "--exclude", unknown)
    assert_refused(run_here(capsys, "bench.report", str(folder), "--exclude=*"), "DIR", "result documents")


@pytest.mark.usefixtures("no_pictures")
def test_compressed_documents_are_read_like_others(capsys, folder):
    packed, plain = folder / "layer.json.gz", folder / "layer.json"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert {result["file"] for result in collect.load_folder(folder).documents} == {
        "ab", "cells-hung", "cells-step", "int4", "layer", "op"
    }  # fmt: skip
    assert run_here(capsys, "bench.report", str(folder), "--no-svg").out.startswith("6 documents")


@pytest.mark.usefixtures("no_pictures")
def test_documents_that_lack_what_is_read_are_left_out(capsys, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "kindless.json").write_text(json.dumps(dict(schema="launchtax/1")))
    (folder / "bare.json").write_text(json.dumps(dict(schema="launchtax/1", kind="step")))
    for lost in ("arms", "environment", "created"):
        (folder / f"no_{lost}.json").write_text(
            json.dumps({key: value for key, value in step().items() if key != lost})
        )
    assert_refused(run_here(capsys, "bench.report", str(folder)), "a folder with result documents")
    assert not (folder / "report").exists()
    (folder / "whole.json").write_text(json.dumps(step()))
    assert run_here(capsys, "bench.report", str(folder), "--no-svg").out.startswith("1 documents")
    words = (folder / "report" / "report.md").read_text()
    for name in ("kindless", "bare", "no_arms", "no_environment", "no_created"):
        assert f"{name}.json" in words
