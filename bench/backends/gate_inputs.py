"""The inputs of a layer's gate: x, cache and norms, chosen so that every part of the layer shows in its output.

With the numbers that are timed, a layer's output is its residual stream: x is of unit scale, an average of 16,384
values of unit scale is a hundredth of that, and a layer without attention is right to within two roundings of bf16. So
the gate puts other numbers in the same memory, a few sets of them, and compares with the reference on each:

as timed    the numbers that are timed: the residual stream, the rows that go into the cache. Parts that the dtype
            cannot hold, or that its roundings decide, are not compared
every key   every key is equal, and so are all weights of the softmax; all values but LOOSE cancel in pairs. What a
            single key adds is 1 / sqrt(LOOSE) of the result, the step's own half of that: one that is missing, or read
            twice, shows at any length
the scores  keys whose scores are of unit variance: what is wrong with q, k or the scale shows in who is attended to
the MLP     a residual stream that is small against what the MLP adds

In all but the first x is so small that attention is not hidden by it, with the norm before it so large that nobody
notices; in those for attention the norm before the MLP is so small that the MLP adds nothing. The weights of the
projections stay as they are: a backend may hold them in a layout of its own. Where they are so small or so large that
float16 could not hold what they give, norms and values make up for it, so that all that is compared are normal numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.number_range import NumberRange, power_of_two, rms

LOOSE = 64
"""The values that do not cancel."""

# Of the norm's weight where the MLP is to add nothing, and what it may add to the stream there. What scales is a power
# of two here: whatever is multiplied by it keeps its bits.
_OFF, _NOTHING = 2.0**-12, 2.0**-14

# Sums of so little of what independent terms add up to cancel. Rows are alike whose mean is so much of them.
_CANCELS, _ALIKE, _TRIALS = 0.5, 0.5, 8

# The largest standard deviation of a score that the norm's weight may be raised to: rounding q and k changes a score by
# so much more. And the largest such change where what is timed is compared.
_SCORE, _SCORE_ROUNDED = 2.0, 0.25

_MLP = "the MLP"

LAYER_NORMS = ("input_norm", "post_norm", "attention_out_norm", "mlp_out_norm")
"""The norms of a layer by their names in LayerWeights; a model has those before attention and the MLP, those behind, or
both."""


@dataclass(frozen=True)
class GateInputs:
    """One set. `x` [batch, hidden]; `k_cache`, `v_cache` [batch, n_kv_heads, slots, head_dim], the slots before the
    layer's own; `norms`: [hidden], by their names in LayerWeights; `expected`: by part, what the reference says.
    `more_depth`: how many more ops' roundings (pykernels.reference.compare) h and what comes of it may err by than
    other layers', where the rows of the projections are alike."""

    name: str
    x: Tensor
    k_cache: Tensor
    v_cache: Tensor
    norms: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]
    more_depth: int = 0

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
    times something of its dtype, as scaled embeddings are. `random` is the seed's generator.
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
        self.random = torch.Generator(layer.device).manual_seed(seed)
        self._range = NumberRange.of(layer.dtype)
        # The weights hold the gate's norms or those that are timed, whichever lie there.
        self.weights = replace(weights, **{name: norm.clone() for name, norm in self._norms_of(weights).items()})
        # What decides how much the MLP adds.
        self._mlp_norm = "mlp_out_norm" if self.spec.post_norms else "post_norm"

    @staticmethod
    def _norms_of(weights: pk.LayerWeights) -> dict[str, Tensor]:
        return {name: norm for name, norm in weights.named().items() if name in LAYER_NORMS}

    def _scaled(self, weights: pk.LayerWeights, name: str, scale: float) -> pk.LayerWeights:
        """The same with a norm that gives so much more, or as much of it as its dtype can hold; as they are without
        that norm."""
        norm, offset = getattr(weights, name), self.spec.norm_offset
        if norm is None:
            return weights
        most = torch.finfo(norm.dtype).max / 2 / max(float((norm.double() + offset).abs().max()), 1e-30)
        while scale > max(most, 1.0):
            scale /= 2
        scaled: dict[str, Any] = {name: ((norm.double() + offset) * scale - offset).to(norm.dtype)}
        return replace(weights, **scaled)

    def _normal(self, *shape: int) -> Tensor:
        empty = torch.empty(shape, dtype=self.layer.dtype, device=self.layer.device)
        return empty.normal_(generator=self.random)

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

    def _gain(self, weight: Tensor) -> float:
        """How much larger numbers are behind a projection."""
        return rms(pk.reference.gemv(self._normal(1, weight.shape[1]), weight))

    @cached_property
    def _down_gain(self) -> float:
        return max(self._gain(self.weights.down_weight) * self.spec.residual_scale, 1e-30)

    def _of_values(self) -> list[float]:
        """Sizes of what comes of values of unit scale: they themselves, attended, what attention adds; and of the MLP
        that adds its share, where no norm decides it: what it adds, and the input of its down projection."""
        attended = math.sqrt(max(min(self.slot, LOOSE), 1)) / (self.slot + 1)
        added = attended * self._gain(self.weights.o_weight)
        if self.spec.post_norms:
            return [1.0, attended, added]
        added *= self.spec.residual_scale
        return [1.0, attended, added, 4 * self._mlp * added, self._mlp * added / self._down_gain]

    def _out_norm(self, projected: Sequence[float]) -> float:
        """What the norm behind attention adds, which is scaled where that is out of the dtype's range, or what the
        projections make of it is. Their gains are `projected`, of none where a norm lies between."""
        norm = self.weights.attention_out_norm
        assert norm is not None
        added = rms(norm.double() + self.spec.norm_offset)
        scale = self._range.scale(added * size for size in (1.0, *projected))
        self.weights = self._scaled(self.weights, "attention_out_norm", scale)
        return added * scale

    def _drawn(self) -> tuple[Tensor, Tensor, list[float]]:
        """An x of unit scale, the same behind the input norm where there is one, and how large q, k and v are of it, by
        their weights alone. Drawn anew where sums cancel, as they may in all rows of weights that are alike: relative
        to such a result roundings are large."""
        w, spec, best = self.weights, self.spec, None
        weights = [w.q_weight, w.k_weight, w.v_weight]
        expected = [max(rms(weight) * math.sqrt(weight.shape[1]), 1e-30) for weight in weights]
        for _ in range(8):
            x = self._normal(*self.layer.x.shape)
            normed = x
            if w.input_norm is not None:
                normed = pk.reference.rmsnorm(x, w.input_norm, spec.rms_eps, norm_offset=spec.norm_offset)
            sizes = [rms(pk.reference.gemv(normed, weight)) for weight in weights]
            least = min(size / one for size, one in zip(sizes, expected, strict=True)) / max(rms(normed), 1e-30)
            if best is None or least > best[0]:
                best = least, (x, normed, sizes)
            if not least < _CANCELS:
                break
        assert best is not None
        return best[1]

    def _take_small(self) -> None:
        """Go on with an x that is small against what attention adds to it, where values are of twice the size of the
        step's own, in fp16 more where that needs it."""
        w, spec = self.weights, self.spec
        x, normed, (q, k, v) = self._drawn()
        of_values, score = self._of_values(), spec.score_scale * spec.head_dim**0.5
        least, loudest, sizes = self._range.scale(of_values, 0.0), math.inf, [q, k, v]
        if w.q_norm is None:
            sizes.append(q * score)  # keys are one over that
            loudest = math.sqrt(_SCORE / max(q * k * score, 1e-30))
        added = least * of_values[2]
        if w.attention_out_norm is not None:
            # What goes into the down projection, and comes out of it, is something like half the square of gate.
            gate, down = self._gain(w.gate_weight) / math.sqrt(2), self._down_gain
            through = [
                gate * math.sqrt(gain * end) for gain in (1, down) for end in (self._range.low, self._range.high)
            ]
            added = self._out_norm([] if w.input_norm is not None else [*sizes, *through])
        small, lost = self._small(added)
        gain = small
        if w.input_norm is not None:
            largest = float(w.input_norm.double().abs().max()) / 8  # of numbers whose largest is eight times their rms
            # What the step's own value gives must fit too.
            most = self._range.high * (self.slot + 1) * of_values[1] / max(v * max(of_values), 1e-30)
            wanted = min(max(1.0, least / max(2 * v, 1e-30)), loudest, most)
            gain = self._range.scale([*sizes, rms(normed), largest * lost], wanted)
        own = math.hypot(gain * v, 0.0 if w.v_bias is None else rms(w.v_bias))
        self._value_scale = self._range.scale(of_values, 2 * own)
        if w.attention_out_norm is None:
            small, lost = self._small(self._value_scale * of_values[2])
        self._take(x * small, power_of_two(gain * lost))

    def _small(self, added: float) -> tuple[float, float]:
        """x where attention adds that, and how much larger eps wants the norm of so small an x."""
        small = power_of_two(min(added, 1.0) * self._stream)
        return small, math.sqrt(small**2 + self.spec.rms_eps) / small

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
        attended, before, off = self._attended(k_cache, v_cache), self.weights, _OFF
        if self.spec.post_norms:  # what its norm is to hide must be finite
            before = self._before_mlp(pk.reference.layer_rest(self.spec, before, self.x, attended)["h"])
        while True:
            weights = self._scaled(before, self._mlp_norm, off)
            rest = pk.reference.layer_rest(self.spec, weights, self.x, attended)
            share = rms(rest["out"] - rest["h"]) / max(rms(rest["h"]), 1e-30)
            if not _NOTHING < share < math.inf or off < _OFF:
                break
            off *= power_of_two(_NOTHING / share)
        parts = self._parts(attended) | {"h": rest["h"], "out": rest["out"]}
        more = self._more_depth(weights, attended, rest)
        return GateInputs(name, self.x, k_cache, v_cache, self._norms_of(weights), parts, more)

    def as_timed(self) -> GateInputs:
        """The layer's own numbers."""
        self._take(self.layer.x.clone())
        k_cache, v_cache = (cache[:, :, : self.slot].clone() for cache in (self.layer.k_cache, self.layer.v_cache))
        attended, w = self._attended(k_cache, v_cache), self.weights
        rest = pk.reference.layer_rest(self.spec, w, self.x, attended)
        parts = self._comparable(self._parts(attended) | rest)
        return GateInputs("as timed", self.x, k_cache, v_cache, self._norms_of(w), parts)

    def _comparable(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those, in the order in which the layer has them, up to one that the dtype cannot hold; those before attention
        alone where rounding q may change who is attended to. Without the input of the down projection, which the set of
        the MLP shows: nothing is known here of how far the sums before it cancel."""
        info, w = torch.finfo(self.layer.dtype), self.weights
        rounded = rms(self._q) * max(rms(self._k_row), 1.0) * self.spec.score_scale * self.spec.head_dim**0.5 * info.eps
        kept: dict[str, Tensor] = {}
        for name, part in parts.items():
            largest = float(part.abs().max())
            if self.spec.post_norms and name in ("attended", "activated"):  # a norm hides what comes of it
                weight = w.o_weight if name == "attended" else w.down_weight
                largest = max(largest, float(pk.reference.gemv(part.flatten(1), weight).abs().max()))
            if largest > info.max or (name == "attended" and rounded > _SCORE_ROUNDED):
                break
            kept[name] = part
        kept.pop("activated", None)
        return kept

    def every_key(self) -> GateInputs:
        """Equal keys, values that cancel, and an x of their own."""
        self._take_small()
        keys = self._k_row.to(self.layer.dtype).unsqueeze(2).expand(self._shape)
        values = cancelling(self._shape, LOOSE, self.layer.dtype, self.random) * self._value_scale
        return self._attention("every key", keys, values)

    def scores(self) -> GateInputs:
        """Keys around the step's own, of scores of unit variance; after every_key(), with its x."""
        group = self.spec.n_heads // self.spec.n_kv_heads
        of_head = self._q.pow(2).mean(-1).unflatten(1, (self.spec.n_kv_heads, group)).mean(-1).sqrt().clamp_min(1e-6)
        of_head = of_head * (self.spec.score_scale * self.spec.head_dim**0.5)
        keys = self._normal(*self._shape).double() / of_head[:, :, None, None] + self._k_row.unsqueeze(2)
        return self._attention("the scores", keys.to(self.layer.dtype), self._normal(*self._shape) * self._value_scale)

    def mlp(self, attention: GateInputs) -> GateInputs:
        """The same with an MLP that adds its share, or as much of it as it can."""
        attended, h = attention.expected["attended"], attention.expected["h"]
        weights = self._before_mlp(h)
        if self.spec.post_norms:
            rest = pk.reference.layer_rest(self.spec, weights, self.x, attended)
            share = rms(rest["out"] - rest["h"]) / rms(h)
            weights = self._scaled(weights, "mlp_out_norm", power_of_two(2 * self._mlp / max(share, 1e-30)))
        rest = pk.reference.layer_rest(self.spec, weights, self.x, attended)
        return replace(
            attention, name=_MLP, norms=self._norms_of(weights), expected=self._parts(attended) | rest,
            more_depth=self._more_depth(weights, attended, rest),
        )  # fmt: skip

    @cached_property
    def _rows_are_alike(self) -> bool:
        """What rounding an input changes is then alike in all outputs, and not small against the largest of them."""
        w = self.weights
        return any(
            rms(weight.double().mean(0)) > _ALIKE * rms(weight) for weight in (w.v_weight, w.o_weight, w.gate_weight)
        )

    def _more_depth(self, weights: pk.LayerWeights, attended: Tensor, rest: Mapping[str, Tensor]) -> int:
        """GateInputs.more_depth: by what h, activated and out change where x and attended are off by a rounding, and
        attended by one more that is the same in all of it: the step's own value is, and so is how it was rounded."""
        if not self._rows_are_alike:
            return 0
        dtype, largest = self.layer.dtype, 0.0
        for _ in range(_TRIALS):
            x, other = (
                values.double() * (1 + self._normal(*values.shape).double() * torch.finfo(dtype).eps)
                for values in (self.x, attended)
            )
            shared = self._normal(attended.shape[0], *[1] * (attended.ndim - 1)).double()
            other = other + shared * torch.finfo(dtype).eps * rms(attended)
            off = pk.reference.layer_rest(self.spec, weights, x, other)
            for part in ("h", "activated", "out"):
                found = pk.reference.compare(off[part], rest[part], dtype)
                if found.max_rel_error < math.inf:
                    largest = max(largest, found.max_rel_error / found.tolerance)
        return math.ceil(2 * largest)

    def _before_mlp(self, h: Tensor) -> pk.LayerWeights:
        """With the norm before the MLP such that it adds its share; where a norm follows, such that the dtype can hold
        what it has."""
        spec, w = self.spec, self.weights
        if w.post_norm is None:
            return w
        normed = pk.reference.rmsnorm(h, w.post_norm, spec.rms_eps, norm_offset=spec.norm_offset)
        gate, up = pk.reference.gemv(normed, w.gate_weight), pk.reference.gemv(normed, w.up_weight)
        gain = self._down_gain
        if spec.post_norms:
            sizes = [
                rms(gate),
                rms(up),
                rms(normed),
                of_one := rms(pk.reference.silu_mul(gate, up, spec.gelu)),
                of_one * gain,
            ]
            if self._range.scale(sizes) == 1.0:
                return w
        largest = max(rms(normed), rms(gate), rms(up), float(w.post_norm.double().abs().max()) / 8)
        scale = 1.0
        for _ in range(2):  # with the gain of a random input, then with that of its own
            wanted = max(1.0, 1 / gain) if spec.post_norms else self._mlp * rms(h) / gain
            scale, activated = self._activated(gate, up, wanted, self._range.high / max(largest, 1e-30))
            gain = rms(pk.reference.gemv(activated, w.down_weight, scale=spec.residual_scale)) / max(
                rms(activated), 1e-30
            )
            gain = max(gain, 1e-30)
        return self._scaled(w, "post_norm", scale)

    def _activated(self, gate: Tensor, up: Tensor, wanted: float, most: float) -> tuple[float, Tensor]:
        """The least power of two, `most` at most, by which gate and up give an input of the down projection of that
        size or more, and that input; of the largest size, where none does: the activation of large negative numbers is
        nothing."""
        found = 1.0, pk.reference.silu_mul(gate, up, self.spec.gelu)
        largest, size = 0.0, rms(gate)
        exponent = math.floor(math.log2(self._range.low / size)) if 0 < size < math.inf else 0
        while 2.0**exponent <= most and largest < wanted:
            scale = 2.0**exponent
            activated = pk.reference.silu_mul(gate * scale, up * scale, self.spec.gelu)
            if (size := rms(activated)) > largest:
                largest, found = size, (scale, activated)
            exponent += 1
        return found


def gate_inputs(layer: pk.DecodeLayer, weights: pk.LayerWeights, seed: int) -> list[GateInputs]:
    """All sets of a layer, the one that is timed first. weights: the layer's, dense."""
    timed = GateMaker(layer, weights, seed).as_timed()
    maker = GateMaker(layer, weights, seed)
    return [timed, maker.every_key(), scores := maker.scores(), maker.mlp(scores)]


def fresh_inputs(layer: pk.DecodeLayer, weights: pk.LayerWeights, seed: int) -> list[GateInputs]:
    """Those of a check after the clocks, of a seed of its own: every key, and the MLP over the same cache."""
    maker = GateMaker(layer, weights, seed)
    return [keys := maker.every_key(), maker.mlp(keys)]
