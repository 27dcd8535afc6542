"""The arms of a whole decode step: which there are, how kv_len grows while they are measured, and their gate."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn.attention import sdpa_kernel

import pykernels as pk
from bench.backends import DENSE, INT4, MODES, LinearPeer, by_name, linear_peers, registry
from bench.backends.base import NO_CAPTURE, name_in
from bench.backends.int4 import Int4Kernel
from bench.backends.int4.projections import numbers_of
from bench.backends.linear import model_projections
from bench.backends.native import Native, NativeDense, NativeUnified
from bench.backends.sdpa import Sdpa
from bench.backends.steps.drivers import (
    Driver,
    NativeDriver,
    NativeLoopDriver,
    TorchDriver,
    TorchGraphDriver,
    TorchRelaunchDriver,
)
from bench.backends.steps.gate import Reference, StepCheck
from bench.backends.steps.transformers import TransformersDriver, mode_reason, model_reason
from bench.core import cli
from bench.core.cli import FUSIONS
from bench.core.errors import flag_error
from bench.core.listing import print_backends
from bench.core.measure import Arm, Sampler, unsupported
from bench.core.unified import UNIFIED, Counted, choose_phi

GRAPH_LOOP = "graph-loop"
STEP_MODES = (*MODES, GRAPH_LOOP)
"""Who drives a whole step. The last one is native's alone: a graph whose WHILE node decodes many tokens a launch."""
_NO_LOOP = "a loop on the device is native's: its step reads the position and the token from device memory"
_NO_LOOP_TRACE = "CUPTI's records of a graph's WHILE node are not read here: the step's time is the device's own clock"


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

    def tracing(self, position: int) -> Sampler:
        """Stand at `position`; what steps on from there enqueues nothing but steps."""
        self._driver.stand(position)
        return self._driver.run


@dataclass(frozen=True)
class StepBackend:
    """A backend of `bench.step`: what `driver(model, mode, fusion, first)` makes for steps at positions from `first`
    on, and what must hold around its steps."""

    name: str
    description: str
    driver: Callable[[pk.DecodeModel, str, str | None, int], Driver]
    surroundings: Callable[[], AbstractContextManager] = nullcontext
    weights: Sequence[str] = (DENSE,)
    """What its projections multiply by, as bench.backends.Backend says."""
    peer: type[LinearPeer] | None = None
    """Whose projections the plain torch loop has; None where they are its own."""

    def reason(self, mode: str, device: torch.device) -> str | None:
        """None where this mode runs on the device, else why not."""
        if mode == GRAPH_LOOP:
            return self._loop_reason(device)
        if self.name == "transformers":
            return mode_reason(mode)
        layer = self.peer or by_name().get(self.name, NativeDense)
        reason = layer.availability(device) or layer.mode_reason(mode, device)
        if reason is None and not self._is_native and mode == "dispatch":
            return "takes the position as a Python number: a recorded step could not go on to the next"
        return reason

    def _loop_reason(self, device: torch.device) -> str | None:
        if not self._is_native:
            return _NO_LOOP
        if device.type != "cuda":
            return NO_CAPTURE
        return Native.availability(device) or pk.runtime.graph_loop_reason()

    def fusions(self, wanted: Sequence[str]) -> Sequence[str | None]:
        """Which of the wanted fusions it tells apart."""
        return wanted if self._is_native else [None]

    @property
    def _is_native(self) -> bool:
        return self.name in NATIVE

    def subject(self, reference: Reference) -> Reference:
        """What judges it, over the model that it takes steps of: the 4-bit one, the same in another dtype, or with its
        projections dequantised."""
        if INT4 not in self.weights:
            return reference.dense
        if self.peer is None:
            return reference
        reference = reference.in_dtype(self.peer.dtype_on(reference.model.device, reference.model.dtype))
        return reference.by(numbers_of(self.peer.kernel, reference.model.weights.layers))

    def model_reason(self, model: pk.DecodeModel) -> str | None:
        """None where it can take steps of that model, else the reason why not."""
        if self._is_native:
            return (NativeUnified if self.name == UNIFIED else Native).layer_reason(model.layers[0])
        if self.name == "transformers":
            return model_reason(model.spec)
        if self.peer is None:
            return by_name()[self.name].layer_reason(model.layers[0])
        if not model.weights.layers[0].is_int4:
            return "multiplies by 4-bit weights only"
        reasons = (self.peer.layer_reason(layer) for layer in {id(of.weights): of for of in model.layers}.values())
        return next(filter(None, reasons), None)


