"""A report's sections as Markdown, and as one HTML page with its pictures inside."""

import base64
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.core.document import picture

if TYPE_CHECKING:  # it takes a second to import
    from matplotlib.figure import Figure

Grid = tuple[list[str], list[list[str]]]
"""Headings, and rows of as many cells."""


Picture = tuple[str, str, bytes, bytes]
"""File stem, what it shows, PNG, SVG."""


def drawn(stem: str, words: str, draw: "Callable[[], Figure]") -> Picture:
    """Draw, as PNG and as SVG; the figure is closed."""
    from matplotlib import pyplot

    figure = draw()
    png, svg = (picture(figure, kind) for kind in ("png", "svg"))
    pyplot.close(figure)
    return stem, words, png, svg


@dataclass
class Section:
    """One part of the report."""

    title: str
    words: list[str] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    figures: list[Picture] = field(default_factory=list)


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """The report as Markdown, its pictures beside it."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", "", *(line for words in section.words for line in (words, ""))]
        for headings, rows in section.grids:
            lines += ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
            lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
            lines.append("")
        for stem, words, _, _ in section.figures:
            lines += [f"![{words}](figures/{stem}.png)", ""]
    return "\n".join(lines)


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 110rem; padding: 0 1rem; color: #222; }
p, img { max-width: 70rem; }
div.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 12px; }
th, td { border-bottom: 1px solid #ddd; padding: 0.25rem 0.4rem; text-align: left; }
th { vertical-align: bottom; }
tr.published td { color: #666; background: #f6f6f6; font-style: italic; }
img { width: 100%; margin: 0.5rem 0; }
"""


def _inline(words: str) -> str:
    """The little Markdown that sections use: bold, code, links."""
    text = html.escape(words, quote=False)
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", text)
    return re.sub(r"\[(.+?)\]\((https://[^)\s]+)\)", r'<a href="\2">\1</a>', text)


def as_html(title: str, sections: Sequence[Section]) -> str:
    """The report as one page with its pictures inside."""
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
    ]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts += [f"<p>{_inline(words)}</p>" for words in section.words]
        for headings, rows in section.grids:
            parts.append(
                '<div class="table"><table><tr>'
                + "".join(f"<th>{html.escape(name)}</th>" for name in headings)
                + "</tr>"
            )
            for row in rows:
                kind = ' class="published"' if row[0] == "published" else ""
                parts.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
            parts.append("</table></div>")
        for _, words, png, _ in section.figures:
            data = base64.b64encode(png).decode()
            parts.append(f'<img alt="{html.escape(words)}" src="data:image/png;base64,{data}">')
    return "\n".join([*parts, "</body></html>"])
