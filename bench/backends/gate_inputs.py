"""The inputs of a layer's gate: x, cache and norms, chosen so that every part of the layer shows in its output.

With the numbers that are timed, a layer's output is its residual stream: x is of unit scale, an average of 16,384
values of unit scale is a hundredth of that, and a layer without attention is right to within two roundings of bf16. So
the gate puts other numbers in the same memory, a few sets of them, and compares with the reference on each:

as timed    the numbers that are timed: the residual stream, the rows that go into the cache
every key   every key is equal, and so are all weights of the softmax; all values but LOOSE cancel in pairs. What a
            single key adds is 1 / sqrt(LOOSE) of the result, the step's own half of that: one that is missing, or read
            twice, shows at any length
the scores  keys whose scores are of unit variance: what is wrong with q, k or the scale shows in who is attended to
the MLP     a residual stream that is small against what the MLP adds

In all but the first x is so small that attention is not hidden by it, with the norm before it so large that nobody
notices; in those for attention the norm before the MLP is so small that the MLP adds nothing. The weights of the
projections stay as they are: a backend may hold them in a layout of its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import pykernels as pk

LOOSE = 64
"""The values that do not cancel."""

# Of the norm's weight where the MLP is to add nothing (it goes in twice). What scales is a power of two here: whatever
# is multiplied by it keeps its bits.
_OFF = 2.0**-12

# What attention adds at least in fp16: below, its numbers are short of bits.
_LEAST_IN_FP16 = 2.0**-12

_MLP = "the MLP"

LAYER_NORMS = ("input_norm", "post_norm", "attention_out_norm", "mlp_out_norm")
"""The norms of a layer by their names in LayerWeights; a model has those before attention and the MLP, those behind, or
both."""


@dataclass(frozen=True)
class GateInputs:
    """One set. `x` [batch, hidden]; `k_cache`, `v_cache` [batch, n_kv_heads, slots, head_dim], the slots before the
    layer's own; `norms`: [hidden], by their names in LayerWeights; `expected`: by part, what the reference says."""

    name: str
    x: Tensor
    k_cache: Tensor
    v_cache: Tensor
    norms: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]

    @property
    def shows_mlp(self) -> bool:
        """Its output is the MLP's before all."""
        return self.name == _MLP

    def put(self, layer: pk.DecodeLayer) -> None:
        """Write them into the memory of a layer, or of a copy of it."""
        slots = self.k_cache.shape[2]
        layer.x.copy_(self.x)
        layer.k_cache[:, :, :slots] = self.k_cache
        layer.v_cache[:, :, :slots] = self.v_cache
        for name, norm in self.norms.items():
            getattr(layer.weights, name).copy_(norm)

    def words(self, part: str) -> str:
        """What was compared, for a message."""
        return part if self.name == "as timed" else f"{part}, on inputs that show {self.name}"


def unscaled(x: Tensor, scale: float) -> Tensor:
    """What times `scale` is x, in x's dtype."""
    return x if scale == 1.0 else (x.double() / scale).to(x.dtype)


def _power_of_two(number: float) -> float:
    """The nearest to a positive number; 1 where it is none, as where weights are not finite and no arm can be right."""
    return 2.0 ** round(math.log2(number)) if 0 < number < math.inf else 1.0


def _rms(tensor: Tensor) -> float:
    return float(tensor.double().pow(2).mean().sqrt())


