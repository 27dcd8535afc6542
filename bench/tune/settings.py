"""The flags of bench.tune."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
import typer

import pykernels as pk
from bench.backends import modes_on
from bench.core import cli, document
from bench.core.errors import UsageError, flag_error
from bench.core.output_flags import TableFlags
from bench.core.paths import user_path
from bench.core.stop_rule import StopFlags
from pykernels.models import ModelSpec

OPS = ("gemv", "swiglu_gemv", "qkv_gemv", "gqa_decode", "int4_gemv", "int4_swiglu_gemv", "int4_qkv_gemv")
_DENSE = ",".join(OPS[:4])
_CONTEXTS = (1024, 2048, 4096, 8192, 16384)
_DEFAULT_MODE = {"cpu": "native", "cuda": "graph"}


def parse_margin(flag: str, text: str) -> float:
    """A share of the time, `1%` or 0.01."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise flag_error(flag, text, "a share of the time in 0..1, or in per cent: 1%")
    return share


@dataclass(kw_only=True)
class Settings(StopFlags, TableFlags):
    """The flags of one run, and what they come to."""

    ops: Annotated[str, typer.Option("--ops", help=f"comma-separated, or all: {', '.join(OPS)}")] = _DENSE
    plans: Annotated[str, typer.Option("--plans", help="write the file of plans that PYKERNELS_PLANS takes")] = ""
    margin: Annotated[
        str,
        typer.Option(
            "--margin",
            help="how much faster than the built-in plan a plan must be, beyond noise, to be chosen: 1% or 0.01",
        ),
    ] = "1%"  # fmt: skip
    model: Annotated[
        str, typer.Option("--model", help=f"comma-separated: {cli.MODEL_WORDS}; all. On a CPU: tiny")
    ] = ""  # fmt: skip
    config: cli.ConfigFlag = ""
    mode: Annotated[
        str, typer.Option("--mode", help="who drives: native, graph or graph-pdl. Default: graph; on a CPU native")
    ] = ""  # fmt: skip
    ctx: Annotated[
        str, typer.Option(
            "--ctx", help="of gqa_decode: comma-separated, slots of the cache; of each model those that it has. "
            f"Default: {', '.join(map(str, _CONTEXTS))}"
        )
    ] = ""  # fmt: skip
    batch: Annotated[str, typer.Option("--batch", help="sequences, 1 to 8; comma-separated")] = "1"
    dtype: cli.DtypeFlag = "bf16"
    device: cli.DeviceFlag = "auto"
    l2: cli.L2Flag = "cold"
    warmup: cli.WarmupFlag = 3
    steps: cli.StepsFlag = 20
    repeats: cli.RepeatsFlag = 0
    threads: cli.ThreadsFlag = 0
    spec_gbs: cli.SpecFlag = 0.0
    seed: cli.SeedFlag = 0

    @cached_property
    def target(self) -> torch.device:
        """--device."""
        return cli.device(self.device)

    @cached_property
    def on_cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.target.type == "cuda"

    @cached_property
    def wanted(self) -> list[str]:
        """--ops."""
        return cli.choices("--ops", self.ops, OPS)

    @cached_property
    def specs(self) -> list[ModelSpec]:
        """--model."""
        return cli.models(self.model or (cli.ALL_STUDIED if self.on_cuda else "tiny"), self.config)

    @cached_property
    def contexts(self) -> list[int]:
        """--ctx: each of them one that some model has."""
        most = max(spec.max_ctx for spec in self.specs)
        if self.ctx:
            return cli.numbers("--ctx", self.ctx, 1, most, int)
        return [ctx for ctx in _CONTEXTS if ctx <= most] or [most]

    def contexts_of(self, spec: ModelSpec) -> list[int]:
        """Those that the model has."""
        return [ctx for ctx in self.contexts if ctx <= spec.max_ctx]

    @cached_property
    def batches(self) -> list[int]:
        """--batch."""
        return cli.numbers("--batch", self.batch, 1, 8, int)

    @cached_property
    def driven(self) -> str:
        """--mode."""
        (mode,) = [cli.mode(self.mode or _DEFAULT_MODE[self.target.type])]
        allowed = [name for name in ("native", "graph", "graph-pdl") if name in modes_on(self.target)]
        return cli.choice("--mode", mode, allowed)

    @cached_property
    def least_gain(self) -> float:
        """--margin, as a share."""
        return parse_margin("--margin", self.margin)

    @cached_property
    def plans_path(self) -> Path | None:
        """--plans."""
        if not self.plans:
            return None
        path = user_path("--plans", self.plans)
        document.check_writable(path, "--plans")
        return path

    @cached_property
    def spec_bandwidth(self) -> tuple[float | None, str]:
        """The specified bandwidth, GB/s, and where it comes from."""
        return cli.spec_bandwidth(self.spec_gbs, self.target)

    @cached_property
    def card(self) -> str:
        """The GPU's name, or the CPU's."""
        return torch.cuda.get_device_name(self.target) if self.on_cuda else pk.plans.cpu_name()

    def check(self) -> None:
        """Raise UsageError for the first flag that does not fit the others."""
        if pk.runtime.plan_table() is not None:
            raise UsageError(
                f"{pk.plans.VARIABLE}: must not be set: candidates are measured against the built-in plans"
            )
        assert self.least_gain >= 0 and self.wanted and self.contexts and self.batches and self.driven
        if self.on_cuda and self.dtype == "fp32":
            raise flag_error("--dtype", self.dtype, "bf16 or fp16 on a GPU")
        if self.plans_path and self.json and self.plans_path == user_path("--json", self.json):
            raise flag_error("--plans", self.plans, "another file than that of --json")
        assert self.spec_bandwidth
