"""A whole decode step: embedding, every layer, final norm, lm_head and argmax, by the study's protocol.

python -m bench.step --backend=native,transformers --model=tiny --ctx=2048 --json=step.json

Each step decodes the next token: kv_len grows by one a step, as in the study (5 warm-up steps, 30 measured ones, the
median). The cache before ctx holds random K and V.
"""

import resource
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console

import pykernels as pk
from bench.backends import MODES
from bench.core import cli, environment, ladder, measure, statistics, tables
from bench.core.ceiling import Ceiling
from bench.core.document import SCHEMA, Document
from bench.core.errors import flag_error
from bench.core.measure import Arm
from bench.core.progress import progress
from bench.layer import bandwidth
from bench.study import accounting, drift, step_arms
from pykernels.layer import available_bytes
from pykernels.models import ModelSpec

_PROGRAM = "bench.step"


@dataclass
class Settings:
    """The checked flags of one run. `spec` has --layers layers, `full_layers` is how many the model has."""

    spec: ModelSpec
    full_layers: int
    groups: list[tuple[str, list[str], list[str]]]
    """(backend, modes, fusions), in the order of the tables."""
    ctx: int
    batch: int
    dtype: str
    device: torch.device
    warmup: int
    steps: int
    seed: int
    spec_bandwidth: tuple[float | None, str]
    weights: str
    shared_weights: bool
    memory_limit_gb: float

    @property
    def backends(self) -> list[str]:
        """The backends wanted, once each."""
        return list(dict.fromkeys(name for name, _, _ in self.groups))

    @property
    def fusions(self) -> list[str]:
        """The fusions of native that are wanted, once each."""
        return list(dict.fromkeys(fusion for name, _, fusions in self.groups if name == "native" for fusion in fusions))

    @property
    def torch_dtype(self) -> torch.dtype:
        """--dtype as torch names it."""
        return cli.DTYPES[self.dtype]

    @property
    def max_len(self) -> int:
        """Slots of the cache: the context, and one a step."""
        return self.ctx + max(self.warmup, 1) + self.steps

    def kv_lens(self, count: int) -> list[int]:
        """The slots that each of the first `count` timed steps attends to."""
        first = self.ctx + max(self.warmup, 1) + 1
        return list(range(first, first + count))

    def bytes_asked(self) -> dict[str, int]:
        """What the weights and the cache take; all arms share them."""
        spec, dtype = self.spec, self.torch_dtype
        weights = spec.weight_bytes(dtype)
        if self.shared_weights:
            weights -= (spec.n_layers - 1) * spec.layer_weight_elements * dtype.itemsize
        cache = spec.kv_bytes(self.max_len, self.batch, dtype)
        return {"weight_bytes": weights, "kv_bytes": cache, "asked_bytes": weights + cache}


def peak_bytes(device: torch.device) -> int:
    """The most memory this process has held: of the device's allocator, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_model(settings: Settings) -> pk.DecodeModel:
    """Weights and caches. Raises MemoryError where they do not fit what is there (or --memory-limit-gb)."""
    spec, dtype, device = settings.spec, settings.torch_dtype, settings.device
    asked, available = settings.bytes_asked()["asked_bytes"], available_bytes(device)
    if settings.memory_limit_gb:
        available = min(available, int(settings.memory_limit_gb * 1e9))
    if asked > available:
        raise MemoryError(f"weights and cache ask for {asked / 1e9:.2f} GB, {available / 1e9:.2f} GB are available")
    if settings.weights:
        weights = cli.usage(lambda: pk.ModelWeights.from_folder(settings.weights, spec, dtype, device))
    else:
        weights = pk.ModelWeights.random(spec, dtype, device, settings.seed, settings.shared_weights)
    return cli.usage(
        lambda: pk.DecodeModel(spec, weights, settings.max_len, settings.batch, dtype, device, settings.seed)
    )


def out_of_memory_arms(settings: Settings, error: BaseException) -> list[Arm]:
    """Every wanted arm, none of which had room."""
    arms = []
    for name, modes, fusions in settings.groups:
        backend = step_arms.backends()[name]
        for fusion in backend.fusions(fusions):
            for mode in modes:
                if reason := backend.reason(mode, settings.device):
                    arms.append(measure.unsupported(name, mode, reason, fusion))
                else:
                    arms.append(Arm(name, mode, fusion))
                    arms[-1].fail(error)
    return arms


def step_bytes(settings: Settings, fusion: str | None) -> int:
    """What a step must move, at the average kv_len of the timed steps; plain torch is held to the unfused sequence."""
    kv_len = round(float(np.mean(settings.kv_lens(settings.steps))))
    ops = accounting.step_ops(settings.spec, fusion or "none", settings.batch, kv_len, settings.torch_dtype)
    return sum(op.bytes for op in ops)


def arm_document(arm: Arm, settings: Settings, ceiling: Document, device_name: str) -> Document:
    """One entry of the key `arms`; `paper` holds the study's own keys."""
    samples = np.array(arm.samples_us)
    n_bytes = step_bytes(settings, arm.fusion)
    entry = {
        "backend": arm.backend, "mode": arm.mode, "fusion": arm.fusion, "status": arm.status, "reason": arm.reason,
        "kernels": arm.kernels, "launches": arm.launches, "max_rel_error": arm.max_rel_error,
        "wall_us": None, "host_us": None, "device_us": None, "samples_us": arm.samples_us, "bytes": n_bytes,
        "gbs": None, "share_of_spec": None, "share_of_read": None, "paper": None, "drift": None,
        "launches_per_layer": None,
    }  # fmt: skip
    if arm.status == "ok" and len(samples):
        entry["wall_us"] = statistics.summary(samples)
        entry |= bandwidth(n_bytes, entry["wall_us"]["p50"], ceiling)
        if arm.host_samples_us:
            entry["host_us"] = statistics.summary(np.array(arm.host_samples_us))
        entry["paper"] = accounting.paper_cell(
            settings.spec, device_name, settings.ctx, settings.batch, settings.torch_dtype, arm.samples_us,
            settings.kv_lens(len(samples)), ceiling["spec_gbs"], f"launchtax {pk.__version__} {_PROGRAM}",
        )  # fmt: skip
        entry["drift"] = vars(drift.test(samples))
    return entry


