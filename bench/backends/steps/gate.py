"""The gate of a whole step: the numbers that are timed, and one layer after another on inputs that show its parts.

In a deep model the errors of all layers add up, and what a single op of them does wrong drowns in what is allowed. So
most sets of inputs switch all layers off but one: norms and the value's bias are zero there, and so are the cached
values, so that the residual stream goes through unchanged. The one that is on has inputs of bench.backends.gate_inputs,
and the logits are held to the tolerance of one layer. The last layer adds what it is known to add where another one is
on: the last norm would hide the size of a sum that nothing is added to.
"""

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.base import AS_GIVEN, LAYER_DEPTH, Numbers
from bench.backends.gate_inputs import LAYER_NORMS, GateInputs, GateMaker, unscaled
from bench.backends.steps.drivers import Driver
from bench.core.measure import Drive, Watch

# Rows of the vocabulary whose logits are compared where one layer is on.
_ROWS = 2048


@dataclass(frozen=True)
class LayerOn:
    """Inputs of one layer, all others off. `logits`: float64 [batch, rows], those of `rows` of the vocabulary.
    `values` [batch, n_kv_heads, 1, head_dim]: what all slots of the last layer's cache hold; None where that layer is
    the one that is on, or there are no slots."""

    layer: int
    inputs: GateInputs
    values: Tensor | None
    rows: Tensor
    logits: Tensor


class Reference:
    """What one step of a model at `position` must give, by the float64 reference on the model's own device. Worked out
    on its first use: all arms of the model take the same step, over the slots before `position`, which none
    of them writes."""

    def __init__(self, model: pk.DecodeModel, position: int, numbers: Numbers = AS_GIVEN) -> None:
        self.model, self.position, self.numbers = model, position, numbers
        self._judge: Reference = self
        self._others: dict[object, Reference] = {}
        self.token = torch.arange(model.batch, device=model.device) * 7 % model.spec.vocab

    @cached_property
    def dense(self) -> "Reference":
        """Of the model with 4-bit projections dequantised and rounded to its dtype, judged by the 4-bit ones; itself
        where they are dense. Everything but the projections is shared."""
        if not self.model.weights.layers[0].is_int4:
            return self
        dtype = self.model.dtype
        weights = self.model.weights.mapped(lambda layer: layer.dequantize(dtype))
        return self._judging(Reference(self.model.with_weights(weights), self.position))

    def _judging(self, other: "Reference") -> "Reference":
        other._judge = self
        return other

    def in_dtype(self, dtype: torch.dtype) -> "Reference":
        """Of the model in another dtype, with caches of its own."""
        model = self.model
        if dtype == model.dtype:
            return self
        if dtype not in self._others:
            other = pk.DecodeModel(
                model.spec, model.weights.to(dtype), model.max_len, model.batch, dtype, model.device
            )  # fmt: skip
            self._others[dtype] = Reference(other, self.position)
        return self._others[dtype]

    def by(self, numbers: Numbers) -> "Reference":
        """Of the same model, judged by those numbers."""
        if numbers == self.numbers:
            return self
        key = numbers.key, numbers.depth
        if key not in self._others:
            other = Reference(self.model, self.position, numbers)
            self._others[key] = self._judging(other) if numbers.key == self.numbers.key else other
        return self._others[key]

    @cached_property
    def expected(self) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """As `pykernels.reference.step` returns them."""
        if self._judge is not self:
            return self._judge.expected
        model = self.model
        caches = [(layer.k_cache, layer.v_cache) for layer in model.layers]
        where = torch.full_like(model.position, self.position)
        # One layer after another: all of them in float64 would be sixteen times the 4-bit model.
        layers: Any = (self.numbers.of(layer) for layer in model.weights.layers)
        weights, angles = replace(model.weights, layers=layers), [layer.cos_sin for layer in model.layers]
        return pk.reference.step(model.spec, weights, self.token, caches, angles, where)

    @property
    def separable(self) -> bool:
        """Can layers be switched off one by one? Not where they share their weights."""
        layers = self.model.weights.layers
        name = "mlp_out_norm" if self.model.spec.post_norms else "post_norm"
        return len({layer.named()[name].data_ptr() for layer in layers}) == len(layers)

    @cached_property
    def sets(self) -> list[LayerOn]:
        """For the gate: the first layer and the last, every kind of inputs."""
        if self._judge is not self:
            return self._judge.sets
        last = len(self.model.layers) - 1
        return [on for layer in dict.fromkeys((0, last)) for on in self._sets(layer, 0)] if self.separable else []

    @cached_property
    def fresh(self) -> list[LayerOn]:
        """For the check after the clocks: a layer and numbers that nobody has seen before."""
        if self._judge is not self:
            return self._judge.fresh
        layer, seed = secrets.randbelow(len(self.model.layers)), secrets.randbits(62)
        return self._sets(layer, seed) if self.separable else []

    def _sets(self, index: int, seed: int) -> list[LayerOn]:
        model, layer = self.model, self.model.layers[index]
        model.set_position(self.position)
        scale = model.spec.embedding_scale_in(model.dtype)
        maker = GateMaker(layer, self.numbers.of(layer.weights), seed, stream=1.0, mlp=0.5, x_scale=scale)
        keys, scores = maker.every_key(), maker.scores()
        rows = torch.randperm(model.spec.vocab, device=model.device, generator=maker.random)[:_ROWS]
        rows = rows[~torch.isin(rows, self.token)]  # whose rows of a tied table are the step's x
        found = []
        for inputs in (keys, scores, maker.mlp(scores)):
            values, stream = self._through_the_last(index, inputs.expected["out"], maker.random)
            spec, norm = model.spec, model.weights.final_norm
            normed = pk.reference.rmsnorm(stream, norm, spec.rms_eps, norm_offset=spec.norm_offset)
            logits = pk.reference.logits(spec, normed, model.weights.lm_head[rows])
            found.append(LayerOn(index, inputs, values, rows, logits))
        return found

    def _through_the_last(self, index: int, out: Tensor, random: torch.Generator) -> tuple[Tensor | None, Tensor]:
        """LayerOn.values, and the residual stream behind the last layer, whose attention adds about as much as `out`,
        the stream behind layer `index`, is."""
        model, last, spec = self.model, self.model.layers[-1], self.model.spec
        # A norm behind attention that is off lets nothing through.
        if index == len(model.layers) - 1 or self.position == 0 or spec.post_norms:
            return None, out
        w, slots = self.numbers.of(last.weights), self.position + 1  # with the step's own
        bias = None if w.v_bias is None else torch.zeros_like(w.v_bias)
        off = replace(w, input_norm=torch.full_like(w.input_norm, -spec.norm_offset), v_bias=bias)
        q, k_row, v_row = pk.reference.layer_qkv(
            spec, off, torch.zeros_like(last.x), last.cos_sin, torch.full_like(model.position, self.position)
        )
        values = torch.randn(*v_row.shape, dtype=torch.float64, device=out.device, generator=random)
        values = values.to(model.dtype).unsqueeze(2)
        v_cache = values.expand(-1, -1, slots, -1)
        attended = pk.reference.layer_attention(
            q, k_row, v_row, torch.zeros_like(v_cache), v_cache, last.position, spec
        )
        added = pk.reference.gemv(attended.flatten(1), w.o_weight, scale=spec.residual_scale)
        scale = 2.0 ** round(math.log2(max(float(out.norm() / added.norm()), 1e-30)))
        return values * scale, out + added * scale


