"""EXL2, ExLlamaV2's format of mixed bits, for comparison: the study measured it at 4.25 bits. No kernel here reads it.

    q_weight     int32   [words, out_features]      a column's values one after another, the lowest bits first
    q_scale      int32   [groups, out_features / 8] root - 1 in 4 bits, eight columns a word, lowest bits first
    q_scale_max  float16 [groups]
    q_groups     int16   [2 * groups]               of each group its bits and its first row of q_weight
    q_invperm    int32   [in_features]              where each input's values are; q_perm is its inverse

in_features are the rows of q_weight's values, sorted by importance and cut into groups: the first ones get the most
bits. A group of r values of b bits is r b / 32 words. w = (q - 2^(b - 1)) * root^2 * (q_scale_max / 256), both products
of the scale rounded to float16, which is how the library's kernel computes it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pykernels.quant.packing import pack_words, unpack_words
from pykernels.quant.weight import check

BITS = (8, 6, 5, 4, 3, 2)
"""The widths that the format has, in the order in which groups of them follow one another."""

ROWS = 32
"""A group is a multiple of that many values: 32 values of b bits are b whole words."""

_ROOTS = 16

Mix = Sequence[tuple[int, int]]
"""(bits, rows of that many bits), most bits first."""


def check_mix(mix: Mix, in_features: int) -> None:
    """Raise ValueError, one line, unless the mix's rows are whole blocks and add up to in_features."""
    words = ", ".join(f"{rows} rows of {bits} bits" for bits, rows in mix) or "nothing"
    widths = [bits for bits, _ in mix]
    if unknown := [bits for bits in widths if bits not in BITS]:
        raise ValueError(f"mix must be of {', '.join(map(str, sorted(BITS)))} bits, got {unknown[0]}")
    if widths != sorted(set(widths), reverse=True):
        raise ValueError(f"mix must have each width once, most bits first, got {words}")
    if wrong := [rows for _, rows in mix if rows < ROWS or rows % ROWS]:
        raise ValueError(f"mix must have multiples of {ROWS} rows, got {wrong[0]}")
    if (total := sum(rows for _, rows in mix)) != in_features:
        raise ValueError(f"mix does not add up: {words} are {total}, in_features is {in_features}")


def mix_of(bits_a_weight: float, in_features: int, out_features: int, group_size: int = 128) -> list[tuple[int, int]]:
    """Groups of `group_size` rows of two neighbouring widths, so that all of the weight's tensors take as near to
    bits_a_weight bits a weight as whole groups allow. Raises ValueError where no such mix exists."""
    if group_size < ROWS or group_size % ROWS or in_features % group_size:
        raise ValueError(
            f"group_size must be a multiple of {ROWS} that divides in_features ({in_features}), got {group_size}"
        )
    groups = in_features // group_size
    # A scale of 4 bits a column, 16 + 32 bits a group, 32 bits a row for its place.
    beside = 4 / group_size + 48 / (group_size * out_features) + 32 / out_features
    fitting = [bits for bits in BITS if bits <= bits_a_weight - beside + 0.5 / groups]
    if not fitting or bits_a_weight > BITS[0] + beside:
        raise ValueError(
            f"bits_a_weight must be {BITS[-1] + beside:.3f} to {BITS[0] + beside:.3f}, got {bits_a_weight:g}"
        )
    low = fitting[0]
    high = BITS[max(BITS.index(low) - 1, 0)]
    wider = round(groups * (bits_a_weight - beside - low) / (high - low)) if high > low else groups
    mix = [(high, wider * group_size), (low, (groups - wider) * group_size)]
    return [(bits, rows) for bits, rows in mix if rows]


def pack_rows(q: Tensor, bits: int) -> Tensor:
    """uint8 [rows, n] of `bits` bits each to int32 [rows * bits / 32, n]. rows: a multiple of 32."""
    blocks = q.unflatten(0, (-1, ROWS)).long()
    words = torch.zeros(blocks.shape[0], bits, q.shape[1], dtype=torch.int64, device=q.device)
    for i in range(ROWS):
        word, shift = divmod(i * bits, 32)
        values = blocks[:, i] << shift
        words[:, word] |= values & 0xFFFFFFFF
        if shift + bits > 32:
            words[:, word + 1] |= values >> 32
    return words.flatten(0, 1).to(torch.uint32).view(torch.int32)


def unpack_rows(words: Tensor, bits: int) -> Tensor:
    """Undo :func:`pack_rows`."""
    blocks = words.unflatten(0, (-1, bits)).long() & 0xFFFFFFFF
    q = torch.empty(blocks.shape[0], ROWS, words.shape[1], dtype=torch.uint8, device=words.device)
    for i in range(ROWS):
        word, shift = divmod(i * bits, 32)
        values = blocks[:, word] >> shift
        if shift + bits > 32:
            values |= blocks[:, word + 1] << (32 - shift)
        q[:, i] = values & (1 << bits) - 1
    return q.flatten(0, 1)


