"""The flags of 4-bit weights, which the drivers of layers and of steps share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pykernels as pk
from bench.core import cli, floors
from bench.core.errors import flag_error
from bench.core.flags import Flags
from pykernels.models import ModelSpec


def check_group_size(flag: str, group_size: int, specs: Sequence[ModelSpec]) -> None:
    """Raise UsageError unless the groups divide the rows of every linear shape of the models."""
    for spec in specs if group_size != -1 else ():
        for label, sizes in floors.LINEAR_SHAPES.items():
            if (n_in := sizes(spec)[0]) % group_size:
                raise flag_error(flag, group_size, f"a divisor of in_features, which is {n_in} ({spec.name}, {label})")


@dataclass(kw_only=True)
class QuantFlags(Flags):
    """--quant and what goes with it. `weights` is the field of --weights, which a subclass declares."""

    quant: cli.QuantFlag = "none"
    group: cli.GroupFlag = 128
    asymmetric: cli.AsymmetricFlag = False

    int4_format: tuple[int | dict[str, int], bool, bool] | None = field(default=None, init=False)
    """Of the weights (LayerWeights.int4_format; of a whole model whose layers differ, group sizes by `layer.weight`),
    set once they are made; None where they are dense."""

    @cached_property
    def from_quantised_folder(self) -> bool:
        """Whether --weights holds quantised weights already."""
        folder = getattr(self, "weights", "")
        return bool(folder) and cli.usage(lambda: pk.quant.quantization_of(folder)) is not None

    @property
    def four_bit(self) -> bool:
        """Whether the projections are of 4 bits."""
        return self.quant == "int4" or self.from_quantised_folder

    def check_quant(self, specs: Sequence[ModelSpec]) -> None:
        """Raise UsageError for the first of these flags that does not fit the others or the models."""
        check_group_size(
            "--group", cli.group_size("--group", self.group),
            specs if self.quant == "int4" and not self.from_quantised_folder else [],
        )  # fmt: skip
        if self.from_quantised_folder or self.quant == "none":
            folder = self.from_quantised_folder
            allowed = "left out: the weights of --weights have their own" if folder else "given with --quant=int4"
            if self.group != 128:
                raise flag_error("--group", self.group, allowed)
            if self.asymmetric:
                raise flag_error("--asymmetric", "true", allowed)

    def quantised(self, weights: pk.LayerWeights) -> pk.LayerWeights:
        """A layer as these flags want it: rounded to 4 bits where --quant says so. What a quantised folder left dense
        stays dense."""
        if self.quant == "none" or self.from_quantised_folder or weights.is_int4:
            return weights
        return weights.quantize(self.group, not self.asymmetric)
