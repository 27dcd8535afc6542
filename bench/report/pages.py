"""The tables and pictures of README and docs that come from result documents.

python -m bench.report.pages            # writes them anew
python -m bench.report.pages --check    # exit status 1 where a table is not what the documents say

A table stands between two comments of a Markdown file, the first of which names it:

    <!-- from documents: layer -->
    ...
    <!-- end -->
"""

import argparse
import io
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from bench.core import document
from bench.core.document import Document, write_atomically
from bench.core.tables import microseconds, percent, print_document, times
from bench.report import document_page, flashdecoding_tables, int4_tables, model_tables
from bench.report.committed import MODELS, Arm, Documents, Lines, grid

FILES = ("README.md", "docs/results.md", "docs/example-run.md", "docs/document.md", "docs/flashdecoding++.md",
         "docs/models.md")  # fmt: skip
CARDS = ("h200", "h100")
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
HEADS = ("28/4x128", "32/8x128")

BLOCK_PDL: Arm = ("native", "block", "graph-pdl")
SDPA_GRAPH: Arm = ("sdpa", None, "graph")


def find(result: Document, arm: Arm) -> Document:
    """The entry of an arm. Raises LookupError, with the arm, where it was not measured."""
    for entry in result["arms"]:
        if (entry["backend"], entry.get("fusion"), entry["mode"]) == arm and entry["wall_us"]:
            return entry
    raise LookupError(f"{result['title']}: no time of {arm}")


def wall_us(result: Document, arm: Arm) -> float:
    """The median of an arm."""
    return find(result, arm)["wall_us"]["p50"]


def layer_rows(documents: Documents) -> Lines:
    """README's five rows."""
    result = documents["h200-layer-llama-3.1-8b"]
    shown: dict[Arm, str] = {
        ("sdpa", None, "eager"): "torch ops and SDPA, eager",
        SDPA_GRAPH: "the same in a CUDA graph",
        ("native", "none", "graph-pdl"): "14 launchtax kernels, graph + PDL",
        ("native", "block", "graph"): "5 fused launchtax kernels, graph",
        BLOCK_PDL: "5 fused launchtax kernels, graph + PDL",
    }
    reference = wall_us(result, SDPA_GRAPH)
    rows = [
        (what, f"`{' '.join(part for part in arm if part)}`", microseconds(wall_us(result, arm)),
         percent(find(result, arm)["share_of_read"]), times(reference / wall_us(result, arm)))
        for arm, what in shown.items()
    ]  # fmt: skip
    return grid(["one decode layer", "arm", "us", "of measured read bandwidth", "sdpa graph / this"], rows, 2)


def take_aways(documents: Documents) -> Lines:
    """What README's rows say, in two sentences with their numbers."""
    result = documents["h200-layer-llama-3.1-8b"]
    captured = wall_us(result, SDPA_GRAPH) / wall_us(result, ("sdpa", None, "eager"))
    best = find(result, BLOCK_PDL)
    faster = times(wall_us(result, SDPA_GRAPH) / best["wall_us"]["p50"])
    return [
        "- **Most of an eager layer is not GPU work.**",
        f"  In a CUDA graph the same torch kernels take {captured:.0%} of the time.",
        "- **Better kernels, fusion and PDL are the next factor.**",
        f"  Five fused kernels are {faster} times as fast as that graph, at {percent(best['share_of_read'])} of the",
        "  bandwidth of a plain read.",
    ]


def example_run(documents: Documents) -> Lines:
    """What the run of README's table printed."""
    result = documents["h200-layer-llama-3.1-8b"]
    console = Console(file=io.StringIO(), width=120, record=True, color_system=None)
    print_document(result, console)
    lines = [line.rstrip() for line in console.export_text().strip("\n").splitlines()]
    return ["```", f"$ {command_of(result)}", *lines, "```"]


def command_of(result: Document) -> str:
    """The command without where its files went."""
    return " ".join(word for word in result["command"].split() if not word.startswith(("--json", "--plot", "--md")))


