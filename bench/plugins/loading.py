"""Plug-ins, `FILE.py:Class` and `FILE.cu:kernel`: how they are named, loaded and watched.

A plug-in runs in a process of its own (bench.plugins). There it is loaded and wrapped, so that its process leaves a
note of where it stands, and so that what it writes outside its output is found. It is no sandbox.
"""

import inspect
import json
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.base import MODES, Backend, Workload
from bench.backends.int4.base import Int4Kernel
from bench.backends.op_arms import Maker, peer_modes, plugin_arm
from bench.backends.op_cases import Case, Instance
from bench.backends.op_plugin import AttentionPlugin, Guarded, OpPlugin, changed
from bench.core import cli, gpu_state
from bench.core.document import tame
from bench.core.errors import UsageError, one_line, plain
from bench.core.files import read_file, write_atomically
from bench.core.measure import Arm, Check, Drive, Watch, as_check, unsupported
from bench.core.paths import user_path
from bench.core.samplers import Samplers
from bench.plugins import tampering
from bench.plugins.cuda_kernel import KERNELS
from bench.plugins.cuda_source import CudaSource, SourceError
from bench.plugins.user_file import run_file
from pykernels.layer import available_bytes

KINDS = "FILE.py:Class or FILE.cu:kernel"

_MOST_BYTES = 16 << 20
"""Of a note that a plug-in's process leaves."""

_MEMORY_SHARE = 0.9
"""Of the memory that is available, a plug-in's process may take so much."""


@dataclass(frozen=True)
class Plugin:
    """One plug-in as `flag` named it. `label` is its name in tables: the file's name without its folder."""

    path: Path
    name: str
    text: str
    flag: str = "--backend"

    @property
    def label(self) -> str:
        """FILE.py:Class"""
        return f"{self.path.name}:{self.name}"

    def error(self, words: object) -> UsageError:
        """`--backend=FILE.py:Class: words`"""
        return UsageError(f"{self.flag}={self.text}: {words}")

    def source(self) -> CudaSource | None:
        """The checked source of a .cu; None of a .py. Raises UsageError where there is no such file or kernel."""
        if not self.path.is_file():
            raise self.error(
                f"must be a file that exists, and {self.path} is " + ("a folder" if self.path.is_dir() else "none")
            )
        if self.path.suffix == ".py":
            return None
        try:
            return CudaSource.read(self.path, self.name)
        except (SourceError, OSError) as error:
            raise self.error(error) from None


def parse_backends(flag: str, text: str, allowed: Sequence[str]) -> tuple[list[str], list[Plugin]]:
    """A comma-separated flag as names and plug-ins. Raises UsageError for what is neither, or is not there."""
    names: list[str] = []
    plugins: dict[str, Plugin] = {}
    for part in text.split(","):
        path, _, name = part.strip().rpartition(":")
        if path.endswith((".py", ".cu")):
            plugin = Plugin(user_path(flag, path), name, part.strip(), flag)
            if not name.isidentifier():
                raise plugin.error(f"must be {KINDS}")
            plugin.source()
            if plugins.setdefault(plugin.label, plugin).path != plugin.path:
                raise plugin.error(f"must be the only plug-in that is called {plugin.label}")
        else:
            names.append(part)
    try:
        return (cli.choices(flag, ",".join(names), allowed) if names else []), list(plugins.values())
    except UsageError as error:
        raise UsageError(f"{error}, or {KINDS}") from None


def load(plugin: Plugin) -> type:
    """The plug-in's class: runs its file. Raises UsageError where it has none of that name, or an abstract one."""
    if source := plugin.source():
        return type(plugin.name, (KERNELS[source.op],), {"source": source})
    module = run_file(plugin.path)
    found = getattr(module, plugin.name, None)
    if not inspect.isclass(found):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        classes = ", ".join(name for name in own if inspect.isclass(getattr(module, name)))
        raise plugin.error(f"must name a class of the file, which has {classes or 'none'}")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise plugin.error(f"{plugin.name} lacks {', '.join(missing)}")
    if issubclass(found, AttentionPlugin):
        try:
            inspect.signature(found.attend).bind(*range(6))
        except TypeError as error:
            raise plugin.error(f"{plugin.name}.attend must take q, k_cache, v_cache, kv_len, out: {error}") from None
    return found


