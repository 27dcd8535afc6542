"""bench.report: every kind of document finds its table and picture, published figures are marked, the page is whole."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from command_line import assert_refused, run_here

from bench.study import collect, cost, paper, sessions

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
    ladder = [dict(part="python", us=1000.0), dict(part="kernel", us=-100.0), dict(part="floor", us=9100.0)]
    ops = [
        dict(fusion="block", label="lm_head", time_us=clock(300)),
        dict(fusion="block", label="o x28", time_us=clock(900)),
    ]
    failed = dict(status="oom", reason="no room", wall_us=None, paper=None)
    arms = [arm("eager", 10_000), arm("graph", 8_000), arm("native", 9_000), arm("pybind", 1) | failed]
    memory = dict(asked_bytes=30e9, peak_bytes=20e9)
    return COMMON | dict(kind="step", arms=arms, ladder={"native/block": ladder}, ops=ops, memory=memory) | more


def ab() -> dict:
    values = 8000 * (1 + 0.01 * np.arange(10))
    rule = next(rule for rule in sessions.load_rules(sessions.DEFAULT_THRESHOLDS)[0] if rule.name == "launch-bound")
    return COMMON | dict(
        kind="ab",
        title="a against b, one decode step",
        registered=dict(rule=vars(rule)),
        arms=[
            dict(arm="a=native/block:eager", samples_us=(1.26 * values).tolist()),
            dict(arm="b=native/block:graph", samples_us=values.tolist()),
        ],
        analysis=sessions.analyse(1.26 * values, values, rule),
    )


def op() -> dict:
    rows = [
        dict(backend="native", mode="graph", op="gqa_decode", shape="28/4x128, kv 2048", time_us=clock(9.0)),
        dict(backend="torch", mode="eager", op="gqa_decode", shape="28/4x128, kv 2048", time_us=None),
    ]
    return COMMON | dict(kind="op", ops=rows)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cells").mkdir()
    hung = COMMON | dict(kind="step", ctx=4096, arms=[], status="hang", reason="was not done after 1 s")
    for name, content in (("cells/step", step()), ("cells/hung", hung), ("ab", ab()), ("op", op())):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "other.json").write_text("[]")
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
    assert result.out.startswith("4 documents")
    stems = {"floor-ratio", "ladder", "anatomy", "speedup", "sessions", "attention", "cost"}
    files = {path.name for path in (folder / "out" / "figures").iterdir()}
    assert files == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    markdown = (folder / "out" / "report.md").read_text()
    for words in (
        "Not result documents, left out: other.json",
        "| measured | NVIDIA H100 80GB HBM3 | qwen2.5-7b | 2048 | 1 | "
        "native/block:graph | 8.000 | 4.581 | 0.573 | 90.0% | 144 |",
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


def test_the_report_is_not_read_back(capsys, folder):
    for _ in range(2):
        assert run_here(capsys, "bench.report", str(folder)).out.startswith("4 documents")


def test_an_empty_kind_has_no_section(capsys, tmp_path):
    (tmp_path / "op.json").write_text(json.dumps(op()))
    assert run_here(capsys, "bench.report", str(tmp_path)).status == 0
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "## Attention alone" in markdown and "## Whole steps" not in markdown and "## Speed-up" not in markdown


def test_an_unpriced_device_is_named(folder):
    rows = [row | {"device_name": "Unheard of"} for row in collect.step_rows(collect.load_folder(folder))]
    assert cost.measured(rows, cost.prices()) == []


def test_costs():
    known = cost.prices(["L4=0.60"])
    rows = {(row.gpu, row.arm, row.batch): row for row in cost.published(known)}
    # 17.36 ms at 0.60 USD/h, and four tokens of 14.75 ms at 3.50.
    assert rows["L4", "ExLlamaV2 4.25 bpw", 1].usd_per_million_tokens == pytest.approx(17.36e3 / 3600 * 0.60)
    assert rows["H100", "graph", 4].usd_per_million_tokens == pytest.approx(14.75e3 / 3600 * 3.50 / 4)
    assert rows["L4", "eager", 1].price.source == "--price"
    assert {row.origin for row in rows.values()} == {"published"}
    assert cost.price_of("NVIDIA L40S", known) is None
    assert cost.price_of("NVIDIA H100 80GB HBM3", known).usd_per_hour == paper.value("price_h100")


@pytest.mark.parametrize(
    "flag", ["--price=H100", "--price=H100=free", "--price==3", "--price=H100=-1", "--price=H100=nan"]
)
def test_bad_prices(capsys, folder, flag):
    assert_refused(run_here(capsys, "bench.report", str(folder), flag), flag, "GPU=USD_per_hour")


def test_bad_folders(capsys, tmp_path):
    assert_refused(run_here(capsys, "bench.report", str(tmp_path / "none")), "DIR", "a folder that exists")
    assert_refused(run_here(capsys, "bench.report", str(tmp_path)), "DIR", "result documents")
