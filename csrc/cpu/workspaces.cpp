// How much scratch memory the CPU ops take: of the sizes and dtype alone, and of the number of threads.
#include "cpu/chosen_plan.h"
#include "cpu/gqa_plan.h"
#include "cpu/int4_plan.h"
#include "ops.h"

namespace pykernels::cpu {
namespace {

size_t aligned(int64_t bytes) {
    return static_cast<size_t>((bytes + 63) / 64 * 64);
}

}  // namespace

size_t gqa_decode_workspace_bytes(const GqaDecodeParams& params) {
    return aligned(unified_counter_bytes(params.softmax) +
                   gqa_max_splits(params, num_threads(), chosen_plan(params).splits) *
                       gqa_split_bytes(params));
}

size_t swiglu_gemv_workspace_bytes(const SwigluGemvParams& params) {
    if (params.norm_weight == nullptr) return 0;
    return aligned(int64_t{params.batch} * params.in_features * dtype_bytes(params.dtype));
}

size_t qkv_gemv_workspace_bytes(const QkvGemvParams& params) {
    return aligned(qk_norm_bytes(params) + int64_t{params.batch} * params.hidden * dtype_bytes(params.dtype));
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
    return aligned(qk_norm_bytes(params) + int4_normed_bytes(params.batch, params.hidden, params.dtype) +
                   int4_x_bytes(params.batch, params.hidden, params.q.n_groups) +
                   int4_x_bytes(params.batch, params.hidden, params.k.n_groups) +
                   int4_x_bytes(params.batch, params.hidden, params.v.n_groups));
}

}  // namespace pykernels::cpu
