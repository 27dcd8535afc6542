"""The arms of one case of bench.attention: every backend's attention alone, called from Python and from a graph.

An arm's calls have every view and plan made beforehand. Arm by arm a sample holds as many calls as its own time asks
for, because the slowest of them takes a thousand times the fastest.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import pykernels as pk
from bench.attention.cases import Inputs
from bench.backends import Backend, registry
from bench.backends.native import Native, NativeUnified, drive, without_kernels
from bench.backends.op_cases import ATTENTION_DEPTH, showing_every_key
from bench.backends.sdpa import Sdpa, choice_of
from bench.backends.torch_layer import Attention
from bench.core import gpu_state, measure
from bench.core.measure import Arm, Drive, Rotation, Sampler, Watch
from bench.core.samplers import Samplers, capture_results, relaunch_results, synchronised_sampler
from bench.core.unified import UNIFIED, Counted, choose_phi
from bench.plugins.loading import WatchedAttention

MODES = ("eager", "native", "graph")
MANAGERS = ("outside", "inside")
INSIDE = "eager-inside"
# What follows a backend's name where it is registered once more.
SECOND = "@2"


def known() -> dict[str, type[Backend]]:
    """Every backend by name. Of `compile` the whole layer is the point: it has no attention of its own."""
    found = {name: backend for name, backend in registry().items() if not name.startswith("compile")}
    return found | {UNIFIED: NativeUnified}


NAMES = tuple(known())

# What SDPA chooses from, as torch's flags name it.
SDPA_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION, "mem_efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}  # fmt: skip

# An arm whose calls would take longer than this on one clock makes fewer of them.
ARM_LIMIT_US = 1e6

# What SDPA says where no backend that is enabled takes a shape: on CUDA, and on a CPU.
_REFUSALS = ("No available kernel", "No viable backend")

Call = Callable[[], Tensor]


@dataclass
class AttentionArm(Arm):
    """An arm whose sample is of `calls` calls. `latency_sampler` times one call on an idle device to its end;
    `choices` is what the library shows of its schedule; `estimate_us` a first guess of a call's time."""

    latency_sampler: Sampler | None = None
    latency_samples_us: list[float] = field(default_factory=list)
    choices: dict[str, Any] = field(default_factory=dict)
    calls: int = 1
    estimate_us: float = 0.0


class DeviceLostError(RuntimeError):
    """The CUDA context does not survive what an arm did; `backend` is whose."""

    def __init__(self, backend: str, reason: str) -> None:
        super().__init__(f"{backend}: {reason}")
        self.backend, self.reason = backend, reason


@dataclass(frozen=True)
class Plan:
    """What the arms of a run are made by: `calls` to measure on every clock, in `rounds` samples, `warmup` before.
    `sdpa_from` of SDPA_KERNELS default SDPA may choose. `watched` is the plug-in whose own process this is. `phi` is of
    a unified maximum; None: calibrated."""

    backends: Sequence[str]
    modes: Sequence[str]
    managers: Sequence[str]
    calls: int
    warmup: int
    sdpa_from: Sequence[str] = tuple(SDPA_KERNELS)
    watched: WatchedAttention | None = None
    phi: float | None = None

    def sdpa_choice(self) -> AbstractContextManager:
        """While it lasts default SDPA has `sdpa_from` to choose from; torch's flags as they come where that is all."""
        if set(self.sdpa_from) == set(SDPA_KERNELS):
            return nullcontext()
        return sdpa_kernel([SDPA_KERNELS[name] for name in self.sdpa_from])

    def plugin(self, name: str) -> WatchedAttention | None:
        """The plug-in of that name; None where it is a backend of the registry."""
        return self.watched if self.watched and name == self.watched.label else None

    def backend(self, name: str) -> type[Backend]:
        """The backend of that name, its second one too."""
        plugin = self.plugin(name)
        return plugin.backend if plugin else known()[name.removesuffix(SECOND)]

    @property
    def rounds(self) -> int:
        """Samples of an arm."""
        return min(self.calls, 30)

    def calls_a_sample(self, estimate_us: float, copies: int, in_graphs: bool) -> int:
        """So many that the rounds hold `calls` of them, or where those would take too long fewer, down to one; where
        graphs are made a multiple of the copies, so that one graph goes round them."""
        stride = copies if in_graphs else 1
        wanted = math.ceil(self.calls / self.rounds / stride)
        affordable = int(ARM_LIMIT_US / (2 * self.rounds * max(estimate_us, 1e-3) * stride))
        return stride * max(min(wanted, affordable), 1)

    def single_calls(self, estimate_us: float) -> int:
        """How many calls a clock takes that times each of them."""
        return max(min(self.calls, int(ARM_LIMIT_US / max(estimate_us, 1e-3))), min(self.calls, 30))


