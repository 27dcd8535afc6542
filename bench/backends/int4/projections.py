"""The projections of a layer by a 4-bit kernel, as the kernel's own users call it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.base import AS_GIVEN, Numbers
from bench.backends.int4.base import GATE_UP, QKV, Int4Kernel, gate_depth
from bench.backends.torch_layer import Projections
from pykernels.weights import PROJECTIONS

_GROUPS: dict[str, Sequence[str]] = {
    QKV: ("q_weight", "k_weight", "v_weight"),
    "o": ("o_weight",),
    GATE_UP: ("gate_weight", "up_weight"),
    "down": ("down_weight",),
}
"""The projections of one input, by what they are called together."""


def _multiplied(kernel: type[Int4Kernel], weights: pk.LayerWeights) -> dict[str, list[pk.Int4Weight]]:
    """The weights that it multiplies by, by group. Raises ValueError where it fuses what cannot be concatenated."""
    found = {}
    for group, names in _GROUPS.items():
        of_group = [getattr(weights, name) for name in names]
        found[group] = [pk.Int4Weight.concatenate(of_group)] if group in kernel.fuses else of_group
    return found


def layer_refusal(kernel: type[Int4Kernel], weights: pk.LayerWeights, batch: int) -> str | None:
    """None where it takes every projection of the layer, else which it does not take and why, one line."""
    try:
        multiplied = _multiplied(kernel, weights)
    except ValueError as error:
        return str(error)
    for group, of_group in multiplied.items():
        for weight in of_group:
            if reason := kernel.refusal(weight, batch):
                return f"{group}: {reason}"
    return None


def numbers_of(kernel: type[Int4Kernel], layers: Sequence[pk.LayerWeights]) -> Numbers:
    """What judges layers of it: the dequantised weights, or what its layout makes of them, where it cannot say them
    (Int4Kernel.multiplies_by); and more roundings where it says that it adds up in half precision."""

    def of_layout(layer: pk.LayerWeights) -> pk.LayerWeights:
        one = kernel()
        changed: dict[str, Any] = {name: one.multiplies_by(getattr(layer, name)) for name in PROJECTIONS}
        return replace(layer, **changed)

    has_zeros = any(layer.is_int4 and layer.int4_format()[1] for layer in layers)
    depth = gate_depth(kernel)
    if kernel.requantises or (kernel.rounds_weights and has_zeros):
        return Numbers(kernel.name, of_layout, depth)
    return replace(AS_GIVEN, depth=depth)


class _Linears:
    """The projections of one input: a call each, or one call and views of its result."""

    def __init__(self, kernel: type[Int4Kernel], weights: Sequence[pk.Int4Weight], biases: Sequence[Tensor | None],
                 fused: bool) -> None:  # fmt: skip
        self._ends: list[tuple[int, int]] = []
        self._biases = [bias for bias in biases if bias is not None]
        self._fused_bias: Tensor | None = None
        if fused:
            end = 0
            for weight in weights:
                self._ends.append((end, end := end + weight.out_features))
            weights = [pk.Int4Weight.concatenate(weights)]
            self._fused_bias = torch.cat(self._biases) if self._biases else None
            biases = [self._fused_bias]
        self.kernels = [kernel() for _ in weights]
        for one, weight in zip(self.kernels, weights, strict=True):
            one.prepare(weight)
        self._bound = list(zip(self.kernels, biases, strict=True))

    def __call__(self, x: Tensor) -> list[Tensor]:
        results = [one.run(x) if bias is None else one.run(x) + bias for one, bias in self._bound]
        return [results[0][:, begin:end] for begin, end in self._ends] or results

    def reload(self) -> None:
        """Take over what was written into the biases since."""
        if self._fused_bias is not None:
            torch.cat(self._biases, out=self._fused_bias)


class Int4Projections(Projections):
    """A kernel over the weights of one layer, prepared. A bias is added by torch, as the libraries' own layers do.

    Raises what the library raises.
    """

    def __init__(self, kernel: type[Int4Kernel], weights: pk.LayerWeights) -> None:
        super().__init__(weights)
        biases = {QKV: (weights.q_bias, weights.k_bias, weights.v_bias), GATE_UP: (None, None)}
        made = {
            group: _Linears(
                kernel, [getattr(weights, name) for name in names], biases.get(group, (None,)), group in kernel.fuses
            )
            for group, names in _GROUPS.items()
        }  # fmt: skip
        self._qkv, self._o, self._gate_up, self._down = made.values()
        self.calls = sum(len(linears.kernels) for linears in made.values())
        """Of the kernel, in a step of the layer."""
        if kernel.unseen_call:
            self.unseen_calls = [kernel.unseen_call] * self.calls

    def reload(self) -> None:
        self._qkv.reload()

    def qkv(self, x: Tensor) -> Sequence[Tensor]:
        return self._qkv(x)

    def o(self, x: Tensor) -> Tensor:
        return self._o(x)[0]

    def gate_up(self, x: Tensor) -> Sequence[Tensor]:
        return self._gate_up(x)

    def down(self, x: Tensor) -> Tensor:
        return self._down(x)[0]
