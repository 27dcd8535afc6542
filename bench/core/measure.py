"""Arms, and the alternation that measures them.

An arm is backend x mode (x fusion). All arms of a run are measured together: in every round each arm runs one
step untimed (the switch from another arm leaves threads asleep and caches foreign) and one step timed; every other
round goes through the arms backwards. So all arms see the same weather, and sample r of every arm is from round r.
On a GPU "one step" is one sample of several (bench.core.samplers).
"""

import gc
import inspect
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from bench.core.document import arm_name
from bench.core.errors import UnsupportedError, one_line, plain
from bench.core.unified import Counted
from pykernels.ranges import named
from pykernels.reference import Comparison

Item = TypeVar("Item")

Sampler = Callable[[int], np.ndarray]
"""Takes that many samples back to back and returns their times: float64 [samples], microseconds a step."""

Drive = Callable[[int], object]
"""Takes that many samples: an arm's own sampler, or what stands for it."""


class Watch(Protocol):
    """Looks at what a step writes beside its results (bench.plugins.loading)."""

    def begin(self) -> None:
        """Inputs lie where they are read; the step comes next."""

    def end(self) -> str | None:
        """After the step: what it wrote that it may not, in words; None where there is nothing."""


class Check(Protocol):
    """What compares an arm's results with the reference, on inputs that it puts in place and takes away again."""

    def __call__(self, drive: Drive | None = None, watch: Watch | None = None) -> Comparison:
        """Without `drive`: one step, with everything it writes full of NaN before.

        With `drive`, after the clocks: on inputs that were never seen before, in the same memory, by the loop that was
        timed where the results can be found after it. What a step writes holds its last results then, as it does while
        it is timed: nothing tells the two apart.
        """


def as_check(check: Callable[..., Comparison]) -> Check:
    """A check of no arguments, a user's own say, as a :class:`Check`: after the clocks it does what it did before."""
    try:
        inspect.signature(check).bind(None, None)
    except TypeError:
        pass
    else:
        return check

    def called(drive: Drive | None = None, watch: Watch | None = None) -> Comparison:
        if watch:
            watch.begin()
        comparison = check()
        words = watch.end() if watch else None
        return replace(comparison, ok=False, message=words) if words else comparison

    return called


@dataclass
class Arm:
    """One arm of a run. `status` is ok, unsupported, wrong, oom or error, each but ok with a reason.

    `sampler` drives it; `check` compares its output with the reference; `surroundings` makes the
    context that must hold around both (a pinned SDPA backend, inference mode), entered outside the timing. A graph
    holds `steps_per_graph` steps. `tracing`, where it is given, makes the arm ready for a traced pass and returns the
    sampler that is traced then, instead of `sampler`. `nodes` are those of a captured step that is launched again
    (pykernels.relaunch.Node), `against_eager` is a word of bench.core.bits. `no_trace` says why its kernels cannot be
    traced. Rounds in `dropped_rounds` stay out of the summaries (bench.core.gpu_state). `counted` is of a unified
    maximum.
    """

    backend: str
    mode: str
    fusion: str | None = None
    sampler: Sampler | None = None
    check: Check | None = None
    surroundings: Callable[[], AbstractContextManager] = nullcontext
    host_sampler: Sampler | None = None
    tracing: Callable[[], Sampler] | None = None
    kernels: list[str] = field(default_factory=list)
    launches: int = 0
    steps_per_graph: int | None = None
    status: str = "ok"
    reason: str | None = None
    max_rel_error: float | None = None
    nodes: list[Any] = field(default_factory=list)
    against_eager: str | None = None
    no_trace: str | None = None
    samples_us: list[float] = field(default_factory=list)
    host_samples_us: list[float] = field(default_factory=list)
    dropped_rounds: Collection[int] = ()
    counted: Counted | None = None

    @property
    def kept_us(self) -> np.ndarray:
        """The samples of the rounds that count: float64 [rounds]."""
        return np.array([us for index, us in enumerate(self.samples_us) if index not in self.dropped_rounds])

    @property
    def label(self) -> str:
        """backend/fusion:mode"""
        return arm_name(self.backend, self.fusion, self.mode)

    def fail(self, error: BaseException) -> None:
        """Take an exception as this arm's end: its own words, one line."""
        if isinstance(error, UnsupportedError):
            self.status, self.reason = "unsupported", plain(str(error))
        else:
            self.status = "oom" if _out_of_memory(error) else "error"
            self.reason = one_line(error)
        self.samples_us = []