@dataclass
class Exl2Weight:
    """A weight [out_features, in_features] in EXL2. Raises ValueError, one line, where its tensors do not fit."""

    q_weight: Tensor
    q_scale: Tensor
    q_scale_max: Tensor
    q_groups: Tensor
    q_invperm: Tensor

    def __post_init__(self) -> None:
        groups, columns = self.q_scale.shape
        check("q_weight", self.q_weight, (self.q_weight.shape[0], 8 * columns), (torch.int32,))
        check("q_scale", self.q_scale, (groups, columns), (torch.int32,))
        check("q_scale_max", self.q_scale_max, (groups,), (torch.float16,))
        check("q_groups", self.q_groups, (2 * groups,), (torch.int16,))
        check("q_invperm", self.q_invperm, (self.in_features,), (torch.int32,))
        mix: dict[int, int] = {}
        for bits, begin, end in self.groups():
            if bits not in BITS or end <= begin or (end - begin) % bits:
                raise ValueError(f"q_groups must be of whole blocks, got {bits} bits in words {begin} to {end}")
            mix[bits] = mix.get(bits, 0) + (end - begin) * ROWS // bits
        check_mix(list(mix.items()), self.in_features)

    @classmethod
    def quantize(cls, weight: Tensor, mix: Mix, group_size: int = 128) -> "Exl2Weight":
        """Round `weight` [out_features, in_features] to nearest in groups of at most `group_size` rows. The inputs with
        the largest weights get the most bits. Raises ValueError, one line."""
        if weight.dim() != 2 or weight.shape[0] % 8 or 0 in weight.shape:
            raise ValueError(f"weight must be of shape [a multiple of 8, in_features], got {list(weight.shape)}")
        if group_size < ROWS or group_size % ROWS:
            raise ValueError(f"group_size must be a multiple of {ROWS}, got {group_size}")
        rows = weight.float().T
        check_mix(mix, rows.shape[0])
        # Of whole columns the largest magnitude: on every device the same, as a sum of squares is not.
        perm = torch.argsort(rows.abs().amax(1), descending=True, stable=True)
        packed, roots, maxima, groups = [], [], [], []
        words = 0
        for bits, of_width in zip([bits for bits, _ in mix], rows[perm].split([n for _, n in mix]), strict=True):
            whole = len(of_width) // group_size * group_size
            for part, size in ((of_width[:whole], group_size), (of_width[whole:], len(of_width) - whole)):
                if len(part) == 0:
                    continue
                of_groups = part.unflatten(0, (-1, size))
                root, scale_max, scales = _scales(of_groups, bits)
                q = (of_groups.double() / scales.unsqueeze(1)).round_().add_(1 << bits - 1).clamp_(0, (1 << bits) - 1)
                packed.append(pack_rows(q.to(torch.uint8).flatten(0, 1), bits))
                roots.append(root)
                maxima.append(scale_max)
                for _ in of_groups:
                    groups += [bits, words]
                    words += size * bits // ROWS
        invperm = torch.empty_like(perm)
        invperm[perm] = torch.arange(len(perm), device=perm.device)
        return cls(
            torch.cat(packed), pack_words(torch.cat(roots) - 1), torch.cat(maxima),
            torch.tensor(groups, dtype=torch.int16, device=weight.device), invperm.int(),
        )  # fmt: skip

    @property
    def in_features(self) -> int:
        """Inputs."""
        return self.q_invperm.shape[0]

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in vars(self).values())

    def groups(self) -> list[tuple[int, int, int]]:
        """Of each group: its bits, its first row of q_weight, and the one past its last."""
        pairs = self.q_groups.long().view(-1, 2).tolist()
        ends = [first for _, first in pairs[1:]] + [self.q_weight.shape[0]]
        return [(bits, first, end) for (bits, first), end in zip(pairs, ends, strict=True)]

    def dequantize(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """[out_features, in_features]; float64 products of integers and float16 scales, rounded once to `dtype`."""
        roots = unpack_words(self.q_scale, self.q_weight.shape[1]) + 1
        scales = _scale_of(roots, self.q_scale_max.unsqueeze(1)).double()
        dense = []
        first = 0
        for bits, of_width in itertools.groupby(self.groups(), lambda group: group[0]):
            groups = list(of_width)
            q = unpack_rows(self.q_weight[groups[0][1] : groups[-1][2]], bits).double() - (1 << bits - 1)
            rows = torch.tensor([(end - begin) * ROWS // bits for _, begin, end in groups], device=q.device)
            dense.append(q.mul_(scales[first : first + len(groups)].repeat_interleave(rows, dim=0)))
            first += len(groups)
        return torch.cat(dense)[self.q_invperm.long()].T.contiguous().to(dtype)


def _scale_of(root: Tensor, scale_max: Tensor) -> Tensor:
    """float16, like root: root^2 * (scale_max / 256)."""
    return (root.double().square() * (scale_max.double() / 256).half().double()).half()


def _scales(groups: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of groups [count, rows, n]: the roots 1..16, uint8 [count, n]; the scale of root 16, float16 [count]; the scales,
    float64 [count, n]. The smallest that leave no value out, but for what float16 rounds."""
    largest = groups.abs().amax(1).double() / ((1 << bits - 1) - 0.5)
    # At least 2^-10, so that its 256th has some bits left as a subnormal number.
    scale_max = largest.amax(1).clamp_min(2.0**-10).half()
    of_group = scale_max.unsqueeze(1)
    root = (largest / of_group.double()).sqrt_().mul_(_ROOTS).ceil_().clamp_(1, _ROOTS).to(torch.uint8)
    return root, scale_max, _scale_of(root, of_group).double()
