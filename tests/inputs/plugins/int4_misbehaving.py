"""4-bit kernels that do wrong, each in its own way; and one that is right."""

import ctypes
import os
import sys
import time

import torch
from torch import Tensor

from bench.backends.int4 import Int4Kernel


class Right(Int4Kernel):
    """A float32 product. `before` is what the others do at a call with a weight of so many columns."""

    dtypes = (torch.bfloat16, torch.float16)

    def prepare(self, weight):
        self.weight = weight.dequantize().float()
        return [weight.packed, weight.scales]

    def run(self, x: Tensor) -> Tensor:
        self.before(x.shape[1])
        return (x.float() @ self.weight.T).to(x.dtype)

    def before(self, in_features: int) -> None:
        pass


class Dies(Right):
    """At the ninth trial, and at the second width of the tiny model."""

    def before(self, in_features):
        if in_features in (3584, 1408):
            ctypes.string_at(0)


class Hangs(Right):
    def before(self, in_features):
        if in_features == 3584:
            time.sleep(1000)


class Exits(Right):
    def before(self, in_features):
        sys.exit(3)


class SlipsAway(Right):
    """As if all had gone well."""

    def before(self, in_features):
        if in_features == 3584:
            os._exit(0)


class EndsTheRun(Right):
    """Sends the driver that waits for it what `timeout` sends."""

    def before(self, in_features):
        if in_features == 3584:
            os.kill(os.getppid(), 15)
            time.sleep(1000)


class NotOne:
    pass


class Bare(Int4Kernel):
    pass
