"""Measuring the plans that an op may have, and choosing one.

The built-in plan, the built-in plan once more, and every candidate take turns in rounds, as all arms do. The second
built-in arm is the control: what it differs by is noise. A candidate is chosen where the 95% interval of its gain lies
above both the margin and the control's interval, twice: the second time against the built-in plan alone, in rounds of
their own, since the best of many is often the luckiest.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec
import torch
from torch import Tensor

import pykernels as pk
from bench.backends.op_arms import native_arm, prepared
from bench.backends.op_cases import Case, Instance, OpCheck
from bench.core import gpu_state, measure, results, statistics
from bench.core.document import Document
from bench.core.measure import Arm
from bench.core.samplers import Samplers
from bench.core.stop_rule import LEAST_ROUNDS
from bench.tune.settings import Settings
from pykernels import _runtime
from pykernels.plans import Plan

BUILT_IN, CONTROL = "built-in", "built-in again"

Key = tuple[str, dict[str, int], int, Any]
"""Op, sizes, batch and dtype."""


@dataclass
class Candidate:
    """A plan that the op may have; None: the built-in one. `arm` is measured, `gain` the built-in plan's time over its
    own with the interval, `same_sums` says whether its results are those of the built-in plan bit for bit."""

    name: str
    plan: Plan | None
    arm: Arm = field(default_factory=lambda: Arm(BUILT_IN, ""))
    same_sums: bool | None = None
    gain: dict[str, float] | None = None


def words(choice: dict[str, Any]) -> str:
    """A choice for people: `tensor-cores, warps 8, row_tiles 2`."""
    return ", ".join(str(value) if name == "kernel" else f"{name} {value}" for name, value in choice.items())


def card_limits(settings: Settings) -> tuple[int, int, bool, list[int]] | None:
    """What plans depend on of the GPU; None on a CPU."""
    return _runtime.plan_device(settings.target.index) if settings.on_cuda else None


def plans_of(instance: Instance, settings: Settings) -> tuple[Key, list[Plan]]:
    """By what the op's plan is found, and the plans that it may have beside the built-in one."""
    with torch.inference_mode(), pk.runtime.record() as program:
        instance.native()
    key: Key = _runtime.plan_key(program, 0, settings.on_cuda)
    op, sizes, batch, dtype = key
    choices: list[dict[str, Any]] = [
        {"kernel": kernel} | dict(fields) if kernel else dict(fields)
        for kernel, fields in _runtime.plan_candidates(program, 0, card_limits(settings))
    ]
    return key, [Plan(op=op, sizes=sizes, batch=batch, dtype=dtype, choice=choice) for choice in choices]