def _out_of_memory(error: BaseException) -> bool:
    """torch has a class of its own for a GPU's memory alone."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def unsupported(backend: str, mode: str, reason: str, fusion: str | None = None) -> Arm:
    """An arm that this machine cannot run. The reason may be somebody else's words."""
    return Arm(backend, mode, fusion, status="unsupported", reason=plain(str(reason)))


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A collection inside a timed Python loop would be charged to whichever arm it hits.

    Nothing is collected before either: that walks every object of the process, and after torch.compile it takes
    seconds. What is left over from before is no part of the loop.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Rotation:
    """Whose turn it is among the copies of the weights.

    All arms of a run share one rotation: were each to count for itself, they would walk in step, and every arm
    would find in the cache what the arm before it had just read.
    """

    def __init__(self, copies: int) -> None:
        self.copies, self._next = copies, 0

    def take(self, items: Sequence[Item], n: int, stride: int = 1) -> list[Item]:
        """`items` in the order of the next n steps.

        An item runs `stride` copies, one after the other: item j begins at copy j * stride (modulo the copies), so
        there are copies / gcd(copies, stride) items. With stride 1 there is one a copy.
        """
        step = math.gcd(self.copies, stride)
        # Where the next turn falls inside an item, the item after it is next.
        start = -(-self._next // step) * step % self.copies
        first = next(j for j in range(len(items)) if j * stride % self.copies == start)
        self._next = (start + n * stride) % self.copies
        return [items[(first + i) % len(items)] for i in range(len(items))]


def python_sampler(steps_of: Sequence[Callable[[], object]], rotation: Rotation, repeats: int = 1) -> Sampler:
    """Mode `eager` or `pybind`: a Python loop over one callable a copy. A sample is the mean of `repeats` calls."""

    def sample(n: int) -> np.ndarray:
        samples_us = np.empty(n)
        rotated = rotation.take(steps_of, n * repeats)
        turn, count = 0, len(rotated)
        for i in range(n):
            begin = time.perf_counter_ns()
            for _ in range(repeats):
                rotated[turn]()
                turn += 1
                if turn == count:
                    turn = 0
            samples_us[i] = (time.perf_counter_ns() - begin) / 1000 / repeats
        return samples_us

    return sample


def gate(arms: Sequence[Arm], advance: Callable[[Arm], None] = lambda arm: None) -> None:
    """Compare every runnable arm's output with the reference. A mismatch becomes `wrong`: it is never timed."""
    for arm in arms:
        if arm.status != "ok" or arm.check is None:
            continue
        advance(arm)
        if (comparison := _checked(arm)) is None:
            continue
        arm.max_rel_error = comparison.max_rel_error
        if not comparison.ok:
            arm.status, arm.reason = "wrong", comparison.message


AFTERWARDS = "after it was timed, on other inputs"
"""How a reason begins that :func:`gate_again` finds."""


def gate_again(arms: Sequence[Arm], advance: Callable[[Arm], None] = lambda arm: None) -> None:
    """The second check, of every arm that was timed. A mismatch becomes `wrong` and takes the arm's samples away. Ahead
    of it, on the inputs that were timed, the fall-backs of a unified maximum are counted."""
    for arm in arms:
        if arm.status != "ok" or arm.check is None or arm.sampler is None or not arm.samples_us:
            continue
        advance(arm)
        if arm.counted:
            with torch.inference_mode(), arm.surroundings():
                arm.counted.count(arm.sampler)
        comparison = _checked(arm, arm.sampler)
        if comparison is None or comparison.ok:
            continue
        arm.max_rel_error = comparison.max_rel_error
        arm.status, arm.reason = "wrong", f"{AFTERWARDS}: {comparison.message}"
        arm.samples_us, arm.host_samples_us = [], []


def _checked(arm: Arm, drive: Drive | None = None) -> Comparison | None:
    """What the arm's check says; None where it raised, which is the arm's end."""
    assert arm.check is not None  # who calls this looked
    try:
        with torch.inference_mode(), arm.surroundings():
            return as_check(arm.check)(drive)
    except Exception as error:  # an arm's failure is a result of the run, not the end of it
        arm.fail(error)
        return None


def settle() -> None:
    """Wait until this process computes nothing, at most 50 ms.

    OpenMP's threads (torch's) spin for some 9 ms behind their last parallel region. On a CPU the arm whose turn is next
    would share their cores with them; a kernel of 20 us would be over before they sleep.
    """
    for _ in range(50):
        begin, computed = time.perf_counter(), time.process_time()
        time.sleep(0.001)
        if time.process_time() - computed < 0.2 * (time.perf_counter() - begin):
            return


def alternate(
    arms: Sequence[Arm],
    warmup: int,
    rounds: int,
    advance: Callable[[], None] = lambda: None,
    after_round: Callable[[], object] = lambda: None,
    before_turn: Callable[[], None] = lambda: None,
    ended: Callable[[int], bool] = lambda rounds: False,
) -> bool:
    """Measure the arms that are ok. `before_turn` is called before an arm's two steps, `advance` after every arm of
    every round, `after_round` after its last; `ended` says after how many rounds no more are wanted.

    Returns False when it was interrupted (Ctrl-C): rounds that all arms finished are kept, the begun one is not.
    """
    running = [arm for arm in arms if arm.status == "ok" and arm.sampler is not None]

    def step(arm: Arm, n: int) -> np.ndarray | None:
        assert arm.sampler is not None
        try:
            with named(arm.label), torch.inference_mode(), arm.surroundings():
                return arm.sampler(n)
        except Exception as error:
            arm.fail(error)
            return None

    done = 0
    try:
        with no_garbage_collection():
            for arm in running:
                step(arm, max(warmup, 1))
            for index in range(rounds):
                order = running if index % 2 == 0 else running[::-1]
                for arm in order:
                    before_turn()
                    if arm.status == "ok" and (samples := step(arm, 2)) is not None:
                        arm.samples_us.append(float(samples[1]))
                    advance()
                done += 1
                after_round()
                if ended(done):
                    break
    except KeyboardInterrupt:
        return False
    finally:
        for arm in running:
            del arm.samples_us[done:]
    return True


def measure_host(arms: Sequence[Arm], warmup: int, steps: int) -> None:
    """The host clock of the arms that have one: `steps` samples each."""
    with no_garbage_collection():
        for arm in arms:
            if arm.status == "ok" and arm.host_sampler is not None:
                try:
                    with named(f"{arm.label} host"), torch.inference_mode(), arm.surroundings():
                        arm.host_sampler(max(warmup, 1))
                        arm.host_samples_us = arm.host_sampler(steps).tolist()
                except Exception as error:
                    arm.fail(error)
