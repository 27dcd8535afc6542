"""Drives CMake: configure, build, and lay the three libraries into the package."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Builds the CMake project once; every extension of the package comes from that one build."""

    def run(self) -> None:
        # One folder an interpreter, so that two of them do not undo each other's configuration.
        build = ROOT / "build" / sysconfig.get_config_var("SOABI")
        target = ROOT if self.inplace else Path(self.build_lib)
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(len(os.sched_getaffinity(0))))
        configure = ["cmake", "-S", str(ROOT), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}",
                     f"-DPYKERNELS_IN_PLACE={'ON' if self.inplace else 'OFF'}"]  # fmt: skip
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        if not (build / "CMakeCache.txt").exists():
            configure += generator
        for command in (
            configure,
            ["cmake", "--build", str(build), "--parallel", jobs],
            ["cmake", "--install", str(build), "--prefix", str(target.resolve())],
        ):
            print("+", *command, flush=True)
            if subprocess.run(command).returncode != 0:
                sys.exit(f"the build failed at: {' '.join(command)}")

    def get_outputs(self) -> list[str]:
        return [str(path) for path in (Path(self.build_lib) / "pykernels").glob("*.so")]


# An installed launchtax takes two names: pykernels, and launchtax, which holds the drivers (launchtax/__init__.py).
setup(
    ext_modules=[Extension("pykernels._runtime", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    packages=["launchtax"]
    + find_packages(str(ROOT), include=["pykernels", "pykernels.*"])
    + [f"launchtax.{name}" for name in find_packages(str(ROOT), include=["bench", "bench.*"])],
)