class Tuning:
    """One op of one size: its candidates, measured. `entry` is what the document says of it."""

    def __init__(self, case: Case, settings: Settings, monitor: gpu_state.Monitor | None) -> None:
        self.case, self.settings, self.monitor = case, settings, monitor
        with torch.inference_mode(), self._choosing(None):
            probe = case.make()
        self.key, plans = plans_of(probe, settings)
        self.built_in, self.control = Candidate(BUILT_IN, None), Candidate(CONTROL, None)
        self.candidates = [Candidate(words(plan.choice), plan) for plan in plans]
        self._largest = self._largest_workspace(probe)
        self._confirmed: dict[str, float] | None = None
        self.chosen: Candidate | None = None

    def _choosing(self, plan: Plan | None) -> AbstractContextManager[None]:
        return pk.plans.choosing(plan, self.settings.target.type, self.settings.card)

    def _largest_workspace(self, probe: Instance) -> Plan | None:
        """The plan that needs the largest workspace: copies made under it do for all."""
        if self.case.op != "gqa_decode":
            return None
        sizes: list[tuple[int, Plan | None]] = []
        for plan in [None, *(candidate.plan for candidate in self.candidates)]:
            with self._choosing(plan):
                workspace = pk.ops.gqa_decode_workspace(probe.inputs["q"], probe.inputs["k_cache"])
            sizes.append((workspace.numel(), plan))
        return max(sizes, key=lambda one: one[0])[1]

    @property
    def all(self) -> list[Candidate]:
        """The built-in plan first."""
        return [self.built_in, self.control, *self.candidates]

    def run(self) -> None:
        """Gate, measure, check again and choose."""
        with self._choosing(self._largest):
            instances, samplers = prepared(
                self.case, self.settings.l2, self.settings.repeats, self.settings.spec_bandwidth[0],
                self.settings.target,
            )  # fmt: skip
        for candidate in self.all:
            self._make_arm(candidate, instances, samplers)
        measure.gate([candidate.arm for candidate in self.all])
        self._compare_sums()
        self._take(self.all)
        measure.gate_again([candidate.arm for candidate in self.all])
        self._choose()

    def _make_arm(self, candidate: Candidate, instances: list[Instance], samplers: Samplers) -> None:
        try:
            with torch.inference_mode(), self._choosing(candidate.plan):
                arm = native_arm(self.case, instances, self.settings.driven, samplers)
        except Exception as error:  # the library's own words are the result
            arm = Arm("native", self.settings.driven)
            arm.fail(error)
        # A graph has the plan that it was captured with; a program asks at every launch.
        surroundings = partial(self._choosing, candidate.plan)
        candidate.arm = replace(arm, backend=candidate.name, surroundings=surroundings)

    def _compare_sums(self) -> None:
        """Bit for bit with the built-in plan, on the gate's inputs."""
        expected: Tensor | None = None
        for candidate in self.all:
            check = candidate.arm.check
            if candidate.arm.status != "ok" or not isinstance(check, OpCheck):
                continue
            with torch.inference_mode(), candidate.arm.surroundings():
                got = check.step().clone()
            expected = got if expected is None else expected
            candidate.same_sums = torch.equal(got.view(torch.uint8), expected.view(torch.uint8))

    def _take(self, candidates: Sequence[Candidate]) -> None:
        arms = [candidate.arm for candidate in candidates]
        for arm in arms:
            arm.samples_us = []
        rule = self.settings.stop_rule()
        rule.begin()
        finished, _ = gpu_state.alternate_watched(
            arms, self.settings.warmup, self.settings.steps, lambda: None, self.monitor,
            lambda done: rule.reached(arms, done),
        )  # fmt: skip
        if not finished:
            raise KeyboardInterrupt

    def _gain(self, candidate: Candidate) -> dict[str, float] | None:
        if candidate.arm.status != "ok" or self.built_in.arm.status != "ok" or not candidate.arm.samples_us:
            return None
        return results.ratio(self.built_in.arm.kept_us, candidate.arm.kept_us)

    def _choose(self) -> None:
        for candidate in self.all:
            candidate.gain = self._gain(candidate)
        if (noise := self.control.gain) is None or len(self.built_in.arm.kept_us) < LEAST_ROUNDS:
            return  # an interval of fewer says nothing
        least = max(1 + self.settings.least_gain, noise["high"], 1 / noise["low"])
        faster = [(gain["p50"], one) for one in self.candidates if (gain := one.gain) and gain["low"] > least]
        if not faster:
            return
        best = max(faster, key=lambda one: one[0])[1]
        kept = [(candidate.arm.samples_us, candidate.arm.dropped_rounds) for candidate in (self.built_in, best)]
        self._take([self.built_in, best])
        measure.gate_again([best.arm])
        self._confirmed = self._gain(best)
        if best.arm.status == "ok" and self._confirmed and self._confirmed["low"] > 1 + self.settings.least_gain:
            self.chosen = best
        for candidate, (samples, dropped) in zip((self.built_in, best), kept, strict=True):
            if candidate.arm.status == "ok":  # the document's are of the rounds that all took
                candidate.arm.samples_us, candidate.arm.dropped_rounds = samples, dropped

    def plan(self) -> Plan | None:
        """What the file says of this op, where a candidate is chosen."""
        if self.chosen is None or self.chosen.plan is None or self._confirmed is None:
            return None
        gain = self._confirmed
        rounded = (round(gain["p50"], 4), round(gain["low"], 4), round(gain["high"], 4))
        same = "same" if self.chosen.same_sums else "other"
        return msgspec.structs.replace(self.chosen.plan, ratio_to_built_in=rounded, order_of_sums=same)

    def entry(self) -> Document:
        """One entry of the key `tuned`."""
        op, sizes, batch, dtype = self.key
        return {
            "op": op, "label": self.case.label, "shape": self.case.shape, "models": list(self.case.models),
            "sizes": sizes, "batch": batch, "dtype": dtype, "bytes": self.case.bytes,
            "status": self.built_in.arm.status, "reason": self.built_in.arm.reason,
            "chosen": self.chosen.name if self.chosen else BUILT_IN, "confirmed": self._confirmed,
            "candidates": [self._candidate(candidate) for candidate in self.all],
        }  # fmt: skip

    def _candidate(self, candidate: Candidate) -> Document:
        arm = candidate.arm
        timed = arm.status == "ok" and len(arm.kept_us) > 0
        return {
            "name": candidate.name, "choice": candidate.plan.choice if candidate.plan else {},
            "status": arm.status, "reason": arm.reason, "max_rel_error": arm.max_rel_error,
            "order_of_sums": None if candidate.same_sums is None else "same" if candidate.same_sums else "other",
            "time_us": statistics.summary(arm.kept_us) if timed else None, "samples_us": arm.samples_us,
            "ratio_to_built_in": candidate.gain if timed else None,
        }  # fmt: skip
