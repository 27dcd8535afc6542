"""`make resources`: what ptxas says of the kernels, and what it says of one that spills."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from inputs.busy import HANG_S

SCRIPT = Path(__file__).resolve().parent.parent.parent / "cmake" / "kernel_resources.py"

LOG = """\
ptxas info    : 3 bytes gmem
ptxas info    : Compiling entry function '_Z5plainPf' for 'sm_80'
ptxas info    : Function properties for _Z5plainPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 28 registers, used 1 barriers, 364 bytes cmem[0]
ptxas info    : Compile time = 2.153 ms
ptxas info    : Compiling entry function '_Z5plainPf' for 'sm_90a'
ptxas info    : Function properties for _Z5plainPf
    352 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Function properties for _Z6calledPf
    16 bytes stack frame, 40 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 168 registers, used 2 barriers, 352 bytes cumulative stack size, 4224 bytes smem
"""

KERNELS = """\
namespace pykernels::cuda { namespace {
template <int n> __global__ void kept(float* p) {
    __shared__ float s[n];
    s[threadIdx.x] = *p;
    __syncthreads();
    *p = s[n - 1 - threadIdx.x];
}
template <int n> __global__ void indexed(float* p, int k) {
    float v[n];
    for (int i = 0; i < n; ++i) v[i] = p[i];
    for (int i = 0; i < k; ++i) p[i] = v[static_cast<int>(p[i]) & (n - 1)];
}
}
void use(float* p) { kept<64><<<1, 64>>>(p); INDEXED }
}
"""


@pytest.fixture(scope="module")
def resources():
    spec = importlib.util.spec_from_file_location("kernel_resources", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_what_ptxas_prints(resources):
    plain, called = resources.parse(LOG)
    assert plain == resources.Resources("_Z5plainPf", "sm_80", 28, 0, 0, 0, 0) and not plain.uses_local_memory
    assert called == resources.Resources("_Z5plainPf", "sm_90a", 168, 4224, 352, 40, 12) and called.uses_local_memory
    assert resources.parse("ptxas info    : 0 bytes gmem\n") == []


def test_a_kernel_without_its_registers_is_an_error(resources):
    lines = LOG.splitlines()
    for log in (lines[:4], [*lines[:4], *lines[6:]]):
        with pytest.raises(resources.CompileError, match="no registers of _Z5plainPf for sm_80"):
            resources.parse("\n".join(log))


def compile_commands(folder: Path, indexed: str, body: str = KERNELS) -> Path:
    """A build of one source, and of the same source by a host compiler, which does not count."""
    (folder / "kernels.cu").write_text(body.replace("INDEXED", indexed))
    nvcc = (
        'nvcc "--generate-code=arch=compute_80,code=[sm_80]" "--generate-code=arch=compute_90a,code=[sm_90a]"'
        " -std=c++17 -Xptxas=-warn-spills,-warn-lmem-usage,-Werror -x cu -c kernels.cu -o kernels.o"
    )
    commands = [{"directory": str(folder), "file": "kernels.cu", "command": command}
                for command in (nvcc, "c++ -x c++ -c kernels.cu -o host.o")]  # fmt: skip
    path = folder / "compile_commands.json"
    path.write_text(json.dumps(commands))
    return path


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=HANG_S
    )


# Every instruction beyond sm_80 that the kernels use, by its wrapper, and the shared memory of the plans.
WRAPPERS = """\
#include "cuda/common/numeric.cuh"
#include "cuda/common/ptx_guarded.cuh"
namespace pykernels::cuda {
__global__ void wrappers(float4* memory, const uint4* from, int n) {
    auto* barrier = reinterpret_cast<Mbarrier*>(shared_memory());
    auto* shared = reinterpret_cast<float4*>(shared_memory() + 128);
    if (threadIdx.x == 0) barrier_init(barrier, 1);
    barriers_ready();
    cluster_arrive();
    wait_for_producers();
    launch_dependents();
    cluster_wait();
    barrier_expect(barrier, 256);
    bulk_copy(shared, from, 256, barrier);
    barrier_wait(barrier, 0);
    push(remote_address(cluster_rank(), shared), shared[n], remote_address(n, barrier));
    push(remote_address(n, shared), make_float2(1, 2), remote_address(n, barrier));
    wait_for_pushes(barrier);
    uint4 value = load_streamed(from + n), other = load_once(from);
    load_streamed_if(value, from, n > 3);
    load_fresh_if(other, from + 1, n > 4);
    const uint32_t a[4] = {value.x, value.y, value.z, value.w}, b[2] = {other.x, transpose_8x8(other.y)};
    float c[4] = {};
    mma_bf16(c, a, b);
    mma_fp16(c, a, b);
    int d[4] = {};
    mma_u8s8(d, a, b);
    async_copy16_or_zeros(shared + 9, from, n > 5);
    async_commit();
    async_wait<0>();
    store_flagged(memory, load_shared_of(n, shared));
    const float4 flagged = load_flagged(memory + 1);
    if (is_written(flagged)) clear_flagged(memory + 1);
    fence_device();
    store(memory + 2, make_float4(c[0] + d[0], c[1], max_magnitude(c[2], c[3]), flagged.x));
}
}
"""

needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="there is no nvcc here")


@needs_nvcc
def test_kernels_that_fit(tmp_path):
    result = run(compile_commands(tmp_path, ""))
    assert result.returncode == 0 and result.stderr == ""
    rows = [line.split() for line in result.stdout.splitlines() if "kept<64>" in line]
    assert [row[:2] for row in rows] == [["kept<64>", "sm_80"], ["kept<64>", "sm_90a"]]
    assert all(int(row[2]) > 0 and row[4:] == ["0", "0", "0"] for row in rows)
    assert rows[0][3] == "256", "64 floats"
    assert not (tmp_path / "kernels.o").exists()


@needs_nvcc
def test_a_kernel_in_local_memory_is_named(tmp_path):
    result = run(compile_commands(tmp_path, "indexed<64><<<1, 1>>>(p, 1);"))
    assert result.returncode == 1
    assert result.stderr == "kernels that spill or use a stack frame: indexed<64> (sm_80), indexed<64> (sm_90a)\n"
    assert "kept<64>" in result.stdout and "indexed" in result.stdout


@needs_nvcc
def test_other_cards(tmp_path):
    """B200, Jetson Thor, RTX 50: in place of the build's architectures. `make resources ARCHITECTURES=...` compiles all
    kernels so, in minutes."""
    path = compile_commands(tmp_path, "", body=WRAPPERS)
    path.write_text(path.read_text().replace("-std=c++17", f"-std=c++17 -I{SCRIPT.parent.parent}/csrc"))
    result = run(path, 100, 110, 120)
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if "wrappers" in line]
    assert [row[1] for row in rows] == ["sm_100", "sm_110", "sm_120"]


def test_an_architecture_that_is_none(tmp_path):
    result = run(compile_commands(tmp_path, ""), "sm_120")
    assert result.returncode == 2 and "an architecture is a number as in sm_120, got 'sm_120'" in result.stderr


@needs_nvcc
def test_sources_that_do_not_compile(tmp_path):
    result = run(compile_commands(tmp_path, "", body="int f() { return undeclared; }"))
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("kernel_resources: kernels.cu: nvcc failed\n") and "undeclared" in result.stderr


def test_a_build_without_cuda(tmp_path):
    path = tmp_path / "compile_commands.json"
    path.write_text(json.dumps([{"directory": "/", "file": "a.cpp", "command": "c++ -c a.cpp -o a.o"}]))
    result = run(path)
    assert result.returncode == 2 and "no CUDA sources: nvcc was not found" in result.stderr
    assert run(tmp_path / "none.json").returncode == 2
