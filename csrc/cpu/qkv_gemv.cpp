// qkv_gemv: RMSNorm in; q, k and v rows; bias; QK norm; RoPE; q out, k and v appended to the cache.
//
// The caller's thread normalises x into the workspace, then the threads stream the rows (qkv_rows.h). Bytes:
// the three weights once. Limit: memory bandwidth.
#include "cpu/kernels.h"
#include "cpu/qkv_rows.h"
#include "cpu/rmsnorm.h"

namespace pykernels::cpu::PYKERNELS_ISA {
namespace {

template <int batch, class T>
void qkv_gemv_typed(const QkvGemvParams& params) {
    const int64_t hidden = params.hidden;
    const T* normed =
        rmsnorm_rows<T>(params.x, params.norm_weight, batch, hidden, params.eps, params.norm_offset,
                        static_cast<char*>(params.workspace) + qk_norm_bytes(params));
    const auto weight = [&](const void* rows) {
        return DenseRows<batch, T>{static_cast<const T*>(rows), normed, hidden};
    };
    qkv_rows<batch, T>(params, weight(params.q_weight), weight(params.k_weight), weight(params.v_weight),
                       hidden * static_cast<int64_t>(sizeof(T)));
}

}  // namespace

void qkv_gemv(const QkvGemvParams& params) {
    with_type(params.dtype, [&](auto type) {
        with_batch(params.batch,
                   [&](auto batch) { qkv_gemv_typed<decltype(batch)::number, decltype(type)>(params); });
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
