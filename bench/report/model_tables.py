"""The tables of docs/models.md (bench.report.pages writes them): a step of every built-in model, and its ops."""

from collections.abc import Callable, Iterator

from bench.core.document import Document
from bench.core.tables import percent, times
from bench.report.committed import Documents, Lines, grid

MODELS = ("qwen3-8b", "llama-3.1-8b", "qwen2.5-7b", "mistral-7b-v0.3", "openvla-7b", "qwen3-4b", "gemma-3-4b",
          "phi-4-mini", "llama-3.2-3b", "pi0-gemma-2b", "llama-3.2-1b", "qwen3-0.6b", "smolvla")  # fmt: skip
"""From the largest to the smallest."""
_OPS = {"qkv": "norm+qkv+rope", "attention": "attention", "o": "o", "gate+up": "norm+gate+up", "down": "down"}


def _steps(documents: Documents) -> Iterator[tuple[str, Document]]:
    for model in MODELS:
        folder, ctx = ("h200-models-window", 900) if model == "gemma-3-4b" else ("h200-models", 2048)
        yield model, documents[f"{folder}/{model}_ctx{ctx}_b1"]


def steps(documents: Documents) -> Lines:
    """A step of every model: by graph-pdl, in a graph, and SDPA's."""
    headings = ["a step", "weights, GB", "graph-pdl, us", "of read", "R_floor", "graph, us", "SDPA, graph, us",
                "SDPA / graph-pdl"]  # fmt: skip
    rows = []
    for model, result in _steps(documents):
        arms = {(arm["backend"], arm["mode"]): arm for arm in result["arms"]}
        own, graph, sdpa = (arms[key] for key in (("native", "graph-pdl"), ("native", "graph"), ("sdpa", "graph")))
        us = [arm["wall_us"]["p50"] for arm in (own, graph, sdpa)]
        gigabytes = result["bytes"]["paper"]["weight_bytes"] / 1e9
        rows.append([
            model, f"{gigabytes:.2f}", f"{us[0]:,.0f}", percent(own["share_of_read"]),
            f"{own['paper']['R_floor']:.2f}", f"{us[1]:,.0f}", f"{us[2]:,.0f}", times(us[2] / us[0]),
        ])  # fmt: skip
    return grid(headings, rows)


def ops(documents: Documents) -> Lines:
    """Microseconds of each op of one layer alone in a plain graph, and its share of the read ceiling."""
    rows = []
    for model, result in _steps(documents):
        found = {op["label"].partition(" x")[0].removesuffix("+residual"): op for op in result["ops"]}
        cells = [
            f"{op['device_us']['p50'] / op['count']:.2f} ({op['share_of_read']:.2f})"
            for op in (found[label] for label in _OPS.values())
        ]
        rows.append([model, *cells])
    return grid(["us a layer (of read)", *_OPS], rows)


TABLES: dict[str, Callable[[Documents], Lines]] = {"models": steps, "ops of models": ops}
"""By the name that docs/models.md gives each."""
