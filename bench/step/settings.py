"""The flags of bench.step, and what they come to."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import torch
import typer

from bench.backends import MODES
from bench.backends.steps import arms as step_arms
from bench.core import cli, device_trace
from bench.core.errors import flag_error
from bench.core.stop_rule import StopFlags
from pykernels.models import ModelSpec


@dataclass(kw_only=True)
class Settings(StopFlags):
    """The flags of one run, and what they come to."""

    backend: cli.BackendFlag = "native,sdpa,transformers"
    mode: cli.ModeFlag = "all"
    model: cli.ModelFlag = "qwen2.5-7b"
    config: cli.ConfigFlag = ""
    weights: cli.WeightsFlag = ""
    layers: cli.LayersFlag = 0
    shared_weights: Annotated[
        bool, typer.Option("--shared-weights", help="give all layers one set of random weights")
    ] = False
    ctx: cli.StepCtxFlag = 2048
    batch: cli.BatchFlag = 1
    dtype: cli.DtypeFlag = "bf16"
    device: cli.DeviceFlag = "auto"
    fusion: cli.FusionFlag = "none,block"
    arm: Annotated[
        str, typer.Option("--arm", help="exactly these, comma-separated backend[/fusion]:mode, instead of the above")
    ] = ""
    warmup: cli.WarmupFlag = 5
    steps: cli.StepsFlag = 30
    threads: cli.ThreadsFlag = 0
    spec_gbs: cli.SpecFlag = 0.0
    memory_limit_gb: cli.MemoryLimitFlag = 0.0
    seed: cli.SeedFlag = 0
    json: cli.JsonFlag = ""
    csv: cli.CsvFlag = ""
    md: cli.MdFlag = ""
    plot: cli.PlotFlag = ""
    list_: cli.ListFlag = False

    @cached_property
    def full_spec(self) -> ModelSpec:
        """The model with all of its layers."""
        return cli.model(self.model, self.config, self.weights)

    @cached_property
    def spec(self) -> ModelSpec:
        """The model with --layers layers."""
        full = self.full_spec
        return replace(full, n_layers=cli.number("--layers", self.layers, 0, full.n_layers) or full.n_layers)

    @cached_property
    def target(self) -> torch.device:
        """--device."""
        return cli.device(self.device)

    @cached_property
    def groups(self) -> list[tuple[str, list[str], list[str]]]:
        """(backend, modes, fusions), in the order of the tables."""
        if self.arm:
            parsed = step_arms.parse_arms("--arm", self.arm, self.target)
            return [(name, [mode], [fusion] if fusion else []) for name, fusion, mode in parsed]
        modes, fusions = cli.modes("--mode", self.mode, MODES), cli.choices("--fusion", self.fusion, cli.FUSIONS)
        names = cli.choices("--backend", self.backend, list(step_arms.backends()))
        return [(name, modes, fusions) for name in names]

    @cached_property
    def spec_bandwidth(self) -> tuple[float | None, str]:
        """The specified bandwidth, GB/s, and where it comes from."""
        return cli.spec_bandwidth(self.spec_gbs, self.target)

    @property
    def backends(self) -> list[str]:
        """The backends wanted, once each."""
        return list(dict.fromkeys(name for name, _, _ in self.groups))

    @property
    def fusions(self) -> list[str]:
        """The fusions of native that are wanted, once each."""
        return list(dict.fromkeys(fusion for name, _, fusions in self.groups if name == "native" for fusion in fusions))

    @property
    def torch_dtype(self) -> torch.dtype:
        """--dtype as torch names it."""
        return cli.DTYPES[self.dtype]

    @property
    def max_len(self) -> int:
        """Slots of the cache: the context, and one a step; no fewer steps than a traced pass takes."""
        return self.ctx + max(self.warmup, 1) + max(self.steps, device_trace.SAMPLES)

    @property
    def traced_from(self) -> int:
        """Where a traced pass begins, so that it lies in the middle of the timed steps."""
        return self.ctx + max(self.warmup, 1) + max(self.steps - device_trace.SAMPLES, 0) // 2

    def kv_lens(self, count: int) -> list[int]:
        """The slots that each of the first `count` timed steps attends to."""
        first = self.ctx + max(self.warmup, 1) + 1
        return list(range(first, first + count))

    def bytes_needed(self) -> dict[str, int]:
        """What the weights and the cache take; all arms share them."""
        spec, dtype = self.spec, self.torch_dtype
        weights = spec.weight_bytes(dtype)
        if self.shared_weights:
            weights -= (spec.n_layers - 1) * spec.layer_weight_elements * dtype.itemsize
        cache = spec.kv_bytes(self.max_len, self.batch, dtype)
        return {"weight_bytes": weights, "kv_bytes": cache, "asked_bytes": weights + cache}

    def check(self) -> None:
        """Raise UsageError for the first flag that does not fit the others."""
        full = self.full_spec
        assert self.target
        if self.weights and self.shared_weights:
            raise flag_error("--shared-weights", "true", "left out with --weights, which has every layer's own")
        assert self.groups and self.spec
        cli.number("--ctx", self.ctx, 1, full.max_position)
        if self.max_len > full.max_position:
            most = full.max_position - max(self.warmup, 1) - self.steps
            raise flag_error(
                "--ctx", self.ctx, f"in 1..{most}: {full.name} has {full.max_position} positions, one a step"
            )
