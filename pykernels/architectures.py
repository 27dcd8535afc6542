"""Which GPUs the CUDA kernels of a build run on."""

import re

BUILD_FOR = "CMAKE_ARGS=-DPYKERNELS_CUDA_ARCHITECTURES={} make build"


def runs_on(architectures: str, capability: tuple[int, int]) -> bool:
    """Does code of these architectures (`cuda_architectures` of build_info()) run on a GPU of that compute capability?

    The names are CMake's: `86-real` is SASS, `86-virtual` PTX, `86` both. SASS runs on its own major version, from its
    minor version on; PTX on every GPU from its own on; the code of `90a` on 9.0 alone, and that of `100f` on its major
    version, as SASS (CUDA C++ Programming Guide, "Compute Capabilities"). A name that is none of these, such as
    `native`, may be anything: it counts as one that runs.
    """
    for name in architectures.split():
        match = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", name)
        if not match:
            return True
        own = int(match[1]), int(match[2])
        if match[3] == "a":
            fits = capability == own
        elif match[3] == "f" or match[4] == "-real":
            fits = capability[0] == own[0] and capability >= own
        else:
            fits = capability >= own
        if fits:
            return True
    return not architectures.split()


def misfit(architectures: str, capability: tuple[int, int]) -> str | None:
    """What a build needs to run on that GPU, and how it is made; None where it has it."""
    if runs_on(architectures, capability):
        return None
    number = f"{capability[0]}{capability[1]}"
    own = "90a-real" if capability == (9, 0) else f"{number}-real"
    return (
        f"kernels for compute capability {capability[0]}.{capability[1]}, and this build has {architectures}: "
        + BUILD_FOR.format(own)
    )
