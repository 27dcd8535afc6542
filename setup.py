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

    user_options = [
        *build_ext.user_options,
        ("kernels-only", None, "compile the kernels alone: they need no torch"),
    ]
    boolean_options = [*build_ext.boolean_options, "kernels-only"]

    def initialize_options(self) -> None:
        super().initialize_options()
        self.kernels_only = False

    def run(self) -> None:
        # One folder an interpreter, so that two of them do not undo each other's configuration.
        build = ROOT / "build" / sysconfig.get_config_var("SOABI")
        target = ROOT if self.inplace else Path(self.build_lib)
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(len(os.sched_getaffinity(0))))
        configure = ["cmake", "-S", str(ROOT), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}",
                     f"-DPYKERNELS_IN_PLACE={'ON' if self.inplace else 'OFF'}",
                     f"-DPYKERNELS_KERNELS_ONLY={'ON' if self.kernels_only else 'OFF'}"]  # fmt: skip
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        if not (build / "CMakeCache.txt").exists():
            configure += generator
        commands = [configure, ["cmake", "--build", str(build), "--parallel", jobs]]
        if not self.kernels_only:
            commands.append(["cmake", "--install", str(build), "--prefix", str(target.resolve())])
        elif (build / "libpykernels.so").exists():
            return  # CMake deletes what a build of the kernels alone does not know
        for command in commands:
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