def layers(documents: Documents) -> Lines:
    """One layer of the three models, every way it is driven that a reader compares."""
    shown: list[Arm] = [
        *(("native", fusion, mode) for fusion in ("none", "block") for mode in ("native", "graph", "graph-pdl")),
        ("sdpa", None, "eager"), SDPA_GRAPH,
    ]  # fmt: skip
    headings = ["layer, us a step", "none: native", "graph", "graph-pdl", "block: native", "graph", "graph-pdl",
                "sdpa: eager", "graph"]  # fmt: skip
    rows = []
    for model, name in MODELS.items():
        result = documents[f"h200-layer-{model}"]
        rows.append([name, *(f"{wall_us(result, arm):,.1f}" for arm in shown)])
    return grid(headings, rows)


def int4_layers(documents: Documents, card: str) -> Lines:
    """One layer of the three models in bf16 and with 4-bit weights, block and graph-pdl."""
    headings = ["block, graph-pdl", "bf16 us", "of the ceiling", "sdpa graph / this", "4 bits us", "of the ceiling",
                "bf16 / 4 bits"]  # fmt: skip
    rows = []
    for model, name in MODELS.items():
        dense, packed = documents[f"{card}-layer-{model}"], documents[f"{card}-int4-layer-{model}"]
        wide, narrow = wall_us(dense, BLOCK_PDL), wall_us(packed, BLOCK_PDL)
        rows.append([
            name, f"{wide:.1f}", percent(find(dense, BLOCK_PDL)["share_of_read"]),
            times(wall_us(dense, SDPA_GRAPH) / wide), f"{narrow:.1f}",
            percent(find(packed, BLOCK_PDL)["share_of_read"]), times(wide / narrow),
        ])  # fmt: skip
    return grid(headings, rows)


def step(documents: Documents) -> Lines:
    """One whole step of Qwen2.5-7B on the H200."""
    result = documents["h200-study/step"]
    shown: dict[Arm, str] = {
        ("native", "none", "native"): "native, none, native loop",
        ("native", "block", "native"): "native, block, native loop",
        ("native", "block", "graph"): "native, block, graph",
        BLOCK_PDL: "native, block, graph-pdl",
        ("sdpa", None, "eager"): "sdpa, eager",
        SDPA_GRAPH: "sdpa, graph",
        ("transformers", None, "eager"): "transformers, eager",
    }
    rows = []
    for arm, name in shown.items():
        entry = find(result, arm)
        rows.append([
            name, microseconds(entry["wall_us"]["p50"]), f"{entry['paper']['R_floor']:.2f}",
            f"{entry['share_of_read']:.2f}", f"{entry['launches']:,}", percent(entry["launch_gap_share"]),
        ])  # fmt: skip
    return grid(["arm", "us a step", "R_floor", "of the ceiling", "launches", "launch and gaps"], rows)


def matrix(documents: Documents) -> Lines:
    """The study's matrix on the H200: ms a step."""
    shown: list[Arm] = [
        ("native", "block", "eager"), ("native", "block", "graph"), BLOCK_PDL, ("sdpa", None, "eager"), SDPA_GRAPH,
    ]  # fmt: skip
    rows = []
    for model, batch in [*((model, 1) for model in MODELS), ("qwen2.5-7b", 4)]:
        for ctx in (2048, 4096, 8192, 16384):
            result = documents[f"h200-study/cells/{model}_ctx{ctx}_b{batch}"]
            name = MODELS[model] + (f", batch {batch}" if batch > 1 else "")
            ms = [f"{wall_us(result, arm) / 1000:.{2 if wall_us(result, arm) < 10_000 else 1}f}" for arm in shown]
            ms.insert(3, f"{find(result, BLOCK_PDL)['paper']['R_floor']:.2f}")
            rows.append([name if ctx == 2048 else "", str(ctx), *ms])
    return grid(["", "ctx", "native block: eager", "graph", "graph-pdl", "R_floor", "sdpa: eager", "graph"], rows)


def _graph_us(result: Document, batch: int, heads: str) -> dict[str, dict[int, float]]:
    """By backend and context: microseconds a call in a graph."""
    found: dict[str, dict[int, float]] = {}
    for entry in result["arms"]:
        if entry["mode"] == "graph" and entry["wall_us"] and (entry["batch"], entry["heads"]) == (batch, heads):
            found.setdefault(entry["backend"], {})[entry["ctx"]] = entry["wall_us"]["p50"]
    return found


