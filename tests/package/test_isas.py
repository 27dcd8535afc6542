"""A build for one CPU: which instruction set is its best, and kernels of that alone."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("g++")
NEEDED = [
    ("avx2", {"avx2", "fma"}),
    ("avx512", {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq"}),
    ("avx512_bf16", {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"}),
]
GENERIC = "-DPYKERNELS_HAS_GENERIC"
EVERY = ["-DPYKERNELS_HAS_AVX2", "-DPYKERNELS_HAS_AVX512", "-DPYKERNELS_HAS_AVX512_BF16"]

pytestmark = pytest.mark.skipif(COMPILER is None or platform.machine() != "x86_64", reason="needs g++ on x86")


def compiled(*words: str | Path) -> None:
    command = [COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}", "-DPYKERNELS_X86", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("built", [EVERY, EVERY[:1], []], ids=["every", "avx2", "none"])
def test_the_best_set_of_this_cpu(tmp_path, built):
    """As CMake asks: of all sets. Of fewer, as such a build would choose."""
    program = tmp_path / "find_isa"
    compiled(GENERIC, *built, ROOT / "cmake" / "find_isa.cpp", ROOT / "csrc" / "cpu" / "isa.cpp", "-o", program)
    found = subprocess.run([program], capture_output=True, text=True).stdout
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    best = "generic"
    for name, needed in NEEDED[: len(built)]:
        if needed <= flags:
            best = name
    assert found == best


@pytest.mark.parametrize(("built", "sets"), [(EVERY[1:2], {"avx512"}), ([GENERIC, EVERY[0]], {"generic", "avx2"})])
def test_launchers_refer_to_what_is_built_alone(tmp_path, built, sets):
    objects = tmp_path / "launchers.o"
    compiled(*built, "-c", ROOT / "csrc" / "cpu" / "launchers.cpp", "-o", objects)
    symbols = subprocess.run(["nm", "-C", "--undefined-only", objects], capture_output=True, text=True).stdout
    assert set(re.findall(r"cpu::(\w+)::gemv\(", symbols)) == sets
