// The null op's launch by the CPU's or a CUDA device's launcher behind a C name: what a caller with no
// binding of its own, such as ctypes, calls.
#pragma once

extern "C" {

// cuda_device: -1 is the CPU. stream: a cudaStream_t. Returns 0, or 1 where the launch failed.
int pykernels_null_launch(int cuda_device, void* stream);
}
