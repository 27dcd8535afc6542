"""bench.step's command line, and a document of its kind, without a model: a cell lasts ctx milliseconds, and that of
ctx 103 and batch 1 until the file $STUB_HELD is gone."""

import json
import os
import sys
import time


def main(flags: dict[str, str]) -> None:
    model, ctx, batch = flags["--model"], int(flags["--ctx"]), int(flags["--batch"])
    time.sleep(ctx / 1000)
    while (ctx, batch) == (103, 1) and os.path.exists(os.environ.get("STUB_HELD", "")):
        time.sleep(0.02)
    clock = {"p20": 900.0, "p50": 1000.0, "p80": 1100.0, "n": 2}
    arm = {
        "backend": "native", "fusion": "block", "mode": "native", "status": "ok", "reason": None, "wall_us": clock,
        "samples_us": [900.0, 1100.0], "host_us": None, "device_us": None, "launches": 24, "launches_per_layer": 6,
        "paper": {"p50_ms": 1.0, "t_floor_ms": 0.5, "R_floor": 0.5, "bw_peak_gbs": None}, "drift": None,
    }  # fmt: skip
    document = {
        "schema": "launchtax/1", "kind": "step", "title": f"one decode step of {model}, ctx {ctx}",
        "created": "2026-11-29T00:00:00+00:00", "interrupted": False,
        "environment": {"cpu": {"model": None}, "gpu": None, "torch": {"version": "2.13.0"},
                        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES") or None},
        "model": {"name": model}, "ctx": ctx, "batch": batch, "device": "cpu", "dtype": "bf16", "arms": [arm],
        "pid": os.getpid(),
    }  # fmt: skip
    path = flags["--json"]
    with open(f"{path}.part", "w") as file:
        json.dump(document, file)
    os.replace(f"{path}.part", path)


if __name__ == "__main__":
    main(dict(flag.split("=", 1) for flag in sys.argv[1:] if "=" in flag))