def synchronise(device: torch.device) -> None:
    """Wait for the device; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def estimate_us(call: Call, device: torch.device) -> float:
    """The time of a call, from three after a first."""
    call()
    synchronise(device)
    begin = time.perf_counter_ns()
    for _ in range(3):
        call()
    synchronise(device)
    return (time.perf_counter_ns() - begin) / 3000


def gate(arm: Arm) -> None:
    """measure.gate of one arm; SDPA's refusal of a shape is `unsupported`, in the words of its warnings."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        measure.gate([arm])
    if arm.status == "error" and any(words in str(arm.reason) for words in _REFUSALS):
        why = [str(warning.message).split(" (Triggered internally")[0].strip() for warning in said]
        refusal = str(arm.reason).partition(": ")[2].partition("Aborting")[0].strip()
        arm.status, arm.reason = "unsupported", " ".join([refusal, *dict.fromkeys(why)])


def survived(arm: Arm, device: torch.device) -> None:
    """Raises DeviceLostError where the arm's error took the CUDA context along."""
    if arm.status == "error" and device.type == "cuda" and (words := gpu_state.lost_device()):
        raise DeviceLostError(arm.backend, words)


def inside(call: Call, manager: Callable[[], Any]) -> Call:
    """The call with the context manager entered and left in it: the library's user who writes it so pays for it."""

    def step() -> Tensor:
        with manager():
            return call()

    return step


@dataclass
class AttentionCheck:
    """The check of one arm (bench.core.measure.Check). After the clocks it makes the arm's own call, since the loop
    over it keeps no result, on inputs that show every key."""

    maker: "_Maker"
    result: Call

    def __call__(self, drive: Drive | None = None, watch: Watch | None = None) -> pk.reference.Comparison:
        """As bench.core.measure.Check says."""
        with self.maker.renewed() if drive else nullcontext(self.maker.expected) as expected:
            if watch:
                watch.begin()
            got = self.result()
            comparison = pk.reference.compare(
                got.reshape(expected.shape), expected, self.maker.dtype, ATTENTION_DEPTH, ATTENTION_DEPTH
            )
            words = watch.end() if watch else None
        return replace(comparison, ok=False, message=words) if words else comparison


