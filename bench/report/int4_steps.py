"""The study's Figure 8 for the card at hand: whole steps of every 4-bit library, what launching costs each, and what a
token costs. Documents of kind `step` whose weights are of 4 bits."""

from collections.abc import Sequence
from functools import partial

from bench.core import tables
from bench.core.document import Document, device_name
from bench.core.tables import percent
from bench.report import collect
from bench.report.collect import Folder, Row
from bench.report.page import Section, drawn
from bench.study import paper
from bench.study.accounting import usd_per_million_tokens
from bench.study.cost import Price, price_of

FIGURE_8 = ("l4_bf16", "l4_nf4", "l4_awq", "l4_exl2")
"""The published figures of it, by their names in paper.toml."""


def rows_of(result: Document) -> list[Row]:
    """One row a backend that ran: its eager step, its fastest one and the mode of that, milliseconds, and the share of
    the eager step that is not there in a graph: Python, dispatcher and launches."""
    times: dict[str, dict[str, float]] = {}
    weights: dict[str, str] = {}
    for arm in result["arms"]:
        if arm["status"] == "ok" and arm["wall_us"]:
            of_backend = times.setdefault(arm["backend"], {})
            milliseconds = arm["wall_us"]["p50"] / 1000
            of_backend[arm["mode"]] = min(milliseconds, of_backend.get(arm["mode"], milliseconds))
            weights[arm["backend"]] = arm.get("weights", "int4")
    rows = []
    for backend, modes in times.items():
        mode = min(modes, key=lambda mode: modes[mode])
        eager, captured = modes.get("eager"), modes.get("graph")
        rows.append({
            "device_name": device_name(result), "backend": backend, "weights": weights[backend], "eager_ms": eager,
            "best_ms": modes[mode], "best_mode": mode, "batch": result["batch"],
            "launch_share": 1 - captured / eager if eager and captured else None,
        })  # fmt: skip
    return rows


def runs_together(results: Sequence[Document]) -> list[list[Document]]:
    """Runs of one device, model and sequence: libraries that came in several runs stand in one table."""
    found: dict[tuple, list[Document]] = {}
    for result in results:
        key = device_name(result), collect.model_name(result), result["ctx"], result["batch"], result["dtype"]
        found.setdefault(key, []).append(result)
    return list(found.values())


def _once(rows: Sequence[Row]) -> list[Row]:
    """Without the rows of a later run whose backend an earlier one has."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row["backend"], row)
    return list(found.values())


def section(folder: Folder, known: Sequence[Price]) -> Section | None:
    """A table and a picture for the runs that belong together, the published bars beside."""
    from bench.report import kernel_figures

    found = Section("Steps with 4-bit weights (the study's Figure 8)")
    for runs in runs_together([result for result in folder.of_kind("step") if result.get("quant")]):
        of_runs = [(number, rows_of(result)) for number, result in enumerate(runs, 1)]
        if not any(rows for _, rows in of_runs):
            continue
        first = runs[0]
        price = price_of(device_name(first), known)
        what = f"{device_name(first)}, {collect.model_name(first)}, ctx {first['ctx']}, batch {first['batch']}"

        def usd(milliseconds: float | None, price: Price | None = price, batch: int = first["batch"]) -> str:
            if milliseconds is None or price is None:
                return "-"
            return f"{usd_per_million_tokens(price.usd_per_hour, milliseconds, batch):.2f}"

        def ms(value: float | None) -> str:
            return "-" if value is None else f"{value:,.3f}"

        grid = []
        for number, rows in of_runs:
            base = next(
                (row["eager_ms"] for row in rows if row["backend"] == "sdpa" and row["weights"] != "int4"), None
            )
            grid += [
                [f"measured, run {number}" if len(runs) > 1 else "measured", row["backend"], row["weights"],
                 ms(row["eager_ms"]), ms(row["best_ms"]), row["best_mode"],
                 "-" if row["launch_share"] is None else percent(row["launch_share"]),
                 "-" if not (base and row["eager_ms"]) else f"{base / row['eager_ms']:.2f}",
                 usd(row["eager_ms"]), usd(row["best_ms"])]
                for row in rows
            ]  # fmt: skip
        figures = [paper.figures()[name] for name in FIGURE_8]
        for one in figures:
            price_there = price_of(str(one.gpu), known)
            dollars = usd_per_million_tokens(price_there.usd_per_hour, one.value) if price_there else None
            of_16_bits = one.id == FIGURE_8[0]
            grid.append([
                "published", f"{one.gpu}: {one.arm}", "bf16" if of_16_bits else "4-bit", f"{one.value:.2f}", "-", "-",
                "-", f"{figures[0].value / one.value:.2f}", "-" if dollars is None else f"{dollars:.2f}", "-",
            ])  # fmt: skip
        headings = [what, "backend", "weights", "eager ms", "fastest ms", "mode", "gone in a graph",
                    "16-bit sdpa eager / this", "USD a million tokens, eager", "fastest"]  # fmt: skip
        found.grids.append((headings, grid))
        found.words += dict.fromkeys(line for result in runs for line in tables.refusals(result))
        draw = partial(kernel_figures.int4_steps, _once([row for _, rows in of_runs for row in rows]), figures)
        found.figures.append(drawn(f"int4-steps-{first['file']}", f"4-bit steps: {what}", draw))
    if not found.grids:
        return None
    found.words.insert(0, "`gone in a graph` is the share of the eager step that its graph does without: Python, the "
                          "dispatcher and the launches. Where it is large, fewer bits cannot show.")  # fmt: skip
    if any(row[0] == "measured, run 2" for _, grid in found.grids for row in grid):
        found.words.insert(
            1, "Libraries that came in several runs: each is held against the 16-bit layer of its own run."
        )
    return found
