"""Pictures: nothing that is drawn leaves its axes, and axes say what they show. Of the documents in bench/results."""

from pathlib import Path

import pytest
from inputs.command_line import ROOT

from bench.attention import plots as attention_plots
from bench.core import document, plots
from bench.int4 import plots as int4_plots
from bench.report.collect import model_name

RESULTS = ROOT / "bench" / "results"


def drawn(monkeypatch, module, write, *arguments):
    """The figure that `write` would write."""
    figures = []
    monkeypatch.setattr(module, "write_figure", lambda path, figure: figures.append(figure))
    write(Path("x.png"), *arguments)
    return figures[0]


def part(name, us, noise=0.5):
    return {"part": name, "us": us, "low": us - noise, "high": us + noise, "hidden": False}


@pytest.mark.parametrize(
    ("python", "noise", "words"), [(-30.0, 1.0, "-23.1%  slower without it"), (-2.0, 3.0, "noise"), (20.0, 1.0, None)]
)
def test_a_ladder_stays_within_its_axes(monkeypatch, python, noise, words):
    result = document.load(RESULTS / "h200-int4-layer-qwen2.5-7b.json")
    result["ladder"] = {"it": [part("python", python, noise), part("kernel", 60.0), part("floor", 100.0)]}
    figure = drawn(monkeypatch, plots, plots.write_waterfall, result)
    for axes in (axes for axes in figure.axes if axes.axison):
        low, high = axes.get_xlim()
        for bar in axes.patches:
            assert low <= bar.get_x() and bar.get_x() + bar.get_width() <= high
            assert (bar.get_hatch() is not None) == (bar.get_width() < 0)
        for line in axes.lines:
            assert all(low <= x <= high for x in line.get_xdata())
        assert axes.get_title(loc="left")
    first = figure.axes[0].texts[0].get_text()
    assert words in first if words else "noise" not in first and "slower" not in first


def test_attention_s_bars_and_what_is_not_drawn():
    result = document.load(RESULTS / "h200-attention.json.gz")
    bars, *panels = attention_plots.draw(result).axes
    assert len({round(bar.get_height(), 6) for bar in bars.patches}) == 1
    edges = [edge for bar in bars.patches for edge in (bar.get_y(), bar.get_y() + bar.get_height())]
    assert max(edges) - min(edges) <= len(bars.get_yticks())
    for axes in panels:
        keys, *lines = axes.get_xlabel().splitlines()
        assert keys == "keys" and " ".join(lines).startswith("not drawn, sdpa-math: ")
        assert len(axes.texts) == 0 and max(map(len, lines)) <= 95


def test_axes_of_4_bit_kernels_have_a_unit(monkeypatch):
    figure = drawn(
        monkeypatch, int4_plots, int4_plots.write_bars, document.load(RESULTS / "h200-int4.json.gz")
    )  # fmt: skip
    labels = [axes.get_xlabel() for axes in figure.axes if axes.axison]
    assert labels[-2:] == ["us a call"] * 2


def test_a_model_of_4_bits_is_called_so():
    names = [model_name(document.load(RESULTS / f"h200-{name}")) for name in
             ("int4-layer-qwen2.5-7b.json", "layer-qwen2.5-7b.json.gz")]  # fmt: skip
    assert names == ["qwen2.5-7b int4 g128", "qwen2.5-7b"]
