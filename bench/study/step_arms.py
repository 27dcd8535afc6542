"""The arms of a whole decode step: who computes it, who drives it, and how kv_len grows while it is measured.

All arms run over one DecodeModel: its weights, its cache, its token. None keeps memory of its own beyond
activations, so that two arms fit wherever one does.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import pykernels as pk
from bench.backends import MODES, registry
from bench.backends.sdpa import Sdpa
from bench.backends.torch_layer import TorchLayer
from bench.core.cli import FUSIONS
from bench.core.errors import flag_error
from bench.core.measure import Arm, unsupported


class _Calls(TorchDispatchMode):
    """Notes the ops that compute something: neither views nor bare allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001 - torch's own signature
        name = func._schema.name
        if not func.is_view and not name.startswith("aten::empty"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def calls_of(function: Callable[[], object]) -> list[str]:
    """What one call of the function asks of torch's dispatcher below composite ops, views and allocations left out:
    on a GPU each of them launches at least one kernel."""
    with torch.no_grad(), _Calls() as calls:
        function()
    return calls.names


class Driver(ABC):
    """One way to run steps of a DecodeModel. `launches` and `kernels` are counted when it is made."""

    launches: int
    kernels: list[str]

    def __init__(self, model: pk.DecodeModel) -> None:
        self.model = model
        # The step that is run to be counted or recorded falls on the last slot: no timed step has read it by then.
        model.set_position(model.max_len - 1)

    def stand(self, position: int) -> None:
        """Make the next step decode at `position`."""
        self.model.set_position(position)

    @abstractmethod
    def step(self) -> None:
        """One step; the next one follows on it."""

    def logits(self) -> Tensor:
        """Of the last step: [batch, vocab]."""
        return self.model.logits

    def run(self, n: int) -> np.ndarray:
        """n steps one after another: float64 [n], microseconds."""
        samples_us = np.empty(n)
        for i in range(n):
            begin = time.perf_counter_ns()
            self.step()
            samples_us[i] = (time.perf_counter_ns() - begin) / 1000
        return samples_us


class NativeDriver(Driver):
    """launchtax's own kernels at one fusion, in mode eager, pybind, dispatch or native."""

    def __init__(self, model: pk.DecodeModel, fusion: str, mode: str) -> None:
        super().__init__(model)
        self._program = model.program(fusion)
        self.launches = len(self._program)
        self.kernels = [f"pykernels::{op}" for op in self._program.ops]
        self._native = mode == "native"
        if mode == "eager":
            self._step: Callable[[], object] = partial(model.forward, fusion)
        elif mode == "pybind":
            self._step = partial(_call_all, self._program.launchers())
        elif mode == "dispatch":
            self._step = model.tape(fusion).run
        else:
            self._step = self._program.run

    def step(self) -> None:
        self._step()

    def run(self, n: int) -> np.ndarray:
        return pk.runtime.timed_loop([self._program], 0, n) if self._native else super().run(n)


def _call_all(launchers: Sequence[Callable[[], None]]) -> None:
    for launch in launchers:
        launch()


class TorchDriver(Driver):
    """A loop of plain torch ops as a user writes one, eager. The position is a Python number, as it is there."""

    def __init__(self, model: pk.DecodeModel) -> None:
        super().__init__(model)
        self._views = [
            SimpleNamespace(
                spec=model.spec, weights=layer.weights, batch=model.batch, dtype=model.dtype, position=layer.position,
                cos_sin=layer.cos_sin, k_cache=layer.k_cache, v_cache=layer.v_cache, x=None,
            )
            for layer in model.layers
        ]  # fmt: skip
        attention = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)  # noqa: E731
        self._layers = [TorchLayer(view, attention) for view in self._views]
        self._position, self._logits = model.max_len - 1, model.logits
        self.kernels = calls_of(self._forward)
        self.launches = len(self.kernels)

    def stand(self, position: int) -> None:
        self._position = position

    def _forward(self) -> Tensor:
        model, weights, position = self.model, self.model.weights, self._position
        half = model.spec.head_dim // 2
        angles = self._views[0].cos_sin[position].to(model.dtype)
        cosine, sine = angles[:half].repeat(2), angles[half:].repeat(2)
        x = F.embedding(model.token, weights.embedding)
        for view, layer in zip(self._views, self._layers, strict=True):
            view.x, layer.position, layer.cosine, layer.sine = x, position, cosine, sine
            x = layer.forward()
        normed = F.rms_norm(x, (model.spec.hidden,), weights.final_norm, model.spec.rms_eps)
        self._logits = F.linear(normed, weights.lm_head)
        return self._logits.argmax(-1)

    def step(self) -> None:
        self.model.token.copy_(self._forward())
        self._position += 1

    def logits(self) -> Tensor:
        return self._logits


