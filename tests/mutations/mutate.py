"""What is removed from the CUDA kernels, and how a mutant is built and tested (see __main__.py).

A mutation is found by what it is, a statement that calls one of FUNCTIONS, so that no line number is kept. It is made
in a copy of csrc; the objects of pykernels_simt that include the file are compiled anew with the build's own command,
and linked with the others.
"""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / sysconfig.get_config_var("SOABI")
KERNELS = ROOT / "csrc" / "cuda"
CPU_LIMIT_S = 300  # a mutant may poll for ever; of CPU time, which does not pass for others' work

# The statements that are removed.
FUNCTIONS = (
    "wait_for_producers", "block_barrier", "warp_barrier", "cluster_arrive", "cluster_wait", "async_commit",
    "async_wait", "barrier_wait", "barrier_expect", "barriers_ready", "wait_for_pushes", "fence_device",
)  # fmt: skip
# What is replaced: (pattern, replacement, what it is called).
REPLACED = (
    (r"\basync_wait<([^>;]+)>\(\)", r"async_wait<(\1) + 1>()", "one group more may be pending"),
    (r"\bis_written\(outs\[i\]\) && ", "", "one flag for two words"),
    (r"\bclear_flagged\([^;]*;", ";", "flags left set"),
    (r"\bstore_flagged\(", "store(", "a plain store for the flagged one"),
    (r"\bload_flagged\(", "load(", "a plain load for the flagged one"),
    (r"\bwhile \(!is_written\(", "while (false && !is_written(", "words used before they are written"),
    (r"\batomic_add\(counter\([^;]*, 0u - [^;]*;", ";", "a count left set"),
    (r"\bload_fresh\(", "load(", "a plain load for the fresh one"),
    (r"\bi % 2 \* 4 \+ t;", "i % 2 * 4 + (t ^ 1);", "the fragment of another lane"),
    (r"\{a\.x, b\.x, a\.y, b\.y\}", "{a.x, a.y, b.x, b.y}", "fragments of another order"),
    (r" && i \* 32 \+ lane_dim < dims_\.head_dim", "", "keys past head_dim"),
    (r" && value_dim\(j\) < dims_\.n_values", "", "values past the slice"),
    (r" && \(Dims::exact \|\| d < dims\.head_dim\)", "", "q past head_dim"),
    (r" && \(Dims::exact \|\| from < plan\.cluster_splits\)", "", "partials of no block"),
    (r"\bfinishes && !unified_in_range", "false && !unified_in_range", "fall-backs that are not taken"),
    (r"\bexponent <= highest \? ", "true ? ", "exponents past the highest"),
    (r"\bsum\[i % 2\] \+= scores\[tile\]\[i\]", "if (tile == 0) sum[i % 2] += scores[tile][i]", "a partial sum lost"),
    (r"stages \+ stage \* (Traits)", r"stages + (stage > 0 ? stage - 1 : Traits::stages - 1) * \1", "the stage before"),
)
# Of a header that many ops include, the one that is tried first, where it is not the one of the shortest name.
FIRST = {"numeric.cuh": "rmsnorm", "qk_norm.cuh": "qkv_gemv"}
# What no test of the executor can find, and why.
NOT_FOUND = {
    "gqa_stream.cuh: without warp_barrier #1": "the block's barrier for q lies between, too",
    "gqa_combine.cuh: without warp_barrier #1": "one thread does both; it is there for racecheck",
    "gqa_kernel.cuh: without warp_barrier #1": "it makes the warp's lanes converge, which fibers need not",
    "int4_gemv_fast.cuh: without warp_barrier #1": "it makes the warp's lanes converge, which fibers need not",
    "int4_gemv_fast.cuh: without warp_barrier #2": "it makes the warp's lanes converge, which fibers need not",
    "int4_gemv_general.cuh: without block_barrier #1": "the barriers behind one mainloop and ahead of the next suffice",
    "graph_loop.cu: without warp_barrier #1": "not run by the executor, which has no graphs",
}


@dataclass(frozen=True)
class Mutation:
    """`begin` to `end` of the file is replaced."""

    file: Path
    what: str
    number: int  # of those alike in the file, from 1
    begin: int
    end: int
    replacement: str

    @property
    def kind(self) -> str:
        """Its file and what it removes."""
        return f"{self.file.relative_to(KERNELS)}: {self.what}"

    @property
    def name(self) -> str:
        """`rmsnorm.cu: without block_barrier #1`"""
        return f"{self.kind} #{self.number}"

    @property
    def line(self) -> int:
        """Where that is today."""
        return self.file.read_text().count("\n", 0, self.begin) + 1


def mutations() -> list[Mutation]:
    """Every one, file by file."""
    found = []
    patterns = [(rf"(?<!\w )\b{name}(<[^;>]*>)?\([^;{{]*\);", ";", f"without {name}") for name in FUNCTIONS]
    for file in sorted({*KERNELS.rglob("*.cu"), *KERNELS.rglob("*.cuh")}):
        if file.name in ("ptx.cuh", "ptx_guarded.cuh"):  # their definitions
            continue
        code = re.sub(r"//[^\n]*", lambda comment: " " * len(comment[0]), file.read_text())
        for pattern, replacement, what in (*patterns, *REPLACED):
            for number, match in enumerate(re.finditer(pattern, code), 1):
                found.append(Mutation(file, what, number, *match.span(), match.expand(replacement)))
    return found


