"""Plug-ins that do wrong, each in its own way; and one that is right."""

import ctypes
import os
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.backends import AttentionPlugin
from bench.backends.sdpa import Sdpa


class Right(AttentionPlugin):
    calls = 0

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, kv_len: Tensor, out: Tensor) -> None:
        n = int(kv_len[0])
        attended = F.scaled_dot_product_attention(
            q.unsqueeze(2), k_cache[:, :, :n], v_cache[:, :, :n], enable_gqa=True
        )  # fmt: skip
        out.copy_(attended.squeeze(2))
        self.calls += 1
        self.afterwards(k_cache, out)

    def afterwards(self, k_cache: Tensor, out: Tensor) -> None:
        pass


def element(out: Tensor, index: int) -> Tensor:
    """The element `index` of out's memory, also outside of it."""
    return out.as_strided((1,), (1,), out.storage_offset() + index)


class NotANumber(Right):
    def afterwards(self, k_cache, out):
        out[0, 1, 3] = float("nan")


class WritesNothing(AttentionPlugin):
    def attend(self, q, k_cache, v_cache, kv_len, out):
        pass


class Overruns(Right):
    def afterwards(self, k_cache, out):
        element(out, out.numel() + 3).fill_(1.0)


class Underruns(Right):
    def afterwards(self, k_cache, out):
        element(out, -1).fill_(1.0)


class SpoilsTheCache(Right):
    def afterwards(self, k_cache, out):
        k_cache[0, 1, 2, 3] += 1


class Raises(Right):
    def afterwards(self, k_cache, out):
        raise ValueError("no such luck\nat all")


class Rants(Right):
    def afterwards(self, k_cache, out):
        raise ValueError("\udc80\x1b[2J" + " no luck" * 10**6)


class WithoutWordsError(Exception):
    def __str__(self):
        raise SystemError


class HasNoWords(Right):
    def afterwards(self, k_cache, out):
        raise WithoutWordsError


class Dies(Right):
    def afterwards(self, k_cache, out):
        ctypes.string_at(0)


class DiesLater(Right):
    """Right when it is checked, and then not."""

    def afterwards(self, k_cache, out):
        if self.calls == 4:
            ctypes.string_at(0)


class Exits(Right):
    def afterwards(self, k_cache, out):
        sys.exit(3)


class SlipsAway(Right):
    """As if all had gone well."""

    def afterwards(self, k_cache, out):
        os._exit(0)


class Hangs(Right):
    def afterwards(self, k_cache, out):
        time.sleep(1000)


class Slow(Right):
    def afterwards(self, k_cache, out):
        time.sleep(3)


class DiesInOneMode(Sdpa):
    """Has eager and dispatch on a CPU; dispatch is right."""

    def arm(self, workload, mode, fusion):
        if mode == "eager":
            ctypes.string_at(0)
        return super().arm(workload, mode, fusion)


class Unchecked(Sdpa):
    def arm(self, workload, mode, fusion):
        arm = super().arm(workload, mode, fusion)
        arm.check = None
        return arm


class NoBackend:
    pass


class Incomplete(AttentionPlugin):
    pass


class OtherArguments(AttentionPlugin):
    def attend(self, q, k, v):
        return torch.zeros_like(q)
