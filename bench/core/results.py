"""What a run found, as the keys `arms`, `ops` and `ladder` of its document."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from bench.core import floors, ladder, statistics, unified
from bench.core.device_trace import Traced
from bench.core.document import Document, program_name
from bench.core.measure import Arm
from pykernels.models import ModelSpec
from pykernels.trace import Kernel


def model_document(spec: ModelSpec) -> Document:
    """The key `model`: the spec's fields."""
    scaling = spec.rope_scaling
    return {**vars(spec), "rope_scaling": {"kind": type(scaling).__name__, **vars(scaling)} if scaling else None}


def paper_bytes(
    spec: ModelSpec, ctx: int, batch: int, dtype: torch.dtype, layer_bytes: int | None = None
) -> dict[str, int]:
    """The study's W and K of a whole model, and K of one token. `layer_bytes`: what the weights of a layer take where
    they are not of `dtype`."""
    dense_bytes = spec.layer_weight_elements * dtype.itemsize
    return {
        "weight_bytes": spec.weight_bytes(dtype) - spec.n_layers * (dense_bytes - (layer_bytes or dense_bytes)),
        "kv_bytes": spec.kv_bytes(ctx, batch, dtype),
        "bytes_per_token_kv": spec.kv_bytes(1, 1, dtype),
    }


def bandwidth(n_bytes: int, time_us: float, ceiling: Mapping[str, Any]) -> dict[str, float | None]:
    """Bandwidth reached, and its share of both denominators."""
    gbs = floors.gigabytes_per_second(n_bytes, time_us)
    spec = ceiling["spec_gbs"]
    return {"gbs": gbs, "share_of_spec": gbs / spec if spec else None, "share_of_read": gbs / ceiling["read_gbs"]}


def ratio(numerator: np.ndarray, denominator: np.ndarray, paired: bool = True) -> dict[str, float]:
    """The ratio of the medians, with its interval; paired: sample r of both is of round r."""
    low, high = statistics.ratio_interval(numerator, denominator, paired=paired)
    return {"p50": float(np.median(numerator) / np.median(denominator)), "low": low, "high": high}


def _samples(arms: Sequence[Arm], backend: str, mode: str) -> np.ndarray | None:
    return next((a.kept_us for a in arms if (a.backend, a.mode, a.status) == (backend, mode, "ok")), None)


def arm_document(arm: Arm, n_bytes: int, ceiling: Mapping[str, Any], arms: Sequence[Arm]) -> Document:
    """One entry of the key `arms`; `arms` are all of the run's."""
    entry: Document = {
        "backend": arm.backend, "mode": arm.mode, "fusion": arm.fusion, "status": arm.status, "reason": arm.reason,
        "kernels": arm.kernels, "launches": arm.launches, "max_rel_error": arm.max_rel_error,
        "wall_us": None, "host_us": None, "device_us": None, "samples_us": arm.samples_us, "bytes": n_bytes,
        "gbs": None, "share_of_spec": None, "share_of_read": None,
    }  # fmt: skip
    if arm.against_eager:
        entry["against_eager"] = arm.against_eager
    entry |= unified.keys_of(arm.counted)
    if arm.nodes:
        entry["nodes"] = [asdict(node) for node in arm.nodes]
    samples = arm.kept_us
    if arm.status == "ok" and len(samples):
        entry["wall_us"] = statistics.summary(samples)
        entry |= bandwidth(n_bytes, entry["wall_us"]["p50"], ceiling)
        if arm.host_samples_us:
            entry["host_us"] = statistics.summary(np.array(arm.host_samples_us))
        if (sdpa := _samples(arms, "sdpa", "eager")) is not None:
            entry["ratio_to_sdpa"] = ratio(sdpa, samples)
        if arm.mode.startswith("graph") and (sdpa := _samples(arms, "sdpa", "graph")) is not None:
            entry["ratio_to_sdpa_graph"] = ratio(sdpa, samples)
    return entry


def refer_to_this_run(entry: Document, arms: Sequence[Arm]) -> Document:
    """An entry of a plug-in's own process, with its ratios to what this run measured: what a table says beside it. They
    are of different processes, so not paired by round. Those to what its own process measured stay, under
    `in_its_process`."""
    keys = ("ratio_to_sdpa", "ratio_to_sdpa_graph")
    found = {name: value for name, value in entry.items() if name not in keys}
    found["in_its_process"] = {name: entry[name] for name in keys if name in entry}
    if entry["status"] == "ok" and entry["samples_us"]:
        samples = np.array(entry["samples_us"])
        if (sdpa := _samples(arms, "sdpa", "eager")) is not None:
            found["ratio_to_sdpa"] = ratio(sdpa, samples, paired=False)
        if entry["mode"].startswith("graph") and (sdpa := _samples(arms, "sdpa", "graph")) is not None:
            found["ratio_to_sdpa_graph"] = ratio(sdpa, samples, paired=False)
    return found


def device_keys(entry: Document, traced: Traced | None, reason: str | None, ceiling: Mapping[str, Any]) -> Document:
    """What a CUDA device adds to an entry of `arms` or `ops`: the device's clock, and the host's per kernel."""
    host = entry.get("host_us")
    keys: Document = {
        "device_us": None, "device_reason": reason, "trace_factor": None,
        "device_gbs": None, "device_share_of_spec": None, "device_share_of_read": None,
        "host_us_per_kernel": host["p50"] / entry["launches"] if host and entry["launches"] else None,
    }  # fmt: skip
    if traced:
        keys["device_us"], keys["trace_factor"] = statistics.summary(traced.samples_us), traced.trace_factor
        reached = bandwidth(entry["bytes"], keys["device_us"]["p50"], ceiling)
        keys |= {f"device_{name}": value for name, value in reached.items()}
    return keys


