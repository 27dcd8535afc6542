"""Captured steps launched again: on a made-up libcuda (tests/native/fake_driver.cpp) everywhere, on a GPU for real."""

import ctypes
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pykernels as pk
from pykernels import _runtime

FAKE = Path(__file__).parents[2] / "build" / sysconfig.get_config_var("SOABI") / "tests/native/libfake_driver.so"
HAS_CUDA = pk.runtime.build_info()["cuda"]

needs_fake = pytest.mark.skipif(not (HAS_CUDA and FAKE.exists()), reason="needs a CUDA build")
needs_gpu = pytest.mark.skipif(not (HAS_CUDA and torch.cuda.is_available()), reason="needs a CUDA build and a GPU")

HOST, DEVICE, ARRAY, UNIFIED = 1, 2, 3, 4  # CUmemorytype
MANGLED = "_ZN9pykernels4cuda11gemv_kernelIfLi4EEEvPKT_"


class Graph:
    """A graph of the made-up driver."""

    def __init__(self) -> None:
        library = self.library = ctypes.CDLL(str(FAKE))
        for name in ("fake_graph", "fake_kernel", "fake_memset", "fake_memcpy", "fake_other"):
            getattr(library, name).restype = ctypes.c_void_p
        library.fake_log.restype = ctypes.c_char_p
        self.handle = ctypes.c_void_p(library.fake_graph())
        self.count = 0

    def kernel(self, name: str = "k", grid=4, block=64, shared=0, argument=7, as_library=0, **attributes) -> int:
        node = ctypes.c_void_p(
            self.library.fake_kernel(self.handle, name.encode(), grid, block, shared, argument, as_library)
        )
        for attribute, value in attributes.items():
            words = [*(value if isinstance(value, tuple) else (value,)), 0, 0, 0][:4]
            self.library.fake_attribute(node, int(attribute.removeprefix("a")), *words)
        return self._counted()

    def memset(self, element: int, value: int, width: int, height: int = 1, pitch: int = 0) -> int:
        self.library.fake_memset(self.handle, element, value, *(ctypes.c_size_t(n) for n in (width, height, pitch)))
        return self._counted()

    def memcpy(
        self, source: int, destination: int, width: int, height: int = 1, depth: int = 1, offset: int = 0
    ) -> int:
        sizes = (ctypes.c_size_t(n) for n in (width, height, depth, offset))
        self.library.fake_memcpy(self.handle, source, destination, *sizes)
        return self._counted()

    def other(self, kind: int) -> int:
        self.library.fake_other(self.handle, kind)
        return self._counted()

    def edges(self, *pairs: tuple[int, ...]) -> "Graph":
        for begin, end, *port in pairs:
            self.library.fake_edge(self.handle, ctypes.c_size_t(begin), ctypes.c_size_t(end), *(port or [0]))
        return self

    def chain(self) -> "Graph":
        return self.edges(*((i, i + 1) for i in range(self.count - 1)))

    def _counted(self) -> int:
        self.count += 1
        return self.count - 1

    def relaunch(self, **options) -> pk.runtime.Relaunch:
        graph = SimpleNamespace(raw_cuda_graph=lambda: self.handle.value)
        return pk.runtime.Relaunch(graph, device=0, library=str(FAKE), **options)

    def log(self, again: pk.runtime.Relaunch, stream: int = 0) -> list[str]:
        """What a run of the step asks of the driver."""
        self.library.fake_log_clear()
        again.run(stream)
        return self.library.fake_log().decode().splitlines()


@pytest.fixture
def graph() -> Iterator[Graph]:
    graph = Graph()
    yield graph
    graph.library.fake_fail(b"")
    graph.library.fake_graph_delete(graph.handle)


@needs_fake
def test_a_chain_of_kernels(graph):
    graph.kernel(MANGLED, grid=4, block=64, shared=100, argument=11)
    graph.kernel("triton_red_fused_0", grid=1, block=32, argument=-3, as_library=1)
    again = graph.chain().relaunch()
    assert len(again) == 2 and again.branches == 0
    assert [node.name for node in again.nodes] == [
        "void pykernels::cuda::gemv_kernel<float, 4>(float const*)", "triton_red_fused_0"
    ]  # fmt: skip
    first = again.nodes[0]
    assert (first.kind, first.grid, first.block, first.shared_bytes) == ("kernel", (4, 2, 3), (64, 1, 1), 100)
    assert first.attributes == ()
    assert graph.log(again, stream=5) == [
        f"launch {MANGLED} grid 4,2,3 block 64 shared 100 argument 11 stream 5",
        "launch triton_red_fused_0 grid 1,2,3 block 32 shared 0 argument -3 stream 5",
    ]
    assert len(graph.log(again)) == 2  # any number of times


