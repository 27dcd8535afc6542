"""The flags of bench.attention, and what they come to."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
import typer

import pykernels as pk
from bench.attention import aa as attention_aa
from bench.attention.arms import MANAGERS, MODES, NAMES, SDPA_KERNELS, Plan
from bench.attention.cases import Cell, cells, parse_heads
from bench.core import cli, shards
from bench.core.copies import weight_copies
from bench.core.errors import UsageError, flag_error
from bench.core.flags import Flags
from bench.core.kept import KeepFlag
from bench.core.output_flags import OutputFlags
from bench.core.softmax_flags import SoftmaxFlags
from bench.core.stop_rule import StopFlags
from bench.core.unified import UNIFIED
from bench.plugins import plan as plugins
from bench.plugins.loading import Plugin, WatchedAttention, load_attention, own_journal, parse_backends

MAX_CTX = 131072
"""Of attention alone: no position is rotated here, so no model's limit holds."""

_ONLY_BY_NAME = ("flex", UNIFIED)
"""flex compiles at every shape, which takes longer than measuring it; native-unified is for who asks by --softmax."""


_DEFAULT_MODES = {"cpu": "eager,graph", "cuda": "all"}


@dataclass(kw_only=True)
class Settings(StopFlags, SoftmaxFlags, OutputFlags):
    """The flags of one run, and what they come to."""

    NOT_SHARED = Flags.NOT_SHARED | {"sessions", "limit_s", "keep", "resume", "backend", "softmax", "aa", "mode",
                                      "trace_kernels"}  # fmt: skip

    model: Annotated[
        str,
        typer.Option(
            "--model",
            help=f"comma-separated: {cli.MODEL_WORDS}; all is study. Default: study; on a CPU tiny",
        ),
    ] = ""
    ctx: Annotated[
        str, typer.Option("--ctx", help="comma-separated contexts. Default: 1024 to 65536; on a CPU 256,1024")
    ] = ""
    heads: Annotated[
        str, typer.Option("--heads", help="comma-separated: other heads than the models', as 64/8 or 64/8x128")
    ] = ""
    batch: Annotated[str, typer.Option("--batch", help="comma-separated batches")] = "1,4"
    backend: Annotated[
        str,
        typer.Option("--backend", help=f"comma-separated: {', '.join(NAMES)}, plug-ins; all. Default: all but flex"),
    ] = ""
    aa: Annotated[str, typer.Option("--aa", help="A/A control: backends to register once more, as NAME@2")] = ""
    gate: Annotated[bool, typer.Option("--gate", help="compare every arm with the reference; time nothing")] = False
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            help="comma-separated, or all. eager: calls from Python; native: the captured call launched again by a "
            "C++ loop; graph: a replayed graph. Default: all on a GPU; on a CPU eager, graph",
        ),
    ] = ""
    context_manager: Annotated[
        str, typer.Option("--context-manager", help="where SDPA's is entered: outside the timed call, inside, or both")
    ] = "outside"
    sdpa_from: Annotated[
        str, typer.Option("--sdpa-from", help=f"what default SDPA may choose: {', '.join(SDPA_KERNELS)}; all")
    ] = "all"
    sessions: Annotated[
        int,
        typer.Option(
            "--sessions",
            help="fresh processes; 0: in this one",
            callback=cli.checked(cli.number, "--sessions", 0, 1000),
        ),
    ] = 3
    calls: Annotated[
        int,
        typer.Option(
            "--calls",
            help="measured calls of an arm, on each clock",
            callback=cli.checked(cli.number, "--calls", 2, 100_000),
        ),
    ] = 300
    warmup: Annotated[
        int,
        typer.Option(
            "--warmup", help="untimed calls before them", callback=cli.checked(cli.number, "--warmup", 0, 10_000)
        ),
    ] = 50
    limit_s: Annotated[
        float,
        typer.Option("--limit-s", help="seconds a session may take", callback=cli.checked(cli.seconds, "--limit-s")),
    ] = 1800.0
    dtype: cli.DtypeFlag = "bf16"
    device: cli.DeviceFlag = "auto"
    l2: Annotated[
        str,
        typer.Option(
            "--l2",
            help="cold: rotate copies of the cache past the L2; warm: one",
            callback=cli.checked(cli.choice, "--l2", ("cold", "warm")),
        ),
    ] = "cold"
    threads: cli.ThreadsFlag = 0
    spec_gbs: cli.SpecFlag = 0.0
    seed: cli.SeedFlag = 0
    trace_kernels: Annotated[
        bool, typer.Option("--trace-kernels/--no-trace-kernels", help="name the kernels, and time them by CUPTI")
    ] = True
    shard: shards.ShardFlag = ""
    keep: KeepFlag = ""
    resume: Annotated[
        bool, typer.Option("--resume", help="with --sessions=0: go on with the cells that --json has")
    ] = False
    plugin_timeout_s: plugins.TimeoutFlag = 300.0
    plugin_memory_gb: plugins.MemoryFlag = 0.0
    plugin_journal: plugins.JournalFlag = ""
    plot: Annotated[str, typer.Option("--plot", help="draw bars, and times over contexts (.png, .svg or .pdf)")] = ""

    @cached_property
    def target(self) -> torch.device:
        """--device."""
        return cli.device(self.device)

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.target.type == "cuda"

    @cached_property
    def models(self) -> list[str]:
        """--model, or by the device where neither that nor --heads is given."""
        wanted = self.model or ("" if self.heads else "all" if self.on_cuda else "tiny")
        if wanted == "all":
            return list(cli.STUDIED)
        return cli.model_names("--model", wanted) if wanted else []

    @cached_property
    def cells(self) -> list[Cell]:
        """Head shapes x contexts x batches; of --shard its share."""
        default = "1024,2048,4096,8192,16384,32768,65536" if self.on_cuda else "256,1024"
        specs = [*map(pk.models.get, self.models), *parse_heads("--heads", self.heads)]
        contexts = cli.numbers("--ctx", self.ctx or default, 1, MAX_CTX, int)
        every = cells(specs, contexts, cli.numbers("--batch", self.batch, 1, 8, int))
        self.share.check(len(every))
        return self.share.of(every, lambda cell: cell.bytes(self.torch_dtype))

    @cached_property
    def share(self) -> shards.Shard:
        """--shard."""
        return shards.parse(self.shard)

    @cached_property
    def named(self) -> tuple[list[str], list[Plugin]]:
        """--backend: names, and plug-ins."""
        default = ",".join(name for name in NAMES if name not in _ONLY_BY_NAME)
        names, found = parse_backends("--backend", self.backend or default, NAMES)
        return self.with_softmax(names), found

    @cached_property
    def watched(self) -> WatchedAttention | None:
        """The plug-in whose own process this is."""
        if not self.plugin_journal:
            return None
        _, (plugin,) = self.named
        return load_attention(plugin, own_journal(self.plugin_journal, self.plugin_memory_gb), self.target)

    @cached_property
    def backends(self) -> list[str]:
        """What this process or its sessions measure, those of --aa a second time; no plug-ins of other processes."""
        names, _ = self.named
        names = [self.watched.label, *names] if self.watched else names
        return [*names, *map(attention_aa.second, cli.choices("--aa", self.aa, names) if self.aa else [])]

    @cached_property
    def plan(self) -> Plan:
        """What the arms are made by."""
        return Plan(
            self.backends, cli.modes("--mode", self.mode or _DEFAULT_MODES[self.target.type], MODES),
            cli.choices("--context-manager", self.context_manager, MANAGERS), self.calls, self.warmup,
            cli.choices("--sdpa-from", self.sdpa_from, list(SDPA_KERNELS)), self.watched, self.given_phi,
        )  # fmt: skip

    @cached_property
    def spec_bandwidth(self) -> tuple[float | None, str]:
        """The specified bandwidth, GB/s, and where it comes from."""
        return cli.spec_bandwidth(self.spec_gbs, self.target)

    @property
    def torch_dtype(self) -> torch.dtype:
        """--dtype as torch names it."""
        return cli.DTYPES[self.dtype]

    @property
    def traces(self) -> bool:
        """Whether a session ends with a trace of its kernels."""
        return self.trace_kernels and self.on_cuda and not self.gate

    def copies(self, cell: Cell) -> int:
        """Copies of the cache to rotate through, so that a call finds none of its own in the last-level cache."""
        return weight_copies(cell.kv_bytes(self.torch_dtype), self.l2, self.target)

    @property
    def untraced(self) -> list[str]:
        """--no-trace-kernels, where it is given."""
        return [] if self.trace_kernels else ["--no-trace-kernels"]

    @cached_property
    def plugin_plan(self) -> plugins.Plan:
        """The plug-ins that processes of their own measure."""
        return plugins.Plan(
            "bench.attention", [] if self.watched else self.named[1], self.plan.modes,
            [*self.shared_flags({"phi"}), *self.untraced, "--sessions=0"],
            [name for name in self.backends if name == "sdpa"], self.plugin_timeout_s,
        )  # fmt: skip

    @property
    def session_flags(self) -> list[str]:
        """What two sessions must share for one to go on with the other, or to be taken for it: not their backends,
        since one that ended its process is left out of what remains."""
        return [*self.shared_flags(), f"--mode={','.join(self.plan.modes)}"]

    @property
    def run_flags(self) -> list[str]:
        """session_flags and the backends, by which runs of several sessions are told apart."""
        named = ",".join([*self.backends, *(plugin.label for plugin in self.plugin_plan.plugins)])
        return [*self.session_flags, f"--backend={named}"]

    def check(self) -> None:
        """Raise UsageError for the first flag that does not fit the others."""
        if self.gate and self.plot:
            raise flag_error("--plot", self.plot, "left out with --gate, which times nothing")
        assert self.cells and self.plan and self.spec_bandwidth
        if self.resume and (self.sessions or not self.json):
            raise UsageError(
                "--resume: needs --sessions=0 and --json, the document to go on with; for more sessions --keep"
            )
        if self.keep and not self.sessions:
            raise flag_error("--keep", self.keep, "left out with --sessions=0, which has --resume")
