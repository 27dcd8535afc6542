"""Plug-ins, `FILE.py:Class` and `FILE.cu:kernel`: how they are named, loaded and watched.

A plug-in runs in a process of its own (bench.plugins). There it is loaded and wrapped, so that its process leaves a
note of where it stands, and so that what it writes outside its output is found. It is no sandbox.
"""

import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.attention_plugin import AttentionPlugin, Guarded
from bench.backends.base import MODES, Backend, Workload
from bench.backends.cuda_kernel import CudaAttention
from bench.backends.cuda_source import CudaSource, SourceError
from bench.core import cli
from bench.core.errors import UsageError
from bench.core.measure import Arm

KINDS = "FILE.py:Class or FILE.cu:kernel"


@dataclass(frozen=True)
class Plugin:
    """One plug-in as it was asked for. `label` is its backend's name in tables: the file's name without its folder."""

    path: Path
    name: str
    text: str

    @property
    def label(self) -> str:
        """FILE.py:Class"""
        return f"{self.path.name}:{self.name}"

    def error(self, words: object) -> UsageError:
        """`--backend=FILE.py:Class: words`"""
        return UsageError(f"--backend={self.text}: {words}")

    def source(self) -> CudaSource | None:
        """The checked source of a .cu; None of a .py. Raises UsageError where there is no such file or kernel."""
        if not self.path.is_file():
            raise self.error(f"must be a file that exists, and {self.path} is " + ("a folder" if self.path.is_dir() else "none"))
        if self.path.suffix == ".py":
            return None
        try:
            return CudaSource.read(self.path, self.name)
        except (SourceError, OSError) as error:
            raise self.error(error) from None


def parse_backends(flag: str, text: str, allowed: Sequence[str]) -> tuple[list[str], list[Plugin]]:
    """A comma-separated --backend as names and plug-ins. Raises UsageError for what is neither, or is not there."""
    names, plugins = [], {}
    for part in text.split(","):
        path, _, name = part.strip().rpartition(":")
        if path.endswith((".py", ".cu")):
            plugin = Plugin(Path(path).expanduser(), name, part.strip())
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


def load(plugin: Plugin) -> type[Backend]:
    """The plug-in's backend: runs its file. Raises UsageError where it has no such class, or one of another interface."""
    if source := plugin.source():
        if source.op != "gqa_decode":
            raise plugin.error(f"is a kernel of op={source.op}: a layer takes one of op=gqa_decode, bench.op takes both")
        return type(plugin.name, (CudaAttention,), {"source": source})
    module_spec = importlib.util.spec_from_file_location(f"launchtax_plugin_{plugin.path.stem}", plugin.path)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    sys.path.insert(0, str(plugin.path.resolve().parent))  # as for a script: files beside it can be imported
    module_spec.loader.exec_module(module)
    found = getattr(module, plugin.name, None)
    if not inspect.isclass(found):
        classes = [name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__]
        raise plugin.error(f"must name a class of the file, which has {', '.join(classes) or 'none'}")
    if not issubclass(found, Backend):
        raise plugin.error(f"{plugin.name} must be a subclass of bench.backends.AttentionPlugin or Backend")
    if missing := sorted(found.__abstractmethods__):
        raise plugin.error(f"{plugin.name} lacks {', '.join(missing)}")
    if issubclass(found, AttentionPlugin):
        try:
            inspect.signature(found.attend).bind(*range(6))
        except TypeError as error:
            raise plugin.error(f"{plugin.name}.attend must take (self, q, k_cache, v_cache, kv_len, out): {error}") from None
    return found


