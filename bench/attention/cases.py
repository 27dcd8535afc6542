"""The cases of bench.attention: head shapes of models, over contexts and batches, and the inputs of one of them."""

import copy
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import pykernels as pk
from bench.core import floors
from bench.core.errors import flag_error
from pykernels.models import ModelSpec


@dataclass(frozen=True)
class Cell:
    """One shape at one context and batch. Models whose heads are alike share it: `specs`."""

    specs: tuple[ModelSpec, ...]
    ctx: int
    batch: int

    @property
    def heads(self) -> str:
        """32/8x128: query heads, KV heads, head_dim"""
        spec = self.specs[0]
        return f"{spec.n_heads}/{spec.n_kv_heads}x{spec.head_dim}"

    @property
    def layers(self) -> dict[str, int]:
        """The layers of each model that has these heads."""
        return {spec.name: spec.n_layers for spec in self.specs if spec.n_layers}

    @property
    def shape(self) -> str:
        """What tells the cell from all others."""
        return f"{self.heads}, kv {self.ctx}, batch {self.batch}"

    def kv_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of K and V."""
        return self.specs[0].layer_kv_bytes(self.ctx, self.batch, dtype)

    def bytes(self, dtype: torch.dtype) -> int:
        """Bytes that a call must move."""
        spec = self.specs[0]
        return floors.gqa_decode(
            self.batch, spec.n_heads, spec.n_kv_heads, spec.head_dim, self.ctx, dtype.itemsize
        )  # fmt: skip

    def bytes_needed(self, dtype: torch.dtype, copies: int) -> int:
        """Memory for a measurement, roughly: the copies, once more for each of four backends with a layout of their
        own, the float64 reference, and the float32 copies by query head that SDPA's unfused composition makes."""
        by_query_head = self.kv_bytes(dtype) * self.specs[0].group_size * 8 // dtype.itemsize
        return 5 * copies * self.kv_bytes(dtype) + 2 * by_query_head


def parse_heads(flag: str, text: str) -> list[ModelSpec]:
    """`64/8` or `64/8x128`, comma-separated: heads that no model here has (query heads, KV heads, head_dim 128), as
    specs of no layers. Raises UsageError."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        numbers = re.fullmatch(r"(\d{1,3})/(\d{1,3})(?:x(\d{1,3}))?", part)
        n_heads, n_kv_heads, head_dim = (int(number or 128) for number in numbers.groups()) if numbers else (0, 0, 0)
        if not n_kv_heads or not n_heads or n_heads % n_kv_heads or head_dim % 8 or not head_dim:
            raise flag_error(
                flag, part, "QUERY/KV or QUERY/KVxDIM: query heads a multiple of the KV heads, DIM of 8 (64/8x128)"
            )
        found.append(replace(
            pk.models.get("llama-3.1-8b"), name=part, hidden=n_heads * head_dim, n_heads=n_heads,
            n_kv_heads=n_kv_heads, head_dim=head_dim, n_layers=0,
        ))  # fmt: skip
    if text and not found:
        raise flag_error(flag, text, "QUERY/KV or QUERY/KVxDIM, comma-separated (64/8,64/8x128)")
    return found


def cells(specs: Sequence[ModelSpec], contexts: Sequence[int], batches: Sequence[int]) -> list[Cell]:
    """Every cell once, whatever number of models have its heads."""
    by_heads: dict[tuple[int, int, int], list[ModelSpec]] = {}
    for spec in specs:
        by_heads.setdefault((spec.n_heads, spec.n_kv_heads, spec.head_dim), []).append(spec)
    return [Cell(tuple(same), ctx, batch) for same in by_heads.values() for batch in batches for ctx in contexts]


class Inputs:
    """What the adapters ask of a DecodeLayer, without the layer: a cache that the query sees all of.

    `q` [batch, n_heads, head_dim]; `k_cache`, `v_cache` [batch, n_kv_heads, ctx, head_dim], all of unit scale;
    `position`, `kv_len` int32 [batch]. The check after the clocks has other numbers, by `renewed_seed`; what they give
    is kept as `renewed_expected`.
    """

    def __init__(self, cell: Cell, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.spec, self.ctx, self.batch, self.dtype, self.device = cell.specs[0], cell.ctx, cell.batch, dtype, device
        generator = torch.Generator(device).manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)

        spec = self.spec
        self.q = random(self.batch, spec.n_heads, spec.head_dim)
        self.k_cache, self.v_cache = (random(self.batch, spec.n_kv_heads, self.ctx, spec.head_dim) for _ in range(2))
        self.position = torch.full((self.batch,), self.ctx - 1, dtype=torch.int32, device=device)
        self.kv_len = self.position + 1
        self.renewed_seed = secrets.randbits(62)
        self.renewed_expected: Tensor | None = None

    def numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, K and V."""
        return self.q, self.k_cache, self.v_cache

    def copy(self) -> "Inputs":
        """The same numbers with a cache of their own."""
        other = copy.copy(self)
        other.k_cache, other.v_cache = self.k_cache.clone(), self.v_cache.clone()
        return other

    def expected(self) -> Tensor:
        """The reference's result: float64 [batch, n_heads, head_dim]."""
        return pk.reference.gqa_decode(self.q, self.k_cache, self.v_cache, self.kv_len)