def count_launches_per_layer(settings: Settings) -> dict[str, int]:
    """By arm of `native` and by torch backend: what one more layer adds to a step, counted on models of one and two
    layers of the same shape (the tables are cut to a few rows: no layer sees them)."""
    counts: dict[str, int] = {}
    models = []
    for n_layers in (1, 2):
        spec = replace(settings.spec, n_layers=n_layers, vocab=8)
        weights = pk.ModelWeights.random(spec, settings.torch_dtype, settings.device, shared_layers=True)
        models.append(pk.DecodeModel(spec, weights, 2, settings.batch, settings.torch_dtype, settings.device))
    for name in settings.backends:
        backend = step_arms.backends()[name]
        if backend.reason("eager", settings.device):
            continue
        for fusion in backend.fusions(settings.fusions):
            with torch.inference_mode(), backend.surroundings():
                one, two = (backend.driver(model, "eager", fusion).launches for model in models)
            counts[f"{name}/{fusion}" if fusion else name] = two - one
    return counts


def anatomy(model: pk.DecodeModel, settings: Settings, ceiling: Document) -> list[Document]:
    """The key `ops`: where a native step goes, summed over the layers, by a clock reading between ops."""
    entries = []
    for fusion in settings.fusions:
        model.set_position(settings.ctx)
        samples = pk.runtime.timed_ops([model.program(fusion)], max(settings.warmup, 1), settings.steps)
        kv_len = round(float(np.mean(settings.kv_lens(settings.steps))))
        ops = accounting.step_ops(settings.spec, fusion, settings.batch, kv_len, settings.torch_dtype)
        for label in dict.fromkeys(op.label for op in ops):
            columns = [i for i, op in enumerate(ops) if op.label == label]
            op, count = ops[columns[0]], len(columns)
            clock = statistics.summary(samples[:, columns].sum(axis=1))
            floor_gbs = ceiling["spec_gbs"] or ceiling["read_gbs"]
            n_bytes = op.bytes * count
            entries.append({
                "backend": "native", "fusion": fusion, "op": op.op, "count": count,
                "label": f"{label} x{count}" if count > 1 else label, "shape": op.shape, "bytes": n_bytes,
                "floor_us": accounting.floor_ms(n_bytes, 0, floor_gbs) * 1000, "time_us": clock,
                **bandwidth(n_bytes, clock["p50"], ceiling),
            })  # fmt: skip
    return entries


def make_ladders(arms: list[Arm], ceiling: Ceiling, settings: Settings) -> Document:
    """The keys `ladder` and `ladder_notes`: one a backend and fusion whose eager arm was measured."""
    ladders, notes = {}, {}
    for backend, fusion in dict.fromkeys((arm.backend, arm.fusion) for arm in arms):
        clocks = {
            arm.mode: np.array(arm.samples_us)
            for arm in arms
            if (arm.backend, arm.fusion, arm.status) == (backend, fusion, "ok") and arm.samples_us
        }
        if "eager" in clocks:
            name = f"{backend}/{fusion}" if fusion else backend
            parts, note = ladder.ladder(
                clocks, ceiling.read_gbs(), step_bytes(settings, fusion), settings.spec_bandwidth[0]
            )
            ladders[name] = [vars(part) for part in parts]
            if note:
                notes[name] = note
    return {"ladder": ladders, "ladder_notes": notes}


