"""Traces of the device: on a made-up libcupti (tests/native/fake_cupti.cpp) everywhere, and on a GPU for real."""

import ctypes
import os
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from inputs.helpers import randn

import pykernels as pk
from bench.core.chrome_trace import launch_calls
from bench.core.intervals import split_steps
from pykernels import trace as tracing

FAKE = Path(__file__).parents[2] / "build" / sysconfig.get_config_var("SOABI") / "tests/native/libfake_cupti.so"
HAS_CUDA = pk.runtime.build_info()["cuda"]

needs_fake = pytest.mark.skipif(not (HAS_CUDA and FAKE.exists()), reason="needs a CUDA build with CUPTI's headers")
needs_gpu = pytest.mark.skipif(not (HAS_CUDA and torch.cuda.is_available()), reason="needs a CUDA build and a GPU")

MANGLED = b"_ZN9pykernels4cuda11gemv_kernelIfLi4EEEvPKT_"
DEMANGLED = "void pykernels::cuda::gemv_kernel<float, 4>(float const*)"
CONCURRENT_KERNEL, RUNTIME, DRIVER = 10, 5, 4


class Fake:
    """The made-up library; attributes are its variables."""

    _DEFAULTS = {"version": None, "failing_kind": 0, "failing_flush": 0, "result": 999, "buffers_left": -1}

    def __init__(self) -> None:
        library = ctypes.CDLL(str(FAKE))
        object.__setattr__(self, "library", library)
        object.__setattr__(self, "headers_version", self.version)
        library.fake_launch.argtypes = [ctypes.c_char_p, ctypes.c_uint32] + [ctypes.c_uint64] * 3

    def __getattr__(self, name: str) -> int:
        return ctypes.c_int.in_dll(self.library, f"fake_{name}").value

    def __setattr__(self, name: str, value: int) -> None:
        ctypes.c_int.in_dll(self.library, f"fake_{name}").value = value

    def reset(self) -> None:
        for name, value in self._DEFAULTS.items():
            setattr(self, name, self.headers_version if value is None else value)

    def launch(
        self, correlation: int, call_ns: int, kernel_ns: int = 2000, name: bytes = MANGLED, graph_node: int = 0
    ) -> None:
        self.library.fake_launch(name, correlation, call_ns, kernel_ns, graph_node)

    def fill(self, correlation: int, start_ns: int, end_ns: int) -> None:
        self.library.fake_fill(correlation, ctypes.c_uint64(start_ns), ctypes.c_uint64(end_ns))

    def trace(self):
        return pk.runtime.cuda_trace([str(FAKE)])

    def reason(self) -> str | None:
        return pk.runtime.trace_reason([str(FAKE)], attach=True)


@pytest.fixture
def fake() -> Iterator[Fake]:
    fake = Fake()
    fake.reset()
    yield fake
    fake.reset()
    assert fake.enabled_kinds == 0 and fake.thread_id_type == 0 and fake.buffers_out == 0


@pytest.mark.skipif(HAS_CUDA, reason="of a build for the CPU")
def test_a_cpu_build_says_so():
    assert pk.runtime.trace_reason() == "this build has no CUDA kernels"
    with pytest.raises(RuntimeError, match="^this build has no CUDA kernels$"), pk.runtime.cuda_trace():
        pass


@pytest.mark.skipif(not HAS_CUDA or torch.cuda.is_available(), reason="of a CUDA build without a GPU")
def test_a_machine_without_a_gpu_says_so():
    assert pk.runtime.trace_reason() == "there is no CUDA device that torch can use"
    with pytest.raises(RuntimeError, match="^there is no CUDA device that torch can use$"), pk.runtime.cuda_trace():
        pass