NATIVE = ("native", "native-dense", UNIFIED)


def _plain_driver(
    model: pk.DecodeModel, mode: str, _: str | None, first: int, kernel: type[Int4Kernel] | None = None
) -> Driver:
    projections = model_projections(kernel, model) if kernel else ()
    if mode == "eager":
        return TorchDriver(model, projections)
    return (TorchGraphDriver if mode == "graph" else TorchRelaunchDriver)(model, first, projections)


def _native_driver(model: pk.DecodeModel, mode: str, fusion: str | None, _: int) -> Driver:
    return NativeLoopDriver(model, str(fusion)) if mode == GRAPH_LOOP else NativeDriver(model, str(fusion), mode)


def _unified_driver(
    model: pk.DecodeModel, mode: str, fusion: str | None, first: int, phi: float | None = None
) -> Driver:
    model.set_position(first)
    chosen, calibrated = choose_phi(phi, partial(model.score_rows, str(fusion)), model.dtype)
    driver = _native_driver(model.with_softmax("unified", chosen), mode, fusion, first)
    spec, workspaces = model.spec, [layer.attention_workspace for layer in driver.model.layers]
    driver.counted = Counted(chosen, calibrated, workspaces, model.batch * spec.n_heads * spec.n_layers)
    return driver


def backends(attention: str = "sdpa", phi: float | None = None) -> dict[str, StepBackend]:
    """Every backend of a whole step by name, in the order of the tables; linear peers with that attention of SDPA's;
    phi: native-unified's, None: calibrated."""
    listed = [StepBackend("native", Native.description, _native_driver, weights=Native.weights)]
    of = registry()[attention]
    assert issubclass(of, Sdpa)
    around: Callable[[], AbstractContextManager]
    for name, backend in registry().items():
        if issubclass(backend, Sdpa):
            pinned = backend.pinned
            around = nullcontext if pinned is None else partial(sdpa_kernel, pinned)
            listed.append(StepBackend(name, backend.description, _plain_driver, around))
    for name, peer in linear_peers(of).items():
        around = nullcontext if of.pinned is None else partial(sdpa_kernel, of.pinned)
        driver = partial(_plain_driver, kernel=peer.kernel)
        listed.append(StepBackend(name, peer.description, driver, around, peer.weights, peer))
    listed.append(StepBackend("native-dense", NativeDense.description, _native_driver))
    unified = partial(_unified_driver, phi=phi)
    listed.append(StepBackend(UNIFIED, NativeUnified.description, unified, weights=NativeUnified.weights))
    listed.append(
        StepBackend("transformers", "transformers' model, SDPA attention", lambda model, *_: TransformersDriver(model))
    )
    return {backend.name: backend for backend in listed}


def check_quantised(flag: str, names: Sequence[str], int4: bool) -> None:
    """Raise UsageError where one of those backends multiplies by 4-bit weights alone and the run's are dense."""
    known = backends()
    for name in names if not int4 else ():
        if name == "native-dense" or (name in known and known[name].peer):
            raise flag_error(flag, name, "given with --quant=int4 or a quantised folder of --weights")


def attentions() -> list[str]:
    """What --attention of a step may be: SDPA's own choice, and its pinned kernels."""
    return [name for name, backend in registry().items() if issubclass(backend, Sdpa)]


def default_backends(int4: bool) -> list[str]:
    """What a step measures where nobody says, and what `all` is over weights of that kind."""
    if not int4:
        return [name for name, backend in backends().items() if DENSE in backend.weights and name not in NATIVE[1:]]
    return ["native", *linear_peers(), "sdpa", "native-dense"]


