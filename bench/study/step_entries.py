"""What a run of `bench.step` writes down: its settings, and the entries of its document."""

from dataclasses import dataclass, replace

import numpy as np
import torch

import pykernels as pk
from bench.core import cli, ladder, results, statistics
from bench.core.ceiling import Ceiling
from bench.core.document import Document
from bench.core.measure import Arm
from bench.core.results import bandwidth
from bench.study import accounting, drift, step_arms
from pykernels.models import ModelSpec


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


def step_bytes(settings: Settings, fusion: str | None) -> int:
    """What a step must move, at the average kv_len of the timed steps; plain torch is held to the unfused sequence."""
    kv_len = round(float(np.mean(settings.kv_lens(settings.steps))))
    ops = accounting.step_ops(settings.spec, fusion or "none", settings.batch, kv_len, settings.torch_dtype)
    return sum(op.bytes for op in ops)


def arm_document(arm: Arm, settings: Settings, ceiling: Document, device_name: str, arms: list[Arm]) -> Document:
    """One entry of the key `arms`: bench.layer's keys, the study's own under `paper`, and whether it drifted."""
    entry = results.arm_document(arm, step_bytes(settings, arm.fusion), ceiling, arms)
    entry |= {"paper": None, "drift": None, "launches_per_layer": None}
    if entry["wall_us"]:
        entry["paper"] = accounting.paper_cell(
            settings.spec, device_name, settings.ctx, settings.batch, settings.torch_dtype, arm.samples_us,
            settings.kv_lens(len(arm.samples_us)), ceiling["spec_gbs"], f"launchtax {pk.__version__} bench.step",
        )  # fmt: skip
        entry["drift"] = vars(drift.test(arm.samples_us))
    return entry


def count_launches_per_layer(model: pk.DecodeModel, settings: Settings) -> dict[str, int]:
    """By arm of `native` and by torch backend: what one more layer adds to a step, counted on models of one layer and
    of two. They borrow the first layer's weights and the first rows of the tables: next to no memory is taken."""
    counts: dict[str, int] = {}
    models = []
    for n_layers in (1, 2):
        spec = replace(settings.spec, n_layers=n_layers, vocab=8)
        whole = model.weights
        few = pk.ModelWeights(whole.embedding[:8], whole.layers[:1] * n_layers, whole.final_norm, whole.lm_head[:8])
        models.append(pk.DecodeModel(spec, few, 2, settings.batch, settings.torch_dtype, settings.device))
    for name in settings.backends:
        backend = step_arms.backends()[name]
        if backend.reason("eager", settings.device):
            continue
        for fusion in backend.fusions(settings.fusions):
            with torch.inference_mode(), backend.surroundings():
                one, two = (backend.driver(small, "eager", fusion).launches for small in models)
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
    return results.make_ladders(
        arms, ceiling.read_gbs(), lambda fusion: step_bytes(settings, fusion), settings.spec_bandwidth[0],
        ladder.CPU_CHAIN, {},
    )  # fmt: skip


def title(settings: Settings) -> str:
    """What is measured, with what is not the whole model said aloud."""
    spec = settings.spec
    part = "" if spec.n_layers == settings.full_layers else f", {spec.n_layers} of its {settings.full_layers} layers"
    shared = ", all layers of one set of weights" if settings.shared_weights else ""
    return f"one decode step of {spec.name}{part}{shared}, ctx {settings.ctx}"
