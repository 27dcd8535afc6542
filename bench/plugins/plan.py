"""Plug-ins in processes of their own: what they find comes back as arms, what they do wrong costs those arms alone.

A plug-in's process is the driver itself, with the plug-in as its backend and a folder to report in (--plugin-journal).
Where it dies or hangs, its note of where it stood names the arm at fault; the other arms are tried again without it.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
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

_MOST_BYTES = 256 << 20
"""Of the document of a plug-in's process: more than any has of so many rounds."""

TimeoutFlag = Annotated[
    float,
    typer.Option(
        "--plugin-timeout-s",
        help="seconds that the process of a plug-in may take, its start included",
        callback=cli.checked(cli.seconds, "--plugin-timeout-s"),
    ),
]
MemoryFlag = Annotated[
    float,
    typer.Option(
        "--plugin-memory-gb",
        help="10^9 bytes of memory that each process of a plug-in may take (RLIMIT_DATA: not its address space, not a "
        "GPU's memory); 0: nine tenths of what is available when it starts",
        callback=cli.checked(cli.gigabytes, "--plugin-memory-gb"),
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
    sha256: str = ""
    """Of its file, before it ran."""
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
        return {"backend": self.plugin.label, "sha256": self.sha256, "timeout_s": limit_s, **keys}


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
    found, todo = Found(plugin, digest(plugin)), list(plan.modes)
    while todo:
        # Its process can do as it likes with the folder.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            journal, output = Journal(Path(folder)), Path(folder, "result.json")
            try:
                outcome = run_module(plan.driver, [
                    f"{plugin.flag}={','.join([plugin.text, *plan.beside])}", f"--mode={','.join(todo)}", *plan.flags,
                    f"--plugin-journal={folder}", f"--json={output}",
                ], plan.limit_s)  # fmt: skip
            except KeyboardInterrupt:
                found.interrupted = True
                with suppress(UsageError):
                    found.kept += filter(None, [_own_result(output, plugin)])
                return found
            try:
                result = _own_result(output, plugin)
            except UsageError as error:
                result, outcome = None, Outcome("error", str(error), outcome.returncode)
            if result and not result["interrupted"]:
                found.document = result
                return found
            if result:
                found.kept.append(result)
            if refused := journal.read("refused"):
                raise UsageError(refused)
            ended = _blame(plugin, journal, outcome, todo)
        found.failed += ended
        todo = [mode for mode in todo if mode not in {arm.mode for arm in ended}]
    return found


def result_of(path: Path) -> Document | None:
    """The document that a plug-in's process left, None where there is none. Raises UsageError, in words that go on from
    whose it is, where something else lies there: the plug-in can write there, too."""
    if not os.path.lexists(path):
        return None
    try:
        result: Document = document.tame(document.load(path, most_bytes=_MOST_BYTES))
        assert isinstance(result["interrupted"], bool)
        return result
    except UsageError as error:
        words = str(error).removeprefix(f"{path}: ")
    except RecursionError:
        words = "it is nested too deeply"
    except (AssertionError, KeyError):
        words = "it does not say whether it was interrupted"
    raise UsageError(f"left a result document that is none: {words}")


def _own_result(path: Path, plugin: Plugin) -> Document | None:
    """result_of(), which has an entry of the plug-in where it is of a run that was finished."""
    result = result_of(path)
    try:
        if result is None or result["interrupted"] or any(
            entry["backend"].startswith(plugin.label)
            for of in (result, *result.get("sessions", []))
            for key in ("arms", "ops", "entries")
            for entry in of.get(key, [])
        ):  # fmt: skip
            return result
    except (AttributeError, KeyError, TypeError):
        pass
    raise UsageError("left a result document without an entry of its own")


def _blame(plugin: Plugin, journal: Journal, outcome: Outcome, modes: Sequence[str]) -> list[Arm]:
    """The arms of a process that did not finish: that at fault, or all where none is named; and those it has not."""
    _, mode = journal.state()
    found = journal.read("modes")
    reasons = found if isinstance(found, dict) else {}
    runnable = [name for name in modes if not reasons.get(name)]
    words = how_it_ended(journal, outcome)
    ended = [unsupported(plugin.label, name, reasons[name]) for name in modes if name not in runnable]
    for name in [mode] if mode in modes else runnable:
        ended.append(Arm(plugin.label, name, status="error", reason=words))
    return ended


def how_it_ended(journal: Journal, outcome: Outcome) -> str:
    """Of a process that did not finish."""
    noted = journal.read("lost") or journal.read("raised")
    words = str(noted or outcome.reason or "ended with exit status 0 before it was done")
    doing, _ = journal.state()
    return words + (f", while it was {doing}" if doing else "")
