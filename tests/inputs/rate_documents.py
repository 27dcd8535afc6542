"""Documents of bench.rate with latencies of a known distribution."""

import numpy as np

from bench.study import quantiles


def cell(seed: int, hz: float, centre_us: float, slow: float = 0.0, load: str = "none", n: int = 500) -> dict:
    """Lognormal latencies around the centre; a share `slow` of them ten times as long."""
    generator = np.random.default_rng(seed)
    latencies = centre_us * np.exp(0.02 * generator.standard_normal(n))
    latencies[: round(slow * n)] *= 10
    generator.shuffle(latencies)
    energy = {"watts": 200.0, "joules_per_step": 3.6, "joules_per_token": 3.6, "net_joules_per_step": 1.0}
    summary = quantiles.summary(latencies)
    return {
        "hz": hz, "load": load, "met": True, "reason": None, "steps": n + 4, "blocks": [n // 4 + 1] * 4,
        "latency_us": summary, "jitter_us": float(np.std(latencies)), "interval_us": summary, "host_late_us": summary,
        "first_step_us": [2 * centre_us] * 4, "deadline": quantiles.missed(latencies, 1e6 / hz) if hz else None,
        "energy": energy, "gpu": [{"sm_mhz": 1980, "memory_mhz": 3201, "pstate": 0, "temperature_c": 40,
                                   "clock_event_reasons": ["None"]}], "samples_us": latencies.tolist(),
    }  # fmt: skip


def rate_document(cells: list[dict]) -> dict:
    """A document of one arm with those cells."""
    loads = list(dict.fromkeys(one["load"] for one in cells))
    timer = quantiles.summary(np.full(500, 3.0))
    return {
        "schema": "launchtax/1", "kind": "rate", "created": "2026-11-29T22:00:00+00:00", "title": "decode steps",
        "interrupted": False, "command": "python -m bench.rate", "driver": "bench.rate",
        "environment": {"cpu": {"model": "A CPU"}, "gpu": {"name": "NVIDIA H200"}, "torch": {"version": "2.13.0"}},
        "model": {"name": "tiny", "n_layers": 2}, "weights": "random", "quant": None, "ctx": 64, "batch": 1,
        "dtype": "bf16", "device": "cuda", "burst": 1, "hz": list(dict.fromkeys(one["hz"] for one in cells)),
        "loads": loads, "seconds": [5.0], "block_count": 4, "idle_s": 0.5, "positions": {"first": 64, "count": 32},
        "timer": timer,
        "energy": {"counter": "NVML total energy", "reason": None, "resolution_s": 0.1, "idle_w": 130.0,
                   "spin_check": None,
                   "check": {"seconds": 2.0, "counter_joules": 400.0, "power_joules": 396.0, "ratio": 400 / 396}},
        "arms": [{"name": "native/block:graph", "backend": "native", "mode": "graph", "fusion": "block", "status": "ok",
                  "reason": None, "kernels": [], "launches": 9, "max_rel_error": 0.001, "cells": cells}],
    }  # fmt: skip
