"""The main job: one decode layer, in every backend and mode there is, and its ladder.

python -m bench.layer --backend=native,sdpa --model=llama-3.1-8b --ctx=4096 --json=layer.json --plot=layer.png
python -m bench.layer --backend=sdpa,examples/attention_plugin.py:Attention --model=tiny
"""

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import pykernels as pk
from bench.backends import INT4, MODES, Backend, Workload, arms_of, attentions, by_name, linear_peers, of_int4, registry
from bench.core import cli, controls, gaps, ladder, measure, results
from bench.core import quant_words as words
from bench.core.ceiling import Ceiling
from bench.core.copies import layers_a_sample
from bench.core.device_trace import Traced
from bench.core.document import Document
from bench.core.errors import flag_error
from bench.core.flags import make_command
from bench.core.layer_settings import LayerSettings, l2_words, layer_ops, make_layers, streamed_bytes
from bench.core.listing import item, print_backends
from bench.core.output_flags import OutputFlags
from bench.core.outputs import Outputs
from bench.core.run import Machine, Measurement, close, gate
from bench.core.softmax_flags import SoftmaxFlags
from bench.core.trace_file import check_traceable, write_trace
from bench.core.unified import UNIFIED
from bench.drivers import takes
from bench.plugins import plan as plugins
from bench.plugins.loading import KINDS, Plugin, load_layer, own_journal, parse_backends

_PROGRAM = "bench.layer"


@dataclass(kw_only=True)
class Settings(LayerSettings, SoftmaxFlags, OutputFlags):
    """The flags of one run, and what they come to."""

    backend: cli.BackendFlag = "all"
    attention: cli.AttentionFlag = "sdpa"
    mode: cli.ModeFlag = "all"
    threads: cli.ThreadsFlag = 0
    spec_gbs: cli.SpecFlag = 0.0
    trace: cli.TraceFlag = ""
    plugin_timeout_s: plugins.TimeoutFlag = 300.0
    plugin_memory_gb: plugins.MemoryFlag = 0.0
    plugin_journal: plugins.JournalFlag = ""

    @cached_property
    def modes(self) -> list[str]:
        """--mode."""
        return cli.modes("--mode", self.mode, MODES)

    @cached_property
    def named(self) -> tuple[list[str], list[Plugin]]:
        """--backend: names, and plug-ins."""
        if self.backend == "all":
            return self.with_softmax(list(of_int4() if self.four_bit else registry())), []
        names, found = parse_backends("--backend", self.backend, list(self._known))
        return self.with_softmax(names), found

    @cached_property
    def _known(self) -> dict[str, type[Backend]]:
        return by_name() | of_int4(cli.choice("--attention", self.attention, list(attentions())))

    @cached_property
    def backends(self) -> dict[str, type[Backend]]:
        """What this process measures: in a plug-in's own process that plug-in first."""
        names, found = self.named
        backends = {name: self._known[name] for name in names}
        if not self.plugin_journal:
            return backends
        (plugin,) = found
        journal = own_journal(self.plugin_journal, self.plugin_memory_gb)
        return {plugin.label: load_layer(plugin, journal, self.target), **backends}

    @property
    def plugin_plan(self) -> plugins.Plan:
        """The plug-ins that processes of their own measure."""
        names, found = self.named
        return plugins.Plan(
            _PROGRAM, [] if self.plugin_journal else found, self.modes,
            self.shared_flags({"backend", "mode", "softmax", "phi"}),
            [name for name in names if name == "sdpa"], self.plugin_timeout_s,
        )  # fmt: skip

    def is_dense(self, name: str) -> bool:
        """Whether the arms of that name multiply by dense weights."""
        if not self.four_bit:
            return True
        backend = self.backends.get(name)
        return backend is not None and INT4 not in backend.weights

    @cached_property
    def spec_bandwidth(self) -> tuple[float | None, str]:
        """The specified bandwidth, GB/s, and where it comes from."""
        return cli.spec_bandwidth(self.spec_gbs, self.target)

    def check(self) -> None:
        """Raise UsageError for the first flag that does not fit the others."""
        super().check()
        assert self.modes and self.backends is not None
        linear = linear_peers()
        for name in () if self.four_bit else self.named[0]:
            if name in linear:
                raise flag_error("--backend", name, "given with --quant=int4 or a quantised folder of --weights")
        if self.attention != "sdpa" and not any(name in linear for name in self.named[0]):
            raise flag_error("--attention", self.attention, f"given with one of {', '.join(linear)} in --backend")
        check_traceable(self.trace, self.target)


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
    spec, dtype, device = settings.spec, settings.torch_dtype, settings.target
    on_cuda = device.type == "cuda"
    repeats = layers_a_sample(settings.repeats, max(len(layers), 1), device)

    def streamed(backend: str, fusion: str | None) -> int:
        return streamed_bytes(settings, fusion, settings.is_dense(backend))

    entries = [
        results.arm_document(arm, streamed(arm.backend, arm.fusion), found.bandwidths, found.arms)
        | words.weights_key(settings.int4_format, settings.is_dense(arm.backend), settings.dtype)
        for arm in found.arms
    ]
    if on_cuda:
        found.add_device_keys(entries)
    read_gbs = found.ceiling.read_gbs() if found.ceiling else np.empty(0)
    layer_bytes = layers[0].weights.n_bytes if layers else None
    ladders = results.make_ladders(
        found.arms, read_gbs, streamed, settings.spec_bandwidth[0],
        ladder.CUDA_CHAIN if on_cuda else ladder.CPU_CHAIN, found.traces,
    )  # fmt: skip
    for of_plugin in plugged:
        entries += [results.refer_to_this_run(entry, found.arms) for entry in of_plugin.entries("arms")]
        for key in ladders:
            ladders[key] |= of_plugin.of_label(key)
    return {
        "model": results.model_document(spec),
        "weights": "checkpoint" if settings.weights else "random",
        "quant": words.quant_document(settings.int4_format),
        "ctx": settings.ctx, "batch": settings.batch, "dtype": settings.dtype, "device": device.type,
        "l2": settings.l2,
        "l2_words": l2_words(settings, layers) if layers else settings.l2,
        "weight_copies": len(layers),
        "warmup": settings.warmup, "steps": settings.steps,
        **({"repeats": repeats} if on_cuda or repeats > 1 else {}), **found.throttling,
        "ceiling": found.bandwidths,
        "bytes": {
            "ops": {fusion: [vars(op) for op in layer_ops(settings, fusion)] for fusion in settings.fusions},
            "layer_streamed": {fusion: streamed("native", fusion) for fusion in settings.fusions},
            "paper": results.paper_bytes(spec, settings.ctx, settings.batch, dtype, layer_bytes),
        },
        **looked,
        "arms": entries,
        "plugins": [of_plugin.describe(settings.plugin_timeout_s) for of_plugin in plugged],
        **ladders,
    }  # fmt: skip