def _us(value: float) -> str:
    return f"{value:,.{2 if value < 100 else 1 if value < 1000 else 0}f}"


def attention(documents: Documents, card: str) -> Lines:
    """Attention alone at batch 1 by backend, and at batch 4 beside the best peer."""
    result, lines = documents[f"{card}-attention"], []
    labels = [f"{ctx // 1024}K" for ctx in CONTEXTS]
    order = ["native", "sdpa", "sdpa-flash", "fa2", "fa3", "fa4", "flashinfer", "flashinfer-tc", "xqa", "sdpa-math"]
    for heads in HEADS:
        found = _graph_us(result, 1, heads)
        rows = [[name, *(_us(found[name][ctx]) for ctx in CONTEXTS)] for name in order if name in found]
        lines += [*grid([f"{heads.partition('x')[0]} heads, batch 1", *labels], rows), ""]
    rows = []
    for heads in HEADS:
        found = _graph_us(result, 4, heads)
        own = found.pop("native")
        rows.append([f"native, {heads.partition('x')[0]} heads", *(_us(own[ctx]) for ctx in CONTEXTS)])
        best = {ctx: min(peer[ctx] for peer in found.values() if ctx in peer) for ctx in CONTEXTS}
        rows.append(["the best peer", *(_us(best[ctx]) for ctx in CONTEXTS)])
    return [*lines, *grid(["batch 4", *labels], rows)]


def pairs(documents: Documents) -> Lines:
    """Pairs of arms over ten processes on the H200."""
    rows = []
    for file in sorted((documents.folder / "h200-study").glob("ab-*.json")):
        result = documents[f"h200-study/{document.stem(file)}"]
        a, b = (arm["arm"].partition("=")[2] for arm in result["arms"])
        spread = result["analysis"]["speedup"]
        digits = 2 if spread["sd"] > 0.1 else 3
        rows.append([a.replace(":", ", ").replace("/", ", "), b.replace(":", ", ").replace("/", ", "),
                     f"{spread['mean']:.{digits}f}", f"{spread['low']:.{digits}f} - {spread['high']:.{digits}f}",
                     f"{spread['sd']:.2g}"])  # fmt: skip
    return grid(["a", "b", "a / b", "95%", "SD over processes"], rows, 2)


def _dense_layer_us(documents: Documents, card: str) -> float:
    """Of the bf16 layer beside the 4-bit one: of bench.int4's own run where its document is there."""
    if f"{card}-int4" in documents:
        for entry in documents[f"{card}-int4"]["ops"]:
            if (entry["backend"], entry["mode"]) == ("bf16", "graph-pdl") and entry["shape"].startswith("llama-3.1-8b"):
                return float(entry["time_us"]["p50"])
    return wall_us(documents[f"{card}-layer-llama-3.1-8b"], BLOCK_PDL)


