"""CONTRIBUTING.md's lists of files: true of every op, backend, model and card; enough for a toy op and backend."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from inputs import toy_additions
from inputs.simt_chained import CASES

from bench.backends import registry
from bench.core.environment import GPU_SPECS
from pykernels import models

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
COMPILER = shutil.which("g++")

OP_LIST = (ROOT / "csrc" / "op_list.h").read_text()
# The controls have no CPU kernel, the ceilings no reference: they measure the way there and the memory.
KERNELS = [
    op
    for op in re.findall(r"^ +X\((\w+), \w+Params\)", OP_LIST.partition("#define PYKERNELS_CONTROLS")[0], re.MULTILINE)
    if not op.startswith("ceiling_")
]


def listed(heading: str) -> list[str]:
    """The files of the numbered list under a heading, NAME in them for the addition's."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)[1]
    return re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE)


def camel(op: str) -> str:
    return "".join(part.capitalize() for part in op.split("_"))


@pytest.mark.parametrize("heading", ["Add an op", "Add a backend", "Add a model", "Add a card"])
def test_files_are_there(heading):
    assert len(listed(heading)) >= 2
    for name in listed(heading):
        assert "NAME" in name or (ROOT / name).is_file(), name


@pytest.mark.parametrize("op", KERNELS)
def test_every_op_is_in_the_listed_files(op):
    for name in listed("Add an op"):
        path = ROOT / name.replace("NAME", op)
        if name == "csrc/binding/torch_library.cpp" and op.startswith("int4_"):
            path = ROOT / "csrc" / "binding" / "torch_library_int4.cpp"
        assert path.is_file(), path
        assert re.search(rf"\b({op}|{camel(op)}Params)\b", path.read_text()), f"{op} is not in {path}"


def test_every_op_has_a_case_on_the_executor():
    assert {make().op for make in CASES.values()} >= set(KERNELS)


def test_no_other_file_lists_the_ops():
    """A file that names every op would have to be changed for a new one: then it must be in the list."""
    known = {name for name in listed("Add an op") if "NAME" not in name}
    known |= {"bench/core/floors.py", "bench/backends/op_cases.py", "pykernels/layer.py", "CONTRIBUTING.md"}
    for folder in ("csrc", "pykernels", "bench", "cmake", "tests/inputs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh", ".txt", ".cmake", ".pyi") and path.is_file():
                text = path.read_text()
                named = [op for op in KERNELS if re.search(rf"\b{op}\b", text)]
                name = str(path.relative_to(ROOT))
                assert len(named) < len(KERNELS) or name in known, f"{name} names every op"


def test_every_backend_is_in_the_listed_files():
    own, init, docs = listed("Add a backend")
    for name, backend in registry().items():
        path = ROOT / Path(*backend.__module__.split(".")).with_suffix(".py")
        assert path.parent == (ROOT / own).parent
        assert backend.__name__ in (ROOT / init).read_text()
        if name != "native":
            assert re.search(rf"`{name.partition('-')[0]}\b", (ROOT / docs).read_text()), name


def test_every_model_and_card_is_in_the_listed_files():
    source, test = (ROOT / name for name in listed("Add a model"))
    for name in models.names():
        assert f'"{name}"' in source.read_text() and f'"{name}"' in test.read_text(), name
    cards = (ROOT / listed("Add a card")[0]).read_text()
    assert all(f'"{name}": (' in cards for name in GPU_SPECS)


def copied(target: Path, *folders: str) -> Path:
    """Those parts of the tree in a folder of their own; results stay behind."""
    for folder in folders:
        shutil.copytree(
            ROOT / folder, target / folder, ignore=shutil.ignore_patterns("results", "__pycache__", "report")
        )
    return target


@pytest.mark.parametrize(
    ("additions", "heading", "name"),
    [(toy_additions.OP, "Add an op", "scale"), (toy_additions.BACKEND, "Add a backend", "toy")],
    ids=["op", "backend"],
)
def test_the_toys_change_the_listed_files_only(additions, heading, name):
    assert set(additions) == {file.replace("NAME", name) for file in listed(heading)}