@needs_fake
def test_a_record_field_by_field(fake):
    with fake.trace() as trace:
        assert fake.enabled_kinds == 5 and fake.thread_id_type == 1
        fake.launch(12, 1_700_000_000_000_000_001, kernel_ns=2345, graph_node=2**33 + 5)
        fake.fill(13, 1_700_000_000_000_010_000, 1_700_000_000_000_010_007)
        assert trace.kernels == [] and trace.calls == []
    call_ns = 1_700_000_000_000_000_001
    expected = tracing.Kernel(
        DEMANGLED, call_ns + 5000, call_ns + 7345, 3, 7, 12, 2**33 + 5, (132, 2, 1), (256, 1, 4), 40, 1024, 98304
    )
    start_ns = 1_700_000_000_000_010_000
    filled = tracing.Kernel("[memset]", start_ns, start_ns + 7, 3, 7, 13, 0, (0,) * 3, (0,) * 3, 0, 0, 0)
    assert trace.kernels == [expected, filled]
    assert expected.shared_bytes == 99328
    thread = threading.get_native_id()
    assert trace.calls == [
        tracing.Call("cudaLaunchKernelExC_v11060", call_ns, call_ns + 4000, 12, thread, False),
        tracing.Call("driver call 2", call_ns + 1000, call_ns + 3000, 12, thread, True),
    ]


@needs_fake
def test_names_that_are_not_mangled_stay(fake):
    with fake.trace() as trace:
        for correlation, name in enumerate((b"plain_c", b"_Znonsense", b"")):
            fake.launch(correlation, 1000 + correlation, name=name)
    assert [kernel.name for kernel in trace.kernels] == ["plain_c", "_Znonsense", ""]


