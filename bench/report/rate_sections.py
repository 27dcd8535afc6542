"""The report's parts on steps that are due at a rate: documents of kind `rate`."""

from collections.abc import Sequence
from functools import partial

from bench.core import tables
from bench.core.document import device_name
from bench.rate import tables as rate_tables
from bench.report import collect
from bench.report.collect import Folder
from bench.report.main_sections import plain
from bench.report.page import Grid, Section, drawn
from bench.study.cost import Price, energy_of_tokens, kwh_price


def section(folder: Folder) -> Section | None:
    """Latency from the due time, its tail, and joules: a table and a picture a document and load."""
    documents = folder.of_kind("rate")
    if not documents:
        return None
    from bench.rate import plots as rate_plots  # matplotlib takes a second

    found = Section("Steps at a rate")
    for result in documents:
        found.words += [f"`{result['file']}`: {line}." for line in rate_tables.heading(result)]
        found.words += [*tables.refusals(result), *rate_tables.notes(result)]
        for load in result["loads"]:
            columns, rows = plain(rate_tables.grid(result, load))
            if not rows:
                continue
            named = f"{result['file']}, {rate_tables.title(load)}: {columns[0]}"
            found.grids.append(([named, *columns[1:]], rows))
            if rate_plots.measured(result, load):
                stem = f"{result['file']}-{load}".replace(":", "-")
                words = f"Latency and energy at a rate on {device_name(result)}, {rate_tables.title(load)}"
                found.figures.append(drawn(stem, words, partial(rate_plots.draw, result, load)))
    return found


def energy_grid(folder: Folder, known: Sequence[Price]) -> Grid | None:
    """What a million tokens take of energy, at each rate with nothing beside it; and what that costs where --price=kWh
    says."""
    price, rows = kwh_price(known), []
    for result in folder.of_kind("rate"):
        for entry in result["arms"]:
            for cell in entry.get("cells", ()):
                if cell["load"] != "none" or not cell["energy"]:
                    continue
                joules = cell["energy"]["joules_per_token"]
                kwh, usd = energy_of_tokens(joules, price)
                rows.append([
                    device_name(result), collect.model_name(result), str(result["ctx"]), str(result["batch"]),
                    rate_tables.arm_label(entry), f"{cell['hz']:g}" if cell["hz"] and cell["met"] else "back to back",
                    f"{joules:.3g}", f"{kwh:.3g}", "-" if usd is None else f"{usd:.3g}",
                ])  # fmt: skip
    columns = ["device", "model", "ctx", "batch", "arm", "Hz", "J a token", "kWh a million tokens", "USD for those"]
    return (columns, rows) if rows else None