class TransformersDriver(Driver):
    """transformers' own model and forward on the same weights, with SDPA attention.

    Its cache is laid over the model's: it writes one slot a step, where transformers' DynamicCache would copy the
    whole cache, which would cost it more.
    """

    def __init__(self, model: pk.DecodeModel) -> None:
        super().__init__(model)
        from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
        from transformers.cache_utils import DynamicCache, DynamicLayer

        spec = model.spec

        class Slots(DynamicLayer):
            """One layer's cache over a DecodeLayer's memory."""

            def __init__(self, layer: pk.DecodeLayer) -> None:
                super().__init__()
                self.layer, self.length, self.is_initialized = layer, 0, True

            def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
                start, self.length = self.length, self.length + keys.shape[-2]
                self.layer.k_cache[:, :, start : self.length] = keys
                self.layer.v_cache[:, :, start : self.length] = values
                return self.layer.k_cache[:, :, : self.length], self.layer.v_cache[:, :, : self.length]

            def get_seq_length(self) -> int:
                return self.length

        scaling = spec.rope_scaling
        rope = {"rope_type": "default", "rope_theta": spec.rope_theta}
        if scaling:
            rope |= {
                "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position,
            }  # fmt: skip
        kinds = (Qwen2Config, Qwen2ForCausalLM) if spec.qkv_bias else (LlamaConfig, LlamaForCausalLM)
        config = kinds[0](
            hidden_size=spec.hidden, intermediate_size=spec.intermediate, num_hidden_layers=spec.n_layers,
            num_attention_heads=spec.n_heads, num_key_value_heads=spec.n_kv_heads, head_dim=spec.head_dim,
            vocab_size=spec.vocab, rms_norm_eps=spec.rms_eps, max_position_embeddings=spec.max_position,
            tie_word_embeddings=spec.tied_embeddings, rope_parameters=rope, attn_implementation="sdpa",
        )  # fmt: skip
        with torch.device("meta"):
            module = kinds[1](config)
        module.load_state_dict(model.weights.checkpoint(), assign=True, strict=not spec.tied_embeddings)
        module.tie_weights()
        module.model.rotary_emb = type(module.model.rotary_emb)(config).to(model.device)
        self._module = module.eval().requires_grad_(False)
        self._cache = DynamicCache()
        self._cache.layers = [Slots(layer) for layer in model.layers]
        self._logits = model.logits
        self.stand(model.max_len - 1)
        self.kernels = calls_of(self._forward)
        self.launches = len(self.kernels)

    def stand(self, position: int) -> None:
        for slots in self._cache.layers:
            slots.length = position

    def _forward(self) -> Tensor:
        out = self._module(self.model.token[:, None], past_key_values=self._cache, use_cache=True)
        self._logits = out.logits[:, -1]
        return self._logits.argmax(-1)

    def step(self) -> None:
        self.model.token.copy_(self._forward())

    def logits(self) -> Tensor:
        return self._logits


class Course:
    """Where an arm stands. Every call of `sample` goes on one step before it stopped, so that the untimed step that
    opens a round repeats a position and the timed ones follow one another: ctx + warmup, ctx + warmup + 1, ..."""

    def __init__(self, driver: Driver, ctx: int) -> None:
        self._driver, self._next = driver, ctx

    def sample(self, n: int) -> np.ndarray:
        """n steps: float64 [n], microseconds."""
        self._driver.stand(self._next)
        self._next += n - 1
        return self._driver.run(n)


def checker(driver: Driver, position: int) -> Callable[[], pk.reference.Comparison]:
    """One step at `position`, with what it writes poisoned before, against the float64 oracle: logits, the rows that
    every layer appends, and the token."""

    def check() -> pk.reference.Comparison:
        model = driver.model
        token = torch.arange(model.batch, device=model.device) * 7 % model.spec.vocab
        caches = [(layer.k_cache, layer.v_cache) for layer in model.layers]
        where = torch.full_like(model.position, position)
        expected, rows = pk.reference.step(
            model.spec, model.weights, token, caches, model.layers[0].cos_sin, where
        )  # fmt: skip
        model.poison()
        for cache in (cache for pair in caches for cache in pair):
            cache[:, :, position] = float("nan")
        model.token.copy_(token)
        driver.stand(position)
        driver.step()
        # Errors of the layers add like a random walk.
        depth = math.ceil(2 * math.sqrt(model.spec.n_layers))
        found = [pk.reference.compare(driver.logits(), expected, model.dtype, depth)]
        for layer, (k_row, v_row) in zip(model.layers, rows, strict=True):
            found.append(pk.reference.compare(layer.k_cache[:, :, position], k_row, model.dtype, depth))
            found.append(pk.reference.compare(layer.v_cache[:, :, position], v_row, model.dtype, depth))
        if not torch.equal(model.token, driver.logits().argmax(-1)):
            raise AssertionError(f"token must be the argmax of the logits, got {model.token.tolist()}")
        return max(found, key=lambda comparison: comparison.max_rel_error / comparison.tolerance)

    return check


