// The launchers of ops.h: the chosen instruction set's kernel, and the ops that need none.
#include <chrono>
#include <cstring>

#include "cpu/gqa_plan.h"
#include "cpu/int4_plan.h"
#include "cpu/kernels.h"
#include "ops.h"

namespace pykernels::cpu {
namespace {

size_t aligned(int64_t bytes) {
    return static_cast<size_t>((bytes + 63) / 64 * 64);
}

}  // namespace

#ifdef PYKERNELS_X86
#define PYKERNELS_LAUNCHER(op, Params)          \
    void op(const Params& params) {             \
        switch (current_isa()) {                \
            case Isa::avx512_bf16:              \
                return avx512_bf16::op(params); \
            case Isa::avx512:                   \
                return avx512::op(params);      \
            case Isa::avx2:                     \
                return avx2::op(params);        \
            case Isa::generic:                  \
                return generic::op(params);     \
        }                                       \
    }
#else
#define PYKERNELS_LAUNCHER(op, Params) \
    void op(const Params& params) {    \
        generic::op(params);           \
    }
#endif

PYKERNELS_LAUNCHER(rmsnorm, RmsnormParams)
PYKERNELS_LAUNCHER(gemv, GemvParams)
PYKERNELS_LAUNCHER(rope_kv_append, RopeKvAppendParams)
PYKERNELS_LAUNCHER(gqa_decode, GqaDecodeParams)
PYKERNELS_LAUNCHER(silu_mul, SiluMulParams)
PYKERNELS_LAUNCHER(swiglu_gemv, SwigluGemvParams)
PYKERNELS_LAUNCHER(qkv_gemv, QkvGemvParams)
PYKERNELS_LAUNCHER(int4_gemv, Int4GemvParams)
PYKERNELS_LAUNCHER(int4_swiglu_gemv, Int4SwigluGemvParams)
PYKERNELS_LAUNCHER(int4_qkv_gemv, Int4QkvGemvParams)
PYKERNELS_LAUNCHER(add, AddParams)
PYKERNELS_LAUNCHER(argmax, ArgmaxParams)
PYKERNELS_LAUNCHER(ceiling_read, CeilingReadParams)
PYKERNELS_LAUNCHER(ceiling_copy, CeilingCopyParams)

void embedding(const EmbeddingParams& params) {
    const size_t row_bytes = static_cast<size_t>(params.hidden * dtype_bytes(params.dtype));
    for (int64_t b = 0; b < params.batch; ++b) {
        std::memcpy(static_cast<char*>(params.out) + static_cast<size_t>(b) * row_bytes,
                    static_cast<const char*>(params.table) + static_cast<size_t>(params.token[b]) * row_bytes,
                    row_bytes);
    }
}

void null(const NullParams&) {}

void spin(const SpinParams& params) {
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + std::chrono::duration<double, std::micro>(params.duration_us);
    while (Clock::now() < end) {
    }
}

size_t gqa_decode_workspace_bytes(const GqaDecodeParams& params) {
    return aligned(gqa_max_splits(params, num_threads()) * gqa_split_bytes(params));
}

size_t swiglu_gemv_workspace_bytes(const SwigluGemvParams& params) {
    if (params.norm_weight == nullptr) return 0;
    return aligned(params.batch * params.in_features * dtype_bytes(params.dtype));
}

size_t qkv_gemv_workspace_bytes(const QkvGemvParams& params) {
    return aligned(params.batch * params.hidden * dtype_bytes(params.dtype));
}

size_t int4_gemv_workspace_bytes(const Int4GemvParams& params) {
    return aligned(int4_x_bytes(params.batch, params.in_features, params.weight.n_groups));
}

size_t int4_swiglu_gemv_workspace_bytes(const Int4SwigluGemvParams& params) {
    return aligned(int4_normed_bytes(params.batch, params.in_features, params.dtype) +
                   int4_x_bytes(params.batch, params.in_features, params.gate.n_groups) +
                   int4_x_bytes(params.batch, params.in_features, params.up.n_groups));
}

size_t int4_qkv_gemv_workspace_bytes(const Int4QkvGemvParams& params) {
    return aligned(int4_normed_bytes(params.batch, params.hidden, params.dtype) +
                   int4_x_bytes(params.batch, params.hidden, params.q.n_groups) +
                   int4_x_bytes(params.batch, params.hidden, params.k.n_groups) +
                   int4_x_bytes(params.batch, params.hidden, params.v.n_groups));
}

}  // namespace pykernels::cpu
