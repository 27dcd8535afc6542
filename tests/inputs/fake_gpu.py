"""A GPU that is none: what the drivers do with one, tried where there is none.

Tensors stay on the CPU under another name, programs run on the CPU kernels, and a clock of whole microseconds goes on
by a fixed time a kernel. So every number that comes out can be told beforehand.
"""

import threading
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import pykernels as pk
from bench.backends import op_arms, plain
from bench.backends.steps import drivers as step_drivers
from bench.core import environment, gpu_state, samplers
from bench.core.samplers import chains
from inputs.helpers import threads, torch_threads
from pykernels.relaunch import Node
from pykernels.trace import Call, Kernel

KERNEL_US, GAP_US, HOST_US = 10, 2, 3
L2_BYTES = 1 << 20


class _OnCpu(TorchFunctionMode):
    """Factories that are asked for `cuda` give CPU tensors."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs["device"] = "cpu"
        if function is torch.Tensor.to:
            args = ["cpu" if isinstance(arg, torch.device) and arg.type == "cuda" else arg for arg in args]
        return function(*args, **kwargs)


class FakeGpu:
    """The clock, what ran, and what was traced. `held` is the number of streams held now. `current` is the current
    device of two or more, `used` those that anything was done on or asked of, by what it was."""

    def __init__(self, devices: int = 1) -> None:
        self.now_us = 0
        self.current = 0
        self.streams = [SimpleNamespace(cuda_stream=4096 * index, device_index=index) for index in range(devices)]
        self.used: dict[str, set[int]] = {}
        self.kernels: list[Kernel] = []
        self.calls: list[Call] = []
        self.held = 0
        self.replaying = self.relaunching = False
        self.queued = self.most_queued = 0
        self.graphs: list[FakeGraph] = []

    def use(self, what: str, device: torch.device | int | None = None) -> int:
        """Note that this is done on a device, the current one unless it is named; which one that is."""
        index = device.index if isinstance(device, torch.device) else device
        index = self.current if index is None else index
        self.used.setdefault(what, set()).add(index)
        return index

    def on_stream(self, what: str, handle: int) -> None:
        """The same by a stream, which must be one of the current device."""
        assert handle == self.streams[self.current].cuda_stream, f"{what} on a stream of another device"
        self.use(what)

    def call(self, name: str) -> None:
        """A call of the host's, in the first half of a gap; what is launched until the next is this one's."""
        start_ns = 1000 * self.now_us
        thread = threading.get_native_id()
        self.calls.append(Call(name, start_ns, start_ns + 500 * GAP_US, len(self.calls) + 1, thread, False))

    def launch(self, name: str) -> None:
        """One kernel after the other, a gap between them; with a call of its own where no graph launches it."""
        self.use("launch")
        if not self.replaying:
            self.call("cudaLaunchKernelExC")
        self.now_us += GAP_US
        begin = self.now_us
        self.now_us += KERNEL_US
        self.kernels.append(
            Kernel(
                name,
                1000 * begin,
                1000 * self.now_us,
                self.current,
                7,
                len(self.calls),
                0,
                (1, 1, 1),
                (32, 1, 1),
                32,
                0,
                0,
            )
        )
        if self.held:
            self.queued += 1
            self.most_queued = max(self.most_queued, self.queued)

    def run(self, program, compute: bool = True) -> None:
        """A program's ops, on the CPU, as kernels of the clock. compute=False: as kernels of the clock alone."""
        ops = program.ops
        if compute and not {"null", "spin"} & set(ops):
            program.run()
        for op in ops:
            self.launch(op)

    def enqueue(self, step, compute: bool = True) -> None:
        """A step of a C++ loop."""
        if isinstance(step, FakeGraph):
            step.replay(0)
        elif isinstance(step, FakeRelaunch):
            step.run()
        elif isinstance(step, pk.dispatch.Tape):
            if compute:
                step.run()
            for call in step.calls:
                self.launch(call)
        else:
            self.run(step, compute)

    def timed_loop(self, steps, stream, warmup, samples, repeats=1):
        """pk.runtime.cuda_timed_loop, and pk.dispatch.cuda_timed_loop. Each sample computes a step once."""
        self.on_stream("timed loop", stream)
        turn, times = 0, []
        for _ in range(samples):
            begin = self.now_us
            for repeat in range(repeats):
                self.enqueue(steps[turn % len(steps)], repeat < len(steps))
                turn += 1
            times.append((self.now_us - begin) / repeats)
        return np.array(times, dtype=np.float64)

    def host_loop(self, steps, stream, warmup, samples):
        """pk.runtime.cuda_host_loop."""
        self.on_stream("host loop", stream)
        for i in range(samples):
            self.enqueue(steps[i % len(steps)])
        return np.full(samples, float(HOST_US))

    @contextmanager
    def trace(self):
        """pk.runtime.cuda_trace."""
        self.use("trace")
        trace = SimpleNamespace(kernels=[], calls=[])
        first_kernel, first_call = len(self.kernels), len(self.calls)
        yield trace
        trace.kernels, trace.calls = self.kernels[first_kernel:], self.calls[first_call:]