def includes(file: Path) -> set[Path]:
    """The file and all of csrc that it includes."""
    reached, left = set(), [file]
    while left:
        one = left.pop()
        if one in reached or not one.exists():
            continue
        reached.add(one)
        left += [ROOT / "csrc" / name for name in re.findall(r'#include "([^"]+)"', one.read_text())]
    return reached


def tests_of(ops: set[str]) -> list[str]:
    """The executor's test files that run them, those that find most first."""
    files = ["test_simt_chained.py"]
    for stem, name in (
        ("int4", "int4"),
        ("int4", "int4_split"),
        ("gqa", "gqa_unified"),
        ("gqa", "gqa_head_dims"),
        ("gqa", "gqa_decode"),
        ("gemv", "gemv"),
    ):
        if any(stem in op and (stem == "int4" or "int4" not in op) for op in ops):
            files.append(f"test_simt_{name}.py")
    if any("int4" not in op and "gqa" not in op and op not in ("gemv", "swiglu_gemv", "qkv_gemv") for op in ops):
        files.append("test_simt_elementwise.py")
    if any("int4" not in op for op in ops):
        files.append("test_simt_layer.py")
    return [f"tests/simt/{file}" for file in files]


def build(mutation: Mutation | None, ops: set[str], folder: Path) -> None:
    """A library in the folder, with the mutation (None: without) in these ops' objects."""
    shutil.copytree(ROOT / "csrc", folder / "csrc", dirs_exist_ok=True)
    if mutation:
        text = mutation.file.read_text()
        (folder / mutation.file.relative_to(ROOT)).write_text(
            text[: mutation.begin] + mutation.replacement + text[mutation.end :]
        )
    targets = [f"pykernels_simt{part}.dir" for part in ("", "_kernels")]
    objects = {file.name: file for of in targets for file in (BUILD / "csrc" / "simt" / "CMakeFiles" / of).rglob("*.o")}
    for entry in json.loads((BUILD / "compile_commands.json").read_text()):
        source = Path(entry["file"])
        if f"/{targets[1]}/" not in entry["output"] or source.stem not in ops or source.suffix != ".cu":
            continue
        root = source.parents[2]  # of the tree that was configured
        command = shlex.split(entry["command"])
        output = folder / f"{source.name}.o"
        command[command.index("-o") + 1] = str(output)
        command = [
            part.replace(f"{root}/csrc", f"{folder}/csrc").replace(f"{root}/=", f"{folder}/=") for part in command
        ]
        command = ["-O1" if part in ("-O2", "-O3") else part for part in command]
        subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True)
        objects[f"{source.name}.o"] = output
    subprocess.run(["c++", "-shared", "-o", folder / "libpykernels_simt.so", *objects.values(), "-ldl"], check=True)


def run_tests(folder: str, ops: str, files: str) -> int:
    """In a process of its own: the files' tests of these ops on the folder's library, those of sm_90 first."""
    import pytest

    class Chosen:
        def pytest_collection_modifyitems(self, items):
            def parameters(item) -> dict:
                return item.callspec.params if hasattr(item, "callspec") else {}

            def belongs(item) -> bool:
                chained = item.path.stem == "test_simt_chained"
                name = parameters(item).get("name")
                return not chained or name is None or item.module.MADE[name].op in ops.split(",")

            items[:] = sorted(filter(belongs, items), key=lambda item: -parameters(item).get("arch", 90))

        def pytest_sessionstart(self):
            from inputs import simt

            simt._LIBRARIES = Path(folder)

    return pytest.main(["-x", "-p", "no:cacheprovider", "--tb=short", *files.split(",")], plugins=[Chosen()])


def limit_cpu_time() -> None:
    """Of this process: SIGXCPU ends it."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S + 10))


def what_found(mutation: Mutation | None, ops: set[str], files: list[str] | None = None) -> str:
    """What found the mutation (None: of kernels as they are) in the test files, by default all of the ops, or ''."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        build(mutation, ops, Path(folder))
        command = [sys.executable, "-m", "mutations", "--run-tests", folder, ",".join(sorted(ops))]
        command.append(",".join(files or tests_of(ops)))
        ended = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit_cpu_time,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")},
        )  # fmt: skip
    if ended.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"no end within {CPU_LIMIT_S} s of CPU time"
    if ended.returncode == 0:
        return ""
    if ended.returncode != 1:
        return f"the tests ended with {ended.returncode}: {(ended.stdout + ended.stderr)[-300:]}"
    report = re.search(r"^E +(?:\w*Error: )?(.*)", ended.stdout, re.MULTILINE)
    failed = re.search(r"^FAILED \S+::(\S+)", ended.stdout, re.MULTILINE)
    kind = re.split(r" at |:|, expected", report[1])[0] if report else "failed"
    return f"{kind} ({failed[1] if failed else '?'})"


def attempts(file: Path) -> list[set[str]]:
    """Ops to try a mutation of the file on, until one finds it: of a header that many ops include first one op alone,
    which compiles sooner."""
    ops = sorted((source.stem for source in KERNELS.glob("*.cu") if file in includes(source)), key=len)
    return [set(ops)] if len(ops) == 1 else [{FIRST.get(file.name, ops[0])}, set(ops)]
