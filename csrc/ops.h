// The launchers: every op of op_list.h on every device, named alike.
//
// A CPU launcher runs the op on the kernel library's own threads and returns when it is done; a CUDA launcher
// enqueues it. Parameters are trusted: binding/ checks what a user gives.
#pragma once

#include <cstddef>

#include "op_list.h"
#include "params.h"

namespace pykernels::cpu {

#define PYKERNELS_DECLARE(op, Params) void op(const Params& params);
PYKERNELS_OPS(PYKERNELS_DECLARE)
#undef PYKERNELS_DECLARE

// How large `workspace` must be. They read the sizes and dtype of `params` and no pointer, and depend
// on the number of threads: ask again after set_num_threads().
#define PYKERNELS_DECLARE(op, Params) size_t op##_workspace_bytes(const Params& params);
PYKERNELS_WORKSPACES(PYKERNELS_DECLARE)
#undef PYKERNELS_DECLARE

// The instruction sets the kernels are compiled for, each a superset of the one before. At start the best
// one of this CPU is taken, or the one that PYKERNELS_CPU_ISA names; tests walk through all of them.
enum class Isa : int { generic, avx2, avx512, avx512_bf16 };
const char* isa_name(Isa isa);
bool isa_supported(Isa isa);
Isa current_isa();
void set_isa(Isa isa);  // throws std::invalid_argument where the CPU or the compiler lacks it

// The calling thread counts as one. At start: the CPUs this process may run on, or PYKERNELS_NUM_THREADS.
int num_threads();
void set_num_threads(int count);  // throws std::invalid_argument outside 1..256

}  // namespace pykernels::cpu

#ifdef PYKERNELS_CUDA
namespace pykernels::cuda {

// Where a launch goes: a cudaStream_t, and whether the kernel may start before the one ahead of it has ended
// (programmatic dependent launch; from sm_90 on, ignored before).
struct Stream {
    void* handle;
    bool programmatic;
};

// dtypes bfloat16 and float16; head_dim a multiple of 8 up to 256. Anything else, and a launch that fails, is
// an exception.
#define PYKERNELS_DECLARE(op, Params) void op(const Params& params, const Stream& stream);
PYKERNELS_OPS(PYKERNELS_DECLARE)
#undef PYKERNELS_DECLARE

// Keeps the stream busy until *released (mapped host memory) is not 0, ten seconds at most: what is enqueued
// meanwhile is timed on the host without the device's help or hindrance.
void hold(const int* released, const Stream& stream);

// Makes a device the current one, and the one before it again.
class DeviceScope {
  public:
    explicit DeviceScope(int device);
    ~DeviceScope();
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

  private:
    int before_, device_;
};

// gqa_decode's workspace is zeroed once before its first use; every launch leaves it fit for the next.
size_t gqa_decode_workspace_bytes(const GqaDecodeParams& params);

}  // namespace pykernels::cuda
#endif
