"""What bench.call measures: a callable with its inputs, what it writes, and what must move."""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bench.core import bits
from bench.core.errors import UsageError, flag_error, one_line
from bench.core.paths import user_path
from bench.plugins.user_file import run_file


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of nested lists, tuples, dictionaries and what else torch's pytree knows, in order, each once."""
    found = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
    return list({id(tensor): tensor for tensor in found}.values())


@dataclass
class Subject:
    """One copy of a callable and its inputs. `result` is what the last call returned."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    result: Any = None

    def step(self) -> None:
        """One call."""
        self.result = self.function(*self.args, **self.kwargs)

    @property
    def written(self) -> list[Tensor]:
        """What the last call returned, tensors alone."""
        return tensors_of(self.result)

    @property
    def state(self) -> list[Tensor]:
        """What a call may write besides: its inputs, a module's buffers."""
        buffers = list(self.function.buffers()) if isinstance(self.function, torch.nn.Module) else []
        return tensors_of([self.args, self.kwargs, buffers])

    @property
    def weights(self) -> list[Tensor]:
        """A module's parameters and buffers; nothing is known of another callable's."""
        if not isinstance(self.function, torch.nn.Module):
            return []
        return tensors_of([list(self.function.parameters()), list(self.function.buffers())])

    def n_bytes(self) -> int:
        """The bytes of weights, inputs and results, each once: what a call must move at least, where it uses all of
        them. It must have been called."""
        everything = tensors_of([self.weights, self.args, self.kwargs, self.result])
        return sum(tensor.numel() * tensor.element_size() for tensor in everything)

    def weight_bytes(self) -> int:
        """The bytes of the weights and the inputs: what a call may find in the cache."""
        return sum(t.numel() * t.element_size() for t in tensors_of([self.weights, self.args, self.kwargs]))

    def clone(self) -> "Subject":
        """A copy with memory of its own. Of a callable that is no module only the inputs are copied: what it closes
        over cannot be."""
        function = self.function
        if isinstance(function, torch.nn.Module):
            function = copy.deepcopy(function)
        return Subject(function, copy.deepcopy(self.args), copy.deepcopy(self.kwargs))


class Restored:
    """Puts a subject's state back to what it was: a call that writes into its inputs (a cache, a counter) finds the
    same before every check."""

    def __init__(self, subject: Subject) -> None:
        self._tensors = subject.state
        self._before = [tensor.clone() for tensor in self._tensors]

    def restore(self) -> None:
        """Write back what differs."""
        for tensor, before in zip(self._tensors, self._before, strict=True):
            if not bits.same_bits(tensor, before):
                tensor.copy_(before)

    def changed(self) -> list[Tensor]:
        """The tensors that are not what they were."""
        return [
            tensor
            for tensor, before in zip(self._tensors, self._before, strict=True)
            if not bits.same_bits(tensor, before)
        ]


def _called(flag: str, text: str, make: Callable[..., Any], device: torch.device) -> Any:
    try:
        wants_device = len(inspect.signature(make).parameters) > 0
    except (TypeError, ValueError):
        wants_device = False
    try:
        return make(device) if wants_device else make()
    except UsageError:
        raise
    except Exception as error:  # a user's own words
        raise UsageError(f"{flag}={text}: raised {one_line(error)}") from error


def load(text: str, device: torch.device) -> tuple[Subject, Callable[..., Any] | None]:
    """FILE.py:name as a subject and its reference, None where it has none.

    `name` is a function of nothing, or of the device, that returns (callable, inputs) or (callable, inputs, reference):
    inputs are a tuple of arguments, a dictionary of keywords, or one tensor; the reference takes the same. Raises
    UsageError, one line, for anything else.
    """
    file, _, name = text.rpartition(":")
    path = user_path("FILE.py:name", file)
    if not file or path.suffix != ".py" or not name.isidentifier():
        raise flag_error("FILE.py:name", text, "a Python file and the name of a function in it")
    if not path.is_file():
        raise flag_error("FILE.py:name", text, f"a file that is there: {path} is not")
    try:
        module = run_file(path)
    except Exception as error:  # whatever a user's file raises
        raise UsageError(f"FILE.py:name={text}: {path.name} raised {one_line(error)}") from error
    make = getattr(module, name, None)
    if make is None:
        own = [
            n for n, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise flag_error("FILE.py:name", text, f"a function of the file, which has {', '.join(own) or 'none'}")
    made = _called("FILE.py:name", text, make, device) if callable(make) else make
    return subject_of(text, made)


def subject_of(text: str, made: Any) -> tuple[Subject, Callable[..., Any] | None]:
    """What a maker returned as a subject and its reference."""
    allowed = "a function that returns (callable, inputs) or (callable, inputs, reference)"
    if not isinstance(made, Sequence) or len(made) not in (2, 3) or not callable(made[0]):
        raise flag_error("FILE.py:name", text, f"{allowed}, and it returned {type(made).__name__}")
    function, inputs, *reference = made
    if reference and not callable(reference[0]):
        raise flag_error("FILE.py:name", text, f"{allowed}, and its reference is {type(reference[0]).__name__}")
    if isinstance(inputs, dict):
        subject = Subject(function, (), dict(inputs))
    else:
        subject = Subject(function, tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,))
    return subject, reference[0] if reference else None


def expected_from(path: str, count: int) -> list[Tensor]:
    """Saved outputs: a safetensors file of tensors named 0, 1, ..., as many as a call returns."""
    from safetensors.torch import load_file

    file = user_path("--expected", path)
    try:
        saved = load_file(file)
    except Exception as error:
        raise UsageError(f"--expected={path}: cannot be read as safetensors: {one_line(error)}") from None
    names = [str(i) for i in range(count)]
    if sorted(saved) != sorted(names):
        raise flag_error("--expected", path, f"of the tensors {', '.join(names)}: it has {', '.join(sorted(saved))}")
    return [saved[name] for name in names]
