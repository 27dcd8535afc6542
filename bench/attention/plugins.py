"""Plug-ins in bench.attention: each is measured in a process of its own, beside SDPA, and joins a session."""

from collections.abc import Sequence

from bench.attention import document as attention_document
from bench.attention.arms import AttentionArm
from bench.attention.results import CLOCKS, Entry, key, session_entry
from bench.attention.settings import Settings
from bench.core.document import Document
from bench.plugins import plan as plugins

_NO_CEILING: Document = {"read_gbs": None, "copy_gbs": None}


def _measured(found: plugins.Found) -> list[Entry]:
    """The entries of its process, with SDPA's clocks there: a ratio is within one process."""
    sessions = attention_document.sessions(found.document) if found.document else []
    by_key = {key(entry): entry for session in sessions for entry in session["entries"]}
    entries = []
    for (shape, backend, mode), entry in by_key.items():
        if backend == found.plugin.label:
            beside = by_key.get((shape, "sdpa", mode))
            entries.append(entry | {"sdpa_beside": {clock: beside[clock] for clock in CLOCKS} if beside else None})
    return entries


def _lost(found: plugins.Found, session: Document, settings: Settings) -> list[Entry]:
    """An entry a cell of every arm that ended its process."""
    entries = []
    for cell in settings.cells:
        ceiling = session["ceilings"].get(cell.shape, _NO_CEILING) | {"spec_gbs": settings.spec_bandwidth[0]}
        for arm in found.failed:
            lost = AttentionArm(arm.backend, arm.mode, status=arm.status, reason=arm.reason)
            entries.append(session_entry(lost, cell, cell.bytes(settings.torch_dtype), ceiling, 0))
    return entries


def join(session: Document, measured: Sequence[plugins.Found], limit_s: float, settings: Settings) -> Document:
    """The session with every plug-in's entries; `limit_s` is what their processes had."""
    if not measured:
        return session
    entries: Sequence[Entry] = [
        entry for found in measured for entry in (*_measured(found), *_lost(found, session, settings))
    ]
    described = [found.describe(limit_s) for found in measured]
    return session | {"entries": [*session["entries"], *entries], "plugins": described}
