"""Mode ``dispatch``: what a function asks of PyTorch's dispatcher, replayed by a C++ loop.

``Tape.record(function, *tensors)`` traces the function once before autograd and before composite ops are taken
apart (make_fx with pre_dispatch), so the tape makes the calls that Python made: ``aten::linear``, not what it
falls into. Tensors the function closes over become constants of the tape; Python's control flow is fixed.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from pykernels import _runtime

_ops = torch.ops.pykernels


class Tape:
    """A straight line of dispatcher calls. Made by :meth:`record`.

    ``calls`` lists their names in order, such as ``aten::linear``.
    """

    def __init__(self) -> None:
        self._id = _ops.tape_new()
        self._slots: dict[Node, int] = {}
        self._outputs: list[int] = []
        self.calls: list[str] = []

    def __del__(self) -> None:
        _ops.tape_delete(self._id)

    @classmethod
    def record(cls, function: Callable[..., object], *tensors: Tensor) -> "Tape":
        """Run ``function(*tensors)`` once and record the dispatcher calls it makes.

        The function returns a tensor, a sequence of tensors or None. Raises NotImplementedError, naming the op and
        the argument, where an argument is of a type that the stable ABI cannot pass.
        """
        with torch.inference_mode():
            traced = make_fx(function, pre_dispatch=True)(*tensors)
        tape = cls()
        inputs = iter(tensors)
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                tape._slots[node] = _ops.tape_tensor(tape._id, next(inputs))
            elif node.op == "get_attr":
                tape._slots[node] = _ops.tape_tensor(tape._id, getattr(traced, node.target))
            elif node.op == "call_function":
                tape._append(node)
            elif node.op == "output":
                returned = node.args[0]
                returned = returned if isinstance(returned, (tuple, list)) else [returned]
                tape._outputs = [tape._slots[result] for result in returned if result is not None]
        return tape

    def _append(self, node: Node) -> None:
        if node.target is operator.getitem:  # one result of an op that returns several
            source, index = node.args
            assert isinstance(source, Node) and isinstance(index, int)
            self._slots[node] = self._slots[source] + index
            return
        assert isinstance(node.target, torch._ops.OpOverload), node.target
        schema = node.target._schema
        for returned in schema.returns:
            if str(returned.type) != "Tensor":
                raise NotImplementedError(f"{schema.name}: a result of type {returned.type} cannot go on a tape")
        kinds, ints, numbers = "", [], []
        for index, argument in enumerate(schema.arguments):
            if index < len(node.args):
                value = node.args[index]
            else:
                value = node.kwargs.get(argument.name, argument.default_value)
            if schema.name == "aten::add" and argument.name == "alpha":
                if value != 1:
                    raise NotImplementedError(f"aten::add: alpha must be 1, got {value}")
                continue
            kind, argument_ints, argument_numbers = self._encode(schema.name, argument, value)
            kinds += kind
            ints += argument_ints
            numbers += argument_numbers
        slot = _ops.tape_call(self._id, schema.name, schema.overload_name, kinds, ints, numbers, len(schema.returns))
        self._slots[node] = slot
        self.calls.append(schema.name)

    def _encode(self, op: str, argument: torch.Argument, value: object) -> tuple[str, list[int], list[float]]:
        # The letters are those of binding/dispatch_tape.cpp; a capital says that the schema's type is optional.
        declared = str(argument.type)
        optional = declared.startswith("Optional")
        if value is None and optional:
            return "n", [], []
        if isinstance(value, Node):
            return ("T" if optional else "t"), [self._slots[value]], []
        if isinstance(value, (list, tuple)):
            if not optional and all(isinstance(item, Node) for item in value):
                return "s", [len(value), *(self._slots[item] for item in value)], []
            if not optional and all(type(item) is int for item in value):
                return "l", [len(value), *value], []
        elif "bool" in declared and type(value) is bool and not optional:
            return "b", [int(value)], []
        elif "float" in declared and isinstance(value, (int, float)):
            return ("F" if optional else "f"), [], [float(value)]
        elif "int" in declared and type(value) is int:
            return ("I" if optional else "i"), [value], []
        raise NotImplementedError(f"{op}: argument {argument.name} of type {declared} cannot go on a tape: {value!r}")

    def run(self) -> None:
        """Make all calls once."""
        with torch.inference_mode():
            _ops.tape_run(self._id)

    def outputs(self) -> list[Tensor]:
        """What the function returned, as of the last run."""
        return [_ops.tape_slot(self._id, slot) for slot in self._outputs]

    def timed_loop(self, warmup: int, steps: int, repeats: int = 1) -> np.ndarray:
        """Time this tape alone: see :func:`timed_loop`."""
        return timed_loop([self], warmup, steps, repeats)


def timed_loop(tapes: Sequence[Tape], warmup: int, steps: int, repeats: int = 1) -> np.ndarray:
    """Time ``steps`` samples of the tapes in rotation, in C++; as ``pykernels.runtime.timed_loop``.

    Returns float64 [steps], microseconds a run.
    """
    _check(tapes, warmup, steps, repeats)
    samples_us = torch.zeros(steps, dtype=torch.float64)
    with torch.inference_mode(), _interruptible():
        _ops.tape_timed_loop([tape._id for tape in tapes], warmup, repeats, samples_us)
    return samples_us.numpy()


@contextmanager
def _interruptible() -> Iterator[None]:
    """The loop's exception becomes what a signal's handler raised meanwhile: KeyboardInterrupt for Ctrl-C."""
    try:
        yield
    except RuntimeError:
        _runtime.raise_interrupt()
        raise


def _check(tapes: Sequence[Tape], warmup: int, steps: int, repeats: int) -> None:
    if not tapes:
        raise ValueError("tapes must hold at least one tape, got none")
    for name, value, low in (("warmup", warmup, 0), ("steps", steps, 1), ("repeats", repeats, 1)):
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")


def cuda_timed_loop(
    tapes: Sequence[Tape], stream: torch.cuda.Stream, warmup: int, steps: int, repeats: int = 1, host: bool = False
) -> np.ndarray:
    """Time tapes of CUDA ops, which run on torch's current stream: it must be ``stream``.

    As ``pykernels.runtime.cuda_timed_loop``; with ``host``, as ``cuda_host_loop`` (``repeats`` is 1 then).

    Returns float64 [steps], microseconds a run.
    """
    _check(tapes, warmup, steps, repeats)
    samples_us = torch.zeros(steps, dtype=torch.float64)
    ids = [tape._id for tape in tapes]
    with torch.inference_mode(), _interruptible():
        _ops.tape_cuda_timed_loop(ids, stream.device_index, stream.cuda_stream, warmup, repeats, host, samples_us)
    return samples_us.numpy()
