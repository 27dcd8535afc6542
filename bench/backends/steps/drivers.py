"""Who runs steps of a DecodeModel: native's own programs, and a loop of plain torch ops. transformers has its own file.

All of them use the model's weights, its cache, its token. None keeps memory of its own beyond activations, so that
two fit wherever one does.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import pykernels as pk
from bench.backends.native import drive
from bench.backends.sdpa import sdpa
from bench.backends.torch_layer import Calls, LayerCache, Projections, TorchLayer
from bench.core.measure import Rotation, Sampler
from bench.core.samplers import Samplers, capture_each, held_sampler, relaunches
from bench.core.unified import Counted


def calls_of(function: Callable[[], object]) -> list[str]:
    """What one call of the function asks of torch's dispatcher (torch_layer.Calls)."""
    with torch.no_grad(), Calls() as calls:
        function()
    return calls.names


class Driver(ABC):
    """One way to run steps of a DecodeModel. `launches` and `kernels` are counted when it is made; `counted` is of a
    unified maximum."""

    launches: int
    kernels: list[str]
    counted: Counted | None = None

    def __init__(self, model: pk.DecodeModel) -> None:
        self.model = model
        self._samplers = Samplers(Rotation(1), 1, model.device)
        self._wall: Sampler = self._samplers.python([self.step])
        self._host_on_cuda: Sampler = lambda n: self._samplers.host_python([self.step], self.launches)(n)
        # The step that is run to be counted or recorded falls on the last slot: no timed step has read it by then.
        model.set_position(model.max_len - 1)

    def stand(self, position: int) -> None:
        """Make the next step decode at `position`."""
        self.model.set_position(position)

    def reload(self) -> None:  # noqa: B027 - nothing to do for most
        """Take over what was written into the model's norms and biases since: nothing, where nothing is a copy."""

    @abstractmethod
    def step(self) -> None:
        """One step; the next one follows on it."""

    def logits(self) -> Tensor:
        """Of the last step: [batch, vocab]."""
        return self.model.logits

    def run(self, n: int) -> np.ndarray:
        """n steps one after another: float64 [n], microseconds; on a GPU each from one event to the next."""
        return self._wall(n)

    def host_sampler(self) -> Sampler | None:
        """What the host takes for each step, the last ones that the cache has room for; None where there is no such
        clock: on a CPU torch's own ops cannot be told to do nothing."""

        def sample(n: int) -> np.ndarray:
            self.stand(self.model.max_len - n)
            return self._host_on_cuda(n)

        return sample if self._samplers.on_cuda else None


class NativeDriver(Driver):
    """launchtax's own kernels at one fusion, in any mode."""

    def __init__(self, model: pk.DecodeModel, fusion: str, mode: str) -> None:
        super().__init__(model)
        self.kernels = [f"pykernels::{model.device.type}::{op}" for op in model.program(fusion).ops]
        self.launches = len(self.kernels)
        driven = drive(mode, [partial(model.forward, fusion)], self._samplers)
        self._step, self._wall, self._host_on_cuda = driven.step, driven.sampler, driven.host_sampler

    def step(self) -> None:
        self._step()

    def host_sampler(self) -> Sampler:
        return super().host_sampler() or self._without_kernels

    def _without_kernels(self, n: int) -> np.ndarray:
        with pk.runtime.launches_disabled():
            return self._wall(n)


class NativeLoopDriver(Driver):
    """launchtax's own kernels in mode graph-loop: one launch decodes all tokens of a sample (pykernels.graph_loop)."""

    LAUNCHES = 8
    """That the host's clock is read around, at most: each decodes as many tokens as the host's samples are wanted."""

    def __init__(self, model: pk.DecodeModel, fusion: str) -> None:
        super().__init__(model)
        self._program = model.program(fusion)
        self._program.run(self._samplers.stream)  # a loop's capture may not load kernels
        self._loops: dict[int, pk.runtime.GraphLoop] = {}
        self.kernels = [f"pykernels::cuda::{op}" for op in self._program.ops]
        self.launches = len(self.kernels)
        self._wall, self._host_on_cuda = self._decode, self._launch
        self.loop(1)  # a driver that cannot make one says so before any step

    def loop(self, steps: int) -> "pk.runtime.GraphLoop":
        """The loop of so many steps, made on its first use."""
        if steps not in self._loops:
            self._loops[steps] = pk.runtime.GraphLoop(self._program, steps, self.model.token)
        return self._loops[steps]

    def step(self) -> None:
        self.loop(1).run(self._samplers.stream)

    def _decode(self, n: int) -> np.ndarray:
        loop = self.loop(n)
        loop.run(self._samplers.stream)
        return loop.step_us()

    def _launch(self, n: int) -> np.ndarray:
        """The host's share of a step: the launch of a loop of n steps, over n."""
        loop = self.loop(n)
        launch = partial(loop.run, self._samplers.stream)
        return held_sampler([launch], Rotation(1), pk.runtime.MAX_HELD_LAUNCHES)(min(n, self.LAUNCHES)) / n


