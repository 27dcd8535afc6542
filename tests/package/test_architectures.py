"""Which GPUs a build has code for: CMakeLists.txt with the flags of a build, and pykernels/architectures.py."""

import json
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pykernels.architectures import runs_on

ROOT = Path(__file__).resolve().parents[2]
HOPPER = "--generate-code=arch=compute_90a,code=[sm_90a]"
OTHERS = "--generate-code=arch=compute_80,code=[compute_80,sm_80,sm_89]"


@pytest.mark.parametrize(
    ("architectures", "runs", "not_on"),
    [
        ("90a-real", [(9, 0)], [(8, 0), (8, 9), (10, 0)]),
        ("86-real", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("80 89-real 90a-real", [(8, 0), (8, 9), (9, 0), (12, 0)], [(7, 5)]),
        ("89-virtual", [(8, 9), (9, 0)], [(8, 6)]),
        ("100f-real 120-real", [(10, 0), (10, 3), (12, 1)], [(9, 0), (11, 0)]),
        ("native", [(8, 0)], []),
        ("", [(9, 0)], []),
    ],
)
def test_what_the_code_of_a_build_runs_on(architectures, runs, not_on):
    assert all(runs_on(architectures, capability) for capability in runs)
    assert not any(runs_on(architectures, capability) for capability in not_on)


def device_code(folder: Path, **flags: str) -> tuple[set[tuple[str, ...]], set[tuple[str, ...]]]:
    """What a build with those flags would compile every CUDA source for: in the library, and beside it."""
    options = [f"-D{name}={value}" for name, value in flags.items()]
    subprocess.run(
        ["cmake", "-S", ROOT, "-B", folder, f"-DPython_EXECUTABLE={sys.executable}", "-DPYKERNELS_CPU_ISAS=generic",
         "-DPYKERNELS_KERNELS_ONLY=ON", *options], check=True, capture_output=True,
    )  # fmt: skip
    found: tuple[Counter, Counter] = (Counter(), Counter())
    for entry in json.loads((folder / "compile_commands.json").read_text()):
        words = shlex.split(entry["command"])
        if "-x cu" in entry["command"]:
            codes = tuple(word for word in words if word.startswith("--generate-code="))
            found["-fatbin" in words][codes] += 1
    assert not found[1] or found[0].total() == found[1].total()
    return set(found[0]), set(found[1])


@pytest.mark.skipif(not shutil.which("cmake") or not shutil.which("nvcc"), reason="needs cmake and nvcc")
def test_what_a_build_without_a_gpu_has_code_for(tmp_path):
    if subprocess.run([sys.executable, ROOT / "cmake" / "find_gpus.py"], capture_output=True, text=True).stdout:
        pytest.skip("there is a GPU: every build is for that")
    wheel = device_code(tmp_path, PYKERNELS_IN_PLACE="OFF")
    assert wheel == ({(HOPPER, OTHERS)}, set())
    assert device_code(tmp_path, PYKERNELS_IN_PLACE="ON") == ({(HOPPER,)}, set())
    assert device_code(tmp_path, PYKERNELS_IN_PLACE="ON", BUILD_TESTING="ON") == ({(HOPPER,)}, {(OTHERS,)})
    named = device_code(tmp_path, PYKERNELS_CUDA_ARCHITECTURES="89-real")
    assert named == ({("--generate-code=arch=compute_89,code=[sm_89]",)}, set())
