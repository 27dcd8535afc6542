"""The SASS of our 4-bit kernels for a GPU that is not here: what cuobjdump finds in libpykernels.so.

Checked of every 4-bit GEMV for that architecture: 16-byte loads from global memory (LDG.E.128, or asynchronous
copies to shared memory, LDGSTS.E.128, or bulk copies), nibbles cut out by LOP3 with the mask 0x000f000f (for 16-bit
floats) or 0x0f0f0f0f (for bytes), and no local memory (LDL, STL): a spill or an array that is indexed there costs a
trip through the caches for every weight. It says nothing about speed.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pykernels as pk
from pykernels.architectures import BUILD_FOR

LIBRARY = Path(pk.__file__).parent / "libpykernels.so"

_OURS = re.compile(r"int4_|Int4")  # CUDA's own type int4 is mangled without either
_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_REGISTERS = re.compile(r"^\s*Function (\S+):\s*$|REG:(\d+)")
_WIDE = re.compile(r"\b(LDG\.E(?:\.\w+)*\.128|LDGSTS\.E(?:\.\w+)*\.128|UBLKCP)")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?);")
NIBBLE_MASKS = ("0xf000f", "0xf0f0f0f")


@dataclass
class Kernel:
    """What one kernel's SASS holds; counts are of instructions in it, not of what is executed."""

    name: str
    registers: int | None = None
    instructions: int = 0
    wide_loads: int = 0
    lop3: int = 0
    nibble_masks: int = 0
    local_memory: int = 0
    problems: list[str] = field(default_factory=list)

    def judge(self) -> None:
        """Fill `problems`."""
        if not self.wide_loads:
            self.problems.append("has no 16-byte load: no LDG.E.128, LDGSTS.E.128 or cp.async.bulk")
        if not self.lop3:
            self.problems.append("has no LOP3")
        if not self.nibble_masks:
            self.problems.append(f"masks no nibbles ({' or '.join(NIBBLE_MASKS)})")
        if self.local_memory:
            self.problems.append(f"uses local memory: {self.local_memory} LDL or STL")


def tool(name: str) -> str | None:
    """The path of a CUDA binary utility; None where there is none."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = shutil.which(name)
    for root in filter(None, roots):
        found = found or shutil.which(name, path=str(Path(root) / "bin"))
    return found


def _run(*arguments: str) -> str:
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    if result.returncode:
        words = (result.stderr or result.stdout).strip().splitlines()
        raise RuntimeError(f"{Path(arguments[0]).name}: {words[-1] if words else f'status {result.returncode}'}")
    return result.stdout


def _cuobjdump() -> str:
    found = tool("cuobjdump")
    if found is None:
        raise RuntimeError("cuobjdump is not on the PATH nor in CUDA_HOME/bin")
    return found


def functions(sass: str) -> Iterator[tuple[str, list[str]]]:
    """Each function of `cuobjdump -sass` as its mangled name and its instructions."""
    name: str | None = None
    lines: list[str] = []
    for line in sass.splitlines():
        if match := _FUNCTION.match(line):
            if name:
                yield name, lines
            name, lines = match[1], []
        elif name and (match := _INSTRUCTION.match(line)):
            lines.append(match[1])
    if name:
        yield name, lines


def read(sass: str, resources: str = "") -> list[Kernel]:
    """The 4-bit GEMVs of a dump, judged. resources: of `cuobjdump -res-usage`."""
    registers: dict[str, int] = {}
    current = None
    for match in map(_REGISTERS.search, resources.splitlines()):
        if match and match[1]:
            current = match[1]
        elif match and current:
            registers[current] = int(match[2])
    kernels = []
    for name, lines in functions(sass):
        if not _OURS.search(name):
            continue
        kernel = Kernel(name, registers.get(name), len(lines))
        for line in lines:
            kernel.wide_loads += bool(_WIDE.search(line))
            kernel.lop3 += "LOP3" in line
            kernel.nibble_masks += any(mask in line for mask in NIBBLE_MASKS)
            kernel.local_memory += bool(re.search(r"\b(LDL|STL)\b", line))
        kernel.judge()
        kernels.append(kernel)
    return kernels


def reason(library: Path = LIBRARY) -> str | None:
    """Why the SASS cannot be looked at; None where it can."""
    if not pk.runtime.build_info()["cuda"]:
        return "this build has no CUDA kernels: nvcc was not found when it was built, so there is no SASS"
    if not library.exists():
        return f"there is no {library.name}"
    if tool("cuobjdump") is None:
        return "cuobjdump is not on the PATH nor in CUDA_HOME/bin: it comes with the CUDA toolkit"
    return None


def inspect(architecture: str, library: Path = LIBRARY) -> list[Kernel]:
    """The 4-bit GEMVs of the library for `sm_89` or another. Raises RuntimeError in cuobjdump's words, and where
    there are none."""
    program = _cuobjdump()
    with_lists = _run(program, "-lelf", "-arch", architecture, str(library))
    if architecture not in with_lists:
        command = BUILD_FOR.format(f"{architecture.removeprefix('sm_')}-real")
        raise RuntimeError(f"{library.name} has no SASS for {architecture}: {command}")
    kernels = read(
        _run(program, "-sass", "-arch", architecture, str(library)),
        _run(program, "-res-usage", "-arch", architecture, str(library)),
    )
    if not kernels:
        raise RuntimeError(f"{library.name} has no 4-bit kernels for {architecture}")
    return kernels


def _serves(ptx: str, architecture: str) -> bool:
    """Can the driver compile PTX of compute_`ptx` for `architecture`, and is it of the same generation?"""
    number = architecture.removeprefix("sm_")
    return ptx.isdigit() and ptx[:-1] == number[:-1] and int(ptx) <= int(number)


def has_ptx(architecture: str, library: Path = LIBRARY) -> bool:
    """Does the library hold PTX for that architecture (for `sm_89`: of compute_80 to compute_89)?"""
    names = re.findall(r"\.sm_(\d+a?)\.ptx", _run(_cuobjdump(), "-lptx", str(library)))
    return any(_serves(name, architecture) for name in names)


def built_with_ptx(architecture: str) -> bool:
    """The same as the build says of itself: that needs no tool. CMake's `89` is SASS and PTX, `89-virtual` PTX
    alone, `89-real` none."""
    built = pk.runtime.build_info().get("cuda_architectures", "").split()
    return any(_serves(name.removesuffix("-virtual"), architecture) for name in built)


def demangled(names: list[str]) -> list[str]:
    """The names as C++ writes them, less their parameters; as they are where there is no c++filt."""
    program = tool("cu++filt") or shutil.which("c++filt")
    if not program:
        return names
    result = subprocess.run([program, *names], capture_output=True, text=True, timeout=60)
    lines = result.stdout.splitlines() if result.returncode == 0 else names
    noise = re.compile(r"\(anonymous namespace\)::|pykernels::cuda::|\(int\)|^void ")
    return [noise.sub("", line).partition("(")[0] for line in lines]