def add_device_clock(entry: Document, arm: Arm, traces: Mapping[str, Traced], untraced: Mapping[str, str]) -> None:
    """Put into an arm's entry of a key `ops`, which has a ceiling of its own, what its trace tells, or why there is
    none."""
    if traced := traces.get(arm.label):
        entry |= {"kernels": arm.kernels, "launches": arm.launches}
        entry |= device_keys(entry, traced, None, entry["ceiling"])
    else:
        entry["device_reason"] = untraced.get(arm.label, arm.reason)


def op_document(op: floors.OpBytes, fusion: str, samples_us: np.ndarray, ceiling: Mapping[str, Any]) -> Document:
    """One entry of the key `ops` of a layer: an op of the native program, timed alone."""
    clock = statistics.summary(samples_us)
    floor_gbs = ceiling["spec_gbs"] or ceiling["read_gbs"]
    return {
        "backend": "native", "fusion": fusion, "op": op.op, "label": op.label, "shape": op.shape,
        "bytes": op.bytes, "floor_us": floors.microseconds(op.bytes, floor_gbs), "time_us": clock,
        **bandwidth(op.bytes, clock["p50"], ceiling),
    }  # fmt: skip


def arms_by_kernel(arms: Sequence[Arm], traces: Mapping[str, Traced]) -> dict[str, Arm]:
    """By fusion, the traced native arm whose kernels tell what each op takes alone: the graph's, else the one that
    comes last; never one with PDL launches, whose kernels wait inside for the one ahead."""
    chosen: dict[str, Arm] = {}
    for arm in arms:
        if arm.backend != "native" or arm.fusion is None or arm.mode == "graph-pdl" or arm.label not in traces:
            continue
        if arm.fusion not in chosen or chosen[arm.fusion].mode != "graph":
            chosen[arm.fusion] = arm
    return chosen


def traced_ops(
    arms: Sequence[Arm],
    traces: Mapping[str, Traced],
    layer_ops: Callable[[str], Sequence[floors.OpBytes]],
    ceiling: Mapping[str, Any],
) -> list[Document]:
    """The ops of each fusion by the kernels of `arms_by_kernel`, one kernel an op in order."""
    entries = []
    for fusion, arm in arms_by_kernel(arms, traces).items():
        ops, kernel_us = layer_ops(fusion), traces[arm.label].kernel_us
        if kernel_us.shape[1] != len(ops):
            continue  # not one kernel an op: which kernel is whose cannot be told
        for op, column in zip(ops, kernel_us.T, strict=True):
            entry = op_document(op, fusion, column, ceiling)
            entries.append(entry | {"mode": arm.mode, "time_us": None, "device_us": entry["time_us"]})
    return entries


def timeline(kernels: Sequence[Kernel], labels: Sequence[str]) -> list[Document]:
    """When each kernel ran, in microseconds after the first one's start. labels: what each is, in the same order; a
    kernel's name stands where there are not as many."""
    named = labels if len(labels) == len(kernels) else [kernel.name for kernel in kernels]
    start_ns = min(kernel.start_ns for kernel in kernels)
    return [
        {"label": label, "start_us": (k.start_ns - start_ns) / 1000, "end_us": (k.end_ns - start_ns) / 1000}
        for label, k in zip(named, kernels, strict=True)
    ]


def make_ladders(
    arms: Sequence[Arm],
    read_gbs: np.ndarray,
    n_bytes: Callable[[str, str | None], int],
    spec_gbs: float | None,
    chain: ladder.Chain,
    traces: Mapping[str, Traced],
) -> Document:
    """The keys `ladder` and `ladder_notes`: one a backend and fusion whose eager arm was measured.

    n_bytes: what a step of that backend and fusion must move. The device's clock is that of the lowest arm of the
    chain.
    """
    ladders, notes = {}, {}
    for backend, fusion in dict.fromkeys((arm.backend, arm.fusion) for arm in arms):
        measured = {
            arm.mode: arm
            for arm in arms
            if (arm.backend, arm.fusion, arm.status) == (backend, fusion, "ok") and len(arm.kept_us)
        }
        if "eager" not in measured:
            continue
        clocks = {mode: arm.kept_us for mode, arm in measured.items()}
        lowest = [measured[mode] for mode, _ in chain if mode in measured][-1]
        if lowest.label in traces:
            clocks["device"] = traces[lowest.label].samples_us
        # On a CPU kernel and host share a thread: nothing is ever hidden.
        on_cuda = chain is ladder.CUDA_CHAIN
        host_us = {m: float(np.median(a.host_samples_us)) for m, a in measured.items() if on_cuda and a.host_samples_us}
        parts, note = ladder.ladder(clocks, read_gbs, n_bytes(backend, fusion), spec_gbs, chain, host_us)
        name = program_name(backend, fusion)
        ladders[name] = [vars(part) for part in parts]
        if note:
            notes[name] = note
    return {"ladder": ladders, "ladder_notes": notes}


def hidden_us(host_us: float | None, wall_us: float, device_us: float | None) -> float | None:
    """How much of the host's launch time the device's work covers: what is left of it when the time in which the
    device stands idle (wall - device) is taken off. None where one of the clocks is missing."""
    if host_us is None or device_us is None:
        return None
    return max(host_us - max(wall_us - device_us, 0.0), 0.0)
