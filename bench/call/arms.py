"""The arms of somebody's callable: eager, by the dispatcher, captured and launched again, captured and replayed."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.torch_layer import Calls
from bench.call.subject import Restored, Subject, tensors_of
from bench.core import bits, samplers
from bench.core.errors import UnsupportedError
from bench.core.measure import Arm, Rotation, as_check, unsupported
from bench.core.samplers import Samplers
from pykernels.reference import Comparison, compare

MODES = ("eager", "dispatch", "native", "graph")
CAPTURED = ("native", "graph")
NO_CAPTURE = "needs a CUDA device: there is nothing to capture on a CPU"


def compare_all(got: Sequence[Tensor], expected: Sequence[Tensor], depth: int) -> Comparison:
    """The worst of the results against what is expected of them. Integers must be equal."""
    if len(got) != len(expected):
        words = f"must be {len(expected)} tensors, got {len(got)}"
        return Comparison(False, float("inf"), 0.0, (), float("nan"), float("nan"), words)
    found = []
    for i, (one, want) in enumerate(zip(got, expected, strict=True)):
        want = want.to(one.device)
        if one.shape != want.shape:
            words = f"result {i} must be of shape {list(want.shape)}, got {list(one.shape)}"
            return Comparison(False, float("inf"), 0.0, (), float("nan"), float("nan"), words)
        if not one.dtype.is_floating_point:
            if not torch.equal(one, want.to(one.dtype)):
                words = f"result {i}, of {one.dtype}, must be equal to what is expected"
                return Comparison(False, float("inf"), 0.0, (), float("nan"), float("nan"), words)
            continue
        if one.numel():
            dtype = one.dtype if one.dtype in (torch.bfloat16, torch.float16) else torch.float32
            found.append(compare(one.reshape(-1, one.shape[-1] if one.dim() else 1),
                                 want.reshape(-1, want.shape[-1] if want.dim() else 1), dtype, depth))  # fmt: skip
    if not found:
        return Comparison(True, 0.0, 0.0, (), 0.0, 0.0, "equal")
    return max(found, key=lambda comparison: comparison.max_rel_error / comparison.tolerance)


class Maker:
    """Makes the arms over the copies of a subject.

    expected: what a call must return, where that is known; else the captured modes are held to an eager call, and eager
    has nothing but itself. depth: how many ops' roundings the comparison allows. serialise: launch a step's parallel
    branches one after another.
    """

    def __init__(
        self,
        copies: Sequence[Subject],
        repeats: int,
        device: torch.device,
        expected: Sequence[Tensor] | None,
        depth: int,
        serialise: bool,
    ) -> None:
        self.copies, self.expected, self.depth, self.serialise = copies, expected, depth, serialise
        self.first, self.restored = copies[0], Restored(copies[0])
        self.samplers = Samplers(Rotation(len(copies)), repeats, device)
        self.steps = [subject.step for subject in copies]
        self.notes: list[str] = []
        with torch.inference_mode(), Calls() as calls:
            self.first.step()
        self.restored.restore()
        self.calls = calls.names
        self.name = "call"

    def arm(self, mode: str) -> Arm:
        """The arm of one mode; what cannot be had is unsupported, what fails an error."""
        if mode in CAPTURED and not self.samplers.on_cuda:
            return unsupported(self.name, mode, NO_CAPTURE)
        arm = Arm(self.name, mode, kernels=self.calls, launches=len(self.calls))
        try:
            with torch.inference_mode():
                getattr(self, f"_{mode}")(arm)
        except NotImplementedError as error:
            arm.status, arm.reason = "unsupported", str(error)
        except Exception as error:  # the callable's own words are the result
            arm.fail(error)
        finally:
            self.restored.restore()
        if not self.samplers.on_cuda:
            arm.host_sampler = None
        return arm

    def _eager(self, arm: Arm) -> None:
        arm.sampler = self.samplers.python(self.steps)
        arm.host_sampler = self.samplers.host_python(self.steps, max(arm.launches, 1))
        if self.expected is not None:
            arm.check = as_check(partial(self._compared, self.first.step, lambda: self.first.written))
        else:
            arm.check = as_check(self._finite)

    def _dispatch(self, arm: Arm) -> None:
        def record(subject: Subject) -> pk.dispatch.Tape:
            def call() -> list[Tensor]:
                subject.step()
                return subject.written

            return pk.dispatch.Tape.record(call)

        try:
            tapes = [record(subject) for subject in self.copies]
        except Exception as error:  # make_fx refuses what depends on values, in many words of its own
            raise UnsupportedError(f"no tape can be recorded of it: {str(error).strip().splitlines()[0]}") from None
        self.restored.restore()
        arm.launches = len(tapes[0].calls)
        arm.sampler, arm.host_sampler = self.samplers.tapes(tapes), self.samplers.host_tapes(tapes)
        arm.check = as_check(partial(self._compared, tapes[0].run, tapes[0].outputs))

    def _native(self, arm: Arm) -> None:
        again = samplers.relaunches(self.steps, serialise=self.serialise)
        arm.nodes, arm.launches = again[0].nodes, len(again[0])
        if again[0].branches:
            self.notes.append(
                f"native launches parallel branches one after another: {again[0].branches} of {len(again[0])} nodes do "
                "not wait for the one before them"
            )
        if any(node.kind == "memcpy" and "host" in node.name for node in arm.nodes):
            self.notes.append("the captured step copies from or to host memory: what lies there is read at each launch")
        arm.sampler, arm.host_sampler = self.samplers.programs(again), self.samplers.host_programs(again)
        arm.check = as_check(self._captured(arm, partial(again[0].run, self.samplers.stream)))

    def _graph(self, arm: Arm) -> None:
        graphs = samplers.capture(self.steps, self.samplers.repeats)
        arm.sampler = self.samplers.torch_graphs(graphs)
        arm.host_sampler = self.samplers.host_torch_graphs(graphs, max(arm.launches, 1))
        arm.steps_per_graph = self.samplers.repeats
        # A graph of many steps leaves a state that many steps make: it is checked by one of one step.
        (one,) = samplers.capture(self.steps[:1], 1)
        arm.check = as_check(self._captured(arm, one.replay))

    def _captured(self, arm: Arm, run: Callable[[], object]) -> Callable[[], Comparison]:
        """The check of a mode that runs a captured step: against what is expected or an eager call, and whether the
        bits are the eager call's, inputs that are written into too."""
        held = self.first.result

        def results(step: Callable[[], object], captured: bool) -> list[Tensor]:
            self.restored.restore()
            if captured:
                self.first.result = held
                bits.poison(_apart(tensors_of(held), self.first.state + self.first.weights))
            step()
            return [*self.first.written, *self.restored.changed()]

        def check() -> Comparison:
            eager = [tensor.clone() for tensor in results(self.first.step, False)]
            again = [tensor.clone() for tensor in results(run, True)]
            twice = [tensor.clone() for tensor in results(self.first.step, False)]
            self.restored.restore()
            if not all(map(bits.same_bits, eager, twice)):
                arm.against_eager = bits.NOT_DETERMINISTIC
            else:
                same = len(eager) == len(again) and all(map(bits.same_bits, eager, again))
                arm.against_eager = bits.EQUAL if same else bits.DIFFERENT
            if self.expected is not None:
                return compare_all(again[: len(tensors_of(held))], self.expected, self.depth)
            return compare_all(again, eager, self.depth)

        return check

    def _compared(self, step: Callable[[], object], results: Callable[[], Sequence[Tensor]]) -> Comparison:
        if self.expected is None:
            self.restored.restore()
            self.first.step()
            expected: Sequence[Tensor] = [tensor.clone() for tensor in self.first.written]
        else:
            expected = self.expected
        self.restored.restore()
        step()
        comparison = compare_all(results(), expected, self.depth)
        self.restored.restore()
        return comparison

    def _finite(self) -> Comparison:
        self.first.step()
        expected = [tensor.clone() for tensor in self.first.written]
        self.restored.restore()
        return compare_all(expected, expected, self.depth)


def _apart(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """Those of the tensors that share no memory with the others: a result may be one of the inputs."""
    taken = {tensor.untyped_storage().data_ptr() for tensor in others}
    return [tensor for tensor in tensors if tensor.untyped_storage().data_ptr() not in taken]