class FakeGraph:
    """pk.runtime.CudaGraph; and torch's, of steps in place of programs. A chain of one step computes it once: it would
    compute the same each time."""

    def __init__(self, gpu: FakeGpu, run: Callable, items: list, programmatic: bool) -> None:
        self.gpu, self.run, self.items, self.programmatic, self.replays = gpu, run, items, programmatic, 0
        gpu.use("capture")
        gpu.graphs.append(self)

    def replay(self, stream: int = 0) -> None:
        self.replays += 1
        self.gpu.call("cudaGraphLaunch")
        self.gpu.replaying = True
        computed: set[int] = set()
        for item in self.items:
            self.run(item, id(item) not in computed)
            computed.add(id(item))
        self.gpu.replaying = False


class FakeRelaunch:
    """pk.runtime.Relaunch of a step that launches one kernel."""

    def __init__(self, gpu: FakeGpu, step: Callable, programmatic: tuple[str, ...] = ()) -> None:
        self.gpu, self.step = gpu, step
        attributes = ("programmatic",) if programmatic else ()
        self.branches = 0
        self.nodes = [Node("kernel", "eager", (1, 1, 1), (32, 1, 1), 0, 0, attributes)]

    def __len__(self) -> int:
        return len(self.nodes)

    def run(self, stream: int = 0) -> None:
        self.gpu.relaunching = True
        self.step()
        self.gpu.relaunching = False


class FakeGraphLoop:
    """pk.runtime.GraphLoop: its steps one after another, as kernels of the clock, behind one call of the host's."""

    def __init__(self, gpu: FakeGpu, program, steps: int, token: torch.Tensor) -> None:
        self.gpu, self.program, self.steps, self.token = gpu, program, steps, token
        self.tokens = torch.zeros(steps, token.numel(), dtype=torch.int64)
        self.end_us: list[int] = []

    def run(self, stream: int = 0) -> None:
        self.gpu.call("cudaGraphLaunch")
        self.gpu.replaying, self.end_us = True, [self.gpu.now_us]
        for step in range(self.steps):
            self.gpu.run(self.program)
            self.tokens[step] = self.token
            self.end_us.append(self.gpu.now_us)
        self.gpu.replaying = False

    def step_us(self) -> np.ndarray:
        return np.diff(np.array(self.end_us, dtype=np.float64))


def in_a_captured_step(gpu: FakeGpu) -> bool:
    """Whether a graph is replayed or a captured step launched again."""
    return gpu.replaying or gpu.relaunching


