"""The arms of a whole decode step: which there are, how kv_len grows while they are measured, and their gate."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from torch.nn.attention import sdpa_kernel

import pykernels as pk
from bench.backends import MODES, registry
from bench.backends.sdpa import Sdpa
from bench.core.cli import FUSIONS
from bench.core.errors import flag_error
from bench.core.measure import Arm, unsupported
from bench.study.step_drivers import Driver, NativeDriver, TorchDriver, TransformersDriver


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
        if device.type != "cpu":
            return "is read by the host's clock in this version: whole steps are timed on a CPU only"
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
