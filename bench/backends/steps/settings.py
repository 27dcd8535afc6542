"""The flags of a whole step's model, which the drivers of steps share, and the model that they describe."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

import pykernels as pk
from bench.core import cli, floors
from bench.core.errors import flag_error
from bench.core.quant_flags import QuantFlags
from pykernels.layer import available_bytes
from pykernels.models import ModelSpec
from pykernels.weights import PROJECTIONS


@dataclass(kw_only=True)
class StepModelSettings(QuantFlags):
    """The flags of one model, and what they come to."""

    model: cli.ModelFlag = "qwen2.5-7b"
    config: cli.ConfigFlag = ""
    weights: cli.WeightsFlag = ""
    layers: cli.LayersFlag = 0
    shared_weights: cli.SharedWeightsFlag = False
    ctx: cli.StepCtxFlag = 2048
    batch: cli.BatchFlag = 1
    dtype: cli.DtypeFlag = "bf16"
    device: cli.DeviceFlag = "auto"
    threads: cli.ThreadsFlag = 0
    memory_limit_gb: cli.MemoryLimitFlag = 0.0
    seed: cli.SeedFlag = 0

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

    @property
    def torch_dtype(self) -> torch.dtype:
        """--dtype as torch names it."""
        return cli.DTYPES[self.dtype]

    @property
    def positions(self) -> int:
        """How many positions the steps take from --ctx on."""
        raise NotImplementedError

    @property
    def max_len(self) -> int:
        """Slots of the cache: the context, and one a position."""
        return self.ctx + self.positions

    def bytes_needed(self) -> dict[str, int]:
        """What the weights and the cache take; all arms share them."""
        spec, dtype = self.spec, self.torch_dtype
        own = self._weight_bytes(self.four_bit)
        cache = spec.kv_bytes(self.max_len, self.batch, dtype)
        return {"weight_bytes": own, "kv_bytes": cache, "asked_bytes": own + cache + self.beside_bytes()}

    def _weight_bytes(self, int4: bool) -> int:
        """Of tables and layers. Before the weights are made, 4-bit ones are counted as --group says."""
        spec, dtype = self.spec, self.torch_dtype
        of_layer = self.layer_bytes(int4)
        dense = spec.layer_weight_elements * dtype.itemsize
        layers = 1 if self.shared_weights else spec.n_layers
        return spec.weight_bytes(dtype) - spec.n_layers * dense + layers * of_layer

    def layer_bytes(self, int4: bool) -> int:
        """Of the weights of one layer; of an average one, where layers differ."""
        spec, dtype = self.spec, self.torch_dtype
        dense = spec.layer_weight_elements * dtype.itemsize
        if not int4:
            return dense
        size, zeros, perm = self.int4_format or (self.group, self.asymmetric, False)
        saved = 0
        for index in range(spec.n_layers):
            of_layer = floors.layer_group_size(size, index)
            for name, (n_in, n_out) in floors.projection_shapes(spec).items():
                own = of_layer[name] if isinstance(of_layer, Mapping) else of_layer
                assert own is not None  # a size in, a size out
                four_bit = floors.int4_weight(n_in, n_out, dtype.itemsize, n_in if own == -1 else own, zeros, perm)
                saved += n_in * n_out * dtype.itemsize - four_bit
        return dense - saved // spec.n_layers

    def beside_bytes(self) -> int:
        """What the arms keep of the weights beside the model's own."""
        return 0

    def check_model(self) -> None:
        """Raise UsageError for the first flag of the model that does not fit the others."""
        full = self.full_spec
        assert self.target
        if self.weights and self.shared_weights:
            raise flag_error("--shared-weights", "true", "left out with --weights, which has every layer's own")
        assert self.spec
        self.check_quant([self.spec])
        cli.context("--ctx", self.ctx, full, self.positions)

    def make_model(self) -> pk.DecodeModel:
        """Weights and caches. Raises MemoryError where they do not fit what is there (or --memory-limit-gb)."""
        spec, dtype, device = self.spec, self.torch_dtype, self.target
        needed, available = self.bytes_needed()["asked_bytes"], available_bytes(device)
        if self.memory_limit_gb:
            available = min(available, int(self.memory_limit_gb * 1e9))
        if needed > available:
            raise MemoryError(f"weights and cache need {needed / 1e9:.2f} GB, {available / 1e9:.2f} GB are available")
        if self.weights:
            weights = cli.usage(lambda: pk.ModelWeights.from_folder(self.weights, spec, dtype, device))
            weights = weights.mapped(self.quantised)
        else:
            weights = pk.ModelWeights.random(spec, dtype, device, self.seed, self.shared_weights, self.quantised)
        self.int4_format = cli.usage(lambda: self._format_of(weights))
        return cli.usage(lambda: pk.DecodeModel(spec, weights, self.max_len, self.batch, dtype, device, self.seed))

    def _format_of(self, weights: pk.ModelWeights) -> tuple[int | dict[str, int], bool, bool] | None:
        """Of all layers; group sizes by `layer.weight` where layers differ. Raises ValueError where some are dense."""
        four_bit = [index for index, layer in enumerate(weights.layers) if layer.is_int4]
        if not four_bit:
            return None
        if len(four_bit) < len(weights.layers):
            dense = next(index for index in range(len(weights.layers)) if index not in four_bit)
            raise ValueError(f"weights {self.weights}: layers must be all of 4 bits or all dense, {dense} is dense")
        formats = [layer.int4_format() for layer in weights.layers]
        zeros, perm = (any(one[part] for one in formats) for part in (1, 2))
        sizes = [size for size, _, _ in formats]
        if all(size == sizes[0] for size in sizes):
            return sizes[0], zeros, perm
        by_name = {
            f"{index}.{name}": size[name] if isinstance(size, dict) else size
            for index, size in enumerate(sizes)
            for name in PROJECTIONS
        }
        return by_name, zeros, perm