@dataclass(frozen=True)
class StepBackend:
    """A backend of `bench.step`: what `driver(model, mode, fusion)` makes, and what must hold around its steps."""

    name: str
    description: str
    driver: Callable[[pk.DecodeModel, str, str | None], Driver]
    surroundings: Callable[[], AbstractContextManager] = nullcontext

    def reason(self, mode: str, device: torch.device) -> str | None:
        """None where this mode runs on the device, else why not."""
        if self.name == "transformers":
            if find_spec("transformers") is None:
                return "needs the package transformers (pip install transformers)"
            return None if mode == "eager" else "is driven by its own Python forward only"
        layer = registry()[self.name]
        reason = layer.availability(device) or layer.mode_reason(mode, device)
        if reason is None and self.name != "native" and mode != "eager":
            return "takes the position as a Python number: a recorded step could not go on to the next"
        return reason

    def fusions(self, wanted: Sequence[str]) -> Sequence[str | None]:
        """Which of the wanted fusions it tells apart."""
        return wanted if self.name == "native" else [None]


def backends() -> dict[str, StepBackend]:
    """Every backend of a whole step by name, in the order of the tables."""
    listed = [
        StepBackend("native", "launchtax's own kernels", lambda model, mode, fusion: NativeDriver(model, fusion, mode))
    ]
    for name, backend in registry().items():
        if issubclass(backend, Sdpa):
            pinned = backend.pinned
            around = nullcontext if pinned is None else partial(sdpa_kernel, pinned)
            listed.append(StepBackend(name, backend.description, lambda model, *_: TorchDriver(model), around))
    listed.append(
        StepBackend("transformers", "transformers' model, SDPA attention", lambda model, *_: TransformersDriver(model))
    )
    return {backend.name: backend for backend in listed}


DEFAULT_FUSION = "block"


def parse_arm(flag: str, text: str) -> tuple[str, str | None, str]:
    """`backend[/fusion]:mode` as (backend, fusion, mode). Native's fusion is block where none is given."""
    name, _, mode = text.partition(":")
    name, _, fusion = name.partition("/")
    known = backends()
    if name not in known or mode not in MODES:
        raise flag_error(flag, text, f"backend[/fusion]:mode, of {', '.join(known)} and of {', '.join(MODES)}")
    if name == "native":
        fusion = fusion or DEFAULT_FUSION
        if fusion not in FUSIONS:
            raise flag_error(flag, text, f"of a fusion in {', '.join(FUSIONS)}")
    elif fusion:
        raise flag_error(flag, text, f"without a fusion: {name} has none")
    return name, fusion or None, mode


def arms_of(
    backend: StepBackend, model: pk.DecodeModel, modes: Sequence[str], fusions: Sequence[str], ctx: int
) -> list[Arm]:
    """All arms of a backend for steps from position `ctx` on, unsupported ones with their reason."""
    arms = []
    for fusion in backend.fusions(fusions):
        for mode in modes:
            if reason := backend.reason(mode, model.device):
                arms.append(unsupported(backend.name, mode, reason, fusion))
                continue
            try:
                with torch.inference_mode(), backend.surroundings():
                    driver = backend.driver(model, mode, fusion)
            except Exception as error:  # the library's own words are the result
                arms.append(Arm(backend.name, mode, fusion))
                arms[-1].fail(error)
                continue
            host_sampler = partial(_host_sample, driver) if backend.name == "native" else None
            arms.append(
                Arm(
                    backend.name, mode, fusion, Course(driver, ctx).sample, checker(driver, ctx), backend.surroundings,
                    host_sampler, driver.kernels, driver.launches,
                )
            )  # fmt: skip
    return arms


def _host_sample(driver: Driver, n: int) -> np.ndarray:
    with pk.runtime.launches_disabled():
        return driver.run(n)


__all__ = [
    "MODES", "Course", "Driver", "StepBackend", "arms_of", "backends", "calls_of", "checker", "parse_arm",
]  # fmt: skip