class Journal:
    """Files in which a plug-in's process says where it stands, for the process that waits for it.

    `modes`: why it has not each mode, or null; `refused`: why it is no plug-in; `raised`: with what its file ended;
    `lost`: the error that took the device along; `begun` and `trials`: of a validation, what it began and how that
    ended; `state`: what is being done to which mode. That last one is a write of a few bytes between timed regions.
    `before` is no file: what stood where before the plug-in was loaded (bench.plugins.tampering).
    """

    _WIDTH = 64

    def __init__(self, folder: Path) -> None:
        self.folder, self._now = folder, ("", "")
        self.before: dict[str, object] = {}
        self._state: int | None = None

    def note(self, doing: str, mode: str) -> None:
        """Say what is being done, to which mode."""
        if self._state is None:
            self._state = os.open(self.folder / "state", os.O_WRONLY | os.O_CREAT, 0o600)
        self._now = (doing, mode)
        os.pwrite(self._state, f"{doing}\t{mode}".ljust(self._WIDTH).encode(), 0)

    def state(self) -> tuple[str, str]:
        """(what is being done, to which mode); empty where nothing of the plug-in's is."""
        doing, _, mode = self._text("state").strip().partition("\t")
        return plain(doing), mode

    def _text(self, name: str) -> str:
        """What such a note holds; empty where there is none, or something else in its place. The plug-in can write here
        as well as its process can."""
        with suppress(UsageError):
            return read_file(self.folder / name, _MOST_BYTES).decode(errors="replace")
        return ""

    @contextmanager
    def during(self, doing: str, mode: str = "") -> Iterator[None]:
        """Note what is being done. What ends the process leaves the note as it is."""
        before = self._now
        self.note(doing, mode)
        try:
            yield
        except Exception as error:
            self.end_if_lost(type(error).__name__)
            self.note(*before)
            raise
        self.note(*before)

    def end_if_lost(self, error: str) -> None:
        """End the process where an error of that class took the device along: nothing can be measured any more, and
        everything else would take the blame."""
        if torch.cuda.is_available() and (words := gpu_state.lost_device()):
            self.write("lost", f"{error}: {words}")
            os._exit(1)

    def append(self, name: str, value: object) -> None:
        """Add a line to the notes of that name: it outlives the process, and costs no wait for the disk."""
        with (self.folder / name).open("a") as file:
            file.write(json.dumps(value) + "\n")

    def lines(self, name: str) -> list[Any]:
        """Those lines, less one that was cut off."""
        with suppress(ValueError, RecursionError):
            return [tame(json.loads(line)) for line in self._text(name).splitlines(True) if line[-1] == "\n"]
        return []

    def write(self, name: str, value: object) -> None:
        """Leave a note of another name."""
        write_atomically(self.folder / name, json.dumps(value).encode())

    def read(self, name: str) -> Any:
        """That note; None where there is none."""
        with suppress(ValueError, RecursionError):
            return tame(json.loads(self._text(name)))
        return None


def own_journal(folder: str, memory_gb: float) -> Journal:
    """In a plug-in's own process, before its file is run: its journal. From here on the process may take `memory_gb`
    10^9 bytes, by default (0) nine tenths of what is available now.

    The limit is RLIMIT_DATA: private memory that can be written. Address space that is reserved without access, which
    the CUDA driver takes by the TB and for which RLIMIT_AS is no use, does not count.
    """
    n_bytes = int(memory_gb * 1e9) or int(_MEMORY_SHARE * available_bytes(torch.device("cpu")))
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (n_bytes if most == resource.RLIM_INFINITY else min(n_bytes, most), most))
    return Journal(Path(folder))


