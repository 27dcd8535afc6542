"""How a document of kind `attention` holds each fact once.

`arms` have what is so of an arm in every session, and `kernels` what a kernel is, once for all that launch it. An entry
of a session names its arm and holds what differs from it: `sessions` gives the entries back whole.
"""

from collections.abc import Sequence

from bench.attention.results import OVER_SESSIONS, Entry, key, over_sessions
from bench.core.document import Document

_ALWAYS = ("shape", "backend", "mode", "status")
# Of a launch; the rest is of the kernel.
_OF_A_LAUNCH = ("grid", "us")


class _Table:
    """The kernels met so far, each under its number."""

    def __init__(self) -> None:
        self.kernels: list[Document] = []
        self._numbers: dict[str, int] = {}

    def packed(self, entry: Entry) -> Entry:
        """The entry with numbers in place of kernels."""
        if not entry.get("kernel_details"):
            return entry
        return entry | {"kernel_details": [self._launch(one) for one in entry["kernel_details"]]}

    def _launch(self, details: Document) -> Document:
        kernel = {name: value for name, value in details.items() if name not in _OF_A_LAUNCH}
        number = self._numbers.setdefault(repr(kernel), len(self.kernels))
        if number == len(self.kernels):
            self.kernels.append(kernel)
        return {"kernel": number, **{name: details[name] for name in _OF_A_LAUNCH}}


def packed(sessions: Sequence[Document]) -> Document:
    """The keys `arms`, `kernels` and `sessions` of a document of these sessions, whose entries are whole."""
    arms, table = over_sessions([session["entries"] for session in sessions]), _Table()
    by_key = {key(arm): arm for arm in arms}

    def differing(entry: Entry) -> Entry:
        arm = by_key[key(entry)]
        return {
            name: value
            for name, value in entry.items()
            if name in _ALWAYS or name not in arm or arm[name] != value
        }  # fmt: skip

    return {
        "arms": [table.packed(arm) for arm in arms],
        "sessions": [
            session | {"entries": [table.packed(differing(entry)) for entry in session["entries"]]}
            for session in sessions
        ],
        "kernels": table.kernels,
    }


def kernel_details(entry: Entry, document: Document) -> list[Document]:
    """The launches of an arm of the document, each with its kernel's name, block, registers and shared memory."""
    return [
        document["kernels"][one["kernel"]] | {name: one[name] for name in _OF_A_LAUNCH} if "kernel" in one else one
        for one in entry["kernel_details"]
    ]


def sessions(document: Document) -> list[Document]:
    """The sessions with whole entries. What differs from session to session is there as it was; of several sessions,
    `kernel_details` where it was not traced, too."""
    by_key = {
        key(arm): {name: value for name, value in arm.items() if name not in OVER_SESSIONS} for arm in document["arms"]
    }

    def whole(entry: Entry) -> Entry:
        entry = by_key.get(key(entry), {}) | entry
        return entry | {"kernel_details": kernel_details(entry, document)}

    return [session | {"entries": [whole(entry) for entry in session["entries"]]} for session in document["sessions"]]
