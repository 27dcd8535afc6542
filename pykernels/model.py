"""A whole decode step on the native kernels: embedding, the decoder layers, final norm, lm_head, argmax."""

import copy

import torch
from torch import Tensor

from pykernels import ops
from pykernels.calibrate import ScoreRows
from pykernels.layer import DecodeLayer, Steps, available_bytes, op_labels
from pykernels.spec import ModelSpec
from pykernels.weights import ModelWeights

STEP_LABELS = (
    [("embedding", "embedding")],
    [("rmsnorm", "final_norm"), ("gemv", "lm_head"), ("argmax", "argmax")],
)
"""The ops of a step before its layers and after them, as (op, what it does)."""


class DecodeModel(Steps):
    """A decoder that turns `token` into the next token, greedily, one step after another.

    A step reads `token` and `position`, appends a slot to every layer's cache and attends up to it, leaves the
    logits in `logits`, and writes the next token, position and kv_len over the old ones: steps run one after
    another decode a sequence, whoever drives them. At the cache's last slot the position stays. Nothing is
    allocated in a step.

    Attributes: `token` int64 [batch]; `position`, `kv_len` int32 [batch]; `logits` [batch, vocab]; `layers`,
    one :class:`DecodeLayer` a layer, which share their scratch buffers; `weights`, `spec`, `max_len`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: ModelWeights,
        max_len: int,
        batch: int = 1,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        """A model whose caches have `max_len` slots, filled with random K and V of unit scale.

        It stands at position 0 with random tokens. Raises ValueError where max_len is not in 1..max_ctx of the
        model, where the batch is not in 1..8, where `weights` are of another number of layers, and where the
        caches do not fit the memory that is there.
        """
        if not 1 <= max_len <= spec.max_ctx:
            raise ValueError(f"max_len must be in 1..{spec.max_ctx} ({spec.ctx_words()}), got {max_len}")
        if len(weights.layers) != spec.n_layers:
            raise ValueError(f"weights must be of {spec.n_layers} layers ({spec.name}), got {len(weights.layers)}")
        self.spec, self.weights, self.max_len, self.batch, self.dtype = spec, weights, max_len, batch, dtype
        self.device = torch.device(device)
        needed, available = spec.kv_bytes(max_len, batch, dtype), available_bytes(self.device)
        if needed > available:
            raise ValueError(
                f"max_len must leave the caches within the memory available ({available / 2**30:.1f} GiB), "
                f"got {max_len}, which needs {needed / 2**30:.1f} GiB at batch {batch}"
            )
        self.layers = [
            DecodeLayer(spec, layer, max_len, batch, dtype, self.device, seed + index, index)
            for index, layer in enumerate(weights.layers)
        ]
        first, last = self.layers[0], self.layers[-1]
        for before, after in zip(self.layers, self.layers[1:], strict=False):
            after.follow(before)
        tables: dict[str, Tensor] = {}  # of angles: one a kind of RoPE
        for layer in self.layers:
            layer.cos_sin = tables.setdefault(layer.rope, layer.cos_sin)
        self.position, self.kv_len, self._x, self._last = first.position, first.kv_len, first.x, last
        self._normed = torch.empty(batch, spec.hidden, dtype=dtype, device=self.device)
        self.logits = torch.empty(batch, spec.vocab, dtype=dtype, device=self.device)
        generator = torch.Generator(device=self.device).manual_seed(seed)
        self._embedding_scale = spec.embedding_scale_in(dtype)
        self.token = torch.randint(spec.vocab, (batch,), generator=generator, device=self.device)
        self.set_position(0)

    def with_weights(self, weights: ModelWeights) -> "DecodeModel":
        """The same model over other layers of its own tables (ModelWeights.mapped), dense ones for 4-bit ones say:
        token, position, caches and buffers are shared."""
        other = copy.copy(self)
        other.weights = weights
        other.layers = [layer.with_weights(of) for layer, of in zip(self.layers, weights.layers, strict=True)]
        other._last = other.layers[-1]
        return other

    def with_softmax(self, softmax: str, phi: float = 0.0) -> "DecodeModel":
        """The same model with another softmax in its attention: token, position, caches and buffers are shared, and the
        layers have one workspace of attention."""
        other = copy.copy(self)
        other.layers = [layer.with_softmax(softmax, phi) for layer in self.layers]
        for before, after in zip(other.layers, other.layers[1:], strict=False):
            after.share_attention_workspace(before)
        other._last = other.layers[-1]
        return other

    def score_rows(self, fusion: str = "block") -> list[ScoreRows]:
        """What a phi must fit, of every layer of one step from where the model stands (:func:`calibrate_phi`). The step
        writes that slot of the caches; position and token stay."""
        found = []
        ops.embedding(self.token, self.weights.embedding, scale=self._embedding_scale, out=self._x)
        for layer in self.layers:
            layer.forward(fusion)
            found.append(layer.score_rows())
        return found

    def set_position(self, position: int) -> None:
        """Stand at `position` (0 to max_len - 1): the next step writes that slot and attends up to it."""
        self.layers[0].set_position(position)

    def forward(self, fusion: str) -> Tensor:
        """One step through the public ops (mode `eager`). Returns `token`, which is the next one then."""
        spec = self.spec
        ops.embedding(self.token, self.weights.embedding, scale=self._embedding_scale, out=self._x)
        for layer in self.layers:
            layer.forward(fusion)
        ops.rmsnorm(
            self._last.out, self.weights.final_norm, spec.rms_eps, norm_offset=spec.norm_offset, out=self._normed
        )
        ops.gemv(
            self._normed, self.weights.lm_head, scale=spec.logit_scale, softcap=spec.logit_softcap, out=self.logits
        )
        return ops.argmax(self.logits, self.position, self.kv_len, self.max_len, out=self.token)

    def labels(self, fusion: str) -> list[tuple[str, str]]:
        """The ops of a step in order, as (op, what it does)."""
        before, after = STEP_LABELS
        layers = [label for layer in self.layers for label in op_labels(fusion, layer.weights.is_int4, self.spec)]
        return [*before, *layers, *after]

    def poison(self) -> None:
        """Fill every buffer that a step writes with NaN, but for token, position and kv_len: what is not written
        shows."""
        for layer in self.layers:
            layer.poison()
        for tensor in (self._x, self._normed, self.logits):
            tensor.fill_(float("nan"))
