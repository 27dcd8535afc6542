"""The report's pictures: measured marks are filled, published ones hollow or hatched, and the legend says which."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.typing import ColorType  # noqa: E402

from bench.core.document import Document, device_name  # noqa: E402
from bench.core.tables import PART_COLOURS, microseconds  # noqa: E402
from bench.report import collect  # noqa: E402
from bench.report.collect import Row  # noqa: E402
from bench.study import paper  # noqa: E402
from bench.study.cost import Cost  # noqa: E402

_IDLE = "launch + gap"
PUBLISHED = "published (arXiv 2605.30571)"
# Okabe and Ito's colours, told apart by most eyes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
_MARKS = {
    "eager": "o", "pybind": "v", "dispatch": "^", "native": "D", "graph": "s", "graph-pdl": "*", "graph-loop": "P",
}  # fmt: skip
HOLLOW: dict[str, Any] = {"facecolor": "white", "edgecolor": "#555555", "hatch": "///", "linewidth": 0.8}


def _order(mode: str) -> int:
    """Where a mode stands among the modes; behind them one that a later version wrote."""
    known = list(_MARKS)
    return known.index(mode) if mode in known else len(known)


def _new(height: float, title: str, width: float = 8.5) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.set_title(title, fontsize=10, loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure, axes


def palette_of(count: int) -> list[ColorType]:
    """So many colours that differ: matplotlib's tab20 and, after them, tab20b."""
    maps = [plt.get_cmap(name) for name in ("tab20", "tab20b")]
    return [maps[index // 20 % 2](index % 20) for index in range(count)]


def _short(device: str) -> str:
    """A device's name without its maker and what every such name carries."""
    for word in ("NVIDIA ", "AMD ", "Intel(R) ", "(R)", "(TM)", " Processor", " 80GB HBM3"):
        device = device.replace(word, "")
    return device


def ink(colour: ColorType) -> str:
    """The colour of letters that can be read on a bar of that colour."""
    return "white" if np.dot(to_rgb(colour), (0.3, 0.6, 0.1)) < 0.45 else "black"


def floor_ratio(rows: Sequence[Row]) -> Figure:
    """R_floor over peak bandwidth: the study's ladder of GPUs, and every measured arm."""
    known = [row for row in rows if row["R_floor"]]
    arms = sorted(
        {row["arm"] for row in known},
        key=lambda arm: (arm.partition(":")[0], _order(arm.partition(":")[2])),
    )
    height = max(4.2, 0.5 + 0.17 * (len(arms) + 1))  # the legend's at least
    figure, axes = _new(height, "R_floor (floor / observed) over peak bandwidth")
    peaks = {figure_.gpu: figure_.value for figure_ in paper.published("peak_gbs")}
    medians = paper.published("R_floor_median")
    x = [peaks[one.gpu] for one in medians]
    y = np.array([one.value for one in medians])
    spread = [y - [one.low for one in medians], np.array([one.high for one in medians]) - y]
    axes.errorbar(
        x, y, yerr=spread, fmt="s", color="#555555", markerfacecolor="white", capsize=3, linewidth=1,
        label=f"{PUBLISHED}: median and range of its cells",
    )  # fmt: skip
    for one in medians:
        axes.annotate(
            str(one.gpu), (peaks[one.gpu], one.high), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=8
        )
    colours = dict(zip(dict.fromkeys(arm.partition(":")[0] for arm in arms), itertools.cycle(COLOURS)))
    apart = min(1.022, 1.3 ** (1 / max(len(arms), 1)))  # a column an arm, around the device's bandwidth
    for index, arm in enumerate(arms):
        own = [row for row in known if row["arm"] == arm]
        name, _, mode = arm.partition(":")
        beside = apart ** (index - (len(arms) - 1) / 2)
        axes.plot(
            [beside * row["peak_gbs"] for row in own], [row["R_floor"] for row in own], _MARKS.get(mode, "o"),
            markersize=5,
            color=colours[name], alpha=0.8, markeredgewidth=0, label=f"measured: {arm}", linestyle="none",
        )  # fmt: skip
    for device in dict.fromkeys(row["device_name"] for row in known):
        own = [row for row in known if row["device_name"] == device]
        top = max(row["R_floor"] for row in own)
        axes.annotate(
            _short(device),
            (own[0]["peak_gbs"], top),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.axhline(1, color="0.7", linewidth=0.8)
    axes.set_xscale("log")
    ticks = sorted({*peaks.values(), *(row["peak_gbs"] for row in known)})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=30)
    axes.minorticks_off()
    axes.set_ylim(0, 1.08)
    axes.set_xlabel("peak bandwidth, GB/s", fontsize=8)
    axes.set_ylabel("R_floor", fontsize=8)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def speedup(rows: Sequence[Row]) -> Figure:
    """Speed-up over the context, of single runs, with the study's threshold; below it the pairs of arms that were
    measured over sessions, each with its interval."""
    single = [row for row in rows if row["low"] is None]
    pairs = [row for row in rows if row["low"] is not None]
    heights = [4.2] * bool(single) + [0.9 + 0.36 * len(pairs)] * bool(pairs)
    figure, grid = plt.subplots(
        len(heights), 1, figsize=(11, sum(heights)), squeeze=False, layout="constrained", height_ratios=heights
    )
    for axes in grid[:, 0]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    if single:
        _over_context(grid[0, 0], single)
    if pairs:
        _pairs(grid[-1, 0], pairs)
    return figure


def _over_context(axes: Axes, rows: Sequence[Row]) -> None:
    """A colour a pair of modes, a mark a model, a broken line a larger batch; published ones hollow and grey. Where a
    context was measured in several documents every one has its mark, and the line goes by their median."""
    axes.set_title("speed-up of taking the launches away, over the context", fontsize=10, loc="left", fontweight="bold")
    published = paper.published("graph_speedup")
    for marker, (gpu, batch) in zip("sDo^v", dict.fromkeys((one.gpu, one.batch) for one in published), strict=False):
        of_paper = [one for one in published if (one.gpu, one.batch) == (gpu, batch)]
        down = [one.value - one.low if one.low else 0 for one in of_paper]
        up = [one.high - one.value if one.high else 0 for one in of_paper]
        axes.errorbar(
            [one.ctx or 0 for one in of_paper], [one.value for one in of_paper], yerr=[down, up], fmt=f"{marker}:",
            color="#555555", markerfacecolor="white", linewidth=0.8, capsize=3,
            label=f"{PUBLISHED}: {gpu}, batch {batch}",
        )  # fmt: skip
    groups = dict.fromkeys((row["device_name"], row["model"], row["batch"], row["what"]) for row in rows)
    colours = dict(zip(sorted({what for *_, what in groups}), itertools.cycle(COLOURS)))
    marks = dict(zip(dict.fromkeys((device, model) for device, model, *_ in groups), itertools.cycle("os^Dv<>")))
    for index, group in enumerate(groups):
        device, model, batch, what = group
        own = sorted(
            (row for row in rows if (row["device_name"], row["model"], row["batch"], row["what"]) == group),
            key=lambda row: row["ctx"],
        )
        aside = 1.02 ** (index + 1)  # to the right, each group more, so that marks at one context stand apart
        mark, line, colour = marks[device, model], "-" if batch == 1 else "--", colours[what]
        by_ctx = {row["ctx"]: [one["speedup"] for one in own if one["ctx"] == row["ctx"]] for row in own}
        medians = [statistics.median(here) for here in by_ctx.values()]
        axes.plot([ctx * aside for ctx in by_ctx], medians, line, color=colour, linewidth=1)
        axes.plot([row["ctx"] * aside for row in own], [row["speedup"] for row in own], mark, color=colour,
                  markersize=5)  # fmt: skip
        axes.plot([], [], mark + line, color=colour, markersize=5, linewidth=1,
                  label=f"measured: {_short(device)}, {model}, batch {batch}, {what}")  # fmt: skip
    threshold = paper.value("graph_threshold")
    axes.axhline(threshold, color="#d55e00", linewidth=0.9, linestyle=":")
    axes.annotate(
        f"{threshold:g}x, registered", (0.99, threshold), xycoords=("axes fraction", "data"), xytext=(0, 3),
        textcoords="offset points", ha="right", fontsize=7, color="#d55e00",
    )  # fmt: skip
    axes.axhline(1, color="0.7", linewidth=0.8)
    axes.set_xscale("log", base=2)
    ticks = sorted({2048, 4096, 8192, 16384, *(row["ctx"] for row in rows)})
    axes.set_xticks(ticks, [str(tick) for tick in ticks], rotation=30)
    axes.set_xlabel("context", fontsize=8)
    axes.set_ylabel("speed-up, one run each", fontsize=8)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _pairs(axes: Axes, rows: Sequence[Row]) -> None:
    """One line a pair: the mean over sessions and its 95% interval."""
    axes.set_title("a / b over sessions: mean and 95% interval", fontsize=10, loc="left", fontweight="bold")
    for y, row in enumerate(rows):
        whiskers = [[row["speedup"] - row["low"]], [row["high"] - row["speedup"]]]
        axes.errorbar([row["speedup"]], [y], xerr=whiskers, fmt="o", color=COLOURS[0], markersize=5, capsize=3)
        words = f"{row['speedup']:.3f} [{row['low']:.3f}, {row['high']:.3f}], {row['sessions']} sessions"
        axes.annotate(words, (row["high"], y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=7)
    labels = [
        f"{row['what']}\n{_short(row['device_name'])}, {row['model']}, ctx {row['ctx']}, b{row['batch']}"
        for row in rows
    ]
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    largest, least = max(row["high"] for row in rows), min(0.95, *(row["low"] for row in rows))
    axes.set_xlim(least, largest + 0.5 * (largest - least))
    axes.axvline(1, color="0.7", linewidth=0.8)


def distributions(results: Sequence[Document]) -> Figure:
    """Every session's median of both arms against the arm's mean, and the mean's interval: one row a document of kind
    `ab`."""
    figure, grid = plt.subplots(
        len(results), 1, figsize=(8.5, 0.6 + 1.5 * len(results)), squeeze=False, layout="constrained"
    )
    for axes, result in zip(grid[:, 0], results, strict=True):
        axes.set_title(result["title"], fontsize=9, loc="left", fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        labels = []
        for row, (side, arm) in enumerate(zip("ab", result["arms"], strict=True)):
            spread = result["analysis"][side]
            mean = spread["mean"]
            values = 100 * (np.array(arm["samples_us"]) / mean - 1)
            offsets = row + 0.12 * np.where(np.arange(len(values)) % 2, 1, -1)
            axes.plot(values, offsets, "o", color=COLOURS[row], markersize=4, alpha=0.8, linestyle="none")
            low, high = (100 * (spread[key] / mean - 1) for key in ("low", "high"))
            axes.plot([low, high], [row, row], color="black", linewidth=1.2)
            axes.plot([0], [row], "|", color="black", markersize=12)
            labels.append(f"{arm['arm']}\nmean {mean / 1000:,.4g} ms")
        axes.set_yticks([0, 1], labels)
        axes.set_ylim(1.5, -0.5)
        reach = 1.1 * max(0.1, *(abs(edge) for edge in axes.get_xlim()))
        axes.set_xlim(-reach, reach)
    grid[-1, 0].set_xlabel("median step of a session less the arm's mean, % of it; bar: 95% interval", fontsize=8)
    return figure


def attention(rows: Sequence[Row]) -> Figure:
    """Attention of one layer alone: bars."""
    bars: list[tuple] = [(f"H100: {one.arm}", one.value, None, True) for one in paper.published("attention_us")]
    for row in rows:
        label = f"{_short(row['device_name'])}: {row['arm']}, {row['shape']}"
        bars.append((label, row["us"], (row["us"] - row["low"], row["high"] - row["us"]), False))
    figure, axes = _new(0.9 + 0.27 * len(bars), "attention of one layer alone, one token")
    _bars(axes, bars, lambda value: f"{microseconds(value)} us")
    axes.set_xlabel("microseconds, logarithmic; whiskers: p20 to p80", fontsize=8)
    return figure


def cost(rows: Sequence[Cost]) -> Figure:
    """USD a million tokens: bars; of measured steps every backend's cheapest arm of a cell."""
    cheapest: dict[tuple, Cost] = {}
    for r in sorted(rows, key=lambda r: r.usd_per_million_tokens):
        name = r.arm.partition(":")[0] if r.origin == "measured" else r.arm
        cheapest.setdefault((r.origin, r.gpu, r.model, r.ctx, r.batch, name), r)
    bars = [
        (f"{_short(r.gpu)}: {r.arm}, {r.model}, ctx {r.ctx}, b{r.batch}", r.usd_per_million_tokens, None,
         r.origin == "published")
        for r in cheapest.values()
    ]  # fmt: skip
    figure, axes = _new(0.9 + 0.27 * len(bars), "USD a million tokens")
    _bars(axes, bars, lambda value: f"{value:,.2f}")
    axes.set_xlabel("USD, logarithmic", fontsize=8)
    return figure


def _bars(axes: Axes, bars: Sequence[tuple], text: Callable[[float], str]) -> None:
    """Horizontal bars on a logarithmic axis: (label, value, (down, up) or None, published)."""
    smallest = min(value for _, value, _, _ in bars)
    start = 10 ** np.floor(np.log10(smallest) - 0.3)
    for row, (_, value, whiskers, is_published) in enumerate(bars):
        style = HOLLOW if is_published else {"facecolor": COLOURS[0]}
        axes.barh(row, value - start, left=start, height=0.68, **style)
        if whiskers:
            axes.errorbar([value], [row], xerr=[[whiskers[0]], [whiskers[1]]], color="black", capsize=2, linewidth=1)
        end = value + (whiskers[1] if whiskers else 0)
        axes.annotate(text(value), (end, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [label for label, *_ in bars], fontsize=7)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(start, 6 * max(value for _, value, _, _ in bars))
    handles = (
        [plt.Rectangle((0, 0), 1, 1, facecolor=COLOURS[0], label="measured")] if not all(b[3] for b in bars) else []
    )
    if any(b[3] for b in bars):
        handles.append(plt.Rectangle((0, 0), 1, 1, label=PUBLISHED, **HOLLOW))
    axes.legend(handles=handles, fontsize=7, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)


def _cells(results: Sequence[Document]) -> list[tuple[str, Document]]:
    """The documents of whole steps with what each is of; the device where they are of several."""
    several = len({device_name(result) for result in results}) > 1
    return [
        (
            f"{_short(device_name(result)) + ', ' if several else ''}{collect.model_name(result)}, "
            f"ctx {result['ctx']}, b{result['batch']}",
            result,
        )
        for result in results
    ]


def ladders(results: Sequence[Document], of: str = "step") -> Figure:
    """The ladder of every step (`of`: of a model's step, or of a layer), each as one bar from the floor up. A negative
    part (the lower clock was not lower) hangs to the left of zero, and the others then add up to more than the step."""
    rows = [(f"{cell}: {name}", parts) for cell, result in _cells(results) for name, parts in result["ladder"].items()]
    figure, axes = _new(0.9 + 0.34 * len(rows), f"where the time of an eager {of} goes")
    for row, (_, parts) in enumerate(rows):
        total, right, left = sum(part["us"] for part in parts), 0.0, 0.0
        for part in reversed(parts):
            share = part["us"] / total
            axes.barh(row, share, left=right if share >= 0 else left, height=0.7, color=PART_COLOURS[part["part"]])
            right, left = right + max(share, 0), left + min(share, 0)
        shown = f"{total / 1000:,.4g} ms" if total >= 1000 else f"{microseconds(total)} us"
        axes.annotate(shown, (right, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"share of the {of}", fontsize=8)
    for edge in (0, 1):
        axes.axvline(edge, color="0.4", linewidth=0.7)
    seen = {part["part"] for _, parts in rows for part in parts}
    handles = [plt.Rectangle((0, 0), 1, 1, color=c, label=part) for part, c in PART_COLOURS.items() if part in seen]
    axes.legend(handles=handles, fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.12, 0.5))
    return figure


def anatomy(results: Sequence[Document]) -> Figure:
    """The ops of a native step, each timed alone and summed over the layers, as one bar a fusion; on a GPU with the
    time in which no kernel ran."""
    rows: list[tuple[str, list[tuple[str, float]]]] = []
    for cell, result in _cells(results):
        for fusion in dict.fromkeys(op["fusion"] for op in result["ops"]):
            own = [op for op in result["ops"] if op["fusion"] == fusion]
            ops = [(op["label"], (op["time_us"] or op["device_us"])["p50"]) for op in own]
            traced = [a for a in result["arms"] if a["backend"] == "native" and
                      (a["fusion"], a["mode"]) == (fusion, own[0].get("mode"))]  # fmt: skip
            idle_us = traced[0]["launch_gap_us"] if traced else 0.0
            if idle_us > 0:
                ops.append((_IDLE, idle_us))
            rows.append((f"{cell}\nnative/{fusion}", ops))
    figure, axes = _new(1.1 + 0.62 * len(rows), "anatomy of a native step, ops summed over the layers")
    names = list(dict.fromkeys(label.partition(" x")[0] for _, ops in rows for label, _ in ops))
    palette = palette_of(40)
    colours = dict(zip(names, palette, strict=False)) | {_IDLE: (0.85, 0.85, 0.85)}
    for row, (_, ops) in enumerate(rows):
        total, left = sum(time for _, time in ops), 0.0
        for label, time in ops:
            share, colour = time / total, colours[label.partition(" x")[0]]
            axes.barh(row, share, left=left, height=0.72, color=colour, edgecolor="white", linewidth=0.4)
            if share > 0.012 * len(label):  # wide enough for its letters
                axes.annotate(
                    label,
                    (left + share / 2, row),
                    ha="center",
                    va="center",
                    fontsize=6,
                    color=ink(colour),
                )
            left += share
        axes.annotate(f"{total / 1000:,.4g} ms", (1, row), xytext=(4, 0), textcoords="offset points", va="center",
                      fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("share of the step", fontsize=8)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[name], label=name) for name in names]
    axes.legend(handles=handles, fontsize=6, frameon=False, loc="center left", bbox_to_anchor=(1.12, 0.5), ncols=2)
    return figure
