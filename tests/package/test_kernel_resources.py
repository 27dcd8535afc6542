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
