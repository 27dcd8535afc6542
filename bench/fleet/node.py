"""What a machine says of itself: which it is, its GPUs by NVML, and the build that it runs."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import pynvml

import pykernels
from bench.core import environment
from bench.core.document import Document
from bench.core.gpu_state import ask


def machine_name() -> str:
    """Eight digits by which documents of one machine are known; nobody can tell the machine from them."""
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        with suppress(OSError):
            if text := Path(path).read_text().strip():
                return hashlib.sha256(text.encode()).hexdigest()[:8]
    return "unknown"


def itself() -> Document:
    """What documents say of the machine that measured them: its name, and the niceness of the process, which decides
    who has a CPU where others want it."""
    return {"name": machine_name(), "niceness": os.nice(0)}


def gpu_names() -> list[str]:
    """The GPUs by NVML's own names; none without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    handles = [ask(pynvml.nvmlDeviceGetHandleByIndex, index) for index in range(ask(pynvml.nvmlDeviceGetCount) or 0)]
    names = [ask(pynvml.nvmlDeviceGetName, handle) for handle in handles if handle is not None]
    pynvml.nvmlShutdown()
    return [str(name) for name in names if name]


@cache
def build() -> Document:
    """What must be the same everywhere: the commit that is baked in, the compiled libraries, the Python sources."""
    libraries = hashlib.sha256()
    for path in sorted(Path(pykernels.__file__).parent.glob("*.so")):
        libraries.update(path.name.partition(".")[0].encode())
        libraries.update(path.read_bytes())
    return {
        "commit": pykernels.runtime.build_info().get("commit"), "libraries": libraries.hexdigest(),
        "pykernels": environment.python_hash("pykernels"), "bench": environment.python_hash("bench"),
    }  # fmt: skip


def identity() -> Document:
    """The machine, its GPUs and its build."""
    return itself() | {"gpus": gpu_names(), "build": build()}


def other_build(ours: Document, theirs: Document) -> str | None:
    """What of a node's build differs from ours, in words; None where nothing does."""
    found = []
    for key, what in (("commit", "commit"), ("libraries", "libraries"), ("pykernels", "pykernels/*.py"),
                      ("bench", "bench/*.py")):  # fmt: skip
        if theirs.get(key) != ours.get(key):
            values = [str(build_.get(key))[:9] for build_ in (theirs, ours)]
            found.append(f"{what} {values[0]} where this has {values[1]}")
    return ", ".join(found) or None


def is_of_kind(kind: str, gpu_name: str) -> bool:
    """Is the kind, H200 or L4, a whole word of NVML's name? Ray writes A100-80G where NVML has A100-SXM4-80GB: of a
    kind with a size what comes before it counts."""
    word = re.sub(r"-\d+G$", "", kind)
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", gpu_name) is not None


def names_a_gpu(kind: str) -> bool:
    """Is it a name as NVIDIA gives its GPUs (H200, L40S, A100-80G), and no resource of somebody's own?"""
    return re.fullmatch(r"[A-Z]{1,4}\d{1,5}[A-Za-z]*([-_].+)?", kind) is not None


def lie(kind: str, gpus: Sequence[str]) -> str | None:
    """Why a node that is requested as `kind` is none, by NVML; None where it is."""
    if not names_a_gpu(kind) or gpus and all(is_of_kind(kind, name) for name in gpus):
        return None
    return f"is no {kind}: NVML says " + (", ".join(dict.fromkeys(gpus)) or "that there is no GPU")


def kinds_in_words(kinds: Iterable[str]) -> str:
    """For what a user can choose from."""
    return ", ".join(sorted(set(kinds))) or "none"
