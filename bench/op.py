"""One op, swept over the shapes of the models and the modes, against torch's own.

python -m bench.op --op=gemv --model=qwen2.5-7b --batch=1,2,4,8
python -m bench.op --op=gqa_decode --ctx=2048,8192,16384
python -m bench.op --op=gqa_decode --backend=native,torch,examples/gqa_decode_plugin.cu:gqa_decode
python -m bench.op --op=null
python -m bench.op --op=gemv --model=tiny --aa=20
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated

import numpy as np
import torch
import typer

import pykernels as pk
from bench.backends import MODES, modes_on
from bench.backends.op_arms import (
    MAKERS,
    Maker,
    make_arms,
    native_arm,
    peer_modes,
    prepared,
    reference_of,
    unified_arm,
)  # fmt: skip
from bench.backends.op_cases import OPS, Case, Instance, cases
from bench.core import cli, controls, device_trace, floors, gpu_state, measure, results, statistics
from bench.core.ceiling import Ceiling
from bench.core.document import Document
from bench.core.errors import flag_error
from bench.core.flags import make_command
from bench.core.listing import item
from bench.core.output_flags import RowFlags
from bench.core.outputs import Outputs
from bench.core.progress import progress
from bench.core.run import Machine, close, take_rounds
from bench.core.samplers import Samplers
from bench.core.softmax_flags import SoftmaxFlags
from bench.core.stop_rule import StopFlags
from bench.core.unified import UNIFIED, keys_of
from bench.drivers import takes
from bench.plugins import plan as plugins
from bench.plugins.loading import KINDS, Plugin, load_op, own_journal, parse_backends
from pykernels.models import ModelSpec

_PROGRAM = "bench.op"

_CONTROLS = ("null", "spin")
_DEFAULT_MODES = {"cpu": "native,eager", "cuda": "native,graph,eager"}


@dataclass(kw_only=True)
class Settings(StopFlags, SoftmaxFlags, RowFlags):
    """The flags of one run, and what they come to."""

    op: Annotated[
        str,
        typer.Option(
            "--op", help=", ".join((*OPS, *_CONTROLS)) + ". null: does nothing, what a call alone costs; spin: "
            "busy-waits a known time, which proves the timer",
        ),
    ] = "gemv"  # fmt: skip
    model: cli.ModelsFlag = cli.ALL_STUDIED
    backend: Annotated[
        str, typer.Option("--backend", help=f"comma-separated: {', '.join(MAKERS)}, plug-ins; all: without plug-ins")
    ] = "all"
    config: cli.ConfigFlag = ""
    mode: Annotated[str, typer.Option("--mode", help=f"{cli.MODE_HELP}. Default: native,eager; on a GPU graph too")] = (
        ""
    )
    ctx: Annotated[str, typer.Option("--ctx", help="comma-separated contexts; for the ops that have one")] = (
        "2048,8192,16384"
    )
    batch: Annotated[str, typer.Option("--batch", help="sequences, 1 to 8; comma-separated")] = "1"
    dtype: cli.DtypeFlag = "bf16"
    device: cli.DeviceFlag = "auto"
    l2: cli.L2Flag = "cold"
    warmup: cli.WarmupFlag = 3
    steps: cli.StepsFlag = 30
    repeats: cli.RepeatsFlag = 0
    duration_us: Annotated[str, typer.Option("--duration-us", help="of --op=spin; comma-separated")] = "10,100,1000"
    aa: Annotated[
        int,
        typer.Option(
            "--aa", help="A/A control: the same arm twice, this many times over",
            callback=cli.checked(cli.number, "--aa", 0, 1000),
        ),
    ] = 0  # fmt: skip
    threads: cli.ThreadsFlag = 0
    spec_gbs: cli.SpecFlag = 0.0
    seed: cli.SeedFlag = 0
    plugin_timeout_s: plugins.TimeoutFlag = 300.0
    plugin_memory_gb: plugins.MemoryFlag = 0.0
    plugin_journal: plugins.JournalFlag = ""

    @cached_property
    def target(self) -> torch.device:
        """--device."""
        return cli.device(self.device)

    @cached_property
    def modes(self) -> list[str]:
        """--mode."""
        return cli.modes("--mode", self.mode or _DEFAULT_MODES[self.target.type], modes_on(self.target))

    @cached_property
    def specs(self) -> list[ModelSpec]:
        """--model."""
        return cli.models(self.model, self.config)

    @cached_property
    def contexts(self) -> list[int]:
        """--ctx."""
        return cli.numbers("--ctx", self.ctx, 1, min(spec.max_ctx for spec in self.specs), int)

    @cached_property
    def batches(self) -> list[int]:
        """--batch."""
        return cli.numbers("--batch", self.batch, 1, 8, int)

    @cached_property
    def durations_us(self) -> list[float]:
        """--duration-us."""
        return cli.numbers("--duration-us", self.duration_us, 0.1, 1e6, float)

    @cached_property
    def spec_bandwidth(self) -> tuple[float | None, str]:
        """The specified bandwidth, GB/s, and where it comes from."""
        return cli.spec_bandwidth(self.spec_gbs, self.target)

    @cached_property
    def named(self) -> tuple[list[str], list[Plugin]]:
        """--backend: names, and plug-ins."""
        allowed = list(MAKERS) if self.backend == "all" else [*MAKERS, UNIFIED]
        names, found = parse_backends("--backend", self.backend, allowed)
        names = self.with_softmax(names)
        if UNIFIED in names and self.op != "gqa_decode":
            raise flag_error("--softmax", self.softmax, "online, but for --op=gqa_decode")
        return names, found

    @property
    def plugin_plan(self) -> plugins.Plan:
        """The plug-ins that processes of their own measure."""
        names, found = self.named
        return plugins.Plan(
            _PROGRAM, [] if self.plugin_journal else found,
            [mode for mode in self.modes if mode in peer_modes(self.target)],
            self.shared_flags({"backend", "mode", "softmax", "phi"}), [name for name in names if name == "torch"],
            self.plugin_timeout_s,
        )  # fmt: skip

    @cached_property
    def makers(self) -> dict[str, Maker]:
        """What this process measures: in a plug-in's own process that plug-in last."""
        names, found = self.named
        known: dict[str, Maker] = {**MAKERS, UNIFIED: partial(unified_arm, self.given_phi)}
        makers = {name: known[name] for name in names}
        if self.plugin_journal:
            (plugin,) = found
            makers[plugin.label] = load_op(plugin, own_journal(self.plugin_journal, self.plugin_memory_gb), self.op)
        return makers

    def check(self) -> None:
        """Raise UsageError for the first flag that does not fit the others."""
        cli.choice("--op", self.op, (*OPS, *_CONTROLS))
        assert self.modes and self.contexts and self.batches and self.durations_us and self.spec_bandwidth
        found = self.plugin_plan.plugins
        names, _ = self.named
        torch_modes = [mode for mode in MODES if mode in ("dispatch", *peer_modes(self.target))]
        if not found and names == ["torch"] and not self.plugin_journal and not set(torch_modes) & set(self.modes):
            raise flag_error("--mode", self.mode, f"with one of {', '.join(torch_modes)} for torch")
        if found and (self.op in _CONTROLS or self.aa):
            raise found[0].error("must be left out with --aa, --op=null and --op=spin")
        if found and not self.plugin_plan.modes:
            raise flag_error(
                "--mode", self.mode, f"with one of {', '.join(peer_modes(self.target))} for {found[0].text}"
            )
        assert self.makers is not None


