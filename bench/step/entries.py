"""What a run of `bench.step` writes down: the entries of its document."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

import pykernels as pk
from bench.backends.steps import arms as step_arms
from bench.backends.steps.drivers import Driver
from bench.core import device_trace, floors, ladder, results, statistics
from bench.core.device_trace import Traced
from bench.core.document import Document, entry_name, program_name
from bench.core.floors import OpBytes
from bench.core.intervals import union_ns
from bench.core.measure import Arm
from bench.core.quant_words import quant_words, weights_key
from bench.core.results import bandwidth
from bench.core.run import Measurement
from bench.core.tables import percent
from bench.step.settings import Settings
from bench.study import accounting, drift
from pykernels.model import STEP_LABELS


def step_bytes(settings: Settings, fusion: str | None, dense: bool = False) -> int:
    """What a step must move, at the average kv_len of the timed steps; plain torch is held to the unfused sequence.
    dense: of an arm that multiplies by dense weights in a run of 4-bit ones."""
    return sum(op.bytes for op in step_ops(settings, fusion, dense))


def step_ops(settings: Settings, fusion: str | None, dense: bool = False) -> list[OpBytes]:
    """The ops of a step in order, at the average kv_len of the timed steps."""
    kv_len = round(float(np.mean(settings.kv_lens(settings.steps))))
    int4 = () if dense else settings.int4_format or ()
    return floors.step_ops(settings.spec, fusion or "none", settings.batch, kv_len, settings.torch_dtype, *int4)


def arm_document(arm: Arm, settings: Settings, ceiling: Document, device_name: str, arms: Sequence[Arm]) -> Document:
    """One entry of the key `arms`: bench.layer's keys, the study's own under `paper`, and whether it drifted.
    `kernels` says how often a step has each: their names in order would be most of the document."""
    dense = settings.is_dense(arm.backend)
    entry = results.arm_document(arm, step_bytes(settings, arm.fusion, dense), ceiling, arms)
    entry |= weights_key(settings.int4_format, dense, settings.dtype)
    entry |= {"kernels": dict(Counter(arm.kernels)), "paper": None, "drift": None, "launches_per_layer": None}
    if entry["wall_us"]:
        lengths = settings.kv_lens(len(arm.samples_us))
        entry["paper"] = accounting.paper_cell(
            settings.spec, device_name, settings.ctx, settings.batch, settings.torch_dtype, arm.kept_us.tolist(),
            [kv_len for index, kv_len in enumerate(lengths) if index not in arm.dropped_rounds],
            ceiling["spec_gbs"], f"launchtax {pk.__version__} bench.step", settings.layer_bytes(not dense),
        )  # fmt: skip
        entry["drift"] = vars(drift.test(arm.samples_us))
        for other in arms:
            if (other.backend, other.mode, other.status) == ("transformers", "eager", "ok"):
                entry["ratio_to_transformers"] = results.ratio(other.kept_us, arm.kept_us)
    return entry


def device_keys(entry: Document, traced: Traced | None, reason: str | None, ceiling: Document) -> Document:
    """What a GPU adds to an entry: the device's clock, and from it and the traced pass

    launch_gap_us, launch_gap_share: the part of an untraced step in which no kernel ran (wall less device);
    profile: the study's section 8. Its cpu_us are the calls of the CUDA runtime and driver of the last traced step,
    from its first launch to its last, and its cuda_us the time in which kernels ran.
    """
    keys = results.device_keys(entry, traced, reason, ceiling)
    keys |= {"launch_gap_us": None, "launch_gap_share": None, "profile": None}
    if traced and entry["wall_us"]:
        wall_us, cuda_us = entry["wall_us"]["p50"], keys["device_us"]["p50"]
        keys["launch_gap_us"] = wall_us - cuda_us
        keys["launch_gap_share"] = (wall_us - cuda_us) / wall_us
        profiled_us = traced.trace_factor * wall_us
        cpu_us = union_ns((call.start_ns, call.end_ns) for call in traced.sample.calls) / 1000 / traced.sample.steps
        cell, peak_gbs = entry["paper"], ceiling["spec_gbs"]

        def utilisation(step_us: float) -> float | None:
            return peak_gbs and accounting.bandwidth_utilisation(
                cell["weight_bytes"], cell["kv_bytes_avg"], step_us / 1000, peak_gbs
            )

        keys["profile"] = {
            "profiled_us": profiled_us, "inflation": accounting.profiler_inflation(profiled_us, wall_us),
            "cpu_us": cpu_us, "cuda_us": cuda_us, "cpu_cuda_ratio": accounting.cpu_cuda_ratio(cpu_us, cuda_us),
            "bw_util": utilisation(wall_us), "bw_util_profiled": utilisation(profiled_us),
        }  # fmt: skip
    return keys


def lines(document: Document) -> list[str]:
    """What a step's table has no columns for: one line a measured arm."""

    def share(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.3f}"

    found = []
    for entry in document["arms"]:
        if not entry["paper"]:
            continue
        words = [f"R_floor {share(entry['paper']['R_floor'])}", f"{percent(entry['share_of_read'])} of the ceiling"]
        if (ratio := entry.get("ratio_to_transformers")) and entry["backend"] != "transformers":
            words.append(f"{ratio['p50']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] times as fast as transformers")
        if entry["launches_per_layer"]:
            words.append(f"{entry['launches_per_layer']} launches a layer")
        if profile := entry.get("profile"):
            words += [
                f"launch and gaps {percent(entry['launch_gap_share'])} of the step",
                f"bw_util {share(profile['bw_util'])}, profiled {share(profile['bw_util_profiled'])} "
                f"({profile['inflation']:.2f}x)",
                f"cpu/cuda {profile['cpu_cuda_ratio']:.2f}",
            ]
        found.append(f"{entry_name(entry)}: {', '.join(words)}")
    return found


