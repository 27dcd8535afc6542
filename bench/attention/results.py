"""What bench.attention found: an arm's entry in a session, and the entries over sessions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.attention.arms import AttentionArm
from bench.attention.cases import Cell
from bench.core import floors, statistics, unified
from bench.core.device_trace import Traced
from bench.core.document import Document

# Of a call: in steady state, enqueuing alone, from an idle device to its end, and the kernels alone.
CLOCKS = ("wall_us", "host_us", "latency_us", "device_us")

# What an arm has over its sessions, and no entry of one.
OVER_SESSIONS = ("samples_us", "total_us", "ratio_to_sdpa")

Entry = dict[str, Any]


def key(entry: Entry) -> tuple[str, str, str]:
    """Which arm of which cell an entry is of."""
    return entry["shape"], entry["backend"], entry["mode"]


def session_entry(arm: AttentionArm, cell: Cell, n_bytes: int, bandwidths: Document, copies: int) -> Entry:
    """One arm of one cell in one session. `rounds_us` are the samples of the wall clock, to a tenth of a nanosecond: no
    clock here tells less apart, and statistics are of what is kept. `kernels` names what is called."""
    entry: Entry = {
        "backend": arm.backend, "mode": arm.mode, "fusion": None, "op": "gqa_decode", "label": "attention",
        "shape": cell.shape, "heads": cell.heads, "ctx": cell.ctx, "batch": cell.batch,
        "group_size": cell.specs[0].group_size, "layers": cell.layers,
        "status": arm.status, "reason": arm.reason, "max_rel_error": arm.max_rel_error, "bytes": n_bytes,
        "floor_us": {
            f"at_{name}": floors.microseconds(n_bytes, bandwidths[f"{name}_gbs"]) if bandwidths[f"{name}_gbs"] else None
            for name in ("spec", "read")
        },
        "kernels": arm.kernels, "launches": arm.launches, "kernel_details": [], "choices": arm.choices,
        "calls_a_sample": arm.calls, "calls_measured": 0, "copies": copies, "rounds_us": [], "trace_factor": None,
        **dict.fromkeys(CLOCKS), "device_reason": None,
    } | unified.keys_of(arm.counted)  # fmt: skip
    if arm.status == "ok" and len(arm.kept_us):
        rounds_us = np.round(arm.kept_us, 4)
        entry["wall_us"], entry["rounds_us"] = statistics.summary(rounds_us), rounds_us.tolist()
        entry["calls_measured"] = arm.calls * len(arm.kept_us)
        if arm.host_samples_us:
            entry["host_us"] = statistics.summary(np.array(arm.host_samples_us))
        if arm.latency_samples_us:
            entry["latency_us"] = statistics.summary(np.array(arm.latency_samples_us))
    return entry


def traced_keys(traced: Traced) -> Entry:
    """What a trace adds: the device's clock, and the kernels that ran, with their grids: there a split shows."""
    per_step = len(traced.kernels)
    medians_us = np.median(traced.kernel_us, axis=0)
    details = [
        {
            "name": kernel.name, "grid": list(kernel.grid), "block": list(kernel.block), "us": float(us),
            "registers": kernel.registers, "shared_bytes": kernel.shared_bytes,
        }
        for kernel, us in zip(traced.sample.kernels[:per_step], medians_us, strict=True)
    ]  # fmt: skip
    return {
        "device_us": statistics.summary(traced.samples_us), "launches": per_step, "kernel_details": details,
        "trace_factor": traced.trace_factor,
    }  # fmt: skip


def _over(values: Sequence[float]) -> Entry | None:
    """The mean of session values, as p50; its SD (n - 1) where there are two or more."""
    if not values:
        return None
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"p50": float(np.mean(values)), "sd": sd, "n": len(values)}


def _merged(entries: Sequence[Entry]) -> Entry:
    """One arm over its sessions. The worst status is the arm's, with its reason; a session's p50s are its samples."""
    worst = ("wrong", "error", "oom", "unsupported")
    failed = next((entry for status in worst for entry in entries if entry["status"] == status), None)
    first = failed or next((e for e in entries if e["kernel_details"]), entries[0])
    merged = {name: value for name, value in first.items() if name not in ("rounds_us", "trace_factor")}
    if failed:
        return merged | dict.fromkeys(CLOCKS) | {"samples_us": []}
    for clock in CLOCKS:
        merged[clock] = _over([entry[clock]["p50"] for entry in entries if entry[clock]])
    merged["samples_us"] = [entry["wall_us"]["p50"] for entry in entries if entry["wall_us"]]
    merged["total_us"] = {
        model: merged["wall_us"]["p50"] * layers for model, layers in first["layers"].items() if merged["wall_us"]
    }
    return merged


def over_sessions(sessions: Sequence[Sequence[Entry]]) -> list[Entry]:
    """Every arm over the sessions that have it, and its ratio to default SDPA's in the same mode on each clock.

    A ratio is taken within a session; above 1 the arm is the faster. A call with the context manager inside is held
    against SDPA's own call outside, a plug-in against SDPA in its own process (`sdpa_beside`).
    """
    by_key: dict[tuple, list[tuple[int, Entry]]] = {}
    for number, entries in enumerate(sessions):
        for entry in entries:
            by_key.setdefault(key(entry), []).append((number, entry))
    found = []
    for (shape, _, mode), own in by_key.items():
        merged = _merged([entry for _, entry in own])
        base = dict(by_key.get((shape, "sdpa", mode.partition("-")[0]), ()))
        merged["ratio_to_sdpa"] = {
            clock: _over([
                reference[clock]["p50"] / entry[clock]["p50"]
                for number, entry in own
                if (reference := entry.get("sdpa_beside") or base.get(number)) and reference[clock] and entry[clock]
            ])
            for clock in CLOCKS
        } if merged["status"] == "ok" else None  # fmt: skip
        found.append(merged)
    return found