def loose_of(slots: int) -> int:
    """How many values of so many slots do not cancel: LOOSE, more in a long cache."""
    return min(max(LOOSE, slots // 32), 1024)


def cancelling(shape: Sequence[int], loose: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Of shape [batch, heads, slots, head_dim]: +1 and -1, where every slot but `loose` or so has its opposite in
    another slot nearby: in the same block of slots, of which each has two loose ones, anywhere in it.

    A kernel that divides the slots among its splits may keep each split's result in 16 bits. Were opposites anywhere in
    the cache, those results would be as large as the root of a split, and rounding them would hide a key.
    """
    device, slots = generator.device, shape[2]
    signs = torch.randint(0, 2, tuple(shape), dtype=torch.int8, device=device, generator=generator).to(dtype)
    signs = signs.mul_(2).sub_(1)
    block = 2 * max(-(-slots // max(loose, 1)), 1)
    for begin, blocks, size in ((0, slots // block, block), (slots // block * block, 1, slots % block)):
        order = torch.rand(blocks, size, device=device, generator=generator).argsort(1)
        order += begin + torch.arange(blocks, device=device).unsqueeze(1) * size
        pairs = max(size - 2, 0) // 2
        signs[:, :, order[:, pairs : 2 * pairs].flatten()] = -signs[:, :, order[:, :pairs].flatten()]
    return signs


class GateMaker:
    """Makes the sets of one layer, of a seed of their own. `weights` are the layer's, dense; what the reference says is
    of float64.

    stream: the size of the residual stream to what attention adds to it; mlp: what the MLP adds to the stream, once to
    four times that. Where a norm follows, which hides the size of the sum, equal shares show most. x_scale: x is that
    times something of its dtype, as scaled embeddings are.
    """

    def __init__(
        self,
        layer: pk.DecodeLayer,
        weights: pk.LayerWeights,
        seed: int,
        stream: float = 0.5,
        mlp: float = 4.0,
        x_scale: float = 1.0,
    ) -> None:
        self._stream, self._mlp, self._x_scale = stream, mlp, x_scale
        self.layer, self.spec = layer, layer.spec
        self.slot = int(layer.position[0])
        self._random = torch.Generator(layer.device).manual_seed(seed)
        # The weights hold the gate's norms or those that are timed, whichever lie there.
        self.weights = replace(weights, **{name: norm.clone() for name, norm in self._norms_of(weights).items()})
        # What decides how much the MLP adds.
        self._mlp_norm = "mlp_out_norm" if self.spec.post_norms else "post_norm"

    @staticmethod
    def _norms_of(weights: pk.LayerWeights) -> dict[str, Tensor]:
        return {name: norm for name, norm in weights.named().items() if name in LAYER_NORMS}

    def _scaled(self, weights: pk.LayerWeights, name: str, scale: float) -> pk.LayerWeights:
        """The same with a norm that gives so much more; as they are without that norm."""
        norm, offset = getattr(weights, name), self.spec.norm_offset
        if norm is None:
            return weights
        scaled: dict[str, Any] = {name: ((norm.double() + offset) * scale - offset).to(norm.dtype)}
        return replace(weights, **scaled)

    def _normal(self, *shape: int) -> Tensor:
        empty = torch.empty(shape, dtype=self.layer.dtype, device=self.layer.device)
        return empty.normal_(generator=self._random)

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        return self.layer.batch, self.spec.n_kv_heads, self.slot, self.spec.head_dim

    def _take(self, x: Tensor, norm_scale: float = 1.0) -> None:
        """Go on with that x, and with the norm before it so much larger."""
        for _ in range(4 if self._x_scale != 1.0 else 0):  # until rounding leaves it as it is
            x = (unscaled(x, self._x_scale).double() * self._x_scale).to(x.dtype)
        self.x = x
        self.weights = self._scaled(self.weights, "input_norm", norm_scale)
        self._q, self._k_row, self._v_row = pk.reference.layer_qkv(
            self.spec, self.weights, x, self.layer.cos_sin, self.layer.position
        )

    def _take_small(self) -> None:
        """Go on with an x that is small against what attention adds to it, where values are of twice the size of the
        step's own."""
        x, w, spec, eps = self._normal(*self.layer.x.shape), self.weights, self.spec, self.spec.rms_eps
        normed = x
        if w.input_norm is not None:
            normed = pk.reference.rmsnorm(x, w.input_norm, eps, norm_offset=spec.norm_offset)
        own = _rms(pk.reference.gemv(normed, w.v_weight, w.v_bias))
        gain = _rms(pk.reference.gemv(self._normal(1, w.o_weight.shape[1]), w.o_weight)) * spec.residual_scale
        added = max(gain, 1e-6) * math.sqrt(max(min(self.slot, LOOSE), 1)) / (self.slot + 1)
        self._value_scale = _power_of_two(2 * max(own, 1e-6))
        if self.layer.dtype == torch.float16:
            self._value_scale = max(self._value_scale, _power_of_two(_LEAST_IN_FP16 / added))
        if w.attention_out_norm is not None:  # whatever attention gives, that much is added
            added = _rms(w.attention_out_norm.double() + spec.norm_offset) / self._value_scale
        scale = _power_of_two(min(added * self._value_scale, 1.0) * self._stream)
        self._take(x * scale, _power_of_two(math.sqrt(scale**2 + eps) / scale))

    def _attended(self, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        room = torch.zeros_like(self._k_row, dtype=self.layer.dtype).unsqueeze(2)  # the slot that the step writes
        k_cache, v_cache = torch.cat((k_cache, room), dim=2), torch.cat((v_cache, room), dim=2)
        return pk.reference.layer_attention(
            self._q, self._k_row, self._v_row, k_cache, v_cache, self.layer.position, self.spec
        )

    def _parts(self, attended: Tensor) -> dict[str, Tensor]:
        return {"q": self._q, "k_row": self._k_row, "v_row": self._v_row, "attended": attended}

    def _attention(self, name: str, k_cache: Tensor, v_cache: Tensor) -> GateInputs:
        """A set in which the MLP adds nothing."""
        attended = self._attended(k_cache, v_cache)
        weights = self._scaled(self.weights, self._mlp_norm, _OFF)
        h = pk.reference.layer_rest(self.spec, weights, self.x, attended)["h"]
        parts = self._parts(attended) | {"h": h, "out": h}
        return GateInputs(name, self.x, k_cache, v_cache, self._norms_of(weights), parts)

    def as_timed(self) -> GateInputs:
        """The layer's own numbers."""
        self._take(self.layer.x.clone())
        k_cache, v_cache = (cache[:, :, : self.slot].clone() for cache in (self.layer.k_cache, self.layer.v_cache))
        attended, w = self._attended(k_cache, v_cache), self.weights
        rest = pk.reference.layer_rest(self.spec, w, self.x, attended)
        return GateInputs("as timed", self.x, k_cache, v_cache, self._norms_of(w), self._parts(attended) | rest)

    def every_key(self) -> GateInputs:
        """Equal keys, values that cancel, and an x of their own."""
        self._take_small()
        keys = self._k_row.to(self.layer.dtype).unsqueeze(2).expand(self._shape)
        values = cancelling(self._shape, LOOSE, self.layer.dtype, self._random) * self._value_scale
        return self._attention("every key", keys, values)

    def scores(self) -> GateInputs:
        """Keys around the step's own, of scores of unit variance; after every_key(), with its x."""
        group = self.spec.n_heads // self.spec.n_kv_heads
        of_head = self._q.pow(2).mean(-1).unflatten(1, (self.spec.n_kv_heads, group)).mean(-1).sqrt().clamp_min(1e-6)
        of_head = of_head * (self.spec.score_scale * self.spec.head_dim**0.5)
        keys = self._normal(*self._shape).double() / of_head[:, :, None, None] + self._k_row.unsqueeze(2)
        return self._attention("the scores", keys.to(self.layer.dtype), self._normal(*self._shape) * self._value_scale)

    def mlp(self, attention: GateInputs) -> GateInputs:
        """The same with an MLP that adds its share."""
        attended, stream = attention.expected["attended"], _rms(attention.expected["h"])
        scale, tried = 1.0, set()
        while True:
            weights = self._scaled(self.weights, self._mlp_norm, scale)
            rest = pk.reference.layer_rest(self.spec, weights, self.x, attended)
            share = max(_rms(rest["out"] - rest["h"]), 1e-30) / stream
            tried.add(scale)
            # A norm before the MLP goes in twice, by gate and by up; through silu by more than its square.
            missing = 2 * self._mlp / share
            scale *= _power_of_two(missing if self.spec.post_norms else math.sqrt(missing))
            if self._mlp <= share <= 4 * self._mlp or scale in tried or len(tried) == 8:
                break
        return replace(attention, name=_MLP, norms=self._norms_of(weights), expected=self._parts(attended) | rest)


def gate_inputs(layer: pk.DecodeLayer, weights: pk.LayerWeights, seed: int) -> list[GateInputs]:
    """All sets of a layer, the one that is timed first. weights: the layer's, dense."""
    timed = GateMaker(layer, weights, seed).as_timed()
    maker = GateMaker(layer, weights, seed)
    return [timed, maker.every_key(), scores := maker.scores(), maker.mlp(scores)]


def fresh_inputs(layer: pk.DecodeLayer, weights: pk.LayerWeights, seed: int) -> list[GateInputs]:
    """Those of a check after the clocks, of a seed of its own: every key, and the MLP over the same cache."""
    maker = GateMaker(layer, weights, seed)
    return [keys := maker.every_key(), maker.mlp(keys)]
