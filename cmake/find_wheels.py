"""Print, as a CMake list, where this interpreter keeps torch, pybind11's CMake package and nvtx3's headers.

The nvtx entry is "-" where no wheel brings the headers. torch is not imported: that takes seconds.
"""

import importlib.util
import sys
from pathlib import Path


def package(name: str) -> Path:
    """The folder of an installed package. Ends the process, one line, where there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"{sys.executable} has no package {name}: pip install {name}")
    return Path(spec.origin).parent


headers = sorted(Path(package("torch").parent, "nvidia").glob("**/nvtx3/nvToolsExt.h"))
nvtx = headers[0].parent.parent if headers else "-"
print(package("torch"), package("pybind11") / "share" / "cmake" / "pybind11", nvtx, sep=";")
