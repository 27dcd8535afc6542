"""Cells: one of the matrix models x contexts x batches is one fresh process of bench.step and one document."""

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import pykernels as pk
from bench.core import claims, document, environment
from bench.core.document import SCHEMA, Document, entry_name
from bench.core.errors import UsageError, WriteError
from bench.core.kept import flags_of_any_device, machine_difference
from bench.core.processes import Outcome, run_module
from bench.fleet import controls, node, trust

_START_BYTES = 8e9
"""What a process takes to begin and to end, in bytes that its steps could have moved: of two cells of small models the
larger is not much dearer."""


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    model: str
    ctx: int
    batch: int
    quant: str = ""
    """Of 4-bit weights: what tells them from others in one folder, int4-g128 say."""
    weights: str = ""
    """The checkpoint, where the model is that of one."""

    @property
    def name(self) -> str:
        """Of its file, less the suffix."""
        model = self.model.replace("/", "-")
        return f"{model}{'_' * bool(self.quant)}{self.quant}_ctx{self.ctx}_b{self.batch}"

    @property
    def document(self) -> Document:
        """The key `cell` of its document, which names no path of this machine."""
        return {"model": self.model, "ctx": self.ctx, "batch": self.batch}

    @property
    def cost(self) -> float:
        """What it is expected to take, in bytes: weights and cache, which every step reads, and the process's own."""
        spec = pk.models.from_config(self.weights) if self.weights else pk.models.get(self.model)
        dtype = torch.bfloat16
        return _START_BYTES + spec.weight_bytes(dtype) + spec.kv_bytes(self.ctx, self.batch, dtype)


@dataclass(frozen=True)
class Plan:
    """The checked flags of one run. `flags` are those that every cell shares; `device` is what they came to."""

    out: Path
    cells: list[Cell]
    flags: list[str]
    device: torch.device
    limit_s: float
    again: bool
    controls: bool = True

    def path(self, cell: Cell) -> Path:
        """Of the cell's document."""
        return self.out / f"{cell.name}.json"


def status_of(result: Document) -> tuple[str, str | None]:
    """A cell's status from its document: the document's own where it has one, else the worst of the arms that this
    device has: error, wrong, oom, ok."""
    if "status" in result:
        return result["status"], result.get("reason")
    arms = [arm for arm in result["arms"] if arm["status"] != "unsupported"]
    if result.get("interrupted") or not arms:
        return "error", "was interrupted" if arms else "has no arm that runs here"
    for status in ("error", "wrong", "oom"):
        for arm in arms:
            if arm["status"] == status:
                return status, arm["reason"]
    return "ok", None


def finished(plan: Plan, cell: Cell) -> bool:
    """Does the cell stay as it is? A cell of other flags does not; one that crashed or hung is tried again only with
    --again."""
    path = plan.path(cell)
    if not path.exists():
        return False
    try:
        result = document.load(path, "step")
    except UsageError as error:
        print(f"--out: not a finished cell, and measured anew: {error}", file=sys.stderr)
        return False
    known = flags_of_any_device(result.get("cell_flags") or (), result.get("device") or plan.device.type)
    if known != flags_of_any_device(plan.flags, plan.device.type):
        return False
    return not plan.again or status_of(result)[0] in ("ok", "oom")


class Measurer:
    """What cells are measured by on one device: a fresh process each, controls before and after it."""

    def __init__(self, device: torch.device, with_controls: bool) -> None:
        self.device = device
        self._controls = controls.Process(device) if with_controls else None
        self._history = trust.History()

    def measure(self, cell: Cell, flags: Sequence[str], work: Path, limit_s: float) -> Document:
        """Measure one cell in a fresh process, which writes to `work`. Returns its document, also where it failed."""
        before = self._controls.measure() if self._controls else None
        result = _measure(cell, flags, self.device, work, limit_s) | {"node": node.itself()}
        if self._controls and before:
            result["controls"] = trust.judge(self._history, self.device.type, before, self._controls.measure())
        return result

    def end(self) -> None:
        """End the process of the controls."""
        if self._controls:
            self._controls.end()