@needs_fake
@pytest.mark.parametrize(
    ("attribute", "value", "words", "launched"),
    [
        ("a4", (2, 1, 1), "cluster 2x1x1", "4=2"),
        ("a2", 1, "cooperative", "2=1"),
        ("a8", 5, "priority 5", "8=5"),
        ("a14", 50, "shared memory carveout 50%", "14=50"),
        ("a5", 1, "clusters spread", "5=1"),
        ("a10", 1, "remote memory sync domain", "10=1"),
        ("a14", 2**32 - 1, None, None),  # -1: the default
        ("a11", (2, 1, 1), None, None),  # refused by the driver: no kernel can have it
        ("a4", (0, 0, 0), None, None),
    ],
)
def test_attributes(graph, attribute, value, words, launched):
    graph.kernel(**{attribute: value})
    again = graph.relaunch()
    assert again.nodes[0].attributes == ((words,) if words else ())
    (line,) = graph.log(again)
    assert line.endswith(f"attribute {launched}" if launched else "stream 0")


@needs_fake
@pytest.mark.parametrize(
    ("port", "said"), [(0, ()), (1, ("programmatic",)), (2, ())], ids=["full", "programmatic", "launch order"]
)
def test_a_programmatic_edge_is_a_programmatic_launch(graph, port, said):
    graph.kernel("a"), graph.kernel("b")
    again = graph.edges((0, 1, port)).relaunch()
    assert again.nodes[1].attributes == said and again.nodes[0].attributes == ()
    assert ("attribute 6=1" in graph.log(again)[1]) == bool(said)


@needs_fake
def test_who_waits_for_another_in_full_is_not_launched_programmatically(graph):
    graph.kernel("a"), graph.kernel("b"), graph.kernel("c")
    again = graph.edges((0, 1, 1), (1, 2, 1), (0, 2, 0)).relaunch()
    assert [node.attributes for node in again.nodes] == [(), ("programmatic",), ()]


@needs_fake
def test_kernels_that_ask_for_it_are_launched_programmatically(graph):
    graph.kernel("elementwise"), graph.kernel("my_kernel")
    again = graph.chain().relaunch(programmatic=["my_kernel"])
    assert [node.attributes for node in again.nodes] == [(), ("programmatic",)]
    assert [("attribute 6=1" in line) for line in graph.log(again)] == [False, True]


@needs_fake
@pytest.mark.parametrize("element", [1, 2, 4])
def test_memsets(graph, element):
    graph.memset(element, 9, 100)
    graph.memset(element, 9, 100, height=3, pitch=512)
    again = graph.chain().relaunch()
    assert [(node.kind, node.bytes) for node in again.nodes] == [("memset", 100 * element), ("memset", 300 * element)]
    assert graph.log(again) == [f"memset{8 * element} 4096 9 100", f"memset{8 * element} 9 100x3 pitch 512"]


@needs_fake
def test_a_memset_of_other_elements_is_refused(graph):
    graph.memset(8, 0, 1)
    with pytest.raises(ValueError, match="memset of elements of 8 bytes"):
        graph.relaunch()


@needs_fake
def test_memcpys(graph):
    graph.memcpy(DEVICE, DEVICE, 64)
    graph.memcpy(HOST, UNIFIED, 64, offset=16)
    graph.memcpy(DEVICE, HOST, 8)
    graph.memcpy(DEVICE, DEVICE, 64, height=2)
    graph.memcpy(DEVICE, DEVICE, 64, depth=4)
    graph.memcpy(ARRAY, DEVICE, 64)
    again = graph.chain().relaunch()
    assert [node.name for node in again.nodes] == [
        "memcpy device to device", "memcpy host to device", "memcpy device to host", "memcpy device to device",
        "memcpy device to device", "memcpy array to device",
    ]  # fmt: skip
    assert [node.bytes for node in again.nodes] == [64, 64, 8, 128, 256, 64]
    assert graph.log(again) == [
        "memcpy 16384 to 20480 64", f"memcpy {0x2000 + 16} to 20480 64", f"memcpy {0x4000} to {0x3000} 8",
        "memcpy3d 64x2x1", "memcpy3d 64x1x4", "memcpy3d 64x1x1",
    ]  # fmt: skip


@needs_fake
def test_the_edges_order_the_nodes_not_their_making(graph):
    for name in "cab":
        graph.kernel(name)
    again = graph.edges((1, 2), (2, 0)).relaunch()  # a before b before c
    assert [node.name for node in again.nodes] == ["a", "b", "c"] and again.branches == 0