def prepare(case: Case, settings: Settings) -> tuple[list[Instance], Samplers]:
    """Copies of a case's data, enough that a cold step finds none of it in the cache, and how they are sampled."""
    return prepared(case, settings.l2, settings.repeats, settings.spec_bandwidth[0], settings.target)


def measure_case(
    case: Case,
    settings: Settings,
    ceiling: Ceiling,
    monitor: gpu_state.Monitor | None,
    failed: Sequence[measure.Arm],
) -> list[Document]:
    """Gate and measure one case. Returns its entries of the key `ops`, with those of arms that failed elsewhere."""
    on_cuda = settings.target.type == "cuda"
    instances, samplers = prepare(case, settings)
    arms = [*make_arms(case, instances, samplers, settings.modes, settings.makers), *map(replace, failed)]
    measure.gate(arms)
    throttling = take_rounds(arms, ceiling, settings.warmup, settings.steps, monitor, settings.stop_rule())
    if on_cuda:
        measure.measure_host(arms, settings.warmup, max(settings.steps, 100))
    measure.gate_again(arms)
    bandwidths: Document = ceiling.bandwidths(settings.spec_bandwidth[0])
    floor_us = floors.microseconds(case.bytes, bandwidths["spec_gbs"] or bandwidths["read_gbs"])
    entries = []
    for arm in arms:
        entry: Document = {
            "backend": arm.backend, "mode": arm.mode, "fusion": None, "op": case.op, "label": case.label,
            "models": case.models, "shape": case.shape, "batch": case.batch, "bytes": case.bytes,
            "status": arm.status, "reason": arm.reason,
            "floor_us": floor_us, "max_rel_error": arm.max_rel_error,
            "time_us": None, "gbs": None, "share_of_spec": None, "share_of_read": None,
            "samples_us": arm.samples_us, "ceiling": bandwidths,
        } | keys_of(arm.counted)  # fmt: skip
        if arm.status == "ok":
            samples = arm.kept_us
            entry["time_us"] = statistics.summary(samples)
            entry |= results.bandwidth(case.bytes, entry["time_us"]["p50"], bandwidths)
            if (reference := reference_of(arm, arms, on_cuda)) is not None:
                entry["ratio_to_torch"] = results.ratio(reference.kept_us, samples)
        if on_cuda:
            host = statistics.summary(np.array(arm.host_samples_us)) if arm.host_samples_us else None
            entry |= {
                "kernels": arm.kernels, "launches": arm.launches, "host_us": host, "repeats": samplers.repeats,
                "steps_per_graph": arm.steps_per_graph, "copies": len(instances), **throttling,
            }  # fmt: skip
            entry |= results.device_keys(entry, None, arm.reason, bandwidths)
        entries.append(entry)
    return entries


