"""Is a device the same before and after a cell, and from cell to cell? What its controls say of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.core.document import Document
from bench.core.gpu_state import HARMLESS_REASONS

TOLERANCE = 0.03
"""Of the read ceiling: on an idle GPU its median repeats to some tenths of a percent."""
FIRST = 4
"""Sets of controls, those of two cells, whose median is what later ones are held to: a median of all would creep along
with a slow drift."""


def _throttled(controls: Document) -> list[str]:
    return sorted(set((controls.get("clocks") or {}).get("clock_event_reasons") or ()) - HARMLESS_REASONS)


@dataclass
class History:
    """The controls of one device so far."""

    read_gbs: list[float] = field(default_factory=list)

    def doubt(self, before: Document, after: Document) -> str | None:
        """Why a cell between these controls is not to be trusted; None where nothing speaks against it. They join the
        history."""
        earlier, first, last = list(self.read_gbs), before.get("read_gbs"), after.get("read_gbs")
        self.read_gbs += [value for value in (first, last) if value]
        reasons = sorted({*_throttled(before), *_throttled(after)})
        if reasons:
            return f"the clocks were throttled: {', '.join(reasons)}"
        if not first or not last:
            return None
        if within := _moved(first, last, "during the cell"):
            return within
        if len(earlier) < FIRST:
            return None
        return _moved(float(np.median(earlier[:FIRST])), first, "since its first cells")


def _moved(first: float, second: float, when: str) -> str | None:
    change = second / first - 1
    return f"the read ceiling moved by {100 * change:+.1f}% {when}" if abs(change) > TOLERANCE else None


def judge(history: History, device_type: str, before: Document, after: Document) -> Document:
    """The key `controls` of a cell: both sets, and `doubt`, a reason or None. A CPU's memory is shared with whatever
    else runs, and moves by more than any tolerance worth having: there nothing is judged."""
    doubt = history.doubt(before, after) if device_type == "cuda" else None
    return {"before": before, "after": after, "doubt": doubt}


def doubts(results: Sequence[Document]) -> list[Document]:
    """The cells whose controls speak against them."""
    return [result for result in results if (result.get("controls") or {}).get("doubt")]