ON_A_SMALL_MACHINE = """
import runpy, sys
from inputs import small_machine
small_machine.pretend()
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_a_toy_backend_runs(tmp_path):
    """In a copy of bench and docs that has it: listed, checked by the gate, timed."""
    copied(tmp_path, "bench", "docs")
    (tmp_path / "pykernels").symlink_to(ROOT / "pykernels")
    toy_additions.add(toy_additions.BACKEND, tmp_path)
    flags = ["--backend=toy", "--model=tiny", "--ctx=32", "--steps=2", "--warmup=1", "--mode=eager", "--device=cpu"]
    path = os.pathsep.join(map(str, (tmp_path, ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", ON_A_SMALL_MACHINE, "bench.layer", "--l2=warm", *flags], cwd=tmp_path,
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ toy +- +eager +[\d,.]+", done.stdout, re.MULTILINE), done.stdout


TOY_PROGRAM = r"""
#include <cmath>
#include <cstdio>

#include "ops.h"
#include "simt/executor.h"

using namespace pykernels;

namespace pykernels::cpu::generic {
void scale(const ScaleParams& params);
}

int main() {
    constexpr int count = 259;  // one element a thread
    auto& device = simt::executor();
    device.configure({1, 4, 227 * 1024});
    for (const int n : {count, count - 3}) {  // 256: eight elements a thread
        auto* x = static_cast<uint16_t*>(device.memory.allocate(2 * n, 0));
        auto* out = static_cast<uint16_t*>(device.memory.allocate(2 * n, 0));
        auto* twin = new uint16_t[n];
        for (int i = 0; i < n; ++i) x[i] = static_cast<uint16_t>(0x3f80 + i % 64);  // bf16 from 1 up
        const ScaleParams params{x, out, n, -2.0f, Dtype::bfloat16};
        cuda::scale(params, {nullptr, true});
        device.synchronize();
        cpu::generic::scale({x, twin, n, -2.0f, Dtype::bfloat16});
        for (int i = 0; i < n; ++i) {  // times -2: the sign, and one more in the exponent
            const int expected = (0x3f80 + i % 64 + 0x80) | 0x8000;
            if (out[i] != expected || twin[i] != expected) {
                std::printf("element %d: %04x and %04x, not %04x\n", i, out[i], twin[i], expected);
                return 1;
            }
        }
        delete[] twin;
    }
    return 0;
}
"""


@pytest.mark.skipif(COMPILER is None, reason="no g++")
def test_a_toy_op_runs(tmp_path):
    """In a copy of csrc that has it: the CUDA kernel on the executor and the CPU kernel, both right; and what is made
    from the list of ops compiles with its line."""
    copied(tmp_path, "csrc", "pykernels", "tests")
    toy_additions.add(toy_additions.OP, tmp_path)
    csrc = tmp_path / "csrc"
    # One translation unit, whose headers are read once.
    sources = [
        *sorted(path for path in (csrc / "simt").glob("*.cpp") if path.name != "c_api.cpp"),
        csrc / "cuda/scale.cu",
    ]
    program = tmp_path / "toy.cpp"
    program.write_text("".join(f'#include "{path}"\n' for path in sources) + TOY_PROGRAM)
    flags = ["-std=c++17", "-O0", "-w", f"-I{csrc}"]
    simt = [*flags, "-DPYKERNELS_SIMT", "-DPYKERNELS_CUDA"]

    def build(*arguments: str) -> None:
        done = subprocess.run([COMPILER, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    build(*flags, "-DPYKERNELS_ISA=generic", "-c", str(csrc / "cpu" / "scale.cpp"), "-o", str(tmp_path / "scale_cpu.o"))
    build(*simt, str(program), str(tmp_path / "scale_cpu.o"), "-pthread", "-ldl", "-o", str(tmp_path / "toy"))
    done = subprocess.run([str(tmp_path / "toy")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    build(*simt, "-fsyntax-only", str(csrc / "simt" / "c_api.cpp"))
    build(*flags, "-fsyntax-only", str(csrc / "runtime" / "program.cpp"))
