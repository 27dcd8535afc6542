"""Plug-ins in processes of their own: what they find comes back as arms, what they do wrong costs those arms alone.

A plug-in's process is the driver itself, with the plug-in as its backend and a folder to report in (--plugin-journal).
Where it dies or hangs, its note of where it stood names the arm at fault; the other arms are tried again without it.
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from bench.core import cli, document
from bench.core.document import Document
from bench.core.errors import UsageError
from bench.core.measure import Arm, unsupported
from bench.core.processes import Outcome, run_module
from bench.core.progress import progress
from bench.plugins.loading import Journal, Plugin

TimeoutFlag = Annotated[
    float,
    typer.Option(
        "--plugin-timeout-s",
        help="seconds that the process of a plug-in may take, its start included",
        callback=cli.checked(cli.seconds, "--plugin-timeout-s"),
    ),
]
JournalFlag = Annotated[str, typer.Option("--plugin-journal", hidden=True)]


@dataclass(frozen=True)
class Plan:
    """The plug-ins of a run and how their processes are started.

    `driver` is the module, `flags` are those that the run and its plug-ins share, `beside` names the backends that a
    plug-in's process measures among its arms: a speed-up is within one process.
    """

    driver: str
    plugins: Sequence[Plugin]
    modes: Sequence[str]
    flags: Sequence[str]
    beside: Sequence[str]
    limit_s: float


@dataclass
class Found:
    """What came of one plug-in: the document of its process where one finished, the arms that none measured, and what
    processes that did not finish had saved by then."""

    plugin: Plugin
    document: Document | None = None
    kept: list[Document] = field(default_factory=list)
    failed: list[Arm] = field(default_factory=list)
    interrupted: bool = False
    """By Ctrl-C: the process that ran then was ended, and plug-ins after this one were not begun."""

    def entries(self, key: str) -> list[Document]:
        """Its entries of the document's key `arms` or `ops`, less those of the backends beside it."""
        return [entry for entry in (self.document or {}).get(key, []) if entry["backend"] == self.plugin.label]

    def of_shape(self, what: Mapping[str, object]) -> dict[tuple[str, str], Document]:
        """By backend and mode, its entries of `ops` of one shape (what: its keys `label`, `shape` and, of bench.op,
        `batch`): those of the process that finished and, of modes that ended one, those that it had saved by then. A
        kernel that takes only the other half precision is called by the plug-in's label and that."""
        documents = [*self.kept, *([self.document] if self.document else [])]
        return {
            (entry["backend"], entry["mode"]): entry
            for of_process in documents
            for entry in of_process["ops"]
            if all(entry.get(name) == what.get(name) for name in ("label", "shape", "batch"))
            and entry["backend"].startswith(self.plugin.label)
        }

    def failed_of(self, what: Mapping[str, object]) -> list[Arm]:
        """The arms that ended their process before that shape was measured."""
        finished = {mode for _, mode in self.of_shape(what)}
        return [replace(arm) for arm in self.failed if arm.mode not in finished]

    def of_label(self, key: str) -> Document:
        """Its part of the key `ladder` or `ladder_notes`."""
        found = (self.document or {}).get(key, {})
        return {name: value for name, value in found.items() if name.partition("/")[0] == self.plugin.label}

    def describe(self, limit_s: float) -> Document:
        """Its entry of the key `plugins`."""
        keys = {key: (self.document or {}).get(key) for key in ("created", "ceiling")}
        return {"backend": self.plugin.label, "sha256": digest(self.plugin), "timeout_s": limit_s, **keys}


def digest(plugin: Plugin) -> str:
    """Of its file, as it is now."""
    return hashlib.sha256(plugin.path.read_bytes()).hexdigest()


def measure_all(plan: Plan) -> list[Found]:
    """Every plug-in, one after the other. Raises UsageError where one turns out to be none. After Ctrl-C those that are
    there: the last of them says that it was interrupted; KeyboardInterrupt goes on upwards where it has nothing."""
    found: list[Found] = []
    if not plan.plugins:
        return found
    with progress("plug-ins", len(plan.plugins)) as advance:
        for plugin in plan.plugins:
            found.append(measure(plan, plugin))
            if found[-1].interrupted:
                break
            advance()
    if found and found[-1].interrupted and not any(one.document or one.kept or one.failed for one in found):
        raise KeyboardInterrupt
    return found


def measure(plan: Plan, plugin: Plugin) -> Found:
    """One plug-in: a process for all its modes, and one more after each mode that ended one."""
    found, todo = Found(plugin), list(plan.modes)
    while todo:
        with tempfile.TemporaryDirectory() as folder:
            journal, output = Journal(Path(folder)), Path(folder, "result.json")
            try:
                outcome = run_module(plan.driver, [
                    f"{plugin.flag}={','.join([plugin.text, *plan.beside])}", f"--mode={','.join(todo)}", *plan.flags,
                    f"--plugin-journal={folder}", f"--json={output}",
                ], plan.limit_s)  # fmt: skip
            except KeyboardInterrupt:
                found.interrupted = True
                found.kept += [document.load(output)] if output.exists() else []
                return found
            if output.exists():
                result = document.load(output)
                if not result["interrupted"]:
                    found.document = result
                    return found
                found.kept.append(result)
            if refused := journal.read("refused"):
                raise UsageError(refused)
            ended = _blame(plugin, journal, outcome, todo)
        found.failed += ended
        todo = [mode for mode in todo if mode not in {arm.mode for arm in ended}]
    return found


def _blame(plugin: Plugin, journal: Journal, outcome: Outcome, modes: Sequence[str]) -> list[Arm]:
    """The arms of a process that did not finish: that at fault, or all where none is named; and those it has not."""
    _, mode = journal.state()
    reasons = journal.read("modes") or {}
    runnable = [name for name in modes if not reasons.get(name)]
    words = how_it_ended(journal, outcome)
    ended = [unsupported(plugin.label, name, reasons[name]) for name in modes if name not in runnable]
    for name in [mode] if mode in modes else runnable:
        ended.append(Arm(plugin.label, name, status="error", reason=words))
    return ended


def how_it_ended(journal: Journal, outcome: Outcome) -> str:
    """Of a process that did not finish."""
    words = journal.read("lost") or outcome.reason or "ended with exit status 0 before it was done"
    doing, _ = journal.state()
    return words + (f", while it was {doing}" if doing else "")