def run(settings: Settings) -> tuple[Document, Measurement]:
    """Measure. Ctrl-C after the first round ends it early: the document says so and keeps what was finished.

    Plug-ins come first, while nothing of this process is on the device.
    """
    device = settings.target
    plugged = plugins.measure_all(settings.plugin_plan)
    interrupted = any(of_plugin.interrupted for of_plugin in plugged)
    machine = Machine(device)
    layers = [] if interrupted else cli.usage(lambda: make_layers(settings))
    repeats = layers_a_sample(settings.repeats, max(len(layers), 1), device)
    arms = [arm for of_plugin in plugged for arm in of_plugin.failed]
    if not interrupted:
        workload = Workload.of(layers, repeats, settings.given_phi)
        own = [
            arms_of(backend, workload, settings.modes, settings.fusions) for backend in settings.backends.values()
        ]  # fmt: skip
        arms = [*itertools.chain(*own), *arms]
    # Where nothing runs there is nothing to hold against it.
    ceiling = Ceiling(device) if not interrupted and any(arm.status == "ok" for arm in arms) else None
    found = Measurement(arms, ceiling, settings.spec_bandwidth, machine.monitor)
    found.interrupted = interrupted  # while plug-ins were measured: those that are done are kept
    gate(arms)
    looked: Document = {"null": [], "spin": [], "ops": [], "timelines": {}, "gaps": {}}

    def look_closer() -> None:
        looked["null"] = controls.null_op(settings.steps, device)
        looked["spin"] = controls.spin(device=device)
        if device.type == "cuda":
            found.trace(repeats)
            looked["ops"] = results.traced_ops(
                arms, found.traces, lambda fusion: layer_ops(settings, fusion), found.bandwidths
            )
            looked["timelines"] = layer_timelines(arms, found.traces, settings)
            looked["gaps"] = gaps.documents(arms, found.traces)
        elif "native" in settings.backends:
            looked["ops"] = time_ops(layers, settings, found.bandwidths)

    found.take(settings.warmup, settings.steps, look_closer, settings.stop_rule())
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
    known = registry() | {UNIFIED: by_name()[UNIFIED]} | of_int4()
    print_backends(
        (name, backend.description, backend.availability(device), backend.modes(device))
        for name, backend in known.items()
    )
    print(item("with --quant=int4 or a quantised folder only:", ", ".join([*linear_peers(), "native-dense"]), 18))
    print(f"plug-ins: {KINDS} (docs/plugins.md)")


def main(settings: Settings) -> int:
    """One decode layer in every backend and mode, and where its time goes."""
    if settings.list_:
        print_list()
        return 0
    outputs = Outputs(settings.json, settings.csv, settings.md, settings.plot, settings.trace)
    settings.check()
    cli.set_threads(settings.threads)
    document, found = run(settings)
    status = close(document, outputs, write_trace=trace_writer(found, settings))
    return 2 if settings.trace and not found.traces and status != cli.INTERRUPTED else status


command = make_command(main, Settings, takes("layer"))


if __name__ == "__main__":
    sys.exit(cli.run(_PROGRAM, command))
