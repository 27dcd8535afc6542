"""The 4-bit kernels, by name. Each adapter is the only place that imports its library."""

from pathlib import Path

from bench.backends.int4.awq import Awq
from bench.backends.int4.base import Int4Kernel, gate_depth
from bench.backends.int4.bitsandbytes import BitsandbytesNf4
from bench.backends.int4.exllamav2 import Exllamav2
from bench.backends.int4.gemlite import Gemlite
from bench.backends.int4.gptq import Gptq
from bench.backends.int4.machete import Machete
from bench.backends.int4.marlin import Marlin
from bench.backends.int4.native import Native
from bench.backends.int4.tinygemm import Tinygemm
from bench.backends.int4.torchao import Torchao
from bench.backends.user_file import run_file
from bench.core.errors import flag_error

_KERNELS: tuple[type[Int4Kernel], ...] = (
    Native, Tinygemm, Torchao, BitsandbytesNf4, Marlin, Machete, Awq, Gptq, Exllamav2, Gemlite,
)  # fmt: skip


def registry() -> dict[str, type[Int4Kernel]]:
    """Every kernel by name, in the order of the tables."""
    return {kernel.name: kernel for kernel in _KERNELS}


def load(flag: str, text: str) -> type[Int4Kernel]:
    """The class that `FILE.py:Name` names: an author's own :class:`Int4Kernel`. Its file is run.

    Raises UsageError, one line naming the flag, where there is no such file or class in it.
    """
    path, _, name = text.rpartition(":")
    file = Path(path).expanduser()
    if file.suffix != ".py" or not file.is_file():
        raise flag_error(flag, text, "FILE.py:Name of a file that exists")
    try:
        module = run_file(file)
    except Exception as error:  # whatever the author's file raises
        raise flag_error(flag, text, f"a file that can be run: {type(error).__name__}: {error}") from None
    kernel = getattr(module, name, None)
    if not (isinstance(kernel, type) and issubclass(kernel, Int4Kernel)):
        raise flag_error(flag, text, f"a subclass of bench.backends.int4.Int4Kernel: {name} is not one")
    lacks = [*([] if hasattr(kernel, "name") else ["name"]), *sorted(kernel.__abstractmethods__)]
    if lacks:
        raise flag_error(flag, text, f"a kernel that can be run: {name} lacks {', '.join(lacks)}")
    return kernel


def named(flag: str, text: str) -> dict[str, type[Int4Kernel]]:
    """The kernels of a comma-separated flag: names, FILE.py:Name, or `all` of the registered ones."""
    known, found = registry(), {}
    for part in known if text == "all" else [part.strip() for part in text.split(",")]:
        if part in known:
            found[part] = known[part]
        elif ":" in part:
            kernel = load(flag, part)
            found[kernel.name] = kernel
        else:
            raise flag_error(flag, part, f"all, FILE.py:Name, or of {', '.join(known)}")
    return found


__all__ = ["Int4Kernel", "gate_depth", "load", "named", "registry"]