class Journal:
    """Files in which a plug-in's process says where it stands, for the process that waits for it.

    `modes`: why it has not each mode, or null; `refused`: why it is no plug-in; `lost`: the error that took the device
    along; `state`: what is being done to which mode. That last one is a write of a few bytes between timed regions.
    """

    _WIDTH = 64

    def __init__(self, folder: Path) -> None:
        self.folder, self._now = folder, ("", "")
        self._state = os.open(folder / "state", os.O_RDWR | os.O_CREAT, 0o600)

    def _note(self, doing: str, mode: str) -> None:
        self._now = (doing, mode)
        os.pwrite(self._state, f"{doing}\t{mode}".ljust(self._WIDTH).encode(), 0)

    def state(self) -> tuple[str, str]:
        """(what is being done, to which mode)"""
        doing, _, mode = os.pread(self._state, self._WIDTH, 0).decode().strip().partition("\t")
        return doing, mode

    @contextmanager
    def during(self, doing: str, mode: str = "") -> Iterator[None]:
        """Note what is being done. What ends the process leaves the note as it is."""
        before = self._now
        self._note(doing, mode)
        try:
            yield
        except Exception as error:
            if torch.cuda.is_available() and (words := _lost_device()):
                self.write("lost", f"{type(error).__name__}: {words}")
                os._exit(1)  # nothing can be measured any more, and every other arm would take the blame
            self._note(*before)
            raise
        self._note(*before)

    def write(self, name: str, value: object) -> None:
        """Leave a note of another name."""
        (self.folder / name).write_text(json.dumps(value))

    def read(self, name: str) -> object:
        """That note; None where there is none."""
        with suppress(OSError, ValueError):
            return json.loads((self.folder / name).read_text())
        return None


def _lost_device() -> str | None:
    """CUDA's words where its context is beyond use, as after an illegal access."""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).strip().splitlines()[0]
    return None


def _unchanged(name: str, cache: Tensor, before: Tensor, slot: int) -> str | None:
    """Where `cache` [batch, n_kv_heads, slots, head_dim] is not what it was, `slot` left out; None where it is."""
    bits = {2: torch.int16, 4: torch.int32}[cache.element_size()]  # NaN is equal to itself
    different = cache.view(bits) != before.view(bits)
    different[:, :, slot] = False
    if not different.any():
        return None
    index = different.nonzero()
    return f"wrote into {name} outside its slot {slot}: {len(index)} elements changed, the first at {index[0].tolist()}"


def _watched_check(arm: Arm, workload: Workload, guards: Sequence[Guarded], journal: Journal) -> Callable:
    """The arm's check, and after it a look at what the step wrote beside its outputs."""
    check, layer = arm.check, workload.layers[0]

    def watched() -> pk.reference.Comparison:
        slot = int(layer.position[0])
        caches = {"k_cache": layer.k_cache, "v_cache": layer.v_cache}
        before = {name: cache.clone() for name, cache in caches.items()}
        for guard in guards:
            guard.poison()
        with journal.during("checked", arm.mode):
            comparison = check()
        found = [guard.overrun() for guard in guards]
        found += [_unchanged(name, cache, before[name], slot) for name, cache in caches.items()]
        words = next(filter(None, found), None)
        return replace(comparison, ok=False, message=words) if words else comparison

    return watched


def watched(backend: type[Backend], plugin: Plugin, journal: Journal) -> type[Backend]:
    """The backend under the plug-in's label, with every call of its code noted in the journal, and outputs guarded."""
    layer_outputs: list[Guarded] = []

    class Watched(backend):
        name = plugin.label

        def arm(self, workload: Workload, mode: str, fusion: str | None) -> Arm:
            if not layer_outputs:
                for layer in workload.layers:
                    layer_outputs.append(Guarded("the layer's out", layer.out.shape, layer.dtype, layer.device))
                    layer.out = layer_outputs[-1].tensor
            with journal.during("made", mode):
                arm = super().arm(workload, mode, fusion)
            if arm.check is None:
                raise ValueError("its arm has no check: nothing is timed that was not compared with the oracle")
            arm.backend, arm.mode = plugin.label, mode
            guards = [*layer_outputs, *(self.guards if isinstance(self, AttentionPlugin) else [])]
            arm.check = _watched_check(arm, workload, guards, journal)
            own = arm.surroundings

            @contextmanager
            def surroundings() -> Iterator[None]:
                with journal.during("measured", mode), own():
                    yield

            arm.surroundings = surroundings
            return arm

    return Watched


def load_watched(plugin: Plugin, journal: Journal, device: torch.device) -> type[Backend]:
    """load() and watched(), and a note of the modes that it has on the device."""
    with journal.during("loaded"):
        try:
            backend = load(plugin)
        except UsageError as error:
            journal.write("refused", str(error))
            raise
        nowhere = backend.availability(device)
        journal.write("modes", {mode: nowhere or backend.mode_reason(mode, device) for mode in MODES})
    return watched(backend, plugin, journal)
