"""The flags of bench.step, and what they come to."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import typer

from bench.backends import INT4
from bench.backends.steps import arms as step_arms
from bench.backends.steps.settings import StepModelSettings
from bench.core import cli, device_trace
from bench.core.errors import flag_error
from bench.core.output_flags import OutputFlags
from bench.core.softmax_flags import SoftmaxFlags
from bench.core.stop_rule import StopFlags
from bench.core.unified import UNIFIED

_MODE_HELP = f"{cli.MODE_HELP}; graph-loop: one launch of a graph that decodes all tokens (native, a GPU)"


@dataclass(kw_only=True)
class Settings(StepModelSettings, StopFlags, SoftmaxFlags, OutputFlags):
    """The flags of one run, and what they come to."""

    backend: Annotated[
        str,
        typer.Option(
            "--backend", help="comma-separated, or all: who computes. Default: native,sdpa,transformers; 4-bit: all"
        ),
    ] = ""
    attention: cli.AttentionFlag = "sdpa"
    mode: Annotated[str, typer.Option("--mode", help=_MODE_HELP)] = "all"
    fusion: cli.FusionFlag = "none,block"
    arm: Annotated[
        str, typer.Option("--arm", help="exactly these, comma-separated backend[/fusion]:mode, instead of the above")
    ] = ""
    warmup: cli.WarmupFlag = 5
    steps: cli.StepsFlag = 30
    spec_gbs: cli.SpecFlag = 0.0

    @cached_property
    def groups(self) -> list[tuple[str, list[str], list[str]]]:
        """(backend, modes, fusions), in the order of the tables."""
        if self.arm:
            parsed = step_arms.parse_arms("--arm", self.arm, self.target)
            if self.softmax != "online":
                raise flag_error("--softmax", self.softmax, f"left out with --arm, whose {UNIFIED} it is")
            self.with_softmax([name for name, _, _ in parsed])
            return [(name, [mode], [fusion] if fusion else []) for name, fusion, mode in parsed]
        modes, fusions = (
            cli.modes("--mode", self.mode, step_arms.STEP_MODES),
            cli.choices("--fusion", self.fusion, cli.FUSIONS),
        )
        default = "all" if self.four_bit else "native,sdpa,transformers"
        text = self.backend or default
        if not self.four_bit:
            step_arms.check_quantised("--backend", [name.strip() for name in text.split(",")], self.four_bit)
        of_run = step_arms.default_backends(self.four_bit)
        known = of_run if text == "all" or not self.four_bit else list(step_arms.backends())
        names = self.with_softmax(cli.choices("--backend", text, [*known, UNIFIED]) if text != "all" else of_run)
        return [(name, modes, fusions) for name in names]

    @cached_property
    def known(self) -> dict[str, step_arms.StepBackend]:
        """Every backend by name, with --attention."""
        attention = cli.choice("--attention", self.attention, step_arms.attentions())
        return step_arms.backends(attention, self.given_phi)

    def is_dense(self, arm: str) -> bool:
        """Whether the arms of that name multiply by dense weights."""
        return not self.four_bit or INT4 not in step_arms.named(arm).weights

    def beside_bytes(self) -> int:
        """One set of dequantised layers for all who multiply by those, one in a layout of its own a linear peer, and
        tables and caches again where a peer takes another dtype alone."""
        if not self.four_bit:
            return 0
        layers = 1 if self.shared_weights else self.spec.n_layers
        of_layers = {int4: layers * self.layer_bytes(int4) for int4 in (True, False)}
        needed, moved = 0, False
        if any(self.is_dense(name) for name in self.backends):
            needed += of_layers[False]
        for name in self.backends:
            peer = self.known[name].peer
            if peer and not peer.availability(self.target):
                needed += of_layers[True]
                moved |= peer.dtype_on(self.target, self.torch_dtype) != self.torch_dtype
        if moved:
            tables = self._weight_bytes(True) - of_layers[True]
            needed += tables + self.spec.kv_bytes(self.max_len, self.batch, self.torch_dtype)
        return needed

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
        own = [fusions for name, _, fusions in self.groups if name in ("native", UNIFIED)]
        return list(dict.fromkeys(fusion for fusions in own for fusion in fusions))

    @property
    def positions(self) -> int:
        """One a step, and no fewer than a traced pass takes."""
        return max(self.warmup, 1) + max(self.steps, device_trace.SAMPLES)

    @property
    def traced_from(self) -> int:
        """Where a traced pass begins, so that it lies in the middle of the timed steps."""
        return self.ctx + max(self.warmup, 1) + max(self.steps - device_trace.SAMPLES, 0) // 2

    def kv_lens(self, count: int) -> list[int]:
        """The slots that each of the first `count` timed steps attends to."""
        first = self.ctx + max(self.warmup, 1) + 1
        return list(range(first, first + count))

    def check(self) -> None:
        """Raise UsageError for the first flag that does not fit the others."""
        self.check_model()
        assert self.groups and self.known
        step_arms.check_quantised("--arm" if self.arm else "--backend", self.backends, self.four_bit)
        if self.attention != "sdpa" and not any(self.known[name].peer for name in self.backends):
            raise flag_error("--attention", self.attention, "given with a 4-bit library in --backend")
