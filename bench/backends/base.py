"""What a backend is to the drivers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import pykernels as pk
from bench.core.cli import MODES
from bench.core.measure import Arm, Rotation, unsupported
from bench.core.samplers import Samplers


def modes_on(device: torch.device) -> tuple[str, ...]:
    """Those that a device of that type can have at all: a CPU has nothing to capture."""
    return MODES if device.type == "cuda" else tuple(mode for mode in MODES if not mode.startswith("graph"))


NO_CAPTURE = "needs a CUDA device: there is nothing to capture on a CPU"

# A layer rounds about ten times between its input and its output; the errors add like a random walk, and the
# residual stream carries most of the output unrounded.
LAYER_DEPTH = 2


@dataclass
class Workload:
    """What every backend computes: the layer, as copies with weights of their own to rotate through, and the reference.

    One copy where the layer is larger than the cache anyhow, or where warm weights are wanted.
    """

    layers: list[pk.DecodeLayer]
    samplers: Samplers
    expected: Tensor
    expected_k: Tensor
    expected_v: Tensor

    @classmethod
    def of(cls, layers: list[pk.DecodeLayer], repeats: int = 1) -> "Workload":
        """Ask the reference for the output and the appended rows (all copies hold the same numbers).

        repeats: the steps of a sample, and of a graph.
        """
        first = layers[0]
        out, k_row, v_row = pk.reference.layer(
            first.spec, first.weights, first.x, first.k_cache, first.v_cache, first.cos_sin, first.position
        )
        return cls(layers, Samplers(Rotation(len(layers)), repeats, first.device), out, k_row, v_row)

    def checker(
        self, step: Callable[[], object], output: Callable[[], Tensor], rows: tuple[Tensor, Tensor] | None = None
    ) -> Callable[[], pk.reference.Comparison]:
        """One step on the first copy, with everything it writes poisoned before, against the reference.

        rows: views [batch, n_kv_heads, head_dim] of the K and V slots that the step writes, where they are not those
        of the layer's own cache.
        """
        layer = self.layers[0]

        def check() -> pk.reference.Comparison:
            slot = int(layer.position[0])
            k_row, v_row = rows or (layer.k_cache[:, :, slot], layer.v_cache[:, :, slot])
            layer.poison()
            for row in (k_row, v_row):
                row.fill_(float("nan"))
            step()
            compare = pk.reference.compare
            found = [
                compare(output(), self.expected, layer.dtype, LAYER_DEPTH),
                compare(k_row, self.expected_k, layer.dtype, LAYER_DEPTH),
                compare(v_row, self.expected_v, layer.dtype, LAYER_DEPTH),
            ]
            return max(found, key=lambda comparison: comparison.max_rel_error / comparison.tolerance)

        return check


class Backend(ABC):
    """One way to compute the layer. Subclasses are registered in bench.backends."""

    name: str
    description: str
    install_hint: str | None = None
    takes_int4: bool = False
    """Multiplies by 4-bit weights too."""

    @classmethod
    @abstractmethod
    def availability(cls, device: torch.device) -> str | None:
        """None where it can run on this device, else the reason why not."""

    @classmethod
    @abstractmethod
    def mode_reason(cls, mode: str, device: torch.device) -> str | None:
        """None where it has that mode on this device, else the reason why not."""

    @classmethod
    def layer_reason(cls, layer: pk.DecodeLayer) -> str | None:
        """None where it can run that layer on its device, else the reason why not."""
        return None

    @classmethod
    def modes(cls, device: torch.device) -> list[str]:
        """The modes it has on this device."""
        if cls.availability(device):
            return []
        return [mode for mode in MODES if not cls.mode_reason(mode, device)]

    @abstractmethod
    def arm(self, workload: Workload, mode: str, fusion: str | None) -> Arm:
        """The arm of one mode that mode_reason allows."""

    @classmethod
    def fusions(cls, wanted: Sequence[str]) -> Sequence[str | None]:
        """Which of the wanted fusions this backend tells apart: none, unless it has programs of its own."""
        return [None]


def arms_of(backend: type[Backend], workload: Workload, modes: Sequence[str], fusions: Sequence[str]) -> list[Arm]:
    """All arms of a backend, unsupported ones with their reason. What fails while it is made is an `error` arm."""
    device = workload.layers[0].device
    reason = backend.availability(device)
    if reason is None and workload.layers[0].weights.is_int4 and not backend.takes_int4:
        reason = "multiplies by dense weights only"
    reason = reason or backend.layer_reason(workload.layers[0])
    if reason:
        return [unsupported(backend.name, mode, reason) for mode in modes]
    arms = []
    for fusion in backend.fusions(fusions):
        for mode in modes:
            if reason := backend.mode_reason(mode, device):
                arms.append(unsupported(backend.name, mode, reason, fusion))
                continue
            try:
                with torch.inference_mode():
                    arms.append(backend().arm(workload, mode, fusion))
            except Exception as error:  # the library's own words are the result
                arm = Arm(backend.name, mode, fusion)
                arm.fail(error)
                arms.append(arm)
    return arms
