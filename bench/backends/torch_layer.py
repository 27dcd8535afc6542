"""A decoder layer of plain torch ops, as a user writes one: what `native` is measured against.

The attention kernel is a parameter; everything else is F.rms_norm, F.linear, torch's elementwise ops.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import pykernels as pk

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q [batch, n_heads, 1, head_dim], k, v [batch, n_kv_heads, kv_len, head_dim]) -> like q"""


def _rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


class TorchLayer:
    """The layer over a DecodeLayer's weights, cache and input.

    Position and kv_len are Python numbers taken when it is made, as they are in a framework's decode loop; the
    angles of that position are prepared beforehand, as a model does once a step for all its layers.
    """

    def __init__(self, layer: pk.DecodeLayer, attention: Attention) -> None:
        self.layer, self.attention = layer, attention
        self.position = int(layer.position[0])
        half = layer.spec.head_dim // 2
        angles = layer.cos_sin[self.position].to(layer.dtype)
        self.cosine, self.sine = angles[:half].repeat(2), angles[half:].repeat(2)
        self.out: Tensor | None = None

    def _turn(self, x: Tensor) -> Tensor:
        return x * self.cosine + _rotate_half(x) * self.sine

    def forward(self) -> Tensor:
        """One step. Returns [batch, hidden]."""
        layer, position = self.layer, self.position
        w, spec, x = layer.weights, layer.spec, layer.x
        batch, dim = layer.batch, spec.head_dim
        normed = F.rms_norm(x, (spec.hidden,), w.input_norm, spec.rms_eps)
        q = F.linear(normed, w.q_weight, w.q_bias).view(batch, spec.n_heads, 1, dim)
        k = F.linear(normed, w.k_weight, w.k_bias).view(batch, spec.n_kv_heads, 1, dim)
        v = F.linear(normed, w.v_weight, w.v_bias).view(batch, spec.n_kv_heads, 1, dim)
        layer.k_cache[:, :, position : position + 1] = self._turn(k)
        layer.v_cache[:, :, position : position + 1] = v
        keys, values = layer.k_cache[:, :, : position + 1], layer.v_cache[:, :, : position + 1]
        attended = self.attention(self._turn(q), keys, values).reshape(batch, -1)
        h = x + F.linear(attended, w.o_weight)
        normed = F.rms_norm(h, (spec.hidden,), w.post_norm, spec.rms_eps)
        activated = F.silu(F.linear(normed, w.gate_weight)) * F.linear(normed, w.up_weight)
        self.out = h + F.linear(activated, w.down_weight)
        return self.out

    def tape(self) -> pk.dispatch.Tape:
        """The same step as dispatcher calls (mode `dispatch`)."""
        return pk.dispatch.Tape.record(lambda: self.forward())