def summary(documents: Documents) -> Lines:
    """How fast, against whom, on what."""
    rows: list[list[str]] = []

    def row(what: str, card: str, own: float, share: float | None, peer: str, other: float) -> None:
        held = "" if share is None else f", {percent(share)} of read"
        rows.append([what, card.upper(), f"{microseconds(own)} us{held}", f"{peer}: {microseconds(other)} us",
                     times(other / own)])  # fmt: skip

    for card in CARDS:
        for model, name in MODELS.items():
            result = documents[f"{card}-layer-{model}"]
            entry = find(result, BLOCK_PDL)
            row(f"one layer of {name}, bf16", card, entry["wall_us"]["p50"], entry["share_of_read"],
                "torch ops and SDPA in a graph", wall_us(result, SDPA_GRAPH))  # fmt: skip
    for card in CARDS:
        entry = find(documents[f"{card}-int4-layer-llama-3.1-8b"], BLOCK_PDL)
        row("one layer of Llama-3.1-8B, 4 bits", card, entry["wall_us"]["p50"], entry["share_of_read"],
            "the same layer in bf16", _dense_layer_us(documents, card))  # fmt: skip
    result = documents["h200-study/step"]
    entry = find(result, BLOCK_PDL)
    for arm, words in (
        (SDPA_GRAPH, "torch ops and SDPA in a graph"),
        (("transformers", None, "eager"), "transformers, eager"),
    ):
        row("a whole step of Qwen2.5-7B", "h200", entry["wall_us"]["p50"], entry["share_of_read"], words,
            wall_us(result, arm))  # fmt: skip
    for card in CARDS:
        for ctx in (2048, 16384):
            found = _graph_us(documents[f"{card}-attention"], 1, "32/8x128")
            own = found.pop("native")[ctx]
            of_ctx = {name: us.get(ctx, float("inf")) for name, us in found.items()}
            best = min(of_ctx, key=of_ctx.__getitem__)
            row(
                f"attention alone, 32/8 heads, kv {ctx:,}",
                card,
                own,
                None,
                f"the fastest peer, {best}",
                found[best][ctx],
            )
    for card, name in (("h200", "h200-int4-libraries"), ("h100", "h100-int4-vllm")):
        times_us = {
            op["backend"]: op["time_us"]["p50"]
            for op in documents[name]["ops"]
            if op["mode"] == "graph" and op["label"] == "gate/up" and op["shape"] == "1x4096 -> 14336" and op["time_us"]
        }
        own = times_us["native"]
        peers = {name: us for name, us in times_us.items() if not name.startswith(("native", "bf16", "torch-bf16"))}
        best = min(peers, key=peers.__getitem__)
        row("4-bit GEMV, 4096 -> 14336, groups of 128", card, own, None, f"the fastest library, {best}", peers[best])
    return grid(["what (batch 1, ctx 2048)", "card", "launchtax", "against", "times as fast"], rows, 4)


TABLES: dict[str, Callable[[Documents], Lines]] = {
    "layer": layer_rows,
    "take-aways": take_aways,
    "example run": example_run,
    "summary": summary,
    "step": step,
    "matrix": matrix,
    "pairs": pairs,
    "layers": layers,
    "4-bit layers h100": lambda documents: int4_layers(documents, "h100"),
    "4-bit layers h200": lambda documents: int4_layers(documents, "h200"),
    "attention h200": lambda documents: attention(documents, "h200"),
    "attention h100": lambda documents: attention(documents, "h100"),
    "keys": lambda documents: document_page.lines(),
    **flashdecoding_tables.TABLES,
    **int4_tables.TABLES,
    **model_tables.TABLES,
}

_BLOCK = re.compile(r"(<!-- from documents: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, documents: Documents) -> str:
    """The text of a Markdown file with its tables made anew."""
    return _BLOCK.sub(lambda block: "\n".join([block[1].rstrip(), *TABLES[block[2]](documents), block[3]]), text)


def draw(documents: Documents, docs: Path) -> None:
    """The pictures that README and docs show beside those of the report."""
    from bench.core.plots import write_waterfall
    from bench.int4.plots import write_bars

    write_waterfall(docs / "h200-layer.png", documents["h200-layer-llama-3.1-8b"])
    write_bars(docs / "h200-int4.png", documents["h200-int4-libraries"])
    write_bars(docs / "h100-int4.png", documents["h100-int4-vllm"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The tables and pictures of README and docs, from the committed documents."""
    parser = argparse.ArgumentParser(prog="python -m bench.report.pages", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where a table is stale")
    parser.add_argument("--root", default=".", help="the clone: README.md, docs/ and bench/results/ are there")
    given = parser.parse_args(arguments)
    folder = Path(given.root)
    if not (folder / "bench" / "results").is_dir():
        parser.error(f"--root={given.root} must be a clone of launchtax, with bench/results in it")
    documents, stale = Documents(folder / "bench" / "results"), []
    for name in FILES:
        path = folder / name
        text = path.read_text()
        made = filled(text, documents)
        if made != text:
            stale.append(name)
            if not given.check:
                write_atomically(path, made.encode())
    if not given.check:
        draw(documents, folder / "docs")
    print(f"{'stale' if given.check else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if given.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
