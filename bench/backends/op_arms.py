"""The arms of one case of bench.op: our op, torch's and plug-ins', in every mode that drives them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.native import Native, drive, tape_of
from bench.backends.op_cases import Case, Instance, OpCheck
from bench.backends.op_plugin import OpPlugin
from bench.core import measure
from bench.core.copies import steps_a_sample, weight_copies
from bench.core.errors import UsageError
from bench.core.measure import Arm, Rotation
from bench.core.samplers import Samplers, capture, capture_results, relaunch_results, relaunches, replay_all
from bench.core.unified import UNIFIED, Counted, choose_phi
from pykernels.layer import available_bytes

Maker = Callable[[Case, list[Instance], str, Samplers], Arm | None]
"""(case, copies, mode, samplers) -> the arm of that mode; None where there is no such mode here."""


def prepared(
    case: Case, l2: str, repeats: int, spec_gbs: float | None, device: torch.device
) -> tuple[list[Instance], Samplers]:
    """Copies of a case's data, enough that a cold step finds none of it in the cache, and how they are sampled. Raises
    UsageError where there is no memory for them. repeats: steps a sample; 0: by the device."""
    copies = weight_copies(case.cold_bytes, l2, device)
    needed, available = copies * case.cold_bytes, available_bytes(device)
    if needed > available:
        raise UsageError(
            f"--op={case.op}: {case.label or case.shape} needs {needed / 2**30:.1f} GiB, "
            f"{available / 2**30:.1f} GiB are available"
        )
    with torch.inference_mode():
        instances = [case.make() for _ in range(copies)]
    return instances, Samplers(Rotation(copies), steps_a_sample(repeats, case.bytes, copies, spec_gbs, device), device)


def peer_modes(device: torch.device) -> tuple[str, ...]:
    """The modes that an op other than our own is driven in: on a GPU its captured launches are launched again by a C++
    loop too."""
    return ("eager", "native", "graph") if device.type == "cuda" else ("eager", "graph")


def native_arm(case: Case, instances: list[Instance], mode: str, samplers: Samplers) -> Arm:
    """Our op in that mode."""
    return _native_arm("native", [instance.native for instance in instances], case, instances, mode, samplers)


def unified_arm(phi: float | None, case: Case, instances: list[Instance], mode: str, samplers: Samplers) -> Arm | None:
    """Our gqa_decode with a unified maximum; None of other ops."""
    first = instances[0]
    if first.unified is None:
        return None
    rows = partial(pk.score_rows, first.inputs["q"], first.inputs["k_cache"], first.inputs["kv_len"])
    chosen, calibrated = choose_phi(phi, lambda: [rows()], case.dtype)
    made = [instance.unified(chosen) for instance in instances if instance.unified]
    arm = _native_arm(UNIFIED, [call for call, _ in made], case, instances, mode, samplers)
    pairs = first.inputs["q"][..., 0].numel()
    arm.counted = Counted(chosen, calibrated, [workspace for _, workspace in made], pairs, samplers.repeats)
    return arm


def _native_arm(
    name: str, calls: list[Callable[[], object]], case: Case, instances: list[Instance], mode: str, samplers: Samplers
) -> Arm:
    if reason := Native.mode_reason(mode, samplers.device):
        return measure.unsupported(name, mode, reason)
    if samplers.on_cuda and case.dtype == torch.float32:
        return measure.unsupported(name, mode, Native.NO_FLOAT32)
    driven = drive(mode, calls, samplers)
    outs = [instance.out for instance in instances]

    def step() -> Tensor:
        driven.step()
        return outs[0]

    check = OpCheck(case, instances, step, samplers.samples_for_all, lambda: outs, outs)
    return Arm(
        name, mode, None, driven.sampler, check, launches=1,
        host_sampler=driven.host_sampler if samplers.on_cuda else None,
        steps_per_graph=samplers.repeats if mode.startswith("graph") else None,
    )  # fmt: skip


def torch_arm(case: Case, instances: list[Instance], mode: str, samplers: Samplers) -> Arm | None:
    """torch's op in that mode; None where torch has no such mode here."""
    if mode not in ("eager", "dispatch", *(("native", "graph") if samplers.on_cuda else ())):
        return None
    if instances[0].torch is None:
        return measure.unsupported("torch", mode, "torch has no such op")
    calls = [instance.torch for instance in instances if instance.torch]
    tapes = [tape_of(call) for call in calls] if mode == "dispatch" else []
    launches = len(tapes[0].calls) if tapes else 1
    nodes: list[Any] = []
    step, results = calls[0], None
    if mode == "eager":
        sampler, on_host = samplers.python(calls), samplers.host_python(calls, launches)
    elif mode == "dispatch":

        def step() -> Tensor:
            tapes[0].run()
            return tapes[0].outputs()[0]

        results = lambda: [tape.outputs()[0] for tape in tapes]  # noqa: E731
        sampler, on_host = samplers.tapes(tapes), samplers.host_tapes(tapes)
    elif mode == "native":
        again, step = relaunch_results(calls, samplers.stream, case.programmatic)
        nodes, launches = again[0].nodes, len(again[0])
        sampler, on_host = samplers.programs(again), samplers.host_programs(again)
    else:
        graphs, step = capture_results(calls, samplers.repeats)
        sampler, on_host = samplers.torch_graphs(graphs), samplers.host_torch_graphs(graphs, launches)
    check = OpCheck(case, instances, step, samplers.samples_for_all, results, depth=case.torch_depth)
    return Arm(
        "torch", mode, None, sampler, check, launches=launches, nodes=nodes,
        host_sampler=on_host if samplers.on_cuda else None,
        steps_per_graph=samplers.repeats if mode == "graph" else None,
    )  # fmt: skip


