// The executor for Python's ctypes (tests/inputs/simt.py). Functions that can fail return 0, or 1 with the
// reason in pykernels_simt_error().
#include <cstring>
#include <exception>
#include <string>

#include "ops.h"
#include "simt/executor.h"
#include "timestamps.h"

using namespace pykernels;

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

std::string error;

template <class Body>
int guarded(Body&& body) {
    try {
        body();
        return 0;
    } catch (const std::exception& exception) {
        error = exception.what();
        return 1;
    }
}

}  // namespace

EXPORT const char* pykernels_simt_error() {
    return error.c_str();
}

EXPORT int pykernels_simt_configure(uint64_t seed, int sm_count, int shared_bytes) {
    return guarded([&] { simt::executor().configure({seed, sm_count, shared_bytes}); });
}

EXPORT void* pykernels_simt_allocate(size_t bytes, size_t offset) {
    return simt::executor().memory.allocate(bytes, offset);
}

EXPORT int pykernels_simt_release(void* begin) {
    return guarded([&] { simt::executor().memory.release(begin); });
}

EXPORT int pykernels_simt_synchronize() {
    return guarded([] { simt::executor().synchronize(); });
}

EXPORT size_t pykernels_simt_gqa_decode_workspace_bytes(const GqaDecodeParams* params) {
    return cuda::gqa_decode_workspace_bytes(*params);
}

// pykernels_simt_rmsnorm(params, programmatic) and so on; pykernels_simt_rmsnorm_params_bytes() is the size
// of the struct.
#define OP(name, Params)                                                            \
    EXPORT int pykernels_simt_##name(const Params* params, int programmatic) {      \
        return guarded([&] { cuda::name(*params, {nullptr, programmatic != 0}); }); \
    }                                                                               \
    EXPORT size_t pykernels_simt_##name##_params_bytes() {                          \
        return sizeof(Params);                                                      \
    }

// Those with in-kernel timestamps, where the build has them, and its records: pykernels/timestamps.py's
// RECORD.
OP(rmsnorm, RmsnormParams)
OP(gemv, GemvParams)
OP(gqa_decode, GqaDecodeParams)
OP(int4_gemv, Int4GemvParams)
#ifdef PYKERNELS_TIMESTAMPS
namespace {
cuda::Timestamped timestamped;
std::string timestamped_kernels;
}  // namespace

EXPORT int pykernels_simt_start_timestamps(uint32_t capacity) {
    return guarded([&] { cuda::start_timestamps(0, capacity); });
}

EXPORT int pykernels_simt_stop_timestamps(const void** records, uint64_t* count, uint64_t* lost) {
    return guarded([&] {
        timestamped = cuda::stop_timestamps();
        *records = timestamped.records.data();
        *count = timestamped.records.size();
        *lost = timestamped.lost;
    });
}

// Their ops, separated by spaces.
EXPORT const char* pykernels_simt_timestamped_kernels() {
    timestamped_kernels.clear();
    for (const std::string& op : cuda::timestamped_kernels()) timestamped_kernels += op + " ";
    return timestamped_kernels.c_str();
}
#else
OP(rope_kv_append, RopeKvAppendParams)
OP(silu_mul, SiluMulParams)
OP(swiglu_gemv, SwigluGemvParams)
OP(qkv_gemv, QkvGemvParams)
OP(int4_swiglu_gemv, Int4SwigluGemvParams)
OP(int4_qkv_gemv, Int4QkvGemvParams)
OP(add, AddParams)
OP(embedding, EmbeddingParams)
OP(argmax, ArgmaxParams)
OP(null, NullParams)
OP(spin, SpinParams)
OP(ceiling_read, CeilingReadParams)
OP(ceiling_copy, CeilingCopyParams)
#endif