class TorchDriver(Driver):
    """A loop of plain torch ops as a user writes one, eager. The position is a Python number, as it is there."""

    def __init__(self, model: pk.DecodeModel, projections: Sequence[Projections] = ()) -> None:
        """projections: of each layer, where they are not F.linear's."""
        super().__init__(model)
        self._views: list[Any] = [  # what TorchLayer and LayerCache read of a DecodeLayer
            SimpleNamespace(
                spec=model.spec, weights=layer.weights, batch=model.batch, dtype=model.dtype, position=layer.position,
                cos_sin=layer.cos_sin, k_cache=layer.k_cache, v_cache=layer.v_cache, x=None,
            )
            for layer in model.layers
        ]  # fmt: skip
        of_layers = projections or [Projections(layer.weights) for layer in model.layers]
        self._layers = [
            TorchLayer(view, LayerCache(view, sdpa), of_layer)
            for view, of_layer in zip(self._views, of_layers, strict=True)
        ]
        self._position, self._logits = model.max_len - 1, model.logits
        unseen = [call for layer in self._layers for call in layer.projections.unseen_calls]
        self.kernels = [*calls_of(self._forward), *unseen]
        self.launches = len(self.kernels)

    def stand(self, position: int) -> None:
        self._position = position

    def reload(self) -> None:
        for layer in self._layers:
            layer.projections.reload()

    def _forward(self) -> Tensor:
        model, weights, position = self.model, self.model.weights, self._position
        spec, scale = model.spec, model.spec.embedding_scale_in(model.dtype)
        x = F.embedding(model.token, weights.embedding)
        x = x if scale == 1.0 else x * scale
        stood: dict[int, TorchLayer] = {}  # one a table of angles: they are worked out once a step
        for view, layer in zip(self._views, self._layers, strict=True):
            view.x, first = x, stood.setdefault(id(view.cos_sin), layer)
            if first is layer:
                layer.stand(view.cos_sin[position])
            layer.angles, layer.q_angles = first.angles, first.q_angles
            cast(LayerCache, layer.attention).position = position
            x = layer.forward()
        norm = weights.final_norm + spec.norm_offset if spec.norm_offset else weights.final_norm
        self._logits = F.linear(F.rms_norm(x, (spec.hidden,), norm, spec.rms_eps), weights.lm_head)
        if spec.logit_scale != 1.0:
            self._logits = self._logits * spec.logit_scale
        if spec.logit_softcap:
            self._logits = torch.tanh(self._logits / spec.logit_softcap) * spec.logit_softcap
        return self._logits.argmax(-1)

    def step(self) -> None:
        self.model.token.copy_(self._forward())
        self._position += 1

    def logits(self) -> Tensor:
        return self._logits


class TorchGraphDriver(TorchDriver):
    """The same loop captured, in as many graphs as there are positions from `first` on.

    In a graph a position is a constant, and torch's attention takes the length of its cache from the shape. One graph
    for all positions would need a mask over the whole cache, which torch's flash kernel does not take: a graph a
    position has the eager step's kernels. What it costs to capture one and to bring it to the device is in no step.
    """

    def __init__(self, model: pk.DecodeModel, first: int, projections: Sequence[Projections] = ()) -> None:
        super().__init__(model, projections)
        self._first = first
        self._results: dict[int, Tensor] = {}
        self._graphs = capture_each([partial(self._step_at, position) for position in range(first, model.max_len)])
        self._wall = partial(self._replay, self._samplers.torch_graphs)
        self._host_on_cuda = partial(
            self._replay, lambda graphs: self._samplers.host_torch_graphs(graphs, self.launches)
        )

    def _step_at(self, position: int) -> None:
        self._position = position
        super().step()
        self._results[position] = self._logits

    def _replay(self, sampler_of: Callable[[Sequence], Sampler], n: int) -> np.ndarray:
        position = self._position
        graphs = self._graphs[position - self._first :][:n]
        samples_us = sampler_of(graphs)(n)
        self._position = position + n
        return samples_us

    def step(self) -> None:
        position = self._position
        self._graphs[position - self._first].replay()
        self._position = position + 1

    def logits(self) -> Tensor:
        return self._results[self._position - 1]


class TorchRelaunchDriver(TorchDriver):
    """The same loop captured, a step for each position from `first` on, and its nodes launched again one by one by a
    C++ loop: mode native."""

    def __init__(self, model: pk.DecodeModel, first: int, projections: Sequence[Projections] = ()) -> None:
        super().__init__(model, projections)
        self._first = first
        self._results: dict[int, Tensor] = {}
        self._again = relaunches([partial(self._step_at, position) for position in range(first, model.max_len)])
        self.launches, self.nodes = len(self._again[0]), self._again[0].nodes
        self._wall = partial(self._launched, self._samplers.programs)
        self._host_on_cuda = partial(self._launched, self._samplers.host_programs)

    def _step_at(self, position: int) -> None:
        self._position = position
        super().step()
        self._results[position] = self._logits

    def _launched(self, sampler_of: Callable[[Sequence], Sampler], n: int) -> np.ndarray:
        position = self._position
        samples_us = sampler_of(self._again[position - self._first :][:n])(n)
        self._position = position + n
        return samples_us

    def step(self) -> None:
        position = self._position
        self._again[position - self._first].run(self._samplers.stream)
        self._position = position + 1

    def logits(self) -> Tensor:
        return self._results[self._position - 1]