def _measure(cell: Cell, flags: Sequence[str], device: torch.device, work: Path, limit_s: float) -> Document:
    begin = time.monotonic()
    given = [f"--model={cell.model}", f"--ctx={cell.ctx}", f"--batch={cell.batch}", *flags, f"--json={work}"]
    if _left_there(work, given, device):
        outcome = Outcome("ok", None, 0)
    else:
        work.unlink(missing_ok=True)
        outcome = run_module("bench.step", given, limit_s)
    extra: Document = {
        "cell": cell.document, "cell_flags": flags_of_any_device(flags, device.type),
        "seconds": time.monotonic() - begin,
        "command": shlex.join(["python", "-m", "bench.step", *given[:-1]]),  # less the file it was written to
    }  # fmt: skip
    if work.exists():
        try:
            return document.load(work, "step") | extra
        except UsageError as error:  # the process left something else: this cell's error
            outcome = Outcome("error", str(error), outcome.returncode)
    machine = environment.collect(device)
    return failed(cell, flags, device.type, outcome.status, outcome.reason, machine) | extra


def _left_there(work: Path, given: Sequence[str], device: torch.device) -> bool:
    """Whether a run that ended before it could write the cell's document left what its process had finished: by these
    flags, this build and a machine like this."""
    if not work.exists():
        return False
    try:
        result = document.load(work, "step")
    except UsageError:
        return False
    # `python -m bench.step ...`
    same = shlex.split(result["command"])[3:] == list(given) and not result["interrupted"]
    return same and machine_difference(result["environment"], environment.collect(device)) is None


def failed(
    cell: Cell, flags: Sequence[str], device: str, status: str, reason: str | None, machine: Document
) -> Document:
    """The document of a cell whose process left none. device: cuda or cpu."""
    return {
        "schema": SCHEMA, "kind": "step", "title": f"one decode step of {cell.model}, ctx {cell.ctx}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "environment": machine,
        "model": {"name": cell.model}, "ctx": cell.ctx, "batch": cell.batch, "arms": [], "interrupted": False,
        "device": device, "dtype": None, "status": status, "reason": reason,
        "cell": cell.document, "cell_flags": flags_of_any_device(flags, device),
    }  # fmt: skip


def run_cell(plan: Plan, cell: Cell, measurer: Measurer) -> None:
    """Measure one cell on this machine and write its document. Raises WriteError where that cannot be done: what the
    cell's process wrote stays then, and the next run goes on with it."""
    work = claims.work_file(plan.out, cell.name)
    result = measurer.measure(cell, plan.flags, work, plan.limit_s)
    write_cell(plan.path(cell), result, f"; {work.name} holds it, for the same command to go on with")
    work.unlink(missing_ok=True)


def write_cell(path: Path, result: Document, left: str = "") -> None:
    """Write a cell's document. Raises WriteError where that cannot be done; left: what else holds it."""
    try:
        document.write_json(path, result)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror}{left}") from None


def duration(seconds: float) -> str:
    """1:02:03 or 2:03"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def line(result: dict[str, Any]) -> str:
    """A finished cell in one line: its fastest arm, or what went wrong."""
    status, reason = status_of(result)
    if status == "oom":
        memory = result["memory"]
        return f"oom: {reason}; needs {memory['asked_bytes'] / 1e9:.2f} GB, peak {memory['peak_bytes'] / 1e9:.2f} GB"
    if status != "ok":
        return f"{status}: {reason}"
    best = min((arm for arm in result["arms"] if arm["wall_us"]), key=lambda arm: arm["wall_us"]["p50"])
    ratio = best["paper"]["R_floor"]
    shown = "" if ratio is None else f", R_floor {ratio:.3f}"
    doubt = (result.get("controls") or {}).get("doubt")
    marked = f"; DOUBTED: {doubt}" if doubt else ""
    return f"ok: {entry_name(best)} {best['wall_us']['p50'] / 1000:.3f} ms{shown}{marked}"
