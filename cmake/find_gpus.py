"""Print, as a CMake list, the CUDA architectures of this machine's GPUs; nothing where there is none.

The CUDA driver is asked, and nvidia-smi where that finds none. An architecture is what a build for that GPU alone
takes: 86-real, 90a-real. GPUs older than compute capability 8.0, which the kernels do not run on, are left out.
"""

import ctypes
import re
import subprocess

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def from_driver(library: str = "libcuda.so.1") -> list[tuple[int, int]]:
    """The compute capability of every GPU that the CUDA driver shows."""
    try:
        driver = ctypes.CDLL(library)
        count, value, found = ctypes.c_int(), ctypes.c_int(), []
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return []
        for device in range(count.value):
            capability = []
            for attribute in (_MAJOR, _MINOR):
                if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
                    return []
                capability.append(value.value)
            found.append((capability[0], capability[1]))
        return found
    except (OSError, AttributeError):
        return []


def from_nvidia_smi(program: str = "nvidia-smi") -> list[tuple[int, int]]:
    """The same as nvidia-smi has it."""
    command = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if result.returncode:
        return []
    matches = (re.fullmatch(r"(\d+)\.(\d+)", line.strip()) for line in result.stdout.splitlines())
    return [(int(match[1]), int(match[2])) for match in matches if match]


def architectures(capabilities: list[tuple[int, int]]) -> list[str]:
    """CMake's names, oldest first. 9.0 is built with its own instructions (90a)."""
    kept = sorted({capability for capability in capabilities if capability >= (8, 0)})
    return ["90a-real" if capability == (9, 0) else f"{capability[0]}{capability[1]}-real" for capability in kept]


if __name__ == "__main__":
    print(*architectures(from_driver() or from_nvidia_smi()), sep=";", end="")