def title(settings: Settings) -> str:
    """What is measured, with what is not the whole model said aloud."""
    spec = settings.spec
    part = "" if spec.n_layers == settings.full_layers else f", {spec.n_layers} of its {settings.full_layers} layers"
    shared = ", all layers of one set of weights" if settings.shared_weights else ""
    return f"one decode step of {spec.name}{part}{shared}, ctx {settings.ctx}"


def run(settings: Settings) -> Document:
    """Measure. Ctrl-C after the first round ends it early: the document says so and keeps what was finished."""
    spec, dtype = settings.spec, settings.torch_dtype
    machine = environment.collect()
    spec_gbs, source = settings.spec_bandwidth
    device_name = machine["gpu"]["name"] if settings.device.type == "cuda" else machine["cpu"]["model"]
    ceiling, model, finished = None, None, True
    try:
        model = make_model(settings)
        arms = [
            arm
            for name, modes, fusions in settings.groups
            for arm in step_arms.arms_of(step_arms.backends()[name], model, modes, fusions, settings.ctx)
        ]
        ceiling = Ceiling()
    except (MemoryError, torch.OutOfMemoryError) as error:
        arms = out_of_memory_arms(settings, error)
    bandwidths: Document = {"spec_gbs": spec_gbs, "spec_source": source, "read_gbs": None, "copy_gbs": None}
    ops: list[Document] = []
    per_layer: dict[str, int] = {}
    ladders: Document = {"ladder": {}, "ladder_notes": {}}
    if ceiling is not None:
        runnable = [arm for arm in arms if arm.status == "ok"]
        with progress("checking", len(runnable)) as advance:
            measure.gate(runnable, lambda arm: advance())
        total = settings.steps * (len([arm for arm in arms if arm.status == "ok"]) + 2)
        with progress("measuring", total) as advance:
            finished = measure.alternate([*ceiling.arms, *arms], settings.warmup, settings.steps, advance)
        if not ceiling.read.samples_us:
            raise KeyboardInterrupt
        bandwidths = ceiling.document(spec_gbs, source)
        ladders = make_ladders(arms, ceiling, settings)
        if finished:
            try:
                measure.measure_host(arms, settings.warmup, settings.steps)
                per_layer = count_launches_per_layer(settings)
                if "native" in settings.backends and settings.device.type == "cpu":
                    ops = anatomy(model, settings, bandwidths)
            except KeyboardInterrupt:
                finished = False
    asked, cache = settings.bytes_asked(), environment.last_level_cache_bytes()
    entries = [arm_document(arm, settings, bandwidths, device_name) for arm in arms]
    for entry in entries:
        name = f"{entry['backend']}/{entry['fusion']}" if entry["fusion"] else entry["backend"]
        entry["launches_per_layer"] = per_layer.get(name)
    return {
        "schema": SCHEMA,
        "kind": "step",
        "title": title(settings),
        "command": cli.command_line(_PROGRAM),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "interrupted": not finished,
        "environment": machine,
        "model": {**vars(spec), "rope_scaling": vars(spec.rope_scaling) if spec.rope_scaling else None},
        "full_layers": settings.full_layers,
        "shared_weights": settings.shared_weights,
        "weights": "checkpoint" if settings.weights else "random",
        "cache": "random K and V of unit scale before ctx; nothing was prefilled",
        "ctx": settings.ctx, "batch": settings.batch, "dtype": settings.dtype, "device": settings.device.type,
        "l2": "cold" if asked["weight_bytes"] >= 2 * cache else "warm",
        "l2_words": f"{asked['weight_bytes'] / 1e9:.3g} GB of weights, last-level cache {cache / 1e6:.0f} MB",
        "warmup": settings.warmup, "steps": settings.steps,
        "kv_len": {"first": settings.kv_lens(1)[0], "last": settings.kv_lens(settings.steps)[-1]},
        "memory": {**asked, "peak_bytes": peak_bytes(settings.device)},
        "ceiling": bandwidths,
        "bytes": {
            "step_streamed": {fusion: step_bytes(settings, fusion) for fusion in settings.fusions},
            "paper": {
                "weight_bytes": spec.weight_bytes(dtype),
                "kv_bytes": spec.kv_bytes(settings.ctx, settings.batch, dtype),
                "bytes_per_token_kv": spec.kv_bytes(1, 1, dtype),
            },
        },
        "ops": ops,
        "arms": entries,
        **ladders,
    }  # fmt: skip


