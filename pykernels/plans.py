"""The table of launch plans: a small file that chooses, for an op of given sizes, another plan than the built-in one.

    pk.runtime.set_plan_table("plans.json")       # every launch from now on; None: the built-in plans again
    pk.runtime.plan_table()                       # which file that is, with its hash; None: the built-in plans

The environment variable PYKERNELS_PLANS=FILE does the same for a whole process. ``python -m bench.tune`` writes the
file, and says in it which card, build and measurements it is of. A file of another build, or of another card or number
of threads, is refused: nothing runs with plans that were chosen elsewhere. A plan that its op cannot run with raises
ValueError at the launch.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import torch

from pykernels import _runtime
from pykernels.files import read_regular, user_path

SCHEMA: Final = "launchtax-plans/1"
VARIABLE = "PYKERNELS_PLANS"
_MOST_BYTES = 1 << 22

_Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
_Ratio = Annotated[float, msgspec.Meta(gt=0)]


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is chosen for an op of these sizes. `choice`: the name of a kernel, and fields of its plan, as
    csrc/plan_choice.h describes them. `ratio_to_built_in`: the built-in plan's time over this one's when it was
    measured, with its 95% interval. `order_of_sums`: whether results are those of the built-in plan bit for bit."""

    op: str
    sizes: dict[str, _Size]
    batch: Annotated[int, msgspec.Meta(ge=1, le=8)]
    dtype: Literal["bf16", "fp16", "fp32"]
    choice: dict[str, _Count | str]
    ratio_to_built_in: tuple[_Ratio, _Ratio, _Ratio] | None = None
    order_of_sums: Literal["same", "other"] | None = None

    def entry(self) -> tuple[str, dict[str, int], int, str, str, dict[str, int]]:
        """As csrc/binding/plans_module.cpp takes it. Raises ValueError for a kernel that is no word, and for a
        field that is not an integer."""
        kernel = self.choice.get("kernel", "")
        numbers: dict[str, int] = {}
        for name, value in self.choice.items():
            if name == "kernel":
                continue
            if not isinstance(value, int):
                raise ValueError(f"{self.op}: choice: {name} must be an integer, got {value}")
            numbers[name] = value
        if not isinstance(kernel, str):
            raise ValueError(f"{self.op}: choice: kernel must be a word, got {kernel}")
        return self.op, self.sizes, self.batch, self.dtype, kernel, numbers


class PlanFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of plans. `card`: the GPU's name, or the CPU's with `threads` and `isa`; `build`: the hash of the C++ and
    CUDA sources, `source_hashes` of build_info()."""

    schema: Literal["launchtax-plans/1"]
    device: Literal["cpu", "cuda"]
    card: str
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] | None
    isa: str | None
    build: str
    commit: str | None
    created: str
    command: str
    margin: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    plans: list[Plan]


@dataclass(frozen=True)
class PlanTable:
    """The table that is set: the file's name, its SHA-256 and what it says."""

    name: str
    sha256: str
    file: PlanFile

    def misfit(self, device: torch.device, name: bool = True) -> str | None:
        """Why its plans are not for that device, in words; None where they are. name: ask CUDA for the card's name."""
        if device.type != self.file.device:
            return f"its plans are for {self.file.card}, and this runs on {device.type}"
        if device.type == "cuda" and name and (card := torch.cuda.get_device_name(device)) != self.file.card:
            return f"its plans are for {self.file.card}, and this is {card}"
        return None


@cache
def cpu_name() -> str:
    """The CPU's name, as the system has it."""
    with suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1].strip()
    return "unknown CPU"


def build_hash() -> str:
    """What `build` of a file must be here."""
    return str(_runtime.build_info()["source_hashes"]["csrc"])


_table: PlanTable | None = None
_refusal: str | None = None


def plan_table() -> PlanTable | None:
    """The table that :func:`set_plan_table` or PYKERNELS_PLANS set; None: the built-in plans decide.

    Raises ValueError where the variable names a file that cannot be used: every launch that would look into it raises
    the same.
    """
    if _refusal is not None:
        raise ValueError(_refusal)
    return _table


def set_plan_table(path: str | Path | None) -> None:
    """Take the launch plans of that file from now on, in all threads; None: the built-in plans.

    Graphs that were captured keep the plans that they were captured with. Workspaces are to be made again: one that is
    too small for the new plan is refused when an op runs. Raises ValueError, one line with the file, the field and what
    is allowed, where it is no such file or is of another build, card, number of threads or instruction set; then the
    plans stay what they were.
    """
    global _table, _refusal
    if path is None:
        _runtime.clear_plan_table()
        _table = _refusal = None
        return
    table = _read(path, str(path))
    _install(str(path), table)
    _table, _refusal = table, None


def _read(path: str | Path, name: str) -> PlanTable:
    try:
        content = read_regular(user_path(path))
        if len(content) > _MOST_BYTES:
            raise ValueError(f"{len(content)} bytes are no file of plans")
        file = msgspec.json.decode(content, type=PlanFile)
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # msgspec's are ValueErrors too
        raise ValueError(f"{name}: is not a file of plans: {error}") from None
    if file.build != build_hash():
        raise ValueError(
            f"{name}: its plans are for the build of sources {file.build}, and this is {build_hash()}: "
            "python -m bench.tune chooses them anew"
        )
    if file.device == "cpu":
        for what, wanted, here in (
            ("card", file.card, cpu_name()), ("isa", file.isa, _runtime.isa()),
            ("threads", file.threads, _runtime.num_threads()),
        ):  # fmt: skip
            if wanted != here and not (what == "threads" and wanted is not None):  # their number may still be set
                raise ValueError(f"{name}: {what} must be {here}, that of this machine, got {wanted}")
    elif not file.card:
        raise ValueError(f"{name}: card must be a GPU's name")
    return PlanTable(Path(path).name, hashlib.sha256(content).hexdigest(), file)


def _install(name: str, table: PlanTable) -> None:
    file = table.file
    try:
        entries = [plan.entry() for plan in file.plans]
        card = file.card if file.device == "cuda" else ""
        _runtime.set_plan_table(name, card, file.threads or 0, "", entries)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name}: {str(error).splitlines()[0]}") from None


@contextmanager
def choosing(plan: Plan | None, device: str, card: str) -> Iterator[None]:
    """While it lasts that one plan is chosen on that device ("cpu" or "cuda") of that name, and the built-in ones for
    all else; None: for all. Afterwards the table is again what it was."""
    if plan is None:
        _runtime.clear_plan_table()
    else:
        of = card if device == "cuda" else ""
        _runtime.set_plan_table("the plan that is tried", of, _runtime.num_threads(), "", [plan.entry()])
    try:
        yield
    finally:
        _runtime.clear_plan_table()
        if _table is not None:
            _install(_table.name, _table)


def take_from_environment() -> None:
    """PYKERNELS_PLANS, when the package is imported. A file that cannot be used is no failure of the import: whoever
    launches is told."""
    global _table, _refusal
    path = os.environ.get(VARIABLE, "")
    if not path:
        return
    try:
        table = _read(path, f"{VARIABLE}={path}")
        _install(f"{VARIABLE}={path}", table)
    except ValueError as error:
        _refusal = str(error)
        _runtime.set_plan_table(VARIABLE, "", 0, _refusal, [])
    else:
        _table, _refusal = table, None