class _Memory:
    """What the gate writes over in a model: the embeddings of the tokens, norms, value biases and cached values."""

    def __init__(self, reference: Reference) -> None:
        self._model, self._token, self._slots = reference.model, reference.token, reference.position
        self._embedding = self._model.weights.embedding[self._token].clone()
        self._before = [tensor.clone() for tensor in self._tensors()]

    def _tensors(self) -> list[Tensor]:
        found = []
        for layer in self._model.layers:
            w = layer.weights
            caches = [cache[:, :, : self._slots] for cache in (layer.k_cache, layer.v_cache)]
            found += [*self._norms(w).values(), *([] if w.v_bias is None else [w.v_bias]), *caches]
        return found

    @staticmethod
    def _norms(weights: pk.LayerWeights) -> dict[str, Tensor]:
        """The norms that the gate writes over: of a layer, not of its heads."""
        return {name: weight for name, weight in weights.named().items() if name in LAYER_NORMS}

    def put(self, on: LayerOn) -> None:
        """Switch on that layer, with its inputs, and off all others."""
        self.restore()
        for index, layer in enumerate(self._model.layers):
            w = layer.weights
            if index != on.layer:
                for norm in self._norms(w).values():
                    norm.fill_(-self._model.spec.norm_offset)
                for tensor in (w.v_bias, layer.v_cache[:, :, : self._slots]):
                    if tensor is not None:
                        tensor.zero_()
        if on.values is not None:
            last = self._model.layers[-1]
            last.k_cache[:, :, : self._slots] = 0
            last.v_cache[:, :, : self._slots] = on.values
        on.inputs.put(self._model.layers[on.layer])  # its x is the embedding, or what a layer that is off lets through
        scale = self._model.spec.embedding_scale_in(self._model.dtype)
        self._model.weights.embedding[self._token] = unscaled(on.inputs.x, scale)

    def restore(self) -> None:
        """As it was."""
        for tensor, before in zip(self._tensors(), self._before, strict=True):
            tensor.copy_(before)
        self._model.weights.embedding[self._token] = self._embedding


