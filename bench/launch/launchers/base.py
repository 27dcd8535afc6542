"""What a launcher is to bench.launch: a way to launch an empty kernel, and the clocks that it is read by."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

import pykernels as pk
from bench.core.errors import UnsupportedError, one_line
from bench.core.library import library_reason
from bench.core.measure import Rotation, python_sampler
from bench.core.samplers import event_sampler, held_sampler

ARGUMENTS = (0, 1, 8, 32)
"""Pointer arguments that the empty kernels have."""


class Ready(ABC):
    """A launcher with everything made that can be made before a launch."""

    @abstractmethod
    def host(self, n: int) -> np.ndarray:
        """What each of n launches takes the host, on a GPU while the stream is held: float64 [n], microseconds."""

    @abstractmethod
    def back_to_back(self, samples: int, launches: int) -> np.ndarray:
        """Microseconds from one launch to the next, each sample the mean of so many: float64 [samples]."""

    @abstractmethod
    def enqueue(self, n: int) -> None:
        """n launches."""


class FromPython(Ready):
    """A launch that is one call from Python, on torch's current stream where it is a GPU's."""

    def __init__(self, call: Callable[[], object], device: torch.device) -> None:
        self.call, self._on_cuda = call, device.type == "cuda"

    def host(self, n: int) -> np.ndarray:
        if self._on_cuda:
            return held_sampler([self.call], Rotation(1), 1)(n)
        return python_sampler([self.call], Rotation(1))(n)

    def back_to_back(self, samples: int, launches: int) -> np.ndarray:
        if self._on_cuda:
            return event_sampler([self.call], Rotation(1), launches)(samples)
        return python_sampler([self.call], Rotation(1), launches)(samples)

    def enqueue(self, n: int) -> None:
        for _ in range(n):
            self.call()


@dataclass(frozen=True)
class FromCpp(Ready):
    """A C++ loop on a GPU. timed(warmup, samples, repeats, host) takes its samples, run() enqueues a call, which is of
    `launches` launches."""

    timed: Callable[[int, int, int, bool], np.ndarray]
    run: Callable[[], object]
    launches: int = 1

    def host(self, n: int) -> np.ndarray:
        return self.timed(0, -(-n // self.launches), 1, True) / self.launches

    def back_to_back(self, samples: int, launches: int) -> np.ndarray:
        return self.timed(1, samples, -(-launches // self.launches), False) / self.launches

    def enqueue(self, n: int) -> None:
        for _ in range(-(-n // self.launches)):
            self.run()


def current_stream() -> int:
    """Torch's current stream, a cudaStream_t."""
    return torch.cuda.current_stream().cuda_stream


class Launcher(ABC):
    """One way to launch. Subclasses are listed in bench.launch.launchers; each file is the only one that imports its
    library."""

    name: ClassVar[str]
    description: ClassVar[str]
    devices: ClassVar[Sequence[str]] = ("cuda",)
    arguments: ClassVar[Sequence[int]] = ARGUMENTS
    """Of which the kernel can have that many. Where it is one alone, the launcher's kernel is not ours."""
    install_hint: ClassVar[str | None] = None
    package: ClassVar[str | None] = None
    """What it imports, in words of Python's import."""

    @classmethod
    def counts(cls, device: torch.device) -> Sequence[int]:
        """Of ARGUMENTS those that it launches kernels of there: on a CPU the launch is our null op's, which names one
        tensor."""
        return cls.arguments if device.type == "cuda" else (1,)

    @classmethod
    def reason(cls, device: torch.device) -> str | None:
        """Why it does not run on that device, in the library's words; None where it does."""
        if device.type not in cls.devices:
            return "needs a CUDA device" if cls.devices == ("cuda",) else f"has no launch for {device.type}"
        return library_reason(cls.package, cls.library) if cls.package else None

    @classmethod
    def library(cls) -> Any:
        """Import the library. Raises what importing it raises."""
        import importlib

        assert cls.package is not None  # a launcher without a package has a library() of its own
        return importlib.import_module(cls.package)

    def ready(self, arguments: int, device: torch.device) -> Ready:
        """make(). Raises UnsupportedError where the library lacks something of its own, or of another library's, that
        launching takes: many load what they need only then, and name what is too new or too old."""
        try:
            return self.make(arguments, device)
        except (ImportError, AttributeError) as error:
            if self.package is None:
                raise
            raise UnsupportedError(f"{self.package} cannot launch here: {one_line(error)}") from None

    @abstractmethod
    def make(self, arguments: int, device: torch.device) -> Ready:
        """Ready to launch a kernel of so many arguments; it has launched once."""


def held(call: Any, *what: object) -> None:
    """Keep what the addresses in a call are of as long as the call."""
    call.held = what


def pointers(count: int, device: torch.device) -> list[torch.Tensor]:
    """Tensors of one element each, to be the arguments."""
    return [torch.zeros(1, device=device) for _ in range(count)]


def null_program(device: torch.device) -> pk.runtime.Program:
    """Our null op, bound."""
    x = torch.zeros(1, device=device)
    with pk.runtime.record() as program:
        pk.ops.null(x)
    return program
