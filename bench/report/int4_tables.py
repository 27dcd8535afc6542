"""The tables of docs/results.md (bench.report.pages writes them) of layers and steps with 4-bit weights, every library
beside our own kernels."""

from collections.abc import Callable, Sequence

from bench.core.document import Document
from bench.core.tables import microseconds, percent, times
from bench.report.committed import MODELS, Documents, Lines, grid

RUNS = ("first", "second")
"""Libraries came in two runs, each with the same 16-bit arms beside them."""
LAYERS = ("qwen2.5-7b", "llama-3.1-8b")
MODES = ("eager", "native", "graph", "graph-pdl")
_EVERY_RUN = ("native", "sdpa", "native-dense")


def _share(us: float, of: float) -> str:
    return percent(round(us / of, 3) + 0.0)  # no -0.0%


def _rows(runs: Sequence[Document]) -> list[list[str]]:
    """A row a backend that was timed. `of the ceiling` is of its fastest mode; the last three say what its eager step
    spends in front of the device, and how it stands beside the 16-bit SDPA layer of its own run."""
    rows = []
    for number, result in enumerate(runs, 1):
        timed: dict[str, dict[str, Document]] = {}
        for arm in result["arms"]:
            if arm["status"] == "ok" and arm["wall_us"]:
                timed.setdefault(arm["backend"], {})[arm["mode"]] = arm
        sdpa = timed["sdpa"]["graph"]["wall_us"]["p50"]
        for backend, modes in timed.items():
            us = {mode: arm["wall_us"]["p50"] for mode, arm in modes.items() if mode in MODES}
            best = min(us, key=us.__getitem__)
            name = f"{backend}, run {number}" if backend in _EVERY_RUN else backend
            rows.append([
                f"{name}, bf16" if modes[best]["weights"] != "int4" else name,
                *(microseconds(us[mode]) if mode in us else "-" for mode in MODES),
                percent(modes[best]["share_of_read"]), _share(us["eager"] - us["native"], us["eager"]),
                _share(us["native"] - us["graph"], us["eager"]), times(sdpa / us[best]),
            ])  # fmt: skip
    return rows


def _table(what: str, runs: Sequence[Document]) -> Lines:
    headings = [what, *MODES, "of the ceiling", "eager: Python, dispatcher", "launches", "16-bit sdpa graph / fastest"]
    return grid(headings, _rows(runs))


def layers(documents: Documents) -> Lines:
    """One layer of two models on an H200."""
    lines: Lines = []
    for model in LAYERS:
        runs = [documents[f"h200-int4-layer-{model}-{run}"] for run in RUNS]
        lines += [*_table(f"layer of {MODELS[model]}, us", runs), ""]
    return lines[:-1]


def steps(documents: Documents) -> Lines:
    """A whole step of Qwen2.5-7B on an H200."""
    return _table("step of Qwen2.5-7B, us", [documents[f"h200-int4-step-{run}"] for run in RUNS])


TABLES: dict[str, Callable[[Documents], Lines]] = {"4-bit libraries, layers": layers, "4-bit libraries, step": steps}