def print_list() -> None:
    """What --list prints: models, and every backend with what it needs here."""
    device = cli.device("auto")
    print("models:  ", ", ".join(pk.models.names()), "(or --config=PATH)")
    print("fusions: ", ", ".join(cli.FUSIONS))
    print("backends:")
    for name, backend in step_arms.backends().items():
        modes = [mode for mode in MODES if not backend.reason(mode, device)]
        print(f"  {name:<15} {backend.description}")
        print(
            f"  {'':<15} "
            + (f"modes {', '.join(modes)}" if modes else f"unsupported: {backend.reason('eager', device)}")
        )


def command(
    backend: cli.BackendFlag = "native,sdpa,transformers",
    mode: cli.ModeFlag = "all",
    model: Annotated[str, typer.Option("--model", help=", ".join(pk.models.names()))] = "qwen2.5-7b",
    config: cli.ConfigFlag = "",
    weights: Annotated[str, typer.Option("--weights", help="a local Hugging Face folder")] = "",
    layers: Annotated[int, typer.Option("--layers", help="measure this many of the model's layers; 0: all")] = 0,
    shared_weights: Annotated[
        bool, typer.Option("--shared-weights", help="give all layers one set of random weights")
    ] = False,
    ctx: Annotated[int, typer.Option("--ctx", help="slots of the cache that are filled before the first step")] = 2048,
    batch: cli.BatchFlag = 1,
    dtype: cli.DtypeFlag = "bf16",
    device: cli.DeviceFlag = "auto",
    fusion: Annotated[str, typer.Option("--fusion", help="of native: none, block")] = "none,block",
    arm: Annotated[
        str, typer.Option("--arm", help="exactly these, comma-separated backend[/fusion]:mode, instead of the above")
    ] = "",
    warmup: cli.WarmupFlag = 5,
    steps: cli.StepsFlag = 30,
    threads: cli.ThreadsFlag = 0,
    spec_gbs: cli.SpecFlag = 0.0,
    memory_limit_gb: Annotated[
        float, typer.Option("--memory-limit-gb", help="report oom where weights and cache take more; 0: what is there")
    ] = 0.0,
    seed: cli.SeedFlag = 0,
    json: cli.JsonFlag = "",
    csv: cli.CsvFlag = "",
    md: cli.MdFlag = "",
    plot: cli.PlotFlag = "",
    list_: Annotated[bool, typer.Option("--list", help="name what this machine can run, and why not the rest")] = False,
) -> int:
    """A whole decode step in every backend and mode, by the study's protocol."""
    if list_:
        print_list()
        return 0
    outputs = cli.Outputs(json, csv, md, plot)
    if weights and not config:
        config = weights  # the folder's own config describes its weights
    full = cli.model(model, config)
    if weights and shared_weights:
        raise flag_error("--shared-weights", "true", "left out with --weights, which has every layer's own")
    if not 0 <= memory_limit_gb < float("inf"):
        raise flag_error("--memory-limit-gb", memory_limit_gb, "a positive number, or 0 for what is there")
    if arm:
        parsed = [step_arms.parse_arm("--arm", text) for text in arm.split(",")]
        groups = [(name, [wanted], [cut] if cut else []) for name, cut, wanted in parsed]
    else:
        modes, fusions = cli.choices("--mode", mode, MODES), cli.choices("--fusion", fusion, cli.FUSIONS)
        groups = [(name, modes, fusions) for name in cli.choices("--backend", backend, list(step_arms.backends()))]
    settings = Settings(
        spec=replace(full, n_layers=cli.number("--layers", layers, 0, full.n_layers) or full.n_layers),
        full_layers=full.n_layers,
        groups=groups,
        ctx=cli.number("--ctx", ctx, 1, full.max_position),
        batch=cli.number("--batch", batch, 1, 8),
        dtype=cli.choice("--dtype", dtype, list(cli.DTYPES)),
        device=cli.device(device),
        spec_bandwidth=cli.spec_bandwidth(spec_gbs, cli.device(device)),
        warmup=cli.number("--warmup", warmup, 0, 10_000),
        steps=cli.number("--steps", steps, 2, 100_000),
        seed=cli.number("--seed", seed, 0, 2**31 - 1),
        weights=weights,
        shared_weights=shared_weights,
        memory_limit_gb=memory_limit_gb,
    )
    if settings.max_len > full.max_position:
        room = full.max_position - max(settings.warmup, 1) - settings.steps
        raise flag_error("--ctx", ctx, f"in 1..{room}: {full.name} has {full.max_position} positions, one a step")
    cli.set_threads(threads)
    document = run(settings)
    tables.print_document(document, Console())
    if any(arm["drift"] and arm["drift"]["drifting"] for arm in document["arms"]):
        print("\n".join(drift.lines(document)))
    outputs.write(document)
    if document["interrupted"]:
        return cli.INTERRUPTED
    return 1 if any(arm["status"] == "wrong" for arm in document["arms"]) else 0


if __name__ == "__main__":
    sys.exit(cli.run(_PROGRAM, command))