@dataclass
class StepCheck:
    """The check of one arm of a step (bench.core.measure.Check): logits, the rows that layers append, and the token."""

    driver: Driver
    reference: Reference

    def __call__(self, drive: Drive | None = None, watch: Watch | None = None) -> pk.reference.Comparison:
        """As bench.core.measure.Check says; what drives it is the driver's own loop."""
        step = (lambda: self.driver.run(1)) if drive else self.driver.step
        sets = self.reference.fresh if drive else self.reference.sets
        # Where there are no other inputs, what lies there before must be wrong.
        found = [] if drive and sets else self._as_timed(step, poison=drive is None or not sets)
        memory = _Memory(self.reference) if sets else None
        try:
            for on in sets:
                assert memory is not None
                memory.put(on)
                self.driver.reload()
                found += self._with_layer_on(step, on, poison=drive is None)
        finally:
            if memory:
                memory.restore()
                self.driver.reload()
        wrong = [comparison for comparison in found if not comparison.ok]
        return max(wrong or found, key=lambda comparison: comparison.max_rel_error / comparison.tolerance)

    def _take(self, step: Callable[[], object], poison: bool) -> None:
        model, position = self.reference.model, self.reference.position
        if poison:
            model.poison()
            for cache in (cache for layer in model.layers for cache in (layer.k_cache, layer.v_cache)):
                cache[:, :, position] = float("nan")
        model.token.copy_(self.reference.token)
        self.driver.stand(position)
        step()

    def _as_timed(self, step: Callable[[], object], poison: bool) -> list[pk.reference.Comparison]:
        model, position = self.reference.model, self.reference.position
        expected, rows = self.reference.expected
        self._take(step, poison)
        depth = step_depth(model.spec.n_layers) * self.reference.numbers.depth
        logits = self.driver.logits()
        found = [pk.reference.compare(logits, expected, model.dtype, depth)]
        for layer, of_layer in zip(model.layers, rows, strict=True):
            for cache, row in zip((layer.k_cache, layer.v_cache), of_layer, strict=True):
                found.append(pk.reference.compare(cache[:, :, position], row, model.dtype, depth))
        return self._with_token(found, logits)

    def _with_layer_on(self, step: Callable[[], object], on: LayerOn, poison: bool) -> list[pk.reference.Comparison]:
        model, layer = self.reference.model, self.reference.model.layers[on.layer]
        self._take(step, poison)
        logits, inputs = self.driver.logits(), on.inputs
        found = []
        for part, got, expected in (
            ("logits", logits[:, on.rows], on.logits),
            ("k_row", layer.k_cache[:, :, self.reference.position], inputs.expected["k_row"]),
            ("v_row", layer.v_cache[:, :, self.reference.position], inputs.expected["v_row"]),
        ):
            depth = LAYER_DEPTH + (inputs.more_depth if part == "logits" else 0)
            comparison = pk.reference.compare(got, expected, model.dtype, depth * self.reference.numbers.depth)
            words = f"{inputs.words(part)} of layer {on.layer}: {comparison.message}"
            found.append(replace(comparison, message=words))
        return self._with_token(found, logits)

    def _with_token(self, found: Sequence[pk.reference.Comparison], logits: Tensor) -> list[pk.reference.Comparison]:
        token = self.reference.model.token
        within = bool(((token >= 0) & (token < logits.shape[-1])).all())
        # Of equal logits any may be the greatest.
        if within and torch.equal(logits.gather(-1, token[:, None])[:, 0], logits.amax(-1)):
            return list(found)
        words = f"token must be the argmax of the logits, {logits.argmax(-1).tolist()}, got {token.tolist()}"
        return [*found, replace(found[0], ok=False, message=words)] if all(c.ok for c in found) else list(found)


def step_depth(n_layers: int) -> int:
    """Of pykernels.reference.compare: errors of the layers add like a random walk."""
    return math.ceil(2 * math.sqrt(n_layers))
