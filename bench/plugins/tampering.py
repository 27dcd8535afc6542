"""What a plug-in may not replace in its own process: the clocks, the comparison, and whatever it is measured beside.

A module's function that is another after the clocks than it was before the plug-in's file ran is found here. A plug-in
that puts the old one back in time is not: it runs in the process that times it (docs/plugins.md).
"""

import importlib

_GUARDED = {
    "time": ("perf_counter_ns", "perf_counter", "monotonic", "process_time", "sleep"),
    "json": ("dumps", "dump"),
    "numpy": ("median", "percentile", "array"),
    "torch": ("equal", "stack", "cuda.Event", "cuda.Event.elapsed_time", "cuda.Event.record", "cuda.synchronize"),
    "torch.nn.functional": ("scaled_dot_product_attention", "linear", "rms_norm", "silu"),
    "pykernels.reference": ("compare", "layer_qkv", "layer_attention", "layer_rest", "gqa_decode", "gemv"),
    "pykernels.runtime": ("timed_loop", "cuda_timed_loop", "cuda_host_loop"),
    "pykernels.dispatch": ("timed_loop", "cuda_timed_loop"),
    "bench.core.measure": ("gate", "gate_again", "_checked", "as_check", "alternate", "measure_host", "python_sampler"),
    "bench.core.samplers": ("event_sampler", "held_sampler", "Samplers"),
    "bench.core.statistics": ("summary", "interval"),
    "bench.core.document": ("write_json", "write_atomically"),
}  # fmt: skip


def state() -> dict[str, object]:
    """What each guarded name stands for now."""
    found: dict[str, object] = {}
    for module, names in _GUARDED.items():
        loaded = importlib.import_module(module)
        for name in names:
            thing: object = loaded
            for part in name.split("."):
                thing = getattr(thing, part, None)
            found[f"{module}.{name}"] = thing
    return found


def replaced(before: dict[str, object]) -> str | None:
    """What stands for another thing than `before`, in words; None where nothing does."""
    changed = [name for name, thing in state().items() if thing is not before[name]]
    return f"replaced {', '.join(changed)} in its process" if changed else None