def _noted(check: Callable[..., pk.reference.Comparison], mode: str, journal: Journal) -> Check:
    """`check`, noted in the journal, with a look at what the plug-in replaced in this process."""

    def noted(drive: Drive | None = None, watch: Watch | None = None) -> pk.reference.Comparison:
        with journal.during("checked", mode):
            comparison = as_check(check)(drive, watch)
            words = tampering.replaced(journal.before) if journal.before else None
            return replace(comparison, ok=False, message=words) if words else comparison

    return noted


def _watch_runs(arm: Arm, journal: Journal) -> None:
    """Have the arm's runs noted in the journal."""
    own = arm.surroundings

    @contextmanager
    def surroundings() -> Iterator[None]:
        with journal.during("measured", arm.mode), own():
            yield

    arm.surroundings = surroundings


def watch(arm: Arm, journal: Journal) -> None:
    """Have the arm's check and runs noted in the journal."""
    assert arm.check is not None
    arm.check = _noted(arm.check, arm.mode, journal)
    _watch_runs(arm, journal)


def _watch(arm: Arm, check: Check, plugin: Plugin, journal: Journal) -> Arm:
    """The arm under the plug-in's label, with `check`; both are noted in the journal."""
    arm.backend, arm.check = plugin.label, check
    watch(arm, journal)
    return arm


@dataclass
class _Trespass:
    """What is written beside `guards` and into `inputs` (bench.core.measure.Watch).

    slot: of every input, a cache, what a step may write. poison: fill the guarded outputs with NaN.
    """

    guards: Sequence[Guarded]
    inputs: Mapping[str, Tensor]
    slot: int | None
    poison: bool

    def begin(self) -> None:
        self._before = {name: tensor.clone() for name, tensor in self.inputs.items()}
        for guard in self.guards if self.poison else ():
            guard.poison()

    def end(self) -> str | None:
        found = [guard.overrun() for guard in self.guards]
        found += [changed(name, tensor, self._before[name], self.slot) for name, tensor in self.inputs.items()]
        return next(filter(None, found), None)


def guarded_check(
    check: Callable[..., pk.reference.Comparison],
    guards: Sequence[Guarded],
    inputs: Mapping[str, Tensor],
    slot: int | None = None,
) -> Check:
    """`check` with a look at what was written beside the outputs."""

    def guarded(drive: Drive | None = None, watch: Watch | None = None) -> pk.reference.Comparison:
        return as_check(check)(drive, _Trespass(guards, inputs, slot, poison=drive is None))

    return guarded


def watched_layer(plugin: Plugin, backend: type[Backend], journal: Journal) -> type[Backend]:
    """The backend under the plug-in's label, with every call of its code noted in the journal, and outputs guarded."""
    layer_outputs: list[Guarded] = []

    base: Any = backend  # known when it runs

    class Watched(base):
        name = plugin.label

        def arm(self, workload: Workload, mode: str, fusion: str | None) -> Arm:
            if not layer_outputs:
                for layer in workload.layers:
                    layer_outputs.append(Guarded("the layer's out", layer.out.shape, layer.dtype, layer.device))
                    layer.out = layer_outputs[-1].tensor
            with journal.during("made", mode):
                arm: Arm = super().arm(workload, mode, fusion)
            if arm.check is None:
                raise ValueError("its arm has no check: nothing is timed that was not compared with the reference")
            first = workload.layers[0]
            guards = [*layer_outputs, *(self.guards if isinstance(self, AttentionPlugin) else [])]
            caches = {"k_cache": first.k_cache, "v_cache": first.v_cache}
            return _watch(arm, guarded_check(arm.check, guards, caches, int(first.position[0])), plugin, journal)

    return Watched


@contextmanager
def _loading(plugin: Plugin, journal: Journal) -> Iterator[type]:
    """The plug-in's class, noted as being loaded; a UsageError is left in the journal."""
    journal.before = tampering.state()
    with journal.during("loaded"):
        try:
            yield load(plugin)
        except UsageError as error:
            journal.write("refused", str(error))
            raise
        except Exception as error:  # its message may be longer than what is kept of stderr
            journal.write("raised", one_line(error))
            raise


