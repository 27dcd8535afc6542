"""A decoder layer of plain torch ops, as a user writes one: what `native` is measured against.

The attention is a parameter, with the cache it reads; everything else is F.rms_norm, F.linear, torch's elementwise ops.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pykernels as pk

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q [batch, n_heads, 1, head_dim], k, v [batch, n_kv_heads, kv_len, head_dim]) -> like q"""


class Attention(ABC):
    """An attention kernel of one layer and the cache it reads, in the kernel's own layout.

    `k_cache`, `v_cache` are in the kernel's layout. `k_row`, `v_row` [batch, n_kv_heads, head_dim] are views of the
    slot that a step writes: the gate poisons and checks them.
    """

    k_cache: Tensor
    v_cache: Tensor
    k_row: Tensor
    v_row: Tensor

    @abstractmethod
    def load(self, layer: pk.DecodeLayer) -> None:
        """Take over what the layer's own cache holds now; nothing to do where that is what it reads."""

    @abstractmethod
    def append(self, k: Tensor, v: Tensor) -> None:
        """Store the step's rotated key and its value, both [batch, n_kv_heads, 1, head_dim]."""

    @abstractmethod
    def over(self, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """The rotated query [batch, n_heads, 1, head_dim] over caches of the kernel's layout, its own or others of
        their shape; the result has q's elements in q's order."""

    def attend(self, q: Tensor) -> Tensor:
        """over() its own cache."""
        return self.over(q, self.k_cache, self.v_cache)

    @abstractmethod
    def bound(self, q: Tensor) -> Callable[[], Tensor]:
        """attend() of that very tensor with every view made beforehand: the kernel's own call and no more."""

    def choices(self) -> dict[str, Any]:
        """What the library shows of how it splits or schedules the work, as plain data."""
        return {}


class LayerCache(Attention):
    """A kernel over the DecodeLayer's own cache, [batch, n_kv_heads, ctx, head_dim]."""

    def __init__(self, layer: pk.DecodeLayer, kernel: Kernel) -> None:
        self.kernel, self.position = kernel, int(layer.position[0])
        self.k_cache, self.v_cache = layer.k_cache, layer.v_cache
        self.k_row, self.v_row = (cache[:, :, self.position] for cache in (self.k_cache, self.v_cache))

    def load(self, layer: pk.DecodeLayer) -> None:
        """It reads the layer's own."""

    def append(self, k: Tensor, v: Tensor) -> None:
        position = self.position
        self.k_cache[:, :, position : position + 1] = k
        self.v_cache[:, :, position : position + 1] = v

    def over(self, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        kv_len = self.position + 1
        return self.kernel(q, k_cache[:, :, :kv_len], v_cache[:, :, :kv_len])

    def bound(self, q: Tensor) -> Callable[[], Tensor]:
        kernel, kv_len = self.kernel, self.position + 1
        keys, values = self.k_cache[:, :, :kv_len], self.v_cache[:, :, :kv_len]
        return lambda: kernel(q, keys, values)


class TokenMajorCache(Attention):
    """A copy of the layer's cache as [batch, slots, n_kv_heads, head_dim] (FlashAttention's and FlashInfer's layout).

    The slots are the layer's, rounded up to whole pages of `page_size`; those past its ctx are NaN.
    """

    def __init__(self, layer: pk.DecodeLayer, page_size: int = 1) -> None:
        self.position, self.page_size = int(layer.position[0]), page_size
        slots = -(-layer.ctx // page_size) * page_size

        shape = (layer.batch, slots, layer.spec.n_kv_heads, layer.spec.head_dim)
        self.k_cache, self.v_cache = (layer.k_cache.new_full(shape, float("nan")) for _ in range(2))
        self.load(layer)
        self.k_row, self.v_row = self.k_cache[:, self.position], self.v_cache[:, self.position]

    def load(self, layer: pk.DecodeLayer) -> None:
        self.k_cache[:, : layer.ctx] = layer.k_cache.transpose(1, 2)
        self.v_cache[:, : layer.ctx] = layer.v_cache.transpose(1, 2)

    def pages(self, k_cache: Tensor, v_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Caches of this layout as [pages, page_size, n_kv_heads, head_dim]."""
        shape = (-1, self.page_size, *k_cache.shape[2:])
        return k_cache.view(shape), v_cache.view(shape)

    def append(self, k: Tensor, v: Tensor) -> None:
        position = self.position
        self.k_cache[:, position : position + 1] = k.transpose(1, 2)
        self.v_cache[:, position : position + 1] = v.transpose(1, 2)


def _rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


class Calls(TorchDispatchMode):
    """Inside it, `names` of the dispatcher's calls below composite ops that compute something: neither views nor bare
    allocations. On a GPU each of them launches at least one kernel."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes a process a second and is not used here

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        if not function.is_view and not name.startswith("aten::empty"):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


class Projections:
    """The linear projections of a layer, by F.linear."""

    unseen_calls: Sequence[str] = ()
    """What a step of the layer calls beside the ops of torch's dispatcher."""

    def __init__(self, weights: pk.LayerWeights) -> None:
        self.weights = weights

    def reload(self) -> None:
        """Take over what was written into norms and biases since: nothing to do where nothing is a copy of them."""

    def qkv(self, x: Tensor) -> Sequence[Tensor]:
        """x [batch, hidden] -> q [batch, n_heads * head_dim], k and v [batch, n_kv_heads * head_dim]"""
        w = self.weights
        return F.linear(x, w.q_weight, w.q_bias), F.linear(x, w.k_weight, w.k_bias), F.linear(x, w.v_weight, w.v_bias)

    def o(self, x: Tensor) -> Tensor:
        """x [batch, n_heads * head_dim] -> [batch, hidden]"""
        return F.linear(x, self.weights.o_weight)

    def gate_up(self, x: Tensor) -> Sequence[Tensor]:
        """x [batch, hidden] -> two of [batch, intermediate]"""
        return F.linear(x, self.weights.gate_weight), F.linear(x, self.weights.up_weight)

    def down(self, x: Tensor) -> Tensor:
        """x [batch, intermediate] -> [batch, hidden]"""
        return F.linear(x, self.weights.down_weight)


class TorchLayer:
    """The layer over a DecodeLayer's weights and input.

    Position and kv_len are Python numbers taken when it is made, as they are in a framework's decode loop; the
    angles of that position are prepared beforehand, as a model does once a step for all its layers.
    """

    def __init__(self, layer: pk.DecodeLayer, attention: Attention, projections: Projections | None = None) -> None:
        self.layer, self.attention = layer, attention
        self.projections = projections or Projections(layer.weights)
        # As tensors: a Python number where an op may have a tensor cannot go on a tape.
        self._offset, self._residual_scale = (
            layer.cos_sin.new_tensor(value, dtype=layer.dtype)
            for value in (layer.spec.norm_offset, layer.spec.residual_scale)
        )
        self.stand(layer.cos_sin[int(layer.position[0])])
        self.out = torch.empty(0)  # of the last step

    def stand(self, angles: Tensor) -> None:
        """Rotate by these angles from now on: a row of `cos_sin`.

        The kernels scale scores by 1 / sqrt(head_dim). A model of another scale has what is missing in the angles of
        its query: that costs nothing.
        """
        spec, half = self.layer.spec, angles.shape[0] // 2
        missing = spec.score_scale * spec.head_dim**0.5

        def both_halves(of: Tensor) -> tuple[Tensor, ...]:
            rounded = of.to(self.layer.dtype)
            return rounded[:half].repeat(2), rounded[half:].repeat(2)

        self.angles = both_halves(angles)
        self.q_angles = self.angles if abs(missing - 1.0) < 1e-9 else both_halves(angles * missing)

    def _rotate(self, x: Tensor, angles: tuple[Tensor, ...]) -> Tensor:
        cosine, sine = angles
        return x * cosine + _rotate_half(x) * sine

    def _norm(self, x: Tensor, weight: Tensor | None, size: int) -> Tensor:
        """The last dimension, of `size`, normalised; x where there is no norm."""
        spec = self.layer.spec
        if weight is None:
            return x
        return F.rms_norm(x, (size,), weight + self._offset if spec.norm_offset else weight, spec.rms_eps)

    def _norm_heads(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """The QK norm of x [batch, heads * head_dim]: [batch, heads, 1, head_dim]."""
        spec = self.layer.spec
        if spec.qk_norm == "all":
            x = self._norm(x, weight, x.shape[-1])
        x = x.view(self.layer.batch, -1, 1, spec.head_dim)
        return self._norm(x, weight, spec.head_dim) if spec.qk_norm == "head" else x

    def _before_attention(self) -> Tensor:
        """Up to the append. Returns the rotated query [batch, n_heads, 1, head_dim]."""
        layer = self.layer
        w, spec, batch, dim = layer.weights, layer.spec, layer.batch, layer.spec.head_dim
        normed = self._norm(layer.x, w.input_norm, spec.hidden)
        q, k, v = self.projections.qkv(normed)
        self.attention.append(
            self._rotate(self._norm_heads(k, w.k_norm), self.angles), v.view(batch, spec.n_kv_heads, 1, dim)
        )
        return self._rotate(self._norm_heads(q, w.q_norm), self.q_angles)

    def _after_attention(self, attended: Tensor) -> Tensor:
        layer = self.layer
        w, spec = layer.weights, layer.spec
        h = self._added(layer.x, self.projections.o(attended.reshape(layer.batch, -1)), w.attention_out_norm)
        gate, up = self.projections.gate_up(self._norm(h, w.post_norm, spec.hidden))
        activated = (F.gelu(gate, approximate="tanh") if spec.gelu else F.silu(gate)) * up
        return self._added(h, self.projections.down(activated), w.mlp_out_norm)

    def _added(self, residual: Tensor, projected: Tensor, norm: Tensor | None) -> Tensor:
        spec = self.layer.spec
        projected = self._norm(projected, norm, spec.hidden)
        return residual + (projected if spec.residual_scale == 1.0 else projected * self._residual_scale)

    def forward(self) -> Tensor:
        """One step. Returns [batch, hidden]."""
        self.out = self._after_attention(self.attention.attend(self._before_attention()))
        return self.out

    def tape(self) -> pk.dispatch.Tape:
        """The same step as dispatcher calls (mode `dispatch`)."""
        return pk.dispatch.Tape.record(lambda: self.forward())

    def calls(self, kernel: str) -> list[str]:
        """What a step calls, with `kernel` for the attention: that one need not be an op of torch's."""
        with Calls() as before:
            q = self._before_attention()
        with Calls() as after:
            self._after_attention(q)
        return [*before.names, kernel, *after.names]