class _Maker:
    """Makes the arms of one backend for one case, gated and with their samplers."""

    def __init__(self, name: str, copies: Sequence[Inputs], plan: Plan, rotation: Rotation, expected: Tensor) -> None:
        self.name, self.copies, self.plan, self.rotation, self.expected = name, copies, plan, rotation, expected
        self.device, self.dtype = copies[0].device, copies[0].dtype
        self.plugin = plan.plugin(name)
        # Inputs has what an attention reads of a DecodeLayer, and only such backends are named here.
        self.backend: Any = plan.backend(name)

    def arms(self) -> list[AttentionArm]:
        """One a mode, and one more where the context manager is inside the call."""
        backend = self.backend
        reason = backend.availability(self.device) or backend.layer_reason(self.copies[0])
        wanted = [mode for mode in self.plan.modes if mode != "eager" or "outside" in self.plan.managers]
        if "eager" in self.plan.modes and "inside" in self.plan.managers and issubclass(backend, Sdpa):
            wanted.append(INSIDE)
        arms = []
        for mode in wanted:
            arm = AttentionArm(self.name, mode)
            if why := reason or backend.mode_reason(mode.partition("-")[0], self.device):
                arm.status, arm.reason = "unsupported", why
            else:
                try:
                    watched = self.plugin.journal.during("made", mode) if self.plugin else nullcontext()
                    with torch.inference_mode(), watched:
                        (self._native if issubclass(backend, Native) else self._plain)(arm)
                    if self.plugin:
                        self.plugin.watch(arm)
                except Exception as error:  # the library's own words are the result
                    arm.fail(error)
                survived(arm, self.device)
            if (arm.mode, arm.status) == ("eager", "unsupported"):  # so are the others, for that reason
                reason = arm.reason
            arms.append(arm)
        return arms

    @cached_property
    def _bound(self) -> tuple[Any, list[Attention]]:
        """The adapter, and its attention over each copy: in its own layout, for all modes."""
        adapter = self.backend()
        return adapter, [adapter.attention(inputs) for inputs in self.copies]

    def _samplers(self, arm: AttentionArm) -> Samplers:
        arm.calls = self.plan.calls_a_sample(arm.estimate_us, len(self.copies), self.device.type == "cuda")
        return Samplers(self.rotation, arm.calls, self.device)

    def _gated(self, arm: AttentionArm, result: Call) -> bool:
        # It holds this maker, and so what a graph reads: a graph of torch's keeps no tensors alive.
        arm.check = AttentionCheck(self, result)
        if self.plugin:
            arm.check = self.plugin.check(arm, self._bound[0], self.copies[0])
        gate(arm)
        return arm.status == "ok"

    @contextmanager
    def renewed(self) -> Iterator[Tensor]:
        """Other inputs in the memory of the first copy, whose result is compared, and in the adapter's layout of it,
        the same for every arm of a cell; what they must give. To write all copies would take longer than to measure
        them."""
        first = self.copies[0]
        numbers = first.numbers()
        before = [tensor.clone() for tensor in numbers]

        def put(numbers: Sequence[Tensor]) -> None:
            for tensor, new in zip(first.numbers(), numbers, strict=True):
                tensor.copy_(new)
            if "_bound" in self.__dict__:
                self._bound[1][0].load(cast(pk.DecodeLayer, first))  # what it reads of a layer, that has

        put(showing_every_key(numbers, torch.Generator(self.device).manual_seed(first.renewed_seed)))
        try:
            if first.renewed_expected is None:
                first.renewed_expected = first.expected()
            yield first.renewed_expected
        finally:
            put(before)

    @cached_property
    def _phi(self) -> tuple[float, pk.Phi | None]:
        first = self.copies[0]
        rows = partial(pk.score_rows, first.q, first.k_cache, first.kv_len)
        return choose_phi(self.plan.phi, lambda: [rows()], self.dtype)

    def _native(self, arm: AttentionArm) -> None:
        """Our op, with its output and workspace given."""
        calls, outs, workspaces = [], [], []
        unified = self.backend is NativeUnified
        softmax, (phi, calibrated) = ("unified", self._phi) if unified else ("online", (0.0, None))
        for inputs in self.copies:
            out = torch.full_like(inputs.q, float("nan"))
            workspace = pk.ops.gqa_decode_workspace(inputs.q, inputs.k_cache, softmax)
            calls.append(
                lambda i=inputs, out=out, workspace=workspace: pk.ops.gqa_decode(
                    i.q, i.k_cache, i.v_cache, i.kv_len, softmax=softmax, phi=phi, out=out, workspace=workspace
                )
            )
            outs.append(out)
            workspaces.append(workspace)
        arm.kernels, arm.launches = [f"pykernels::{self.device.type}::gqa_decode"], 1
        if not self._gated(arm, calls[0]):
            return
        arm.estimate_us = estimate_us(calls[0], self.device)
        samplers = self._samplers(arm)
        if unified:
            arm.counted = Counted(phi, calibrated, workspaces, self.copies[0].q[..., 0].numel(), arm.calls)
        if arm.mode == "eager":
            self._python_clocks(arm, samplers, calls)
            return
        driven = drive(arm.mode, calls, samplers)

        def replayed() -> Tensor:
            outs[0].fill_(float("nan"))
            driven.step()
            return outs[0]

        self._gated(arm, replayed)
        arm.sampler, arm.host_sampler = driven.sampler, driven.host_sampler
        arm.steps_per_graph = arm.calls if arm.mode == "graph" else None

    def _plain(self, arm: AttentionArm) -> None:
        """A peer's attention, whatever it allocates in a call included."""
        adapter, bound = self._bound
        calls = [attention.bound(inputs.q.unsqueeze(2)) for attention, inputs in zip(bound, self.copies, strict=True)]
        if arm.mode == INSIDE:
            calls = [inside(call, _manager(adapter)) for call in calls]
        else:
            arm.surroundings = adapter.surroundings
        arm.choices = bound[0].choices()
        arm.kernels, arm.launches = [adapter.kernel_name(self.copies[0])], 1
        if not self._gated(arm, calls[0]):
            return
        with arm.surroundings():
            arm.estimate_us = estimate_us(calls[0], self.device)
            samplers = self._samplers(arm)
            if arm.mode == "native":
                again, relaunched = relaunch_results(calls, samplers.stream, adapter.programmatic)
            elif arm.mode == "graph":
                graphs, replayed = capture_results(calls, arm.calls)
            else:
                self._python_clocks(arm, samplers, calls)
                return
        if arm.mode == "native":
            arm.nodes, arm.launches = again[0].nodes, len(again[0])
            self._gated(arm, relaunched)
            arm.sampler, arm.host_sampler = samplers.programs(again), samplers.host_programs(again)
            return
        self._gated(arm, replayed)
        arm.sampler, arm.host_sampler = samplers.torch_graphs(graphs), samplers.host_torch_graphs(graphs, 1)
        arm.steps_per_graph = arm.calls

    def _python_clocks(self, arm: AttentionArm, samplers: Samplers, calls: Sequence[Call]) -> None:
        arm.sampler = samplers.python(calls)
        if samplers.on_cuda:
            # Math is half a dozen kernels; a queue of so many calls stays far from full all the same.
            arm.host_sampler = samplers.host_python(calls, 8)
            arm.latency_sampler = synchronised_sampler(calls, self.rotation)
        elif issubclass(self.backend, Native):
            arm.host_sampler = without_kernels(arm.sampler)


