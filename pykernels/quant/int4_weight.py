"""The layout that the int4 kernels read: made once from a plain weight, and back. docs/int4.md draws it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pykernels.quant import awq, compressed_tensors, gptq
from pykernels.quant.folder import read_quantized
from pykernels.quant.packing import PAIRS_APART, pack_words, unpack_words
from pykernels.quant.round_to_nearest import round_to_nearest
from pykernels.quant.weight import FLOATS, QuantizedWeight, check

BLOCK = 32
"""Elements of a row in one 16-byte load."""


def group_size_allowed(group_size: int, in_features: int) -> bool:
    """32, 64, a multiple of 128, or the whole row; and it divides the row."""
    if group_size == in_features:
        return True
    return in_features % group_size == 0 and (group_size in (32, 64) or group_size % 128 == 0)


@dataclass
class Int4Weight:
    """A 4-bit weight [out_features, in_features] for ``pykernels.ops.int4_gemv`` and its relatives.

    packed: uint8 [out_features, in_features / 2], 16-byte aligned; every 4 bytes are a little-endian word of eight
    neighbouring elements, nibble i holding element (0, 2, 4, 6, 1, 3, 5, 7)[i].
    scales: [out_features, n_groups] in the activations' dtype.
    zeros: uint8 [out_features, n_groups], or None (8 throughout).
    perm: int32 [in_features], or None: column k of the rows multiplies x[perm[k]] (act-order, with the groups laid
    side by side again).

    in_features is a multiple of 32; group_size is 32, 64, a multiple of 128 or the whole row, and divides the row.
    """

    packed: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    perm: Tensor | None = None

    def __post_init__(self) -> None:
        if self.packed.dim() != 2 or 0 in self.packed.shape:
            raise ValueError(f"packed must be of shape [out_features, in_features / 2], got {list(self.packed.shape)}")
        check("packed", self.packed, tuple(self.packed.shape), (torch.uint8,))
        if self.in_features % BLOCK:
            raise ValueError(f"in_features must be a multiple of {BLOCK}, got {self.in_features}")
        if self.scales.dim() != 2 or self.scales.shape[1] == 0 or self.in_features % self.scales.shape[1]:
            raise ValueError(
                f"scales must be of shape [{self.out_features}, groups that divide {self.in_features}], "
                f"got {list(self.scales.shape)}"
            )
        shape = (self.out_features, self.n_groups)
        check("scales", self.scales, shape, FLOATS)
        if not group_size_allowed(self.group_size, self.in_features):
            raise ValueError(
                f"group_size must be 32, 64, a multiple of 128 or in_features ({self.in_features}), "
                f"got {self.group_size}"
            )
        if self.zeros is not None:
            check("zeros", self.zeros, shape, (torch.uint8,))
        if self.perm is not None:
            check("perm", self.perm, (self.in_features,), (torch.int32,))

    @classmethod
    def quantize(
        cls, weight: Tensor, group_size: int = 128, symmetric: bool = True, dtype: torch.dtype | None = None
    ) -> "Int4Weight":
        """Round to nearest: see :func:`pykernels.quant.round_to_nearest`. dtype: that of the scales."""
        return cls.from_plain(round_to_nearest(weight, group_size, symmetric, dtype))

    @classmethod
    def from_plain(cls, weight: QuantizedWeight, dtype: torch.dtype | None = None) -> "Int4Weight":
        """From a weight in plain form; scales are rounded to `dtype`, or kept as they are where it is None.

        Under act-order the columns are sorted by group, first come first, and `perm` remembers where they were.
        Raises ValueError, one line, where the kernels have no layout for the sizes.
        """
        in_features, group_size = weight.in_features, weight.group_size
        if in_features % BLOCK:
            raise ValueError(f"in_features must be a multiple of {BLOCK}, got {in_features}")
        if not group_size_allowed(group_size, in_features):
            raise ValueError(
                f"group_size must be 32, 64, a multiple of 128 or in_features ({in_features}), and divide "
                f"in_features, got {group_size}"
            )
        q, perm = weight.q, None
        if weight.g_idx is not None:
            sizes = torch.bincount(weight.g_idx.long(), minlength=weight.n_groups)
            if bool((sizes != group_size).any()):
                group = int((sizes != group_size).int().argmax())
                raise ValueError(
                    f"g_idx must give every group {group_size} columns, got {int(sizes[group])} in group {group}"
                )
            perm = torch.argsort(weight.g_idx, stable=True)
            q, perm = q[:, perm], perm.to(torch.int32)
        return cls(
            packed=pack_words(q, PAIRS_APART).view(torch.uint8),
            scales=weight.scales.to(dtype or weight.scales.dtype).contiguous(),
            zeros=weight.zeros,
            perm=perm,
        )

    @classmethod
    def from_gptq(
        cls,
        qweight: Tensor,
        qzeros: Tensor,
        scales: Tensor,
        g_idx: Tensor | None = None,
        *,
        version: int,
        dtype: torch.dtype | None = None,
    ) -> "Int4Weight":
        """From a GPTQ layer's tensors (``pykernels.quant.gptq``); version 1 or 2."""
        return cls.from_plain(gptq.unpack(qweight, qzeros, scales, g_idx, version=version), dtype)

    @classmethod
    def from_awq(
        cls, qweight: Tensor, qzeros: Tensor, scales: Tensor, *, dtype: torch.dtype | None = None
    ) -> "Int4Weight":
        """From an AWQ GEMM layer's tensors (``pykernels.quant.awq``)."""
        return cls.from_plain(awq.unpack(qweight, qzeros, scales), dtype)

    @classmethod
    def from_compressed_tensors(
        cls,
        weight_packed: Tensor,
        weight_scale: Tensor,
        weight_shape: Tensor,
        weight_zero_point: Tensor | None = None,
        weight_g_idx: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> "Int4Weight":
        """From a pack-quantized layer's tensors (``pykernels.quant.compressed_tensors``)."""
        plain = compressed_tensors.unpack(weight_packed, weight_scale, weight_shape, weight_zero_point, weight_g_idx)
        return cls.from_plain(plain, dtype)

    @classmethod
    def from_folder(
        cls, folder: str | Path, name: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> "Int4Weight":
        """Module `name` (such as ``model.layers.0.mlp.up_proj``) of a local quantised Hugging Face folder."""
        return cls.from_plain(read_quantized(folder, name), dtype).to(device)

    @classmethod
    def concatenate(cls, weights: Sequence["Int4Weight"]) -> "Int4Weight":
        """The rows of several weights over one input, one below the other: a fused projection.

        Raises ValueError where they differ in in_features, in the group size or in their act-order.
        """
        first, *others = weights
        for name, of in (("in_features", lambda w: w.in_features), ("group_size", lambda w: w.group_size)):
            if len(sizes := {of(weight) for weight in weights}) > 1:
                raise ValueError(f"weights must be of one {name} to be concatenated, got {sorted(sizes)}")
        for other in others:
            if (first.perm is None) != (other.perm is None) or (
                first.perm is not None and other.perm is not None and not torch.equal(first.perm, other.perm)
            ):
                raise ValueError("weights must be of one act-order to be concatenated: their perm differ")
        zeros = None
        if any(weight.zeros is not None for weight in weights):
            zeros = torch.cat([
                torch.full_like(weight.scales, 8, dtype=torch.uint8) if weight.zeros is None else weight.zeros
                for weight in weights
            ])  # fmt: skip
        packed, scales = (torch.cat([getattr(weight, part) for weight in weights]) for part in ("packed", "scales"))
        return cls(packed, scales, zeros, first.perm)

    @property
    def out_features(self) -> int:
        """Rows."""
        return self.packed.shape[0]

    @property
    def in_features(self) -> int:
        """Columns."""
        return 2 * self.packed.shape[1]

    @property
    def n_groups(self) -> int:
        """Scales of a row."""
        return self.scales.shape[1]

    @property
    def group_size(self) -> int:
        """Columns of a scale."""
        return self.in_features // self.n_groups

    @property
    def dtype(self) -> torch.dtype:
        """Of the scales, and so of the activations it multiplies."""
        return self.scales.dtype

    @property
    def n_bytes(self) -> int:
        """Bytes that a kernel reads of it."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors() if tensor is not None)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """packed, scales, zeros, perm: in the order of the ops' schemas."""
        return self.packed, self.scales, self.zeros, self.perm

    def plain(self) -> QuantizedWeight:
        """Back to the plain form, columns where they were."""
        q = unpack_words(self.packed.view(torch.int32), self.in_features, PAIRS_APART)
        g_idx = None
        if self.perm is not None:
            columns = torch.arange(self.in_features, dtype=torch.int32, device=q.device)
            groups = columns.div_(self.group_size, rounding_mode="floor")
            g_idx, unsorted = torch.empty_like(groups), torch.empty_like(q)
            g_idx[self.perm.long()] = groups
            unsorted[:, self.perm.long()] = q
            q = unsorted
        return QuantizedWeight(q, self.scales, self.zeros, self.group_size, g_idx)

    def to_gptq(self, version: int) -> dict[str, Tensor]:
        """qweight, qzeros, scales and g_idx: see :func:`pykernels.quant.gptq.pack`."""
        return gptq.pack(self.plain(), version)

    def to_awq(self) -> dict[str, Tensor]:
        """qweight, qzeros and scales: see :func:`pykernels.quant.awq.pack`."""
        return awq.pack(self.plain())

    def to_compressed_tensors(self) -> dict[str, Tensor]:
        """weight_packed and the rest: see :func:`pykernels.quant.compressed_tensors.pack`."""
        return compressed_tensors.pack(self.plain())

    def dequantize(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """[out_features, in_features], columns where they were; computed in float64, rounded once to `dtype`."""
        return self.plain().dequantize(dtype)

    def to(self, target: torch.device | str | torch.dtype) -> "Int4Weight":
        """On another device, or with scales of another dtype."""
        if isinstance(target, torch.dtype):
            return Int4Weight(self.packed, self.scales.to(target), self.zeros, self.perm)
        return self._mapped(lambda tensor: tensor.to(target))

    def clone(self) -> "Int4Weight":
        """A copy in memory of its own."""
        return self._mapped(Tensor.clone)

    def _mapped(self, call: Callable[[Tensor], Tensor]) -> "Int4Weight":
        zeros, perm = (None if tensor is None else call(tensor) for tensor in (self.zeros, self.perm))
        return Int4Weight(call(self.packed), call(self.scales), zeros, perm)
