"""The launchers of bench.launch, by name, in the order of the table: what is nearest to the device first."""

from bench.launch.launchers.base import ARGUMENTS, FromPython, Launcher, Ready
from bench.launch.launchers.bindings import Ctypes, Pybind
from bench.launch.launchers.cpp_loop import (
    ClusterLaunch,
    DriverLaunch,
    NativeLoop,
    ProgrammaticLaunch,
    RuntimeLaunch,
    RuntimeLaunchEx,
    RuntimeProgrammaticLaunch,
)
from bench.launch.launchers.cuda_core import CudaCore
from bench.launch.launchers.cupy_raw import CupyRaw
from bench.launch.launchers.graphs import GraphLoop, GraphOf100, TorchGraph
from bench.launch.launchers.numba_cuda import NumbaCuda
from bench.launch.launchers.torch_ops import Compiled, CustomOp, Dispatcher, DispatcherLoop
from bench.launch.launchers.triton_jit import TritonJit
from bench.launch.launchers.tvm_ffi import TvmFfi

_LAUNCHERS: tuple[type[Launcher], ...] = (
    GraphOf100, GraphLoop, RuntimeLaunch, RuntimeLaunchEx, RuntimeProgrammaticLaunch, DriverLaunch, ProgrammaticLaunch,
    ClusterLaunch, NativeLoop, DispatcherLoop, Pybind, Ctypes, TvmFfi, CudaCore, CupyRaw, NumbaCuda, TritonJit,
    Dispatcher, CustomOp, Compiled, TorchGraph,
)  # fmt: skip


def registry() -> dict[str, type[Launcher]]:
    """Every launcher by name."""
    return {launcher.name: launcher for launcher in _LAUNCHERS}


__all__ = ["ARGUMENTS", "FromPython", "Launcher", "Ready", "registry"]
