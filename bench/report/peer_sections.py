"""The report's parts on the peers: documents of kinds `attention` and `stack`."""

from functools import partial

from bench.attention import tables as attention_tables
from bench.core import tables
from bench.core.document import device_name
from bench.report.collect import Folder
from bench.report.main_sections import plain
from bench.report.page import Section, drawn
from bench.stack import tables as stack_tables


def backends_section(folder: Folder) -> Section | None:
    """Attention alone in every backend, over contexts: what bench.attention measured or compared."""
    documents = folder.of_kind("attention")
    if not documents:
        return None
    from bench.attention import plots as attention_plots  # matplotlib takes a second

    section = Section("Attention alone, over contexts")
    measured = [result for result in documents if attention_plots.measured(result)]
    for result in documents:
        section.words.append(". ".join(attention_tables.heading(result)[:3]) + ".")
        if result.get("gate_only"):
            section.words.append(attention_tables.gate_title(result) + ".")
            section.grids.append(plain(attention_tables.gate_grid(result)))
        for title, (columns, rows) in attention_tables.context_grids(result):
            whose = f"{device_name(result)}: {title}"
            section.grids.append(plain(([(whose, False), *columns[1:]], rows)))
        section.words += attention_tables.aa_lines(result)
    for result in measured:
        words = f"Attention alone on {device_name(result)}: the clocks of one cell, and times over contexts"
        section.figures.append(drawn(f"contexts-{result['file']}", words, partial(attention_plots.draw, result)))
    return section


def stack_section(folder: Folder) -> Section | None:
    """One layer, by whose attention it has, whether it is compiled and whether it is captured."""
    documents = folder.of_kind("stack")
    if not documents:
        return None
    section = Section("The software stack of one layer")
    for result in documents:
        section.words.append(". ".join(stack_tables.heading(result)) + ".")
        section.words += tables.refusals(result)
        section.grids.append(plain(stack_tables.grid(result)))
        if any(entry["wall_us"] for entry in result["arms"]):
            words = f"The software stack on {device_name(result)}"
            section.figures.append(drawn(f"stack-{result['file']}", words, partial(stack_tables.draw, result)))
    return section