def _manager(adapter: Sdpa) -> Callable[[], Any]:
    """What `inside` enters: the pin, or for SDPA's own choice a manager that leaves it all that it had."""
    if adapter.pinned is not None:
        return adapter.surroundings
    everything = [SDPA_KERNELS[name] for name, on in _enabled().items() if on]
    return lambda: sdpa_kernel(everything)


def make_arms(
    copies: Sequence[Inputs], plan: Plan, rotation: Rotation, begin: Callable[[str], None]
) -> list[AttentionArm]:
    """The gated arms of every backend over the copies of a case. `begin` is told whose are made next.

    Raises DeviceLostError where an arm took the CUDA context along.
    """
    with torch.inference_mode():
        expected = copies[0].expected()
    arms = []
    for name in plan.backends:
        begin(name)
        arms += _Maker(name, copies, plan, rotation, expected).arms()
    begin("")
    return arms


def _enabled() -> dict[str, bool]:
    """torch's flags for SDPA_KERNELS, as they are now."""
    return {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in SDPA_KERNELS}


def sdpa_state(inputs: Inputs) -> dict[str, Any]:
    """What SDPA's chooser would take for these inputs, of which backends, in which order."""
    flags = {
        **_enabled(),
        "fp16_bf16_reduction_math": torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed(),
    }
    choice = choice_of(inputs.q.unsqueeze(2), inputs.k_cache, inputs.v_cache)
    order = [SDPBackend(number).name for number in torch._C._get_sdp_priority_order()]
    return {"choice": choice, "enabled": flags, "priority": order}