def plugin_arm(
    plugin: OpPlugin, case: Case, instances: list[Instance], outs: list[Tensor], mode: str, samplers: Samplers
) -> Arm:
    """A plug-in's op in a mode of peer_modes, writing into `outs`, one a copy."""
    step: Callable[[], object]
    calls = [partial(plugin.run, instance.inputs, out) for instance, out in zip(instances, outs, strict=True)]
    nodes: list[Any] = []
    if mode == "eager":
        step, sampler, on_host = calls[0], samplers.python(calls), samplers.host_python(calls, 1)
    elif mode == "native":
        again = relaunches(calls, plugin.programmatic)
        nodes = again[0].nodes
        step = partial(again[0].run, samplers.stream)
        sampler, on_host = samplers.programs(again), samplers.host_programs(again)
    else:
        graphs = capture(calls, samplers.repeats)
        step, sampler = replay_all(graphs), samplers.torch_graphs(graphs)
        on_host = samplers.host_torch_graphs(graphs, 1)

    def first() -> Tensor:
        step()
        return outs[0]

    check = OpCheck(case, instances, first, samplers.samples_for_all, lambda: outs, outs)
    return Arm(
        type(plugin).__name__, mode, None, sampler, check, launches=len(nodes) or 1, nodes=nodes,
        host_sampler=on_host if samplers.on_cuda else None,
        steps_per_graph=samplers.repeats if mode == "graph" else None,
    )  # fmt: skip


MAKERS: dict[str, Maker] = {"native": native_arm, "torch": torch_arm}
"""The backends of every op. gqa_decode has native-unified too (unified_arm)."""


def make_arms(
    case: Case, instances: list[Instance], samplers: Samplers, modes: list[str], makers: Mapping[str, Maker]
) -> list[Arm]:
    """The arms of a case in the order of `makers`. What fails while it is made is an `error` arm."""
    arms = []
    for backend, make in makers.items():
        for mode in modes:
            try:
                with torch.inference_mode():
                    arm = make(case, instances, mode, samplers)
            except Exception as error:  # the library's own words are the result
                arm = Arm(backend, mode)
                arm.fail(error)
            if arm is not None:
                arms.append(arm)
    return arms


def reference_of(arm: Arm, arms: list[Arm], on_cuda: bool) -> Arm | None:
    """The torch arm that an arm is held against: eager on a CPU; on a GPU like with like, a graph with a graph."""
    mode = {"graph-pdl": "graph"}.get(arm.mode, arm.mode) if on_cuda else "eager"
    return next((a for a in arms if (a.backend, a.mode, a.status) == ("torch", mode, "ok")), None)
