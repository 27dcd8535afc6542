"""The tables of docs/flashdecoding++.md (bench.report.pages writes them): its three ideas on and off, and fusion
against graphs."""

from collections.abc import Callable

from bench.core.document import Document
from bench.core.tables import times
from bench.core.unified import UNIFIED
from bench.report.committed import MODELS, Arm, Documents, Lines, grid

NOT_MEASURED = "Not measured yet: no committed document has it. `bash bench/gpu_flashdecoding.sh` makes them."
FLASH_DECODING = "sdpa-flash"
"""torch's FlashAttention: splits of the KV axis, each with a softmax of its own, and a second kernel that combines."""
_WAYS: dict[str, Arm] = {
    "neither": ("native", "none", "native"),
    "graphs": ("native", "none", "graph"),
    "fusion": ("native", "block", "native"),
    "both": ("native", "block", "graph"),
    "both and PDL": ("native", "block", "graph-pdl"),
}
"""The same kernels launched one by one from a C++ loop or as a graph, fourteen a layer or five."""


def _us(value: float) -> str:
    return f"{value:,.{2 if value < 100 else 1 if value < 1000 else 0}f}"


def _walls(result: Document) -> dict[Arm, float]:
    """By arm, the median of those that were measured, us."""
    return {
        (entry["backend"], entry.get("fusion"), entry["mode"]): entry["wall_us"]["p50"]
        for entry in result["arms"] if entry.get("wall_us")
    }  # fmt: skip


def fusion_and_graphs(documents: Documents) -> Lines:
    """Of layer and step, each way's time, and how many times as fast as neither it is."""
    names = {f"layer, {name}": f"h200-layer-{model}" for model, name in MODELS.items()}
    rows = []
    for what, name in (names | {"step, Qwen2.5-7B": "h200-study/step"}).items():
        walls = _walls(documents[name])
        base = walls[_WAYS["neither"]]
        rows.append([what, _us(base), *(
            f"{_us(walls[arm])} ({times(base / walls[arm])})" for way, arm in _WAYS.items() if way != "neither"
        )])  # fmt: skip
    return grid(["us (times as fast as neither)", *_WAYS], rows)


def _by_cell(result: Document) -> dict[tuple[str, int, int], dict[str, Document]]:
    """Of attention's document, the graphs that were measured: by heads, batch and context, then by backend."""
    cells: dict[tuple[str, int, int], dict[str, Document]] = {}
    for entry in result["arms"]:
        if entry["mode"] == "graph" and entry["wall_us"]:
            cell = entry["heads"].partition("x")[0], entry["batch"], entry["ctx"]
            cells.setdefault(cell, {})[entry["backend"]] = entry
    return cells


def unified(documents: Documents) -> Lines:
    """Of every cell: online, unified, Flash-Decoding's two kernels, and the fall-backs."""
    rows = []
    for (heads, batch, ctx), found in _by_cell(documents["ab/h200-flashdecoding-attention"]).items():
        online, own, two = (found.get(name) for name in ("native", UNIFIED, FLASH_DECODING))
        if online is None or own is None:
            continue
        online_us, own_us = (entry["wall_us"]["p50"] for entry in (online, own))
        two_us = two["wall_us"]["p50"] if two else None
        rows.append([
            heads, str(batch), f"{ctx // 1024}K", _us(online_us), _us(own_us), _us(two_us) if two_us else "-",
            times(online_us / own_us), times(two_us / own_us) if two_us else "-",
            f"{own['unified']['fallbacks_per_step']:g} of {own['unified']['pairs']}",
        ])  # fmt: skip
    headings = ["heads", "batch", "context", "online, us", "unified, us", "two kernels, us", "online / unified",
                "two kernels / unified", "fall-backs a call"]  # fmt: skip
    return grid(headings, rows)


def fallbacks(documents: Documents) -> Lines:
    """What a call takes whose every (sequence, head) falls back, beside one of the online softmax."""
    rows = []
    for (heads, batch, ctx), found in _by_cell(documents["ab/h200-flashdecoding-fallback"]).items():
        online, own = found["native"], found[UNIFIED]
        us = [entry["wall_us"]["p50"] for entry in (online, own)]
        count = own["unified"]["fallbacks_per_step"]
        rows.append([heads, str(batch), f"{ctx // 1024}K", *map(_us, us), times(us[1] / us[0]), f"{count:g}"])
    headings = ["heads", "batch", "context", "online, us", "fallen back, us", "times as long", "fall-backs a call"]
    return grid(headings, rows)


def flat_gemm(documents: Documents) -> Lines:
    """Every projection in a graph, ours and cuBLAS's."""
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for entry in documents["h200-gemv-batch"]["ops"]:
        if entry["mode"] == "graph" and entry["time_us"]:
            for model in entry["models"]:
                by_batch = found.setdefault((MODELS[model], entry["label"]), {})
                by_batch.setdefault(entry["batch"], {})[entry["backend"]] = entry["time_us"]["p50"]
    batches = sorted({batch for by_batch in found.values() for batch in by_batch})
    rows = []
    for (model, label), by_batch in found.items():
        pairs = [by_batch.get(batch, {}) for batch in batches]
        rows.append([model, label, *(
            f"{_us(us['native'])} / {_us(us['torch'])} ({times(us['torch'] / us['native'])})" if len(us) == 2 else "-"
            for us in pairs
        )])  # fmt: skip
    return grid(["", "projection", *(f"batch {batch}" for batch in batches)], rows, 2)


_TOGETHER = {
    f"ab/h200-flashdecoding-{what}-b{batch}": f"{what}, batch {batch}" for what in ("layer", "step") for batch in (1, 8)
}
"""Documents of the table, by column."""


def together(documents: Documents) -> Lines:
    """Layer and step with each idea alone and with all: us, and how many times as fast as torch in a graph."""
    ways: dict[str, Arm] = {
        "none of them: torch's ops, cuBLAS and SDPA, eager": ("sdpa", None, "eager"),
        "the same in a graph": ("sdpa", None, "graph"),
        "flat GEMM; attention online": ("native", "none", "graph"),
        "flat GEMM, unified maximum": (UNIFIED, "none", "graph"),
        "flat GEMM, fusion": ("native", "block", "graph"),
        "flat GEMM, fusion, unified maximum": (UNIFIED, "block", "graph"),
        "and PDL, online": ("native", "block", "graph-pdl"),
        "and PDL, unified": (UNIFIED, "block", "graph-pdl"),
    }
    walls = [_walls(documents[name]) for name in _TOGETHER]
    rows = []
    for way, arm in ways.items():
        row = [way]
        for found in walls:
            us, base = found.get(arm), found.get(("sdpa", None, "graph"))
            row.append(f"{_us(us)} ({times(base / us)})" if us and base else "-")
        rows.append(row)
    return grid(["us (times as fast as torch in a graph)", *_TOGETHER.values()], rows)


def _where_measured(table: Callable[[Documents], Lines], *names: str) -> Callable[[Documents], Lines]:
    """The table, or NOT_MEASURED where one of its documents is not there."""
    return lambda documents: table(documents) if all(name in documents for name in names) else [NOT_MEASURED]


TABLES = {
    "fusion and graphs": fusion_and_graphs,
    "flat GEMM": flat_gemm,
    "unified": _where_measured(unified, "ab/h200-flashdecoding-attention"),
    "fall-backs": _where_measured(fallbacks, "ab/h200-flashdecoding-fallback"),
    "together": _where_measured(together, *_TOGETHER),
}
"""By the name that docs/flashdecoding++.md gives each."""
