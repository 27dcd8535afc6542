"""Pictures of bench.attention: bars of one cell, and times over contexts with the floor."""

import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter  # noqa: E402

from bench.attention import tables as attention_tables  # noqa: E402
from bench.attention.results import Entry  # noqa: E402
from bench.core.document import Document, write_figure  # noqa: E402
from bench.core.errors import UsageError  # noqa: E402
from bench.core.tables import microseconds  # noqa: E402

# Okabe and Ito's colours, and three for more lines than they are: as many as there are markers and one more, so that no
# two of ninety backends look alike.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c510a", "#888888",
            "#5e3c99")  # fmt: skip
_BARS = (("eager", "latency_us", "latency, one call on an idle device", "#56b4e9"),
         ("eager", "wall_us", "eager, steady state", "#0072b2"),
         ("eager", "host_us", "host, enqueuing alone", "#e69f00"),
         ("graph", "wall_us", "graph", "#009e73"),
         ("eager", "device_us", "device, the kernels alone", "#cc79a7"))  # fmt: skip

_MARKERS = "os^vD<>P*"

_FLOOR = "floor at the read ceiling"

_PANEL_LETTERS = 95  # a line below a panel

_BAR_INCHES = 0.11  # room for its number

# Times further apart than this do not fit one linear axis.
_TOO_FAR_APART = 50
# A backend this many times as slow as the fastest, at every context, would press the others' lines into one.
_FAR_ABOVE = 5


def _bars(axes: Axes, entries: list[Entry]) -> None:
    rows = {
        name: modes
        for name, modes in attention_tables.rows_of(entries).items()
        if any(entry["wall_us"] for entry in modes.values())
    }
    shown = [bar for bar in _BARS if any(bar[0] in modes and modes[bar[0]][bar[1]] for modes in rows.values())]
    height = 0.8 / max(len(shown), 1)
    for index, (mode, clock, label, colour) in enumerate(shown):
        found = [
            (row, modes[mode][clock]) for row, modes in enumerate(rows.values()) if mode in modes and modes[mode][clock]
        ]
        y = [row + (index - (len(shown) - 1) / 2) * height for row, _ in found]
        axes.barh(y, [one["p50"] for _, one in found], xerr=[one["sd"] or 0 for _, one in found], height=height,
                  color=colour, label=label, error_kw={"linewidth": 0.8})  # fmt: skip
        for middle, (_, one) in zip(y, found, strict=True):
            axes.annotate(microseconds(one["p50"]), (one["p50"] + (one["sd"] or 0), middle), xytext=(3, 0),
                          textcoords="offset points", va="center", fontsize=6)  # fmt: skip
    for floor_us in attention_tables.floors(entries).values():
        axes.axvline(floor_us, color="black", linewidth=0.9, linestyle=":", label=_FLOOR)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    values = [modes[mode][clock]["p50"] for modes in rows.values() for mode, clock, *_ in shown
              if mode in modes and modes[mode][clock]]  # fmt: skip
    if max(values) > _TOO_FAR_APART * min(values):
        axes.set_xscale("log")
    axes.set_xlabel("us a call", fontsize=8)
    axes.set_title(entries[0]["shape"], fontsize=9, loc="left", fontweight="bold")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _far_above(entries: list[Entry]) -> set[str]:
    fastest: dict[int, float] = {}
    for entry in entries:
        fastest[entry["ctx"]] = min(entry["wall_us"]["p50"], fastest.get(entry["ctx"], float("inf")))
    near = {e["backend"] for e in entries if e["wall_us"]["p50"] <= _FAR_ABOVE * fastest[e["ctx"]]}
    return {entry["backend"] for entry in entries} - near


def _lines(axes: Axes, entries: list[Entry], styles: dict[str, tuple[str, str]]) -> None:
    timed = sorted((entry for entry in entries if entry["wall_us"]), key=lambda entry: entry["ctx"])
    far_above = _far_above(timed)
    left_out = []
    for name, (colour, marker) in styles.items():
        own = [entry for entry in timed if entry["backend"] == name]
        times = [entry["wall_us"]["p50"] for entry in own]
        if name in far_above:
            left_out.append(f"{name}: {microseconds(min(times))} to {microseconds(max(times))} us")
        elif own:
            axes.errorbar(
                [e["ctx"] for e in own], times, [e["wall_us"]["sd"] or 0 for e in own], color=colour, marker=marker,
                markersize=3.5, markerfacecolor="none", linewidth=1, label=name,
            )  # fmt: skip
    if floors := sorted(attention_tables.floors(entries).items()):
        axes.plot(*zip(*floors, strict=True), color="black", linestyle=":", linewidth=1, label=_FLOOR)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    contexts = sorted({e["ctx"] for e in entries})
    axes.set_xticks(contexts, [str(ctx) for ctx in contexts])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    beside = textwrap.fill(f"not drawn, {'; '.join(left_out)}", _PANEL_LETTERS) if left_out else ""
    axes.set_xlabel(f"keys\n{beside}" if beside else "keys", fontsize=8)
    axes.set_ylabel(f"{entries[0]['mode']}, us a call", fontsize=8)
    first = entries[0]
    axes.set_title(f"{first['heads']}, batch {first['batch']}", fontsize=9, loc="left", fontweight="bold")


def _styles(backends: list[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker each."""
    return {
        name: (_COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]) for index, name in enumerate(backends)
    }


def measured(document: Document) -> bool:
    """Whether it holds times to draw."""
    return any(entry["wall_us"] for entry in document["arms"])


def write(path: Path, document: Document) -> None:
    """draw(), to a file. Format by suffix."""
    if not measured(document):
        raise UsageError(f"--plot={path}: must follow a run that measured something, and this one did not")
    write_figure(path, draw(document))


def draw(document: Document) -> Figure:
    """Of a document that measured something: bars of the headline cell above, a panel of lines for each head shape and
    batch below."""
    shape = attention_tables.headline(document)
    mode = "graph" if document["device"] == "cuda" else "eager"
    groups: dict[tuple[str, int], list[Entry]] = {}
    for entry in document["arms"]:
        if entry["mode"] == mode:
            groups.setdefault((entry["heads"], entry["batch"]), []).append(entry)
    panels = [own for own in groups.values() if len({e["ctx"] for e in own if e["wall_us"]}) > 1]
    rows = -(-len(panels) // 2)
    assert shape is not None  # of a document that measured something
    shown = attention_tables.cells(document)[shape]
    height = max(4.2, 0.6 + _BAR_INCHES * len(_BARS) * len({e["backend"] for e in shown if e["wall_us"]}) / 0.8)
    figure = plt.figure(figsize=(11, 0.3 + height + 3.2 * rows), layout="constrained")
    grid = figure.add_gridspec(1 + rows, 2, height_ratios=[height, *[3.2] * rows])
    _bars(figure.add_subplot(grid[0, :]), shown)
    styles = _styles(list(dict.fromkeys(entry["backend"] for entry in document["arms"])))
    for index, own in enumerate(panels):
        axes = figure.add_subplot(grid[1 + index // 2, index % 2])
        _lines(axes, own, styles)
        if index == 0:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=7,
                          frameon=False)  # fmt: skip
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.suptitle("\n".join(attention_tables.heading(document)[:2]), fontsize=8, x=0.01, ha="left")
    return figure
