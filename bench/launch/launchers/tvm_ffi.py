"""TVM-FFI: a function of C++ behind its calling convention."""

import ctypes

import torch

from bench.launch.launchers.base import FromPython, Launcher, Ready, current_stream, pointers
from pykernels import _runtime
from pykernels.relaunch import DRIVER

# It is given the driver's call and the kernel as addresses: so it needs a C++ compiler and no CUDA toolkit.
_SOURCE = """
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>

using Launch = int (*)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                       void**);

void launch(int64_t call, int64_t kernel, int64_t stream%(parameters)s) {
  void* values[] = {nullptr%(values)s};
  void* pointers[sizeof values / sizeof *values];
  for (size_t i = 1; i < sizeof values / sizeof *values; ++i) pointers[i - 1] = &values[i];
  int status = reinterpret_cast<Launch>(call)(reinterpret_cast<void*>(kernel), 1, 1, 1, 32, 1, 1, 0,
                                             reinterpret_cast<void*>(stream), pointers, nullptr);
  if (status != 0) TVM_FFI_THROW(RuntimeError) << "cuLaunchKernel failed: CUresult " << status;
}
"""


class TvmFfi(Launcher):
    name = "tvm-ffi"
    description = "a C++ function by TVM-FFI that calls cuLaunchKernel, its arguments tensors"
    package = "tvm_ffi"
    install_hint = "pip install apache-tvm-ffi (and a C++ compiler)"

    def make(self, arguments: int, device: torch.device) -> Ready:
        import tvm_ffi.cpp

        parameters = "".join(f", tvm::ffi::TensorView a{i}" for i in range(arguments))
        values = "".join(f", a{i}.data_ptr()" for i in range(arguments))
        module = tvm_ffi.cpp.load_inline(
            name=f"launchtax_empty_{arguments}",
            cpp_sources=_SOURCE % {"parameters": parameters, "values": values},
            functions="launch",
        )
        launch = _runtime.EmptyLaunch("cudaLaunchKernel", arguments, device=device.index or 0)
        address = ctypes.cast(ctypes.CDLL(DRIVER).cuLaunchKernel, ctypes.c_void_p).value
        function, kernel, stream = module.launch, launch.function, current_stream()
        tensors = pointers(arguments, device)
        call = lambda: function(address, kernel, stream, *tensors)  # noqa: E731
        call()
        return FromPython(call, device)
