"""Softmax with a unified maximum in an arm (csrc/unified_softmax.h): its phi, how that was set, and how often it fell
back to online."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

import pykernels as pk
from bench.core.document import Document
from pykernels.calibrate import ScoreRows

UNIFIED = "native-unified"
"""The backend `native` with a unified maximum in its attention."""


@dataclass
class Counted:
    """Of one arm: phi, and the fall-backs of its calls, whose counts lie in the workspaces.

    pairs: (sequence, head) pairs of a step. steps: of a sample. calibrated: what phi was found from; None where it was
    given. `per_step` is there once they were counted.
    """

    phi: float
    calibrated: pk.Phi | None
    workspaces: Sequence[Tensor]
    pairs: int
    steps: int = 1
    per_step: float | None = field(default=None, init=False)

    def count(self, sampler: Callable[[int], object]) -> None:
        """Fall-backs of a step: of one more sample, after the clocks."""
        own = list({workspace.data_ptr(): workspace for workspace in self.workspaces}.values())
        before = [pk.ops.gqa_decode_fallbacks(workspace) for workspace in own]
        sampler(1)
        after = [pk.ops.gqa_decode_fallbacks(workspace) for workspace in own]
        self.per_step = (sum(after) - sum(before)) / self.steps

    def document(self) -> Document:
        """The key `unified` of an arm."""
        found: Document = {"phi": self.phi, "phi_from": "calibrated" if self.calibrated else "given"}
        if self.calibrated:
            found |= {name: getattr(self.calibrated, name) for name in ("low", "high", "rows", "in_range")}
        return found | {"pairs": self.pairs, "fallbacks_per_step": self.per_step}


def choose_phi(
    given: float | None, rows: Callable[[], Sequence[ScoreRows]], dtype: torch.dtype
) -> tuple[float, pk.Phi | None]:
    """The phi that was given, else one calibrated from the scores that `rows` returns."""
    if given is not None:
        return given, None
    with torch.inference_mode():
        found = pk.calibrate_phi(rows(), dtype)
    return found.phi, found


def keys_of(counted: Counted | None) -> Document:
    """What a unified maximum adds to an arm's entry."""
    return {"unified": counted.document()} if counted else {}
