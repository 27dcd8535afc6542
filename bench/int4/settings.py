"""The flags of bench.int4, and what they come to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import torch
import typer

from bench.backends import int4 as kernels4
from bench.backends import modes_on
from bench.backends.int4 import Int4Kernel
from bench.backends.op_arms import peer_modes
from bench.core import cli, shards
from bench.core.cli import DTYPE_FLAGS
from bench.core.errors import flag_error
from bench.core.output_flags import OutputFlags
from bench.core.quant_flags import check_group_size
from bench.core.stop_rule import StopFlags
from bench.int4.predict import GPUS
from bench.plugins import plan as plugins
from bench.plugins.loading import KINDS, Journal, Plugin, load_int4, own_journal, parse_backends
from pykernels.models import ModelSpec

PARTS = ("shapes", "layer")
_ALL_PARTS = ",".join(PARTS)
_DEFAULT_MODES = {"cpu": "native,eager", "cuda": "graph,native,eager"}
_ARCHITECTURES = ("sm80", "sm89", "sm90a")

_OTHER_DTYPE = {torch.bfloat16: torch.float16, torch.float16: torch.bfloat16}
"""In which a kernel is measured that does not take the run's."""


@dataclass(kw_only=True)
class Settings(StopFlags, OutputFlags):
    """The flags of one run, and what they come to."""

    kernel: Annotated[
        str,
        typer.Option(
            "--kernel",
            help=f"comma-separated names, or plug-ins: {KINDS}; all: every one that is known, without plug-ins",
        ),
    ] = "all"
    what: Annotated[str, typer.Option("--what", help="comma-separated: shapes, layer")] = _ALL_PARTS
    model: cli.ModelsFlag = cli.ALL_STUDIED
    config: cli.ConfigFlag = ""
    group: Annotated[
        int,
        typer.Option("--group", help="columns a scale: 32, 64, multiples of 128; -1: the row. 0: 128, or all of them"),
    ] = 0
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="give every group a zero point of its own")] = False
    mode: Annotated[str, typer.Option("--mode", help=f"{cli.MODE_HELP}. Default: native,eager; on a GPU graph too")] = (
        ""
    )
    ctx: Annotated[int, typer.Option("--ctx", help="slots of the layer's cache")] = 2048
    batch: cli.BatchFlag = 1
    dtype: Annotated[
        str, typer.Option("--dtype", help="bf16, fp16 or fp32. Default: bf16, or all of them for --validate")
    ] = ""
    device: cli.DeviceFlag = "auto"
    l2: cli.L2Flag = "cold"
    warmup: cli.WarmupFlag = 3
    steps: cli.StepsFlag = 30
    repeats: cli.RepeatsFlag = 0
    threads: cli.ThreadsFlag = 0
    spec_gbs: cli.SpecFlag = 0.0
    seed: cli.SeedFlag = 0
    shard: shards.ShardFlag = ""
    validate: Annotated[bool, typer.Option("--validate", help="are the kernels right? Exit status 1: no")] = False
    arch: Annotated[str, typer.Option("--arch", help="sm89: check our SASS for that GPU, without one")] = ""
    predict: Annotated[str, typer.Option("--predict", help="predict our layer on that GPU: " + ", ".join(GPUS))] = ""
    plot: Annotated[str, typer.Option("--plot", help="draw the parts as bars (.png, .svg or .pdf)")] = ""
    plugin_timeout_s: plugins.TimeoutFlag = 300.0
    plugin_memory_gb: plugins.MemoryFlag = 0.0
    plugin_journal: plugins.JournalFlag = ""

    plugged: Sequence[plugins.Found] = field(default=(), init=False)
    """What the plug-ins' own processes found, set once they have run."""

    @cached_property
    def target(self) -> torch.device:
        """--device."""
        return cli.device(self.device)

    @property
    def dtype_name(self) -> str:
        """--dtype, of a run that measures."""
        return self.dtype or "bf16"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same as torch names it."""
        return cli.DTYPES[self.dtype_name]

    @property
    def group_size(self) -> int:
        """--group, of a run that measures."""
        return self.group or 128

    @cached_property
    def specs(self) -> list[ModelSpec]:
        """--model."""
        return cli.models(self.model, self.config)

    @cached_property
    def parts(self) -> list[str]:
        """--what."""
        return cli.choices("--what", self.what, PARTS)

    @cached_property
    def share(self) -> shards.Shard:
        """--shard: of the shapes, and of the layers."""
        return shards.parse(self.shard)

    @cached_property
    def modes(self) -> list[str]:
        """--mode."""
        return cli.modes("--mode", self.mode or _DEFAULT_MODES[self.target.type], modes_on(self.target))

    @cached_property
    def gpu(self) -> str:
        """--predict by NVIDIA's name for it; empty where it is not given."""
        return GPUS[cli.choice("--predict", self.predict, list(GPUS))] if self.predict else ""

    @cached_property
    def spec_bandwidth(self) -> tuple[float | None, str]:
        """The specified bandwidth, GB/s, and where it comes from."""
        return cli.spec_bandwidth(self.spec_gbs, self.target)

    @cached_property
    def journal(self) -> Journal | None:
        """Where this is a plug-in's own process: what it reports in."""
        return own_journal(self.plugin_journal, self.plugin_memory_gb) if self.plugin_journal else None

    @cached_property
    def named(self) -> tuple[list[str], list[Plugin]]:
        """--kernel: names, and plug-ins."""
        return parse_backends("--kernel", self.kernel, list(kernels4.registry()))

    @property
    def apart(self) -> list[Plugin]:
        """The plug-ins that processes of their own measure."""
        return [] if self.journal else self.named[1]

    @cached_property
    def kernels(self) -> dict[str, type[Int4Kernel]]:
        """What this process measures: in a plug-in's own process that plug-in last."""
        names, found = self.named
        kernels = {name: kernels4.registry()[name] for name in names}
        if self.journal:
            (plugin,) = found
            kernels[plugin.label] = load_int4(plugin, self.journal, self.target)
        return kernels

    @property
    def plugin_plan(self) -> plugins.Plan:
        """How the plug-ins are measured."""
        flags = [*self.shared_flags({"kernel", "mode", "what", "predict", "validate", "arch"}), "--what=shapes"]
        modes = [mode for mode in self.modes if mode in peer_modes(self.target)]
        return plugins.Plan("bench.int4", self.apart, modes, flags, [], self.plugin_timeout_s)

    @property
    def validation_flags(self) -> list[str]:
        """What a plug-in's validation in a process of its own is started with."""
        measured = {
            "what",
            "model",
            "config",
            "mode",
            "ctx",
            "batch",
            "predict",
            "repeats",
            "arch",
            "steps",
            "warmup",
            "shard",
        }
        return self.shared_flags({"kernel", "l2", "spec_gbs", *measured})

    @cached_property
    def unavailable(self) -> dict[str, str | None]:
        """By kernel: why it does not run on the device. Found once: a library may compile when it is imported."""
        return {name: kernel.availability(self.target) for name, kernel in self.kernels.items()}

    def kernels_by_dtype(self) -> dict[torch.dtype, dict[str, type[Int4Kernel]]]:
        """Every kernel in the run's dtype, or in the other half precision where it takes only that: there by a name
        that ends in it, and with our own beside it."""
        own, other = self.torch_dtype, _OTHER_DTYPE.get(self.torch_dtype)
        moved = {
            name for name, kernel in self.kernels.items()
            if not self.unavailable[name] and own not in (dtypes := kernel.dtypes_on(self.target)) and other in dtypes
        }  # fmt: skip
        found = {own: {name: kernel for name, kernel in self.kernels.items() if name not in moved}}
        if moved:
            assert other is not None
            found[other] = {
                f"{name}-{DTYPE_FLAGS[other]}": kernel
                for name, kernel in self.kernels.items() if name in moved or name == "native"
            }  # fmt: skip
        return found

    def check(self) -> None:
        """Raise UsageError for the first flag that does not fit the others."""
        if self.validate:
            self._check_validation()
        if self.arch:
            cli.choice("--arch", self.arch, _ARCHITECTURES)
            return
        assert self.named
        if self.dtype:
            cli.choice("--dtype", self.dtype, list(cli.DTYPES))
        if self.group:
            cli.group_size("--group", self.group)
        if not self.validate:
            self._check_measurement()
        assert self.kernels is not None

    def _check_validation(self) -> None:
        """A validation has shapes, batches and a number of calls of its own, and one document."""
        default = type(self)()
        for name in ("arch", "shard", "what", "model", "config", "mode", "ctx", "batch", "predict", "repeats"):
            if (value := getattr(self, name)) != getattr(default, name):
                raise flag_error(f"--{name}", value, "given without --validate, which has its own shapes and batches")
        if self.md or self.csv or self.plot:
            raise flag_error("--validate", "true", "given with --json alone: a validation has no other file")

    def _check_measurement(self) -> None:
        if self.gpu and "layer" not in self.parts:
            raise flag_error("--predict", self.predict, "given with --what=layer: it is the layer that is predicted")
        check_group_size("--group", self.group_size, self.specs)
        cli.number("--ctx", self.ctx, 1, min(spec.max_ctx for spec in self.specs))
        assert self.spec_bandwidth and self.modes
        for plugin in self.apart[:1]:
            if not self.plugin_plan.modes:
                raise flag_error(
                    "--mode", self.mode, f"with one of {', '.join(peer_modes(self.target))} for {plugin.text}"
                )
            if "shapes" not in self.parts:
                raise flag_error(
                    "--what", self.what, f"with shapes for {plugin.text}: a layer has our own kernels alone"
                )
