"""The samplers of a GPU, on a fake clock: what a sample holds, whose turn it is, what is queued."""

import gc
import math
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from inputs.fake_gpu import GAP_US, KERNEL_US, FakeGraph, fake_gpu

import pykernels as pk
from bench.core import samplers
from bench.core.measure import Rotation
from bench.core.samplers import Samplers, chains, replay_all, steps_for

CUDA = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    with fake_gpu(monkeypatch) as fake:
        yield fake


@pytest.mark.parametrize(("copies", "length"), [(1, 8), (3, 1), (3, 2), (4, 2), (4, 6), (5, 5), (2, 4), (20, 8)])
def test_chains_go_round_the_copies(copies, length):
    found = chains(list(range(copies)), length)
    assert {len(chain) for chain in found} == {length}
    joined = [item for chain in found for item in chain]
    assert joined == [i % copies for i in range(len(joined))]
    assert len(found) == copies // math.gcd(copies, length), "no more graphs than a full turn takes"


@pytest.mark.parametrize(("copies", "length"), [(3, 1), (3, 2), (4, 2), (4, 6), (20, 8)])
def test_the_rotation_goes_on_through_chains(copies, length):
    rotation, graphs = Rotation(copies), chains(list(range(copies)), length)
    first = rotation.take(graphs, 1, length)[0]
    assert first[0] == 0
    second = rotation.take(graphs, 1, length)[0]
    assert second[0] == length % copies
    # Another arm with one item a copy goes on from where the graphs have stopped, and the graphs after it.
    assert rotation.take("abcdefghijklmnopqrst"[:copies], 1)[0] == "abcdefghijklmnopqrst"[2 * length % copies]
    step = math.gcd(copies, length)
    assert rotation.take(graphs, 1, length)[0][0] == -(-(2 * length + 1) // step) * step % copies


def test_a_sample_is_many_steps_between_two_events(gpu):
    log = []
    steps = [lambda: log.append("a"), lambda: log.append("b"), lambda: log.append("c")]
    samples = Samplers(Rotation(3), 4, CUDA).python(steps)(2)
    assert "".join(log) == "abcabcab"
    assert samples.tolist() == [KERNEL_US + GAP_US] * 2


def test_a_torch_graph_s_time_is_a_step_s(gpu):
    graph = FakeGraph(gpu, lambda item, compute: gpu.launch(item), ["a"] * 5, False)
    assert Samplers(Rotation(1), 5, CUDA).torch_graphs([graph])(3).tolist() == [KERNEL_US + GAP_US] * 3
    assert graph.replays == 3 and len(gpu.kernels) == 15


@pytest.mark.parametrize(("launches", "steps"), [(0, 256), (1, 128), (127, 2), (128, 1), (512, 1), (513, 0), (1046, 0)])
def test_steps_per_hold(launches, steps):
    assert pk.runtime.steps_per_hold(launches) == steps


@pytest.mark.parametrize(("launches", "steps"), [(1, 600), (14, 100), (300, 4), (1000, 3)])
def test_what_is_queued_while_the_stream_is_held(gpu, monkeypatch, launches, steps):
    clock_ns = [0]

    def step() -> None:
        assert bool(gpu.held) == (launches <= 512), "more would fill the queue"
        clock_ns[0] += 7000
        gpu.queued += launches if gpu.held else 0
        gpu.most_queued = max(gpu.most_queued, gpu.queued)

    monkeypatch.setattr(samplers, "time", SimpleNamespace(perf_counter_ns=lambda: clock_ns[0]))
    samples = Samplers(Rotation(1), 8, CUDA).host_python([step], launches)(steps)
    assert samples.tolist() == [7.0] * steps
    assert gpu.most_queued <= 512 and not gpu.held


def test_a_replay_is_one_entry_of_the_queue_however_many_kernels_it_launches(gpu):
    held = []
    graph = FakeGraph(gpu, lambda item, compute: held.append(gpu.held), ["a"], False)
    Samplers(Rotation(1), 1, CUDA).host_torch_graphs([graph], 1000)(3)
    assert held == [1, 1, 1]


def test_a_step_that_fails_lets_the_stream_go(gpu):
    def step() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        Samplers(Rotation(1), 1, CUDA).host_python([step], 1)(1)
    assert not gpu.held


def test_the_gate_replays_every_graph(gpu):
    graphs = [FakeGraph(gpu, lambda item, compute: None, [], False) for _ in range(3)]
    replay_all(graphs, 5)()
    assert [graph.replays for graph in graphs] == [1, 1, 1]


@pytest.mark.parametrize(
    ("estimate_us", "copies", "steps"),
    [(500.0, 1, 1), (2.0, 1, 250), (2.0, 29, 261), (0.1, 1, 512), (1e6, 1, 1), (1e6, 3, 3), (0.1, 511, 1022)],
)
def test_how_many_steps_a_sample_has(estimate_us, copies, steps):
    assert steps_for(estimate_us, copies) == steps


@pytest.mark.skipif(not pk.runtime.build_info()["cuda"], reason="needs a build with CUDA kernels")
def test_bad_arguments_of_the_cuda_loops():
    with pk.runtime.record() as on_cpu:
        pk.ops.null(torch.zeros(1))
    with pytest.raises(ValueError, match="CUDA ops"):
        pk.runtime.cuda_timed_loop([on_cpu], 0, 0, 1)
    with pytest.raises(ValueError, match="at least one program"):
        pk.runtime.cuda_timed_loop([], 0, 0, 1)
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        pk.runtime.cuda_timed_loop([on_cpu], 0, 0, 1, 0)
    with pytest.raises(ValueError, match="at least one program"):
        pk.runtime.CudaGraph([])
    with pytest.raises(ValueError, match="needs programs of CUDA ops"):
        pk.runtime.CudaGraph([on_cpu])
    with pytest.raises(ValueError, match="at least one tape"):
        pk.dispatch.cuda_timed_loop([], None, 0, 1)


def test_a_captured_graph_keeps_what_its_steps_read(monkeypatch):
    """A graph replays addresses: were the weights of its steps freed, it would read whatever took their place."""

    class Graph:
        def __init__(self, keep_graph: bool = False) -> None: ...

        def replay(self) -> None: ...

        def capture_begin(self, pool: object) -> None: ...

        capture_end = replay

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    for name in ("graph_pool_handle", "Stream", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for capture in (lambda steps: samplers.capture(steps, 2), samplers.capture_each):
        weights = [torch.ones(1) for _ in range(3)]
        alive = [weakref.ref(weight) for weight in weights]
        graphs = capture([lambda weight=weight: weight + 1 for weight in weights])
        del weights
        gc.collect()
        assert all(ref() is not None for ref in alive)
        del graphs
        gc.collect()
        assert not any(ref() is not None for ref in alive)
