"""Print registers, shared memory, stack and spills of every kernel on every architecture of the build, or those named.

python cmake/kernel_resources.py build/FOLDER/compile_commands.json [ARCHITECTURE ...]

An architecture is what nvcc calls sm_NAME, without the `sm_`: 100, 110, 120. Every CUDA source is
compiled once more by the build's own command, and ptxas says what each kernel takes. No GPU and no cuobjdump are
needed. Shared memory is what the kernel declares; a launch may ask for more. Exit status: 0 where no kernel spills or
has a stack frame; 1 where some do, which are named; 2 where the sources cannot be compiled.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, order=True)
class Resources:
    """What ptxas gave one kernel on one architecture: registers of a thread, and bytes."""

    kernel: str
    architecture: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int

    @property
    def uses_local_memory(self) -> bool:
        """Whether the kernel spills or has a stack frame."""
        return any((self.stack_bytes, self.spill_store_bytes, self.spill_load_bytes))


class CompileError(RuntimeError):
    """nvcc or c++filt failed: its own words."""


_ENTRY = re.compile(r"Compiling entry function '(?P<kernel>\S+)' for '(?P<architecture>\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse(log: str) -> list[Resources]:
    """The kernels of what `ptxas -v` printed, by their mangled names, in its order.

    A kernel's stack and spills are the most of its own and of the functions that ptxas did not inline into it.

    Raises CompileError where a kernel is announced and its registers are not given.
    """
    found = []
    entry, memory = None, (0, 0, 0)
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            if entry is not None:
                break
            entry, memory = match, (0, 0, 0)
        elif entry is None:
            continue
        elif match := _STACK.search(line):
            memory = tuple(max(pair) for pair in zip(memory, map(int, match.groups()), strict=True))
        elif match := _REGISTERS.search(line):
            shared = _SHARED.search(line)
            found.append(
                Resources(
                    entry["kernel"], entry["architecture"], int(match[1]), int(shared[1]) if shared else 0, *memory
                )
            )
            entry = None
    if entry is not None:
        raise CompileError(f"ptxas gave no registers of {entry['kernel']} for {entry['architecture']}")
    return found


def demangled(names: list[str]) -> list[str]:
    """The names as C++ spells them, without parameters and without this project's namespaces."""
    try:
        filtered = subprocess.run(
            ["c++filt", "--no-params"], input="\n".join(names), capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        raise CompileError(f"c++filt: {error}") from None
    return [re.sub(r"pykernels::(cuda::)?|\(anonymous namespace\)::|^void ", "", name) for name in filtered]


def commands(path: Path, architectures: list[str]) -> list[tuple[str, Path, list[str]]]:
    """Source, folder and command, but for its `-o FILE`, of every CUDA source in a compile_commands.json.

    ptxas is told to speak, and not to fail for a spill: here it is to be seen. Where architectures are named, the
    command's own give way to them.
    """
    found = []
    for entry in json.loads(path.read_text()):
        words = shlex.split(entry["command"])
        if "-x cu" not in " ".join(words):
            continue  # a host compiler's: the SIMT executor's builds of the same files
        output = words.index("-o")
        words = [word.replace(",-Werror", "") for word in words[:output] + words[output + 2 :]]
        if architectures:
            if "-fatbin" in words:
                continue  # the tests' build of the other architectures: the same source once more
            words = [word for word in words if not word.startswith("--generate-code=")]
            words += [f"--generate-code=arch=compute_{name},code=sm_{name}" for name in architectures]
        found.append((entry["file"], Path(entry["directory"]), [*words, "-Xptxas=-v"]))
    return found


def compile_all(path: Path, architectures: list[str]) -> list[Resources]:
    """Compile every CUDA source of a compile_commands.json, for the build's architectures where none is named. Returns
    its kernels under their demangled names, sorted."""

    def log(source: str, folder: Path, command: list[str]) -> str:
        with TemporaryDirectory() as scratch:
            ended = [*command, "-o", str(Path(scratch, "kernels.o"))]
            result = subprocess.run(ended, cwd=folder, capture_output=True, text=True)
        if result.returncode:
            raise CompileError(f"{source}: {command[0]} failed\n{result.stdout}{result.stderr}")
        return result.stdout + result.stderr

    found = commands(path, architectures)
    if not found:
        raise CompileError(f"{path}: no CUDA sources: nvcc was not found when the build was configured")
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        logs = pool.map(lambda item: log(*item), found)
        kernels = [kernel for text in logs for kernel in parse(text)]
    names = demangled([kernel.kernel for kernel in kernels])
    return sorted(
        Resources(name, *list(vars(kernel).values())[1:]) for name, kernel in zip(names, kernels, strict=True)
    )


def table(kernels: list[Resources]) -> Table:
    """One row a kernel and architecture; stores and loads are those of spilled registers."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("kernel", overflow="fold")
    grid.add_column("for", no_wrap=True)
    for title in ("registers", "shared B", "stack B", "stores B", "loads B"):
        grid.add_column(title, justify="right", no_wrap=True)
    for kernel in kernels:
        grid.add_row(*map(str, vars(kernel).values()), style="bold red" if kernel.uses_local_memory else None)
    return grid


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    path, architectures = (Path(arguments[0]), arguments[1:]) if arguments else (Path(), [])
    if not path.is_file():
        print(
            "usage: kernel_resources.py build/FOLDER/compile_commands.json [ARCHITECTURE ...] (make build writes it)",
            file=sys.stderr,
        )
        return 2
    if wrong := [name for name in architectures if not re.fullmatch(r"\d{2,3}[af]?", name)]:
        print(f"kernel_resources: an architecture is a number as in sm_120, got {wrong[0]!r}", file=sys.stderr)
        return 2
    try:
        kernels = compile_all(path, architectures)
    except CompileError as error:
        print(f"kernel_resources: {error}", file=sys.stderr)
        return 2
    # Whole names in a file, whatever a terminal has.
    Console(width=None if sys.stdout.isatty() else 120).print(table(kernels))
    guilty = [f"{kernel.kernel} ({kernel.architecture})" for kernel in kernels if kernel.uses_local_memory]
    if guilty:
        print(f"kernels that spill or use a stack frame: {', '.join(guilty)}", file=sys.stderr)
    return 1 if guilty else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