def count_launches_per_layer(model: pk.DecodeModel, settings: Settings, names: Collection[str]) -> dict[str, int]:
    """By arm of `native` and by torch backend, of the named ones: what one more layer adds to a step, counted on models
    of one layer and of two: by a trace on a GPU where one can be taken, else as the driver counts. The models borrow
    the first layer's weights and the first rows of the tables: little memory is taken but for their caches, which are
    as long as the context, since what torch's attention launches depends on it."""
    counts: dict[str, int] = {}
    models = []
    for n_layers in (1, 2):
        spec = replace(settings.spec, n_layers=n_layers, vocab=8)
        whole = model.weights
        few = pk.ModelWeights(whole.embedding[:8], whole.layers[:1] * n_layers, whole.final_norm, whole.lm_head[:8])
        models.append(
            pk.DecodeModel(spec, few, settings.ctx + 1, settings.batch, settings.torch_dtype, settings.target)
        )
    for name in names:
        backend = step_arms.named(name)
        mode = "native" if name in step_arms.NATIVE else "eager"
        for fusion in backend.fusions(settings.fusions):
            with torch.inference_mode(), backend.surroundings():
                subjects = [backend.subject(step_arms.Reference(small, 0)).model for small in models]
                one, two = (_launches(backend.driver(small, mode, fusion, 0)) for small in subjects)
            counts[program_name(name, fusion)] = two - one
    return counts


def _launches(driver: Driver) -> int:
    """The kernels of one step, the last that the cache has room for."""
    if driver.model.device.type != "cuda" or device_trace.reason():
        return driver.launches
    driver.stand(driver.model.max_len - 1)
    driver.run(1)  # the first time something may be prepared
    driver.stand(driver.model.max_len - 1)
    with pk.runtime.cuda_trace() as trace:
        driver.run(1)
    return len(trace.kernels)


