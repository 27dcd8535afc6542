// gemv: out[b, n] = sum over k of x[b, k] * weight[n, k], + bias[n], scaled and capped, + residual[b, n].
//
// A chunk is a run of rows that one thread streams in the order they lie in memory (dot.h). Bytes: the weight
// once for all rows of x; the rest is small. Limit: memory bandwidth.
#include "cpu/gemv_rows.h"
#include "cpu/kernels.h"

namespace pykernels::cpu::PYKERNELS_ISA {
namespace {

template <int batch, class T>
void gemv_typed(const GemvParams& params) {
    const int64_t k = params.in_features;
    const DenseRows<batch, T> weight{static_cast<const T*>(params.weight), static_cast<const T*>(params.x),
                                     k};
    gemv_rows<batch, T>(weight, k * static_cast<int64_t>(sizeof(T)), params);
}

}  // namespace

void gemv(const GemvParams& params) {
    with_type(params.dtype, [&](auto type) {
        with_batch(params.batch,
                   [&](auto batch) { gemv_typed<decltype(batch)::number, decltype(type)>(params); });
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
