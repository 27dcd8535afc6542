"""The clocks of bench.int4, by group, and what two arms of a group say about each other."""

import math
from collections.abc import Sequence

import numpy as np

from bench.core import device_trace, floors, gpu_state, measure, results, statistics
from bench.core.ceiling import Ceiling
from bench.core.document import Document
from bench.core.measure import Arm
from bench.core.run import take_rounds
from bench.int4 import plain_reads
from bench.int4.groups import Group
from bench.int4.parts import Parts, split
from bench.int4.settings import Settings


def measure_group(
    group: Group, settings: Settings, ceiling: Ceiling, monitor: gpu_state.Monitor | None, null_us: dict[str, float]
) -> list[Document]:
    """Gate and measure. Returns the entries of the key `ops`. Raises KeyboardInterrupt where it was interrupted."""
    reads = [arm for read in group.reads for arm in read.arms]
    measure.gate([*group.arms, *reads])
    rule = settings.stop_rule()
    throttling = take_rounds([*group.arms, *reads], ceiling, settings.warmup, settings.steps, monitor, rule)
    if settings.target.type == "cuda":
        measure.measure_host(group.arms, settings.warmup, max(settings.steps, 100))
    measure.gate_again(group.arms)
    bandwidths: Document = ceiling.bandwidths(settings.spec_bandwidth[0])
    entries = []
    for arm in group.arms:
        counted = group.counted[arm.label]
        n_bytes = counted.bytes
        entry: Document = {
            "backend": arm.backend, "mode": arm.mode, "fusion": None, **group.what, "bytes": n_bytes,
            "dtype": group.dtypes.get(arm.backend, settings.dtype_name), "status": arm.status, "reason": arm.reason,
            "max_rel_error": arm.max_rel_error, "layout_error": group.layout_errors.get(arm.backend),
            "kernels": arm.kernels, "launches": arm.launches, "time_us": None, "host_us": None, "gbs": None,
            "share_of_spec": None, "share_of_read": None,
            "floor_us": floors.microseconds(n_bytes, settings.spec_bandwidth[0] or bandwidths["read_gbs"]),
            "repeats": counted.repeats, "copies": counted.copies, "samples_us": arm.samples_us, "ceiling": bandwidths,
            "null_us": null_us.get({"graph-pdl": "graph"}.get(arm.mode, arm.mode), 0.0) * group.launches,
            **throttling,
        }  # fmt: skip
        if arm.status == "ok":
            entry["time_us"] = statistics.summary(arm.kept_us)
            entry |= results.bandwidth(n_bytes, entry["time_us"]["p50"], bandwidths)
            if arm.host_samples_us and settings.target.type == "cuda":
                entry["host_us"] = statistics.summary(np.array(arm.host_samples_us))
        if settings.target.type == "cuda":
            entry |= results.device_keys(entry, None, arm.reason, bandwidths)
        entries.append(entry)
    compare(entries, group.arms, settings)
    plain_reads.compare(entries, group.reads)
    return entries


def compare(entries: list[Document], arms: Sequence[Arm], settings: Settings) -> None:
    """Put into the entries of a group what needs two of them: the ratio to the dense kernel of the same mode, what its
    bytes alone would give, and the parts."""
    dense = {entry["mode"]: (entry, arm) for entry, arm in zip(entries, arms, strict=True)
             if (entry["backend"], entry["status"]) == (settings.dtype_name, "ok")}  # fmt: skip
    for entry, arm in zip(entries, arms, strict=True):
        entry |= {"ratio_to_dense": None, "ideal_ratio": None, "share_of_ideal": None}
        if entry["status"] == "ok" and entry["mode"] in dense:
            base, base_arm = dense[entry["mode"]]
            entry["ratio_to_dense"] = results.ratio(base_arm.kept_us, arm.kept_us)
            entry["ideal_ratio"] = base["bytes"] / entry["bytes"]
            entry["share_of_ideal"] = entry["ratio_to_dense"]["p50"] / entry["ideal_ratio"]
    say_what_binds(entries, settings.dtype_name)


def say_what_binds(entries: list[Document], dense_name: str) -> None:
    """The keys `parts_us` and `binds` of a group's entries, by the clocks that they have by now."""
    dense: dict[str, Parts] = {}
    is_dense = lambda entry: entry["backend"] in (dense_name, f"torch-{dense_name}")  # noqa: E731
    for entry in sorted(entries, key=lambda entry: entry["backend"] != dense_name):
        entry |= {"parts_us": None, "binds": None}
        if entry["status"] != "ok":
            continue
        p50 = lambda clock, entry=entry: entry[clock]["p50"] if entry.get(clock) else None  # noqa: E731
        base = None if is_dense(entry) else dense.get(entry["mode"])
        parts = split(
            entry["time_us"]["p50"], entry["bytes"], entry["ceiling"]["read_gbs"], entry["null_us"], p50("host_us"),
            p50("device_us"), base,
        )  # fmt: skip
        if entry["backend"] == dense_name:
            dense[entry["mode"]] = parts
        entry |= {"parts_us": vars(parts), "binds": parts.binds}


def trace_group(group: Group, entries: list[Document], settings: Settings) -> None:
    """Put the device's clock into a group's entries. The group is made anew, after all were measured: once CUPTI has
    traced, it stays in the process."""
    measure.gate(group.arms)
    for arm, entry in zip(group.arms, entries, strict=True):
        arm.status, arm.samples_us = entry["status"], entry["samples_us"]
    # Dense and 4-bit samples are of different lengths: each arm is traced by its own, once all of its copies have run.
    for arm, entry in zip(group.arms, entries, strict=True):
        counted = group.counted[arm.label]
        warmup = math.ceil(counted.copies / counted.repeats)
        traces, untraced = device_trace.trace_arms([arm], counted.repeats, warmup)
        results.add_device_clock(entry, arm, traces, untraced)
        if arm.label in traces:
            entry["null_us"] *= arm.launches / group.launches  # a library may launch more than our own arms do
    say_what_binds(entries, settings.dtype_name)
