"""Eight 4-bit values in an int32 word: the brick of every checkpoint format and of our own layout.

Nibble i of a word is its bits 4i to 4i + 3. A format says which of eight neighbouring elements nibble i holds.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

IN_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)
"""GPTQ and compressed-tensors: nibble i holds element i."""

PAIRS_APART = (0, 2, 4, 6, 1, 3, 5, 7)
"""Nibbles i and i + 4 hold elements 2i and 2i + 1, so `word >> 4i & 0x000f000f` is that pair in two halves.

AWQ orders the columns of its words so; our kernel layout orders the elements of a row so.
"""


def pack_words(values: Tensor, order: Sequence[int] = IN_ORDER) -> Tensor:
    """Pack the last dimension: uint8 [..., n] of 0..15 to int32 [..., ceil(n / 8)], padded with zeros."""
    elements = F.pad(values, (0, -values.shape[-1] % 8)).unflatten(-1, (-1, 8))
    words = torch.zeros(elements.shape[:-1], dtype=torch.int32, device=values.device)
    for nibble, element in enumerate(order):
        words |= elements[..., element].int() << 4 * nibble
    return words


def unpack_words(words: Tensor, count: int, order: Sequence[int] = IN_ORDER) -> Tensor:
    """Undo :func:`pack_words`: int32 [..., m] to the first `count` of 8m values, uint8 [..., count]."""
    elements = torch.empty((*words.shape, 8), dtype=torch.uint8, device=words.device)
    for nibble, element in enumerate(order):
        elements[..., element] = words >> 4 * nibble & 15
    return elements.flatten(-2)[..., :count].contiguous()