def _note_modes(journal: Journal, backend: type[Backend], device: torch.device) -> None:
    """Leave in the journal why the backend has not each mode on the device, or null."""
    nowhere = backend.availability(device)
    journal.write("modes", {mode: nowhere or backend.mode_reason(mode, device) for mode in MODES})


def load_layer(plugin: Plugin, journal: Journal, device: torch.device) -> type[Backend]:
    """The plug-in as a backend of a layer, watched; its modes on the device are noted."""
    with _loading(plugin, journal) as found:
        if not issubclass(found, Backend):
            is_op = issubclass(found, OpPlugin | Int4Kernel) and f"computes op {found.op}, and a layer takes gqa_decode"
            raise plugin.error(is_op or "must be a subclass of bench.backends.AttentionPlugin or Backend")
        _note_modes(journal, found, device)
    return watched_layer(plugin, found, journal)


@dataclass(frozen=True)
class WatchedAttention:
    """An attention plug-in in its own process of bench.attention."""

    label: str
    backend: type[AttentionPlugin]
    journal: Journal

    def check(self, arm: Arm, adapter: AttentionPlugin, inputs: Any) -> Check:
        """The arm's check, noted, with a look at what the plug-in writes beside its outputs, and into `inputs`: of
        bench.attention, `q`, `k_cache` and `v_cache`."""
        tensors = {name: getattr(inputs, name) for name in ("q", "k_cache", "v_cache")}
        assert arm.check is not None
        return _noted(guarded_check(arm.check, adapter.guards, tensors), arm.mode, self.journal)

    def watch(self, arm: Arm) -> None:
        """Have the arm's runs noted."""
        _watch_runs(arm, self.journal)


def load_attention(plugin: Plugin, journal: Journal, device: torch.device) -> WatchedAttention:
    """The plug-in as a backend of bench.attention; its modes on the device are noted."""
    with _loading(plugin, journal) as found:
        if not issubclass(found, AttentionPlugin):
            raise plugin.error("must be a subclass of bench.backends.AttentionPlugin, or a kernel of op gqa_decode")
        _note_modes(journal, found, device)
    return WatchedAttention(plugin.label, found, journal)


def load_op(plugin: Plugin, journal: Journal, op: str) -> Maker:
    """The plug-in as a maker of the arms of bench.op, watched."""
    with _loading(plugin, journal) as found:
        if issubclass(found, Int4Kernel):
            raise plugin.error("is a 4-bit kernel, which bench.int4 takes, by --kernel")
        if not issubclass(found, OpPlugin):
            raise plugin.error("must be a subclass of bench.backends.AttentionPlugin or OpPlugin")
        if found.op != op:
            raise plugin.error(f"computes op {found.op}, and --op is {op}")

    def make(case: Case, instances: list[Instance], mode: str, samplers: Samplers) -> Arm | None:
        if mode not in peer_modes(samplers.device):
            return None
        if reason := found.availability(samplers.device) or found.inputs_reason(instances[0].inputs):
            return unsupported(plugin.label, mode, reason)
        outs = [Guarded("out", instance.out.shape, case.dtype, samplers.device) for instance in instances]
        with journal.during("made", mode):
            arm = plugin_arm(found(), case, instances, [out.tensor for out in outs], mode, samplers)
        assert arm.check is not None
        return _watch(arm, guarded_check(arm.check, outs, instances[0].inputs), plugin, journal)

    return make


def load_int4(plugin: Plugin, journal: Journal, device: torch.device) -> type[Int4Kernel]:
    """The plug-in as a kernel of bench.int4, called by its label; whether it runs on the device is noted."""
    with _loading(plugin, journal) as found:
        if not issubclass(found, Int4Kernel):
            raise plugin.error("must be a subclass of bench.backends.int4.Int4Kernel, or a kernel of op int4_gemv")
        found.name = plugin.label
        journal.write("modes", dict.fromkeys(peer_modes(device), found.availability(device)))
    return found
