// The launchers: every op on every device, named alike.
//
// A CPU launcher runs the op on the kernel library's own threads and returns when it is done; a CUDA launcher
// enqueues it. Parameters are trusted: binding/ checks what a user gives.
#pragma once

#include <cstddef>

#include "params.h"

namespace pykernels::cpu {

void rmsnorm(const RmsnormParams& params);
void gemv(const GemvParams& params);
void rope_kv_append(const RopeKvAppendParams& params);
void gqa_decode(const GqaDecodeParams& params);
void silu_mul(const SiluMulParams& params);
void swiglu_gemv(const SwigluGemvParams& params);
void qkv_gemv(const QkvGemvParams& params);
void int4_gemv(const Int4GemvParams& params);
void int4_swiglu_gemv(const Int4SwigluGemvParams& params);
void int4_qkv_gemv(const Int4QkvGemvParams& params);
void add(const AddParams& params);
void embedding(const EmbeddingParams& params);
void argmax(const ArgmaxParams& params);

void null(const NullParams& params);
void spin(const SpinParams& params);
void ceiling_read(const CeilingReadParams& params);
void ceiling_copy(const CeilingCopyParams& params);

// How large `workspace` must be. They read the sizes and dtype of `params` and no pointer, and depend
// on the number of threads: ask again after set_num_threads().
size_t gqa_decode_workspace_bytes(const GqaDecodeParams& params);
size_t swiglu_gemv_workspace_bytes(const SwigluGemvParams& params);
size_t qkv_gemv_workspace_bytes(const QkvGemvParams& params);
size_t int4_gemv_workspace_bytes(const Int4GemvParams& params);
size_t int4_swiglu_gemv_workspace_bytes(const Int4SwigluGemvParams& params);
size_t int4_qkv_gemv_workspace_bytes(const Int4QkvGemvParams& params);

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

// dtypes bfloat16 and float16; head_dim 64 and 128. Anything else, and a launch that fails, is an exception.
void rmsnorm(const RmsnormParams& params, const Stream& stream);
void gemv(const GemvParams& params, const Stream& stream);
void rope_kv_append(const RopeKvAppendParams& params, const Stream& stream);
void gqa_decode(const GqaDecodeParams& params, const Stream& stream);
void silu_mul(const SiluMulParams& params, const Stream& stream);
void swiglu_gemv(const SwigluGemvParams& params, const Stream& stream);
void qkv_gemv(const QkvGemvParams& params, const Stream& stream);
void int4_gemv(const Int4GemvParams& params, const Stream& stream);
void int4_swiglu_gemv(const Int4SwigluGemvParams& params, const Stream& stream);
void int4_qkv_gemv(const Int4QkvGemvParams& params, const Stream& stream);
void add(const AddParams& params, const Stream& stream);
void embedding(const EmbeddingParams& params, const Stream& stream);
void argmax(const ArgmaxParams& params, const Stream& stream);

void null(const NullParams& params, const Stream& stream);
void spin(const SpinParams& params, const Stream& stream);
void ceiling_read(const CeilingReadParams& params, const Stream& stream);
void ceiling_copy(const CeilingCopyParams& params, const Stream& stream);

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