@needs_fake
def test_many_traces_of_many_buffers_and_threads(fake):
    """300 bytes a launch: each thread fills several buffers of 4 MiB, and the traces together more than are ready."""
    count, n_threads = 40_000, 3
    for _ in range(2):
        with fake.trace() as trace:

            def launches(thread: int) -> None:
                for i in range(thread, count * n_threads, n_threads):
                    fake.launch(i, 10 * i + 1)

            threads = [threading.Thread(target=launches, args=(thread,)) for thread in range(n_threads)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert [kernel.correlation for kernel in trace.kernels] == list(range(count * n_threads))
        assert {kernel.name for kernel in trace.kernels} == {DEMANGLED}
        assert len(trace.calls) == 2 * count * n_threads
        starts_ns = [call.start_ns for call in trace.calls]
        assert starts_ns == sorted(starts_ns)
        assert len({call.thread for call in trace.calls}) == n_threads


@needs_fake
def test_what_is_launched_outside_is_not_in_a_trace(fake):
    fake.launch(1, 1000)
    with fake.trace() as trace:
        fake.launch(2, 2000)
    fake.launch(3, 3000)
    with fake.trace() as empty:
        pass
    assert [kernel.correlation for kernel in trace.kernels] == [2]
    assert empty.kernels == [] and empty.calls == []


@needs_fake
def test_lost_records_fail_the_trace(fake):
    fake.buffers_left = 0
    match = "^the CUDA trace is not complete: CUPTI dropped 3 records; trace fewer steps at a time$"
    with pytest.raises(RuntimeError, match=match), fake.trace() as trace:
        fake.launch(1, 1000)
    assert trace.kernels == []
    fake.buffers_left = -1
    with fake.trace() as trace:  # the next one is not to blame
        fake.launch(2, 2000)
    assert len(trace.kernels) == 1


@needs_fake
def test_a_kernel_without_times_fails_the_trace(fake):
    match = r"^the CUDA trace is not complete: CUPTI has no times of a record of void pykernels::cuda::gemv_kernel"
    with pytest.raises(RuntimeError, match=match), fake.trace():
        fake.launch(1, 1000, kernel_ns=0)
        fake.launch(2, 2000)


@needs_fake
@pytest.mark.parametrize(
    ("result", "words"),
    [
        (35, "CUPTI_ERROR_INSUFFICIENT_PRIVILEGES (the driver lets only administrators profile here)"),
        (39, "CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED (another profiler is attached: "
             "nsys, ncu, cuda-gdb or one in this process)"),
        (999, "CUPTI_ERROR_UNKNOWN"),
        (7, "unknown result"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("kind", "name"), [(CONCURRENT_KERNEL, "CONCURRENT_KERNEL"), (RUNTIME, "RUNTIME"), (DRIVER, "DRIVER")]
)
def test_the_reason_is_cuptis_own(fake, result, words, kind, name):
    fake.failing_kind, fake.result = kind, result
    reason = f"cuptiActivityEnable({name}) failed: {words}; {FAKE}, version {fake.headers_version}"
    assert fake.reason() == reason
    with pytest.raises(RuntimeError) as raised, fake.trace():
        pass
    assert str(raised.value) == reason
    assert fake.enabled_kinds == 0
    fake.failing_kind = 0
    assert fake.reason() is None


@needs_fake
def test_a_failed_flush_ends_the_trace(fake):
    with pytest.raises(RuntimeError, match="^cuptiActivityFlushAll failed: CUPTI_ERROR_UNKNOWN; "), fake.trace():
        fake.launch(1, 1000)
        fake.failing_flush = 1
    assert fake.enabled_kinds == 0
    with fake.trace() as trace:
        pass
    assert trace.kernels == []


@needs_fake
def test_an_error_inside_ends_the_trace_and_stays_the_error(fake):
    with pytest.raises(KeyError), fake.trace():
        fake.launch(1, 1000)
        raise KeyError
    with pytest.raises(ZeroDivisionError), fake.trace():
        fake.failing_flush = 1
        raise ZeroDivisionError
    assert fake.enabled_kinds == 0 and fake.reason() is None


@needs_fake
def test_one_trace_at_a_time(fake):
    match = "^a CUDA trace is running already in this process; only one can$"
    with fake.trace() as trace:
        with pytest.raises(RuntimeError, match=match), fake.trace():
            pass
        fake.launch(1, 1000)
    assert len(trace.kernels) == 1
    recorder = pk._runtime.CudaTrace([str(FAKE)])
    with pytest.raises(RuntimeError, match="^no CUDA trace is running: "):
        recorder.stop()
    for _ in range(2):
        recorder.start()
        assert recorder.stop() == ([], [])
    recorder.start()
    del recorder  # the destructor ends it
    assert fake.enabled_kinds == 0 and fake.reason() is None


@needs_fake
def test_torchs_profiler_is_a_reason(fake):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert fake.reason() == "torch.profiler is running, and CUPTI has room for one profiler"
        with pytest.raises(RuntimeError, match="^torch.profiler is running"), fake.trace():
            pass
    assert fake.reason() is None


@needs_fake
def test_no_library(tmp_path):
    missing, other = tmp_path / "libcupti.so.13", "libc.so.6"
    reason = pk.runtime.trace_reason([str(missing), "libcupti.so.404"])
    assert reason.startswith(f"libcupti could not be loaded: {missing}: ") and "libcupti.so.404: " in reason
    assert pk.runtime.trace_reason([]) == "libcupti could not be loaded: no name was given"
    assert pk.runtime.trace_reason([other]) == "libc.so.6 has no cuptiGetVersion"


@needs_fake
def test_a_real_library_has_all_that_is_called():
    reason = pk.runtime.trace_reason(tracing.cupti_libraries())
    assert reason is None or reason.startswith("libcupti could not be loaded: libcupti.so.13: ")


@needs_fake
def test_an_old_library_is_refused(tmp_path):
    # A copy: a library that was accepted once is not asked again.
    old = tmp_path / "libcupti_old.so"
    old.write_bytes(FAKE.read_bytes())
    ctypes.c_int.in_dll(ctypes.CDLL(str(old)), "fake_version").value = 18
    reason = pk.runtime.trace_reason([str(old)])
    assert reason == f"{old} must be CUPTI version 19 (CUDA 12.0) or later, got version 18"


def test_the_wheels_libraries_are_found(tmp_path, monkeypatch):
    wanted = [tmp_path / "nvidia" / folder for folder in
              ("cu13/lib/libcupti.so.13", "cuda_cupti/lib/libcupti.so.12")]  # fmt: skip
    for path in (*wanted, tmp_path / "nvidia/cuda_cupti/lib/libcupti.so.12.8.90"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", "/opt/cuda")
    found = tracing.cupti_libraries()
    assert found[:2] == ["libcupti.so.13", "libcupti.so.12"]
    assert [path for path in found if path.startswith(str(tmp_path))] == list(map(str, wanted))
    order = [found.index(str(wanted[1])), found.index("/opt/cuda/extras/CUPTI/lib64/libcupti.so"),
             found.index("/usr/local/cuda/extras/CUPTI/lib64/libcupti.so")]  # fmt: skip
    assert order == sorted(order)


# --- on a GPU ---------------------------------------------------------------------------------------------------


def recorded() -> pk.runtime.Program:
    """Three kernels, the middle one of 34 MB."""
    x, weight, square = (randn(*shape, dtype=torch.bfloat16).cuda() for shape in ((1, 4096), (4096,), (4096, 4096)))
    with pk.runtime.record() as program:
        normed = pk.ops.rmsnorm(x, weight, 1e-6)
        pk.ops.add(pk.ops.gemv(normed, square), x)
    return program


@pytest.fixture
def program() -> pk.runtime.Program:
    if reason := pk.runtime.trace_reason(attach=True):
        pytest.skip(reason)
    return recorded()


KERNELS = ("rmsnorm_kernel", "Gemv<", "Sum")  # in the demangled names


def check_steps(kernels, steps: int) -> None:
    """The program's kernels, in order, of a length that a GPU can have: 34 MB at 0.1 to 48 TB/s is 0.7 to 340 us."""
    assert len(kernels) == 3 * steps
    for step in split_steps(kernels, steps):
        for kernel, part in zip(step, KERNELS, strict=True):
            assert part in kernel.name
            assert 200 <= kernel.end_ns - kernel.start_ns <= 1_000_000
            assert kernel.registers > 0 and min(kernel.grid + kernel.block) >= 1
        assert 700 <= step[1].end_ns - step[1].start_ns <= 340_000
        assert step[0].end_ns <= step[1].start_ns and step[1].end_ns <= step[2].start_ns


@needs_gpu
def test_a_program_is_traced_on_a_gpu(program):
    stream = torch.cuda.current_stream().cuda_stream
    program.run(stream)
    for steps in (1, 5, 100):
        with pk.runtime.cuda_trace() as trace:
            for _ in range(steps):
                program.run(stream)
        check_steps(trace.kernels, steps)
        assert {kernel.graph_node_id for kernel in trace.kernels} == {0}
        launches = launch_calls(trace.kernels, trace.calls)
        assert [call.correlation for call in launches] == [kernel.correlation for kernel in trace.kernels]
        for kernel, launch in zip(trace.kernels, launches, strict=True):
            assert "LaunchKernel" in launch.name and launch.thread == threading.get_native_id()
            assert launch.start_ns < kernel.start_ns < launch.start_ns + 1_000_000_000


def trace_graph(graph: "pk.runtime.CudaGraph") -> None:
    stream = torch.cuda.current_stream().cuda_stream
    graph.replay(stream)
    with pk.runtime.cuda_trace() as trace:
        for _ in range(10):
            graph.replay(stream)
    check_steps(trace.kernels, 10)
    assert len({kernel.graph_node_id for kernel in trace.kernels}) == 3 and trace.kernels[0].graph_node_id != 0
    assert len({kernel.correlation for kernel in trace.kernels}) == 10
    launches = launch_calls(trace.kernels, trace.calls)
    assert len(launches) == 10 and all("GraphLaunch" in call.name for call in launches)


@needs_gpu
def test_a_graph_is_traced_kernel_by_kernel_on_a_gpu(program):
    trace_graph(pk.runtime.CudaGraph([program]))


@needs_gpu
def test_a_graph_from_before_the_process_had_cupti(program):
    """Untraced times come first, so a graph is older than the first trace."""
    script = "import test_cupti as t; t.trace_graph(t.pk.runtime.CudaGraph([t.recorded()]))"
    paths = [str(folder) for folder in list(Path(__file__).parents)[:3]]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