def trace_case(case: Case, settings: Settings, entries: list[Document]) -> None:
    """Put the device's clock into a case's entries. After all cases were measured: once CUPTI has traced, it stays in
    the process. The arms are made anew, so that two cases never share the memory."""
    if why := device_trace.reason():
        for entry in entries:
            entry["device_reason"] = entry["reason"] or why
        return
    instances, samplers = prepare(case, settings)
    arms = make_arms(case, instances, samplers, settings.modes, settings.makers)
    measure.gate(arms)
    entries = entries[: len(arms)]  # those of arms that failed elsewhere come last
    for arm, entry in zip(arms, entries, strict=True):
        arm.status, arm.samples_us = entry["status"], entry["samples_us"]
    traces, untraced = device_trace.trace_arms(arms, samplers.repeats)
    for arm, entry in zip(arms, entries, strict=True):
        results.add_device_clock(entry, arm, traces, untraced)


def _of_plugins(case: Case, plugged: Sequence[plugins.Found]) -> list[Document]:
    return [entry for found in plugged for entry in found.of_shape(vars(case)).values()]


def sweep(
    swept: Sequence[Case], settings: Settings, ceiling: Ceiling, monitor: gpu_state.Monitor | None,
    plugged: Sequence[plugins.Found], keep: Callable[[list[Document]], None] = lambda entries: None,
) -> tuple[list[Document], bool]:  # fmt: skip
    """Every case, and then on a GPU their traces. Returns the key `ops`, with what the plug-ins' own processes found,
    and whether it was interrupted: what was finished is kept. `keep` is given the entries after every case, for an end
    that nobody can catch."""
    entries: list[Document] = []
    if any(found.interrupted for found in plugged):
        return [entry for case in swept for entry in _of_plugins(case, plugged)], True
    with progress(f"measuring {swept[0].op}", len(swept)) as advance:
        try:
            measured = []
            for case in swept:
                failed = [arm for found in plugged for arm in found.failed_of(vars(case))]
                measured.append((case, measure_case(case, settings, ceiling, monitor, failed)))
                entries += [*measured[-1][1], *_of_plugins(case, plugged)]
                keep(entries)
                advance()
            for case, of_case in measured if settings.target.type == "cuda" else ():
                trace_case(case, settings, of_case)
        except KeyboardInterrupt:
            return entries, True
    return entries, False


def aa_check(case: Case, settings: Settings, repeats: int) -> tuple[int, list[float]]:
    """The same arm under two names, alternated, `repeats` times over.

    Returns in how many repeats the 95% interval of the difference held zero, and the relative differences.
    """
    held, differences = 0, []
    for _ in range(repeats):
        instances, samplers = prepare(case, settings)
        with torch.inference_mode():  # as their data was made
            made = [native_arm(case, instances, settings.modes[0], samplers) for _ in range(2)]
        arms = [replace(arm, backend=name) for arm, name in zip(made, ("a", "b"), strict=True)]
        measure.gate(arms)
        if not measure.alternate(arms, settings.warmup, settings.steps):
            raise KeyboardInterrupt
        a, b = (np.array(arm.samples_us) for arm in arms)
        low, high = statistics.difference_interval(a, b)
        held += low <= 0 <= high
        differences.append(float(np.median(a) / np.median(b) - 1))
    return held, differences