def install(monkeypatch: pytest.MonkeyPatch, traced: bool = True, devices: int = 1) -> FakeGpu:
    """Put the fake in the place of a GPU, until the test ends (the caller enters `_OnCpu` by `fake_gpu`)."""
    gpu = FakeGpu(devices)

    def current_stream(device=None):
        return gpu.streams[gpu.use("stream", device)]

    def set_device(device) -> None:
        index = device.index if isinstance(device, torch.device) else device
        gpu.current = gpu.current if index is None else index

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at = None

        def record(self, on) -> None:
            assert on is gpu.streams[gpu.current] and not gpu.held
            gpu.use("event")
            self.at = gpu.now_us

        def synchronize(self) -> None:
            assert self.at is not None

        def elapsed_time(self, end) -> float:
            return (end.at - self.at) / 1000

    class Hold:
        def __init__(self, device: int, handle: int) -> None:
            assert device == gpu.current
            gpu.on_stream("hold", handle)

        def hold(self) -> None:
            assert not gpu.held
            gpu.held, gpu.queued = 1, 0

        def release(self) -> None:
            gpu.held = 0

    class Monitor:
        def __init__(self, device: torch.device) -> None:
            self.rounds: list = []
            gpu.use("monitor", device)

        def state(self):
            return {"sm_mhz": 1980, "clock_event_reasons": ["GpuIdle"], "temperature_c": 40}

        def poll(self) -> None:
            self.rounds.append({"sm_mhz": 1000 if len(self.rounds) == 1 else 1980, "clock_event_reasons": []})

    def launching(step: Callable) -> Callable:
        """An eager step is one kernel of the clock, whatever it does; a graph's replay has its own."""
        if isinstance(getattr(step, "__self__", None), FakeGraph):
            return step

        def run(compute: bool = True) -> None:
            if compute:
                step()
            gpu.launch("eager")

        return run

    def python_sampler_of(true: Callable) -> Callable:
        return lambda steps, *rest: true([launching(step) for step in steps], *rest)

    def capture(steps, length):
        def run(step, compute: bool) -> None:
            launching(step)(compute)

        return [FakeGraph(gpu, run, chain, False) for chain in chains(steps, length)]

    def capture_each(steps):
        return [graph for step in steps for graph in capture([step], 1)]

    def relaunches(steps, programmatic=(), serialise=False):
        return [FakeRelaunch(gpu, launching(step), programmatic) for step in steps]

    def native_graph(programs, programmatic=False):
        return FakeGraph(gpu, gpu.run, programs, programmatic)

    def tape_loop(tapes, on, warmup, steps, repeats=1, host=False):
        if host:
            return gpu.host_loop(tapes, on.cuda_stream, warmup, steps)
        return gpu.timed_loop(tapes, on.cuda_stream, warmup, steps, repeats)

    @contextmanager
    def using(device):
        before = gpu.current
        set_device(device)
        yield
        gpu.current = before

    def noting(what, value):
        def ask(device=None):
            gpu.use(what, device)
            return value

        return ask

    def properties(device):
        uuid = f"{gpu.use('properties', device)}-1"
        return SimpleNamespace(L2_cache_size=L2_BYTES, multi_processor_count=132, uuid=uuid)

    def environment_of(device):
        return {"name": "NVIDIA H200", "driver": "1.2", "index": gpu.use("environment", device)}

    set_ = monkeypatch.setattr
    built = {"cuda": True, "cuda_architectures": "90a-real"}
    set_(pk.runtime, "build_info", lambda: {**pk.runtime._runtime.build_info(), **built})
    clusters = [0, 0, *(132 // blocks for blocks in range(2, 17))]
    set_(pk.runtime._runtime, "plan_device", lambda index: (132, 227 << 10, True, clusters), raising=False)
    set_(torch.cuda, "is_available", lambda: True)
    set_(torch.cuda, "device_count", lambda: devices)
    set_(torch.cuda, "current_device", lambda: gpu.current)
    set_(torch.cuda, "set_device", set_device)
    set_(torch.cuda, "device", using)
    set_(torch.cuda, "current_stream", current_stream)
    set_(torch.cuda, "synchronize", noting("synchronize", None))
    set_(torch.cuda, "Event", Event)
    set_(torch.cuda, "empty_cache", lambda: None)
    set_(torch.cuda, "reset_peak_memory_stats", noting("memory", None))
    set_(torch.cuda, "max_memory_allocated", noting("memory", 5_000_000))
    set_(torch.cuda, "get_device_name", noting("name", "NVIDIA H200"))
    set_(torch.cuda, "get_device_capability", noting("capability", (9, 0)))
    set_(torch.cuda, "mem_get_info", noting("memory", (1 << 40, 1 << 40)))
    set_(torch.cuda, "get_device_properties", properties)
    true_generator = torch.Generator

    class Generator:
        def __new__(cls, device=None):
            return true_generator()

    set_(torch, "Generator", Generator)
    set_(environment, "_gpu", environment_of)
    set_(gpu_state, "Monitor", Monitor)
    set_(pk.runtime, "StreamHold", Hold, raising=False)
    set_(pk.runtime, "CudaGraph", native_graph, raising=False)
    set_(pk.runtime, "GraphLoop", lambda program, steps, token: FakeGraphLoop(gpu, program, steps, token))
    set_(pk.runtime, "graph_loop_reason", lambda: None)
    set_(pk.runtime, "cuda_timed_loop", gpu.timed_loop)
    set_(pk.runtime, "cuda_host_loop", gpu.host_loop)
    set_(pk.dispatch, "cuda_timed_loop", tape_loop)
    set_(pk.runtime, "trace_reason", lambda: None if traced else "CUPTI is not here", raising=False)
    set_(pk.runtime, "cuda_trace", gpu.trace, raising=False)
    for module in (plain, op_arms, samplers):
        set_(module, "capture", capture)
    for module in (plain, op_arms, samplers, step_drivers):
        set_(module, "relaunches", relaunches, raising=False)
    set_(step_drivers, "capture_each", capture_each)
    set_(samplers, "event_sampler", python_sampler_of(samplers.event_sampler))
    held = python_sampler_of(samplers.held_sampler)
    for module in (samplers, step_drivers):
        set_(module, "held_sampler", held)
    set_("bench.core.ceiling._CUDA_BYTES", 1 << 20)
    set_("bench.core.controls._CUDA_REPEATS", 5)
    return gpu


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch, traced: bool = True, devices: int = 1):
    """The fake, installed. One thread does: its times mean nothing, and threads that wait for one another take long."""
    gpu = install(monkeypatch, traced, devices)
    with torch_threads(1), threads(1), _OnCpu():
        yield gpu
