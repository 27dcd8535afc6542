"""The main job: one decode layer, in every backend and mode there is, and its ladder.

python -m bench.layer --backend=native,sdpa --model=llama-3.1-8b --ctx=4096 --json=layer.json --plot=layer.png
python -m bench.layer --backend=sdpa,examples/attention_plugin.py:Attention --model=tiny
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

import pykernels as pk
from bench.backends import MODES, Backend, Workload, arms_of, by_name, registry
from bench.core import cli, controls, environment, floors, ladder, measure, results
from bench.core import quant_words as words
from bench.core.ceiling import Ceiling
from bench.core.copies import layers_a_sample, weight_copies
from bench.core.device_trace import Traced
from bench.core.document import Document
from bench.core.errors import flag_error
from bench.core.run import Machine, Measurement, close, gate
from bench.core.trace_file import check_traceable, write_trace
from bench.int4.groups import check_group_size
from bench.plugins import plan as plugins
from bench.plugins.loading import KINDS, Journal, load_layer, parse_backends
from pykernels.layer import available_bytes
from pykernels.models import ModelSpec

_PROGRAM = "bench.layer"


@dataclass
class Settings:
    """The checked flags of one run."""

    spec: ModelSpec
    backends: dict[str, type[Backend]]
    plugins: plugins.Plan
    modes: list[str]
    fusions: list[str]
    ctx: int
    batch: int
    dtype: str
    device: torch.device
    l2: str
    warmup: int
    steps: int
    seed: int
    spec_bandwidth: tuple[float | None, str]
    weights: str
    layer: int
    repeats: int
    quant: str
    group_size: int
    symmetric: bool
    int4_format: tuple[int, bool, bool] | None = None
    """Of the weights (LayerWeights.int4_format), set once they are made; None where they are dense."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """--dtype as torch names it."""
        return cli.DTYPES[self.dtype]


def check_rounding(spec: ModelSpec, quant: str, group: int, asymmetric: bool) -> None:
    """Raise UsageError unless the groups divide every row, and where something else than the flags says how weights are
    rounded; quant is none, int4 or folder."""
    check_group_size("--group", cli.group_size("--group", group), [spec] if quant == "int4" else [])
    if quant != "int4":
        allowed = "given with --quant=int4" if quant == "none" else "left out: the weights of --weights have their own"
        if group != 128:
            raise flag_error("--group", group, allowed)
        if asymmetric:
            raise flag_error("--asymmetric", "true", allowed)


def check_memory(settings: Settings, layer_bytes: int, copies: int) -> None:
    """Raise UsageError unless so many copies of a layer fit the memory that is there."""
    spec = settings.spec
    needed = copies * (layer_bytes + spec.layer_kv_bytes(settings.ctx, settings.batch, settings.torch_dtype))
    available = available_bytes(settings.device)
    if needed > available:
        raise flag_error(
            "--ctx", settings.ctx,
            f"small enough for the memory available ({available / 2**30:.1f} GiB): "
            f"weights and cache need {needed / 2**30:.1f} GiB",
        )  # fmt: skip


def make_layers(settings: Settings) -> list[pk.DecodeLayer]:
    """The layer and its copies. Raises ValueError where they do not fit the memory that is there."""
    spec, dtype = settings.spec, settings.torch_dtype
    dense_bytes = spec.layer_weight_elements * dtype.itemsize
    four_bit = settings.quant == "int4"
    # 4-bit weights are made of dense ones, one copy; how many copies they need is known afterwards.
    check_memory(settings, dense_bytes, 1 if four_bit else weight_copies(dense_bytes, settings.l2, settings.device))
    if settings.weights:
        weights = pk.LayerWeights.from_folder(settings.weights, settings.layer, spec, dtype, settings.device)
    else:
        weights = pk.LayerWeights.random(spec, dtype, settings.device, settings.seed)
    if four_bit and not weights.is_int4:
        weights = weights.quantize(settings.group_size, settings.symmetric)
    copies = weight_copies(weights.n_bytes, settings.l2, settings.device)
    check_memory(settings, weights.n_bytes, copies)
    shared = (settings.ctx, settings.batch, dtype, settings.device, settings.seed)
    return [pk.DecodeLayer(spec, weights.clone() if copy else weights, *shared) for copy in range(copies)]


def layer_ops(settings: Settings, fusion: str | None) -> list[floors.OpBytes]:
    """The ops of a step and their bytes; the plain torch layer is held to the unfused sequence."""
    int4 = settings.int4_format or ()
    fusion = fusion or ("block" if int4 else "none")
    return floors.layer_ops(settings.spec, fusion, settings.batch, settings.ctx, settings.torch_dtype, *int4)


def streamed_bytes(settings: Settings, fusion: str | None) -> int:
    """What a step must move."""
    return sum(op.bytes for op in layer_ops(settings, fusion))


def time_ops(layers: list[pk.DecodeLayer], settings: Settings, ceiling: dict[str, float]) -> list[Document]:
    """Every op of the native programs on its own: a clock reading between ops of the native loop. CPU only."""
    entries = []
    for fusion in settings.fusions:
        samples = pk.runtime.timed_ops([layer.program(fusion) for layer in layers], settings.warmup, settings.steps)
        entries += [
            results.op_document(op, fusion, column, ceiling)
            for op, column in zip(layer_ops(settings, fusion), samples.T, strict=True)
        ]
    return entries


def layer_timelines(arms: list[measure.Arm], traces: dict[str, Traced], settings: Settings) -> Document:
    """The key `timelines`: by arm, when each kernel of one traced step ran."""
    found = {}
    for arm in arms:
        if traced := traces.get(arm.label):
            labels = [op.label for op in layer_ops(settings, arm.fusion)] if arm.backend == "native" else []
            found[arm.label] = results.timeline(traced.sample.kernels[: len(traced.kernels)], labels)
    return found


def document_of(
    settings: Settings, layers: list[pk.DecodeLayer], found: Measurement, looked: Document, plugged: list[plugins.Found]
) -> Document:
    """The result document, less its head; `looked` holds the keys that were measured after the rounds."""
    spec, dtype, device = settings.spec, settings.torch_dtype, settings.device
    on_cuda = device.type == "cuda"
    layer_bytes, cache_mb = layers[0].weights.n_bytes, environment.last_level_cache_bytes(device) / 1e6
    rotation = "1 copy" if len(layers) == 1 else f"{len(layers)} copies in rotation"
    repeats = layers_a_sample(settings.repeats, len(layers), device)
    streamed = partial(streamed_bytes, settings)
    entries = [results.arm_document(arm, streamed(arm.fusion), found.bandwidths, found.arms) for arm in found.arms]
    if on_cuda:
        found.add_device_keys(entries)
    ladders = results.make_ladders(
        found.arms, found.ceiling.read_gbs(), streamed, settings.spec_bandwidth[0],
        ladder.CUDA_CHAIN if on_cuda else ladder.CPU_CHAIN, found.traces,
    )  # fmt: skip
    for of_plugin in plugged:
        entries += of_plugin.entries("arms")
        for key in ladders:
            ladders[key] |= of_plugin.of_label(key)
    return {
        "model": results.model_document(spec),
        "weights": "checkpoint" if settings.weights else "random",
        "quant": words.quant_document(settings.int4_format),
        "ctx": settings.ctx, "batch": settings.batch, "dtype": settings.dtype, "device": device.type,
        "l2": settings.l2,
        "l2_words": f"{settings.l2}: {layer_bytes / 1e6:.0f} MB of weights, {rotation}, "
                    f"against a last-level cache of {cache_mb:.0f} MB",
        "weight_copies": len(layers),
        "warmup": settings.warmup, "steps": settings.steps,
        **({"repeats": repeats} if on_cuda or repeats > 1 else {}), **found.throttling,
        "ceiling": found.bandwidths,
        "bytes": {
            "ops": {fusion: [vars(op) for op in layer_ops(settings, fusion)] for fusion in settings.fusions},
            "layer_streamed": {fusion: streamed(fusion) for fusion in settings.fusions},
            "paper": results.paper_bytes(spec, settings.ctx, settings.batch, dtype, layer_bytes),
        },
        **looked,
        "arms": entries,
        "plugins": [of_plugin.describe(settings.plugins.limit_s) for of_plugin in plugged],
        **ladders,
    }  # fmt: skip


def run(settings: Settings) -> tuple[Document, Measurement]:
    """Measure. Ctrl-C after the first round ends it early: the document says so and keeps what was finished.

    Plug-ins come first, while nothing of this process is on the device.
    """
    device = settings.device
    plugged = plugins.measure_all(settings.plugins)
    machine = Machine(device)
    layers = cli.usage(lambda: make_layers(settings))
    if layers[0].weights.is_int4:
        settings.int4_format = cli.usage(layers[0].weights.int4_format)
    repeats = layers_a_sample(settings.repeats, len(layers), device)
    workload = Workload.of(layers, repeats)
    arms = [
        arm
        for backend in settings.backends.values()
        for arm in arms_of(backend, workload, settings.modes, settings.fusions)
    ]
    arms += [arm for of_plugin in plugged for arm in of_plugin.failed]
    found = Measurement(arms, Ceiling(device), settings.spec_bandwidth, machine.monitor)
    gate(arms)
    looked: Document = {"null": [], "spin": [], "ops": [], "timelines": {}}

    def look_closer() -> None:
        looked["null"] = controls.null_op(settings.steps, device)
        looked["spin"] = controls.spin(device=device)
        if device.type == "cuda":
            found.trace(repeats)
            looked["ops"] = results.traced_ops(
                arms, found.traces, lambda fusion: layer_ops(settings, fusion), found.bandwidths
            )
            looked["timelines"] = layer_timelines(arms, found.traces, settings)
        elif "native" in settings.backends:
            looked["ops"] = time_ops(layers, settings, found.bandwidths)

    found.take(settings.warmup, settings.steps, look_closer)
    head = cli.head(
        _PROGRAM, "layer", interrupted=found.interrupted, environment=machine.document(),
        title=f"one decode layer of {settings.spec.name}{words.quant_words(settings.int4_format)}, ctx {settings.ctx}",
    )  # fmt: skip
    return head | document_of(settings, layers, found, looked, plugged), found


def trace_writer(found: Measurement, settings: Settings) -> Callable[[Path], None] | None:
    """What writes --trace; None where no arm was traced."""

    def labels(fusion: str) -> list[str]:
        return [op.label for op in layer_ops(settings, fusion)]

    return (lambda path: write_trace(path, found.arms, found.traces, labels)) if found.traces else None


def print_list() -> None:
    """What --list prints: models, and every backend with what it needs here."""
    device = cli.device("auto")
    cli.print_list(
        (name, backend.description, backend.availability(device), backend.modes(device))
        for name, backend in registry().items()
    )
    print(f"plug-ins: {KINDS} (docs/plugins.md)")


def command(
    backend: cli.BackendFlag = "all",
    mode: cli.ModeFlag = "all",
    model: cli.ModelFlag = "qwen2.5-7b",
    config: cli.ConfigFlag = "",
    weights: Annotated[str, typer.Option("--weights", help="a local Hugging Face folder to take one layer from")] = "",
    layer: Annotated[int, typer.Option("--layer", help="which layer of --weights")] = 0,
    ctx: Annotated[int, typer.Option("--ctx", help="slots of the cache that a step attends to")] = 2048,
    batch: cli.BatchFlag = 1,
    dtype: cli.DtypeFlag = "bf16",
    device: cli.DeviceFlag = "auto",
    fusion: Annotated[
        str, typer.Option("--fusion", help="of native: none, block. Default: both; with 4-bit weights block")
    ] = "",
    quant: cli.QuantFlag = "none",
    group: cli.GroupFlag = 128,
    asymmetric: cli.AsymmetricFlag = False,
    l2: cli.L2Flag = "cold",
    warmup: cli.WarmupFlag = 5,
    steps: cli.StepsFlag = 30,
    repeats: cli.RepeatsFlag = 0,
    threads: cli.ThreadsFlag = 0,
    spec_gbs: cli.SpecFlag = 0.0,
    seed: cli.SeedFlag = 0,
    json: cli.JsonFlag = "",
    csv: cli.CsvFlag = "",
    md: cli.MdFlag = "",
    plot: cli.PlotFlag = "",
    trace: cli.TraceFlag = "",
    plugin_timeout_s: plugins.TimeoutFlag = 300.0,
    plugin_journal: plugins.JournalFlag = "",
    list_: cli.ListFlag = False,
) -> int:
    """One decode layer in every backend and mode, and where its time goes."""
    if list_:
        print_list()
        return 0
    outputs, target = cli.Outputs(json, csv, md, plot, trace), cli.device(device)
    spec = cli.model(model, config, weights)
    quantised = bool(weights) and cli.usage(lambda: pk.quant.quantization_of(weights)) is not None
    if quantised:
        quant = "int4"
    check_rounding(spec, "folder" if quantised else quant, group, asymmetric)
    if layer and not weights:
        raise flag_error("--layer", layer, "given with --weights: random weights are of no layer")
    fusions = cli.layer_fusions(fusion or ("block" if quant == "int4" else "none,block"), quant == "int4")
    modes = cli.choices("--mode", mode, MODES)
    names, asked = parse_backends("--backend", backend, list(registry() if backend == "all" else by_name()))
    backends = {name: by_name()[name] for name in names}
    flags = [
        f"--model={model}", f"--config={config}", f"--weights={weights}", f"--layer={layer}", f"--ctx={ctx}",
        f"--batch={batch}", f"--dtype={dtype}", f"--device={device}", f"--fusion={','.join(fusions)}",
        f"--quant={quant}", f"--group={group}", *(["--asymmetric"] if asymmetric else []), f"--l2={l2}",
        f"--warmup={warmup}", f"--steps={steps}", f"--repeats={repeats}", f"--threads={threads}",
        f"--spec-gbs={spec_gbs}", f"--seed={seed}",
    ]  # fmt: skip
    if plugin_journal:  # this process is a plug-in's own
        (plugin,), asked = asked, []
        backends = {plugin.label: load_layer(plugin, Journal(Path(plugin_journal)), target), **backends}
    settings = Settings(
        spec=spec,
        backends=backends,
        plugins=plugins.Plan(
            _PROGRAM, asked, modes, flags, [name for name in names if name == "sdpa"], plugin_timeout_s
        ),
        modes=modes,
        fusions=fusions,
        ctx=cli.number("--ctx", ctx, 1, spec.max_position),
        batch=batch,
        dtype=dtype,
        device=target,
        spec_bandwidth=cli.spec_bandwidth(spec_gbs, target),
        l2=l2,
        warmup=warmup,
        steps=steps,
        repeats=repeats,
        seed=seed,
        weights=weights,
        layer=layer,
        quant=quant,
        group_size=group,
        symmetric=not asymmetric,
    )
    check_traceable(trace, settings.device)
    cli.set_threads(threads)
    document, found = run(settings)
    status = close(document, outputs, write_trace=trace_writer(found, settings))
    return 2 if trace and not found.traces and status != cli.INTERRUPTED else status


if __name__ == "__main__":
    sys.exit(cli.run(_PROGRAM, command))