def _document(
    settings: Settings, entries: list[Document], interrupted: bool, ceiling: Ceiling, machine: Document, extra: Document
) -> Document:
    return {
        **cli.head(_PROGRAM, "op", title=f"op {settings.op}", interrupted=interrupted, environment=machine),
        "device": settings.target.type, "l2": settings.l2,
        "l2_words": f"{settings.l2} weights", "ceiling": ceiling.document(*settings.spec_bandwidth),
        "ops": entries, "arms": [], "ladder": {}, "ladder_notes": {},
        "batch": settings.batches[0] if len(settings.batches) == 1 else settings.batches, "dtype": settings.dtype,
        "ctx": settings.contexts, "steps": settings.steps, "warmup": settings.warmup, **extra,
    }  # fmt: skip


def _cases(settings: Settings) -> list[Case]:
    """What is swept. Models with the same shape share a case, which names them all."""
    swept: dict[tuple[str, str, int], Case] = {}
    for spec, batch in itertools.product(settings.specs, settings.batches):
        for case in cases(
            settings.op, spec, settings.contexts, batch, cli.DTYPES[settings.dtype], settings.seed,
            settings.target,
        ):  # fmt: skip
            known = swept.setdefault((case.label, case.shape, case.batch), case)
            known.models = (*known.models, spec.name)
    return list(swept.values())


def _print_aa(settings: Settings) -> None:
    case = _cases(settings)[0]
    held, differences = aa_check(case, settings, settings.aa)
    print(
        f"A/A, {settings.op} {case.shape}, {settings.modes[0]}: the 95% interval of the difference held zero in {held} "
        f"of {settings.aa} repeats; relative differences of the medians {min(differences):+.4f} to "
        f"{max(differences):+.4f}"
    )


def print_list() -> None:
    """What --list prints: ops, backends, modes."""
    modes = ", ".join(modes_on(cli.device("auto")))
    for head, words in (
        ("ops:", ", ".join(OPS)), ("controls:", ", ".join(_CONTROLS)),
        ("models:", f"{', '.join(pk.models.names())} (or --config=PATH)"),
        ("backends:", f"{', '.join(MAKERS)}; of gqa_decode {UNIFIED} too (--softmax)"),
        ("modes:", f"{modes} (native is also called cpp)"),
    ):  # fmt: skip
        print(item(head, words, 10))
    print(f"plug-ins: {KINDS} (docs/plugins.md)")


def main(settings: Settings) -> int:
    """One op over shapes and modes, native against torch."""
    if settings.list_:
        print_list()
        return 0
    outputs = Outputs(settings.json, settings.csv, settings.md)
    op, aa = settings.op, settings.aa
    settings.check()
    for flag, path in outputs.paths.items():
        if aa or (flag == "--csv" and op in _CONTROLS):
            raise flag_error(flag, path, f"left out with {'--aa' if aa else f'--op={op}'}, which has none to write")
    target = settings.target
    cli.set_threads(settings.threads)
    plugged = plugins.measure_all(settings.plugin_plan)
    machine = Machine(target)
    ceiling = Ceiling(target)
    entries: list[Document] = []
    extra: Document = {"plugins": [found.describe(settings.plugin_timeout_s) for found in plugged]}
    interrupted = False
    if op in _CONTROLS:
        extra |= {
            "null": controls.null_op(settings.steps, target),
            "spin": controls.spin(settings.durations_us, max(settings.steps, 10), target),
        }
    elif aa:
        _print_aa(settings)
        return 0
    else:

        def keep(entries: list[Document]) -> None:
            outputs.keep(_document(settings, entries, True, ceiling, machine.document(), extra))

        entries, interrupted = sweep(_cases(settings), settings, ceiling, machine.monitor, plugged, keep)
    return close(_document(settings, entries, interrupted, ceiling, machine.document(), extra), outputs)


command = make_command(main, Settings, takes("op"))


if __name__ == "__main__":
    sys.exit(cli.run(_PROGRAM, command))