def named(arm: str) -> StepBackend:
    """The backend of an arm by that name, which may end in the dtype that the backend computes in."""
    known = backends()
    return known[arm] if arm in known else known[arm.rpartition("-")[0]]


DEFAULT_FUSION = "block"


def parse_arm(flag: str, text: str) -> tuple[str, str | None, str]:
    """`backend[/fusion]:mode` as (backend, fusion, mode). Native's fusion is block where none is given."""
    name, _, mode = text.partition(":")
    mode = cli.mode(mode)
    name, _, fusion = name.partition("/")
    known = backends()
    if name not in known or mode not in STEP_MODES:
        raise flag_error(flag, text, f"backend[/fusion]:mode, of {', '.join(known)} and of {', '.join(STEP_MODES)}")
    if name in NATIVE:
        fusion = fusion or DEFAULT_FUSION
        if fusion not in FUSIONS:
            raise flag_error(flag, text, f"of a fusion in {', '.join(FUSIONS)}")
    elif fusion:
        raise flag_error(flag, text, f"without a fusion: {name} has none")
    return name, fusion or None, mode


def parse_arms(flag: str, text: str, device: torch.device) -> list[tuple[str, str | None, str]]:
    """Such arms, comma-separated. Raises UsageError where none of them runs on the device: nobody need make a model to
    find that out."""
    parsed = [parse_arm(flag, part) for part in text.split(",")]
    reasons = [backends()[name].reason(mode, device) for name, _, mode in parsed]
    if all(reasons):
        raise flag_error(flag, text, f"at least one arm that runs here: {'; '.join(dict.fromkeys(map(str, reasons)))}")
    return parsed


def arm_of(
    backend: StepBackend, reference: Reference, mode: str, fusion: str | None, traced_from: int | None = None
) -> tuple[Arm, Driver | None]:
    """One arm for steps from the reference's position on, with its driver; where it does not run, its reason and None.
    A traced pass begins at the position `traced_from`."""
    of_the_run, name = reference.model.dtype, backend.name
    if reason := backend.reason(mode, reference.model.device):
        return unsupported(name, mode, reason, fusion), None
    reference = backend.subject(reference)
    model, first = reference.model, reference.position
    name = name_in(name, model.dtype, of_the_run)
    if reason := backend.model_reason(model):
        return unsupported(name, mode, reason, fusion), None
    try:
        with torch.inference_mode(), backend.surroundings():
            driver = backend.driver(model, mode, fusion, first)
    except Exception as error:  # the library's own words are the result
        failed = Arm(name, mode, fusion)
        failed.fail(error)
        return failed, None
    course = Course(driver, first)
    arm = Arm(
        name, mode, fusion, course.sample, StepCheck(driver, reference), backend.surroundings,
        driver.host_sampler(), partial(course.tracing, first if traced_from is None else traced_from),
        driver.kernels, driver.launches, steps_per_graph=1 if mode.startswith("graph") else None,
        no_trace=_NO_LOOP_TRACE if mode == GRAPH_LOOP else None, counted=driver.counted,
    )  # fmt: skip
    return arm, driver


def arms_of(
    backend: StepBackend, reference: Reference, modes: Sequence[str], fusions: Sequence[str], traced_from: int
) -> list[Arm]:
    """All arms of a backend, unsupported ones with their reason."""
    return [
        arm_of(backend, reference, mode, fusion, traced_from)[0]
        for fusion in backend.fusions(fusions)
        for mode in modes
    ]


def print_list() -> None:
    """What --list prints of a driver of whole steps: models, and every backend with what it needs here."""
    device = cli.device("auto")

    def entry(name: str, backend: StepBackend) -> tuple[str, str, str | None, list[str]]:
        modes = [mode for mode in STEP_MODES if not backend.reason(mode, device)]
        return name, backend.description, None if modes else backend.reason("eager", device), modes

    print_backends(entry(name, backend) for name, backend in backends().items())
