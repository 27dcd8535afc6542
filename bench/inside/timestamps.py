"""The in-kernel timestamps of a chain of layers (pykernels.timestamps), summed up: where the time in a kernel goes.

A recording holds replays, a replay the ops of a layer several times over. Records lie launch by launch, since a warp
takes its record when the kernel before has ended; within a launch in any order. Only whole replays count.

Times are of an SM: it starts a kernel when the first of its recorded warps does, and passes every other point when the
last of them does. So the intervals of a kernel are not negative, and add up to what it takes on that SM.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.core import statistics
from bench.core.document import Document
from pykernels.timestamps import MISSING, POINTS

LEAST_SPAN_US = 100.0
"""The device's clock may tick once a microsecond: a shorter recording would not tell the SM's to a per cent."""

_NEVER = -1


@dataclass
class Passed:
    """When every SM passed the points of every launch of whole replays."""

    ticks: np.ndarray
    """int64 [point, launch, SM]: since the SM's first record; -1 where the SM has no block of the launch, or the kernel
    no such point."""
    blocks: list[int]
    """Of each launch."""
    replays: int
    left_out: int
    """Replays that are not whole."""


def _whole_launches(records: np.ndarray, kernels: Sequence[str], ops: Sequence[str]) -> list[int]:
    """Where the records of each launch end, of those that have them all: both warps of every block, or its only one.

    Raises ValueError where the launches are not those of `ops`, over and over.
    """
    two_warps = set(records["kernel"][records["warp"] > 0].tolist())
    ends: list[int] = []
    begin = 0
    while begin < len(records):
        first, op = records[begin], ops[len(ends) % len(ops)]
        if kernels[first["kernel"]] != op:
            raise ValueError(
                f"launch {len(ends)} that was recorded is of {kernels[first['kernel']]}, and the layer's is of {op}"
            )
        count = int(first["blocks"]) * (2 if int(first["kernel"]) in two_warps else 1)
        of_launch = records[begin : begin + count]
        warps = np.stack([of_launch["kernel"], of_launch["blocks"], of_launch["block"], of_launch["warp"] > 0], axis=1)
        if (warps[:, :2] != warps[0, :2]).any() or len(np.unique(warps, axis=0)) != len(of_launch):
            raise ValueError(f"launch {len(ends)} that was recorded, of {op}, has not the records of its blocks")
        if len(of_launch) == count:
            ends.append(begin + count)
        begin += count
    return ends


def passed(records: np.ndarray, kernels: Sequence[str], ops: Sequence[str], layers: int) -> Passed:
    """Sort the records by point, launch and SM. `ops`: of a layer; `layers`: of a replay.

    Raises ValueError where the launches are not those of such layers, or no replay is whole.
    """
    ends, length = _whole_launches(records, kernels, ops), len(ops) * layers
    begun = -(-(len(ends) + (len(records) > (ends[-1] if ends else 0))) // length)
    replays = len(ends) // length
    if not replays:
        raise ValueError(f"no replay of {layers} x {len(ops)} kernels was recorded whole, of {begun} begun")
    ends = ends[: replays * length]
    records = records[: ends[-1]]
    launch = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    sms, sm = np.unique(records["sm"], return_inverse=True)
    never = np.iinfo(np.int64).max
    start, first = records["start_ticks"].astype(np.int64), np.full(len(sms), never)
    np.minimum.at(first, sm, start)
    start -= first[sm]
    ticks = np.full((len(POINTS), len(ends), len(sms)), _NEVER)
    starts = np.full(ticks.shape[1:], never)
    np.minimum.at(starts, (launch, sm), start)
    ticks[0] = np.where(starts == never, _NEVER, starts)
    for point in range(1, len(POINTS)):
        since = records["ticks"][:, point - 1]
        there = since != MISSING
        np.maximum.at(ticks[point], (launch[there], sm[there]), start[there] + since[there])
    return Passed(ticks, [int(records["blocks"][end - 1]) for end in ends], replays, begun - replays)


def sm_mhz(records: np.ndarray) -> np.ndarray:
    """The clock of every SM, ticks a microsecond: its ticks against the device's nanoseconds, by least squares over its
    records. Raises ValueError where these span less than LEAST_SPAN_US on every SM."""
    rates = []
    for sm in np.unique(records["sm"]):
        of_sm = records[records["sm"] == sm]
        ns = (of_sm["end_ns"] - of_sm["end_ns"].min()).astype(np.float64)
        end_ticks = of_sm["start_ticks"] + of_sm["ticks"][:, -1]
        ticks = (end_ticks - end_ticks.min()).astype(np.float64)
        if ns.max() >= 1000 * LEAST_SPAN_US:
            rates.append(1000 * np.polyfit(ns, ticks, 1)[0])
    if not rates:
        raise ValueError(f"the recording spans less than {LEAST_SPAN_US:g} us: the SM's clock cannot be told from it")
    return np.array(rates)


def _summary(us: np.ndarray) -> Document | None:
    return {"mean": float(us.mean()), **statistics.summary(us)} if len(us) else None


def inside(records: np.ndarray, kernels: Sequence[str], layer: Sequence[tuple[str, str]], layers: int) -> Document:
    """Where the time of a layer goes. `layer`: its ops as (op, label); `layers`: of a replay.

    Keys: `kernels`, an entry an op in order: `sms` (with a block of it, the mean), `gap_us` (from the end of the SM's
    kernel before in the same replay to this one's start: negative where they overlap), `points` (by point, from the
    one that was passed before), `inside_us` (start to end), `adds_us` (end to end: gap and inside; the mean over all
    SMs, of which those without a block count 0); `accounted_us`, the sum of `adds_us`. Other times are {mean, p20, p50,
    p80, n} over SMs and launches.

    Raises ValueError as passed() and sm_mhz() do.
    """
    found = passed(records, kernels, [op for op, _ in layer], layers)
    rates = sm_mhz(records)
    n_ops, n_sms = len(layer), found.ticks.shape[2]
    # [point, replay, kernel of the replay, SM], microseconds
    ticks = found.ticks.reshape(len(POINTS), found.replays, layers * n_ops, n_sms)
    us = np.where(ticks == _NEVER, np.nan, ticks / np.median(rates))
    gap, adds = np.full(us.shape[1:], np.nan), np.zeros(us.shape[1:])
    before = np.full((found.replays, n_sms), np.nan)
    for index in range(layers * n_ops):
        start, end = us[0, :, index], us[-1, :, index]
        gap[:, index] = start - before
        adds[:, index] = np.nan_to_num(end - np.where(np.isnan(before), start, before))
        before = np.where(np.isnan(end), before, end)

    def samples(values: np.ndarray) -> np.ndarray:
        return values[~np.isnan(values)]

    entries = []
    for index, (op, label) in enumerate(layer):
        launches = slice(index, None, n_ops)
        points, last = {}, us[0, :, launches]
        for point, passed_us in zip(POINTS[1:], us[1:, :, launches], strict=True):
            points[point] = _summary(samples(passed_us - last))
            last = np.where(np.isnan(passed_us), last, passed_us)
        entries.append({
            "op": op, "label": label,
            "blocks": found.blocks[index],
            "sms": float((~np.isnan(us[0, :, launches])).sum(axis=-1).mean()),
            "gap_us": _summary(samples(gap[:, launches])),
            "points": {f"{point}_us": value for point, value in points.items()},
            "inside_us": _summary(samples(us[-1, :, launches] - us[0, :, launches])),
            "adds_us": float(adds[:, launches].mean()),
        })  # fmt: skip
    return {
        "replays": found.replays, "replays_left_out": found.left_out, "sms": n_sms,
        "sm_mhz": {"low": float(rates.min()), "median": float(np.median(rates)), "high": float(rates.max())},
        "kernels": entries,
        "accounted_us": sum(entry["adds_us"] for entry in entries),
    }  # fmt: skip
