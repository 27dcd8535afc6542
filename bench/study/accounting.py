"""What a step is held against: its bytes, the study's floor and ratios, and what a token costs."""

from collections.abc import Sequence

import numpy as np
import torch

from bench.core import floors
from pykernels.models import ModelSpec

Cell = dict[str, object]


def floor_ms(weight_bytes: float, kv_bytes: float, peak_gbs: float) -> float:
    """The study's t_floor = (W + K) / B_peak (its section 3.4), in milliseconds."""
    return floors.microseconds(weight_bytes + kv_bytes, peak_gbs) / 1000


def floor_ratio(floor: float, observed: float) -> float:
    """The study's R_floor: floor over observed (its text also says 'observed over floor'; its numbers are this)."""
    return floor / observed


def bandwidth_utilisation(weight_bytes: float, kv_bytes: float, step_ms: float, peak_gbs: float) -> float:
    """The study's bw_util (its section 8): the time of the streamed bytes at peak over the step's time.

    Of an unprofiled step it is R_floor; of a profiled one it is smaller by :func:`profiler_inflation`.
    """
    return floor_ms(weight_bytes, kv_bytes, peak_gbs) / step_ms


def profiler_inflation(profiled_ms: float, unprofiled_ms: float) -> float:
    """How many times longer a step takes while it is profiled."""
    return profiled_ms / unprofiled_ms


def cpu_cuda_ratio(cpu_us: float, cuda_us: float) -> float:
    """The study's cpu/cuda: time on the host, launching and synchronising, over kernel time, of one profiled step."""
    return cpu_us / cuda_us


def paper_cell(
    spec: ModelSpec,
    device_name: str,
    ctx: int,
    batch: int,
    dtype: torch.dtype,
    step_times_us: Sequence[float],
    kv_lens: Sequence[int],
    peak_gbs: float | None,
    source: str,
    layer_bytes: int | None = None,
) -> Cell:
    """The keys of the study's cell JSON (its Appendix A), of the steps whose times and kv_len are given.

    layer_bytes: what the weights of a layer take where they are not of `dtype`. kv_bytes_avg is over the measured
    steps, all sequences of the batch together; t_floor_ms and R_floor are None where the peak bandwidth is unknown.
    """
    step_times_ms = [time / 1000 for time in step_times_us]
    p50_ms = float(np.median(step_times_ms))
    dense = spec.layer_weight_elements * dtype.itemsize
    weight_bytes = spec.weight_bytes(dtype) + spec.n_layers * ((layer_bytes or dense) - dense)
    per_token = spec.kv_bytes(1, 1, dtype)
    average_ctx = float(np.mean(kv_lens))
    kv_bytes = per_token * average_ctx * batch
    floor = floor_ms(weight_bytes, kv_bytes, peak_gbs) if peak_gbs else None
    return {
        "arch": spec.name, "gpu": device_name, "ctx": ctx, "p50_ms": p50_ms, "step_times_ms": step_times_ms,
        "weight_bytes": weight_bytes, "bytes_per_token_kv": per_token, "avg_ctx_during_measure": average_ctx,
        "kv_bytes_avg": kv_bytes, "bw_peak_gbs": peak_gbs, "t_floor_ms": floor,
        "R_floor": floor_ratio(floor, p50_ms) if floor else None, "n_layers": spec.n_layers, "source": source,
    }  # fmt: skip


def usd_per_million_tokens(usd_per_hour: float, step_ms: float, batch: int = 1) -> float:
    """What a million decoded tokens cost on a machine that does nothing else: no idle time, network or storage."""
    return usd_per_hour * step_ms / 3600 * 1000 / batch