@needs_fake
def test_parallel_branches(graph):
    for name in ("begin", "left", "right", "end"):
        graph.kernel(name)
    graph.edges((0, 1), (0, 2), (1, 3), (2, 3))
    with pytest.raises(ValueError, match=r"parallel branches \(1 nodes do not wait for the one before them\)"):
        graph.relaunch()
    again = graph.relaunch(serialise=True)
    assert again.branches == 1 and [node.name for node in again.nodes] == ["begin", "left", "right", "end"]


@needs_fake
def test_empty_nodes_order_and_launch_nothing(graph):
    graph.kernel("a"), graph.other(5), graph.kernel("b")
    again = graph.chain().relaunch()
    assert [node.name for node in again.nodes] == ["a", "b"]


@needs_fake
@pytest.mark.parametrize(
    ("kind", "words"),
    [(3, "a host function"), (4, "a child graph"), (6, "an external event"), (7, "an external event"),
     (8, "an external semaphore"), (10, "an allocation"), (12, "a batch of memory operations"),
     (13, "a conditional node"), (77, "a node of a kind unknown here")],
)  # fmt: skip
def test_what_cannot_be_launched_by_itself(graph, kind, words):
    graph.kernel(), graph.other(kind)
    with pytest.raises(ValueError, match=f"^the captured step holds {words}"):
        graph.chain().relaunch()


@needs_fake
def test_a_step_that_launches_nothing(graph):
    with pytest.raises(ValueError, match="launches nothing"):
        graph.relaunch()


@needs_fake
def test_a_cycle_is_no_step(graph):
    graph.kernel("a"), graph.kernel("b")
    with pytest.raises(ValueError, match="cycle"):
        graph.edges((0, 1), (1, 0)).relaunch()


@needs_fake
def test_a_failing_launch_names_the_kernel_and_the_driver_s_words(graph):
    graph.kernel("my_kernel")
    again = graph.relaunch()
    graph.library.fake_fail(b"cuLaunchKernelEx")
    words = r"launch of my_kernel failed: CUDA_ERROR_LAUNCH_FAILED \(719\), unspecified launch failure"
    with pytest.raises(RuntimeError, match=words):
        again.run()


@needs_fake
def test_a_failing_look_at_the_graph(graph):
    graph.library.fake_fail(b"cuGraphGetNodes")
    with pytest.raises(RuntimeError, match="cuGraphGetNodes failed: CUDA_ERROR_LAUNCH_FAILED"):
        graph.relaunch()


@needs_fake
def test_the_graph_and_what_it_reads_are_kept(graph):
    import gc
    import weakref

    class Held:
        def raw_cuda_graph(self) -> int:
            return graph.handle.value

    graph.kernel()
    held, owner = Held(), Held()
    again = pk.runtime.Relaunch(held, device=0, library=str(FAKE), owners=[owner])
    alive = [weakref.ref(held), weakref.ref(owner)]
    del held, owner
    gc.collect()
    assert all(reference() is not None for reference in alive)
    del again
    gc.collect()
    assert not any(reference() is not None for reference in alive)


@pytest.mark.skipif(not HAS_CUDA, reason="of a CUDA build")
def test_a_library_that_is_no_driver():
    graph = SimpleNamespace(raw_cuda_graph=lambda: 0)
    with pytest.raises(RuntimeError, match="the CUDA driver could not be loaded: "):
        pk.runtime.Relaunch(graph, device=0, library="libno_such_driver.so")
    with pytest.raises(RuntimeError, match="libm.so.6 has no cuGetErrorName: a relaunch needs a driver of CUDA 12.4"):
        pk.runtime.Relaunch(graph, device=0, library="libm.so.6")


@pytest.mark.skipif(not HAS_CUDA, reason="of a CUDA build")
def test_nothing_to_time():
    with pytest.raises(ValueError, match="relaunches must hold at least one"):
        _runtime.cuda_timed_relaunches([], 0, 0, 1, 1, False)


@needs_gpu
def test_a_captured_step_of_torch_gives_its_own_bits():
    x, weight = torch.randn(1, 512, device="cuda"), torch.randn(512, 512, device="cuda")
    out = torch.empty(1, 512, device="cuda")

    def step() -> None:
        y = torch.nn.functional.linear(x, weight)
        out.copy_(torch.softmax(y + 1, -1))

    step()
    want = out.clone()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        step()
    again = pk.runtime.Relaunch(graph, owners=[step])
    out.fill_(float("nan"))
    again.run(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert torch.equal(out, want)
    samples = pk.runtime.cuda_timed_loop([again], torch.cuda.current_stream().cuda_stream, 1, 5, 3)
    assert samples.shape == (5,) and (samples > 0).all()
