"""The flags of the drivers of one decode layer (bench.layer, bench.inside), and the layer that they describe."""

from dataclasses import dataclass
from functools import cached_property

import torch

import pykernels as pk
from bench.core import cli, environment, floors
from bench.core.copies import layer_copies, partly_warm
from bench.core.errors import flag_error
from bench.core.quant_flags import QuantFlags
from bench.core.stop_rule import StopFlags
from pykernels.layer import available_bytes
from pykernels.models import ModelSpec


@dataclass(kw_only=True)
class LayerSettings(QuantFlags, StopFlags):
    """The flags of one layer, and what they come to."""

    model: cli.ModelFlag = "qwen2.5-7b"
    config: cli.ConfigFlag = ""
    weights: cli.LayerWeightsFlag = ""
    layer: cli.LayerFlag = 0
    ctx: cli.CtxFlag = 2048
    batch: cli.BatchFlag = 1
    dtype: cli.DtypeFlag = "bf16"
    device: cli.DeviceFlag = "auto"
    fusion: cli.FusionFlag = "none,block"
    l2: cli.L2Flag = "cold"
    warmup: cli.WarmupFlag = 5
    steps: cli.StepsFlag = 30
    repeats: cli.RepeatsFlag = 0
    seed: cli.SeedFlag = 0

    @cached_property
    def spec(self) -> ModelSpec:
        """The model."""
        return cli.model(self.model, self.config, self.weights)

    @cached_property
    def target(self) -> torch.device:
        """--device."""
        return cli.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """--dtype as torch names it."""
        return cli.DTYPES[self.dtype]

    @cached_property
    def fusions(self) -> list[str]:
        """--fusion of native."""
        return cli.choices("--fusion", self.fusion, cli.FUSIONS)

    def check(self) -> None:
        """Raise UsageError for the first of the layer's flags that does not fit the others."""
        cli.context("--ctx", self.ctx, self.spec)
        self.check_quant([self.spec])
        if self.layer and not self.weights:
            raise flag_error("--layer", self.layer, "given with --weights: random weights are of no layer")
        assert self.fusions


def check_memory(settings: LayerSettings, layer_bytes: int, copies: int) -> None:
    """Raise UsageError unless so many copies of a layer fit the memory that is there."""
    spec = settings.spec
    needed = copies * (layer_bytes + spec.layer_kv_bytes(settings.ctx, settings.batch, settings.torch_dtype))
    available = available_bytes(settings.target)
    if needed > available:
        raise flag_error(
            "--ctx", settings.ctx,
            f"small enough for the memory available ({available / 2**30:.1f} GiB): "
            f"weights and cache need {needed / 2**30:.1f} GiB",
        )  # fmt: skip


def make_layers(settings: LayerSettings) -> list[pk.DecodeLayer]:
    """The layer and its copies; sets `int4_format`. Raises ValueError where they do not fit the memory that is there,
    or a folder's tensors are not this model's."""
    spec, dtype, device = settings.spec, settings.torch_dtype, settings.target
    dense_bytes = spec.layer_weight_elements * dtype.itemsize
    # 4-bit weights are made of dense ones, one copy; how many copies they need is known afterwards.
    check_memory(settings, dense_bytes, 1 if settings.four_bit else layer_copies(dense_bytes, settings.l2, device))
    if settings.weights:
        weights = pk.LayerWeights.from_folder(settings.weights, settings.layer, spec, dtype, device)
    else:
        weights = pk.LayerWeights.random(spec, dtype, device, settings.seed)
    weights = settings.quantised(weights)
    copies = layer_copies(weights.n_bytes, settings.l2, device)
    check_memory(settings, weights.n_bytes, copies)
    settings.int4_format = weights.int4_format() if weights.is_int4 else None
    shared = (settings.ctx, settings.batch, dtype, device, settings.seed)
    which = settings.layer
    return [pk.DecodeLayer(spec, weights.clone() if copy else weights, *shared, which) for copy in range(copies)]


def l2_words(settings: LayerSettings, layers: list[pk.DecodeLayer]) -> str:
    """`cold: 436 MB of weights, 1 copy, against a last-level cache of 63 MB`"""
    n_bytes, copies = layers[0].weights.n_bytes, len(layers)
    cache_mb = environment.last_level_cache_bytes(settings.target) / 1e6
    rotation = "1 copy" if copies == 1 else f"{copies} copies in rotation"
    warm = partly_warm(n_bytes, copies, settings.l2, settings.target)
    return (
        f"{settings.l2}: {n_bytes / 1e6:.0f} MB of weights, {rotation}, "
        f"against a last-level cache of {cache_mb:.0f} MB" + (", PARTLY WARM: it may hold them" if warm else "")
    )


def layer_ops(settings: LayerSettings, fusion: str | None, dense: bool = False) -> list[floors.OpBytes]:
    """The ops of a step and their bytes; the plain torch layer is held to the unfused sequence. dense: of a layer that
    multiplies by dense weights in a run of 4-bit ones."""
    int4 = () if dense else settings.int4_format or ()
    return floors.layer_ops(settings.spec, fusion or "none", settings.batch, settings.ctx, settings.torch_dtype, *int4)


def streamed_bytes(settings: LayerSettings, fusion: str | None, dense: bool = False) -> int:
    """What a step must move. 4-bit weights count by the run's format, whatever layout a library makes of them."""
    return sum(op.bytes for op in layer_ops(settings, fusion, dense))