def anatomy(model: pk.DecodeModel, settings: Settings, ceiling: Document) -> list[Document]:
    """The key `ops` on a CPU: where a native step goes, summed over the layers, by a clock reading between ops."""
    entries = []
    for fusion in settings.fusions:
        model.set_position(settings.ctx)
        samples = pk.runtime.timed_ops([model.program(fusion)], max(settings.warmup, 1), settings.steps)
        entries += [
            entry | {"time_us": clock} for entry, clock in _summed(fusion, samples, settings, ceiling)
        ]  # fmt: skip
    return entries


def traced_anatomy(
    arms: Sequence[Arm], traces: Mapping[str, Traced], settings: Settings, ceiling: Document
) -> list[Document]:
    """The key `ops` on a GPU: the same by the kernels of a traced step, where there is one kernel an op."""
    entries = []
    for fusion, arm in results.arms_by_kernel(arms, traces).items():
        kernel_us = traces[arm.label].kernel_us
        if kernel_us.shape[1] == len(step_ops(settings, fusion)):
            entries += [
                entry | {"mode": arm.mode, "time_us": None, "device_us": clock}
                for entry, clock in _summed(fusion, kernel_us, settings, ceiling)
            ]
    return entries


def _summed(
    fusion: str, samples: np.ndarray, settings: Settings, ceiling: Document
) -> Iterator[tuple[Document, Document]]:
    """For each op of a layer and each of the step's own: its entry, and its clock. samples: float64 [steps, ops]."""
    ops = step_ops(settings, fusion)
    for label in dict.fromkeys(op.label for op in ops):
        columns = [i for i, op in enumerate(ops) if op.label == label]
        op, count = ops[columns[0]], len(columns)
        n_bytes = sum(ops[column].bytes for column in columns)  # layers may differ
        clock = statistics.summary(samples[:, columns].sum(axis=1))
        floor_gbs = ceiling["spec_gbs"] or ceiling["read_gbs"]
        yield {
            "backend": "native", "fusion": fusion, "op": op.op, "count": count,
            "label": f"{label} x{count}" if count > 1 else label, "shape": op.shape, "bytes": n_bytes,
            "floor_us": accounting.floor_ms(n_bytes, 0, floor_gbs) * 1000,
            **bandwidth(n_bytes, clock["p50"], ceiling),
        }, clock  # fmt: skip


def block_timelines(arms: Sequence[Arm], traces: Mapping[str, Traced], settings: Settings) -> Document:
    """The key `timelines`: by native arm, when each kernel of the middle layer of one traced step ran."""
    found = {}
    for arm in arms:
        traced = traces.get(arm.label)
        ops = step_ops(settings, arm.fusion)
        if arm.backend == "native" and traced and len(traced.kernels) == len(ops):
            before, after = STEP_LABELS
            per_layer = (len(ops) - len(before) - len(after)) // settings.spec.n_layers
            first = len(before) + settings.spec.n_layers // 2 * per_layer
            of_block = slice(first, first + per_layer)
            found[arm.label] = results.timeline(
                traced.sample.kernels[of_block], [op.label for op in ops[of_block]]
            )  # fmt: skip
    return found


def make_ladders(found: Measurement, settings: Settings) -> Document:
    """The keys `ladder` and `ladder_notes`: one a backend and fusion whose eager arm was measured."""
    if found.ceiling is None:
        return {"ladder": {}, "ladder_notes": {}}
    chain = ladder.CUDA_CHAIN if settings.target.type == "cuda" else ladder.CPU_CHAIN
    return results.make_ladders(
        found.arms, found.ceiling.read_gbs(),
        lambda backend, fusion: step_bytes(settings, fusion, settings.is_dense(backend)), settings.spec_bandwidth[0],
        chain, found.traces,
    )  # fmt: skip


def title(settings: Settings) -> str:
    """What is measured, with what is not the whole model said aloud."""
    spec = settings.spec
    part = (
        ""
        if spec.n_layers == settings.full_spec.n_layers
        else f", {spec.n_layers} of its {settings.full_spec.n_layers} layers"
    )
    shared = ", all layers of one set of weights" if settings.shared_weights else ""
    return f"one decode step of {spec.name}{quant_words(settings.int4_format)}{part}{shared}, ctx {settings.ctx}"
