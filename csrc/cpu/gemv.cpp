// gemv: out[b, n] = sum over k of x[b, k] * weight[n, k], + bias[n], + residual[b, n].
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
    gemv_rows<batch>(weight, params.out_features, k * static_cast<int64_t>(sizeof(T)),
                     static_cast<const T*>(params.bias), static_cast<const T*>(params.residual),
                     static_cast<T*>(params.out));
}

}  // namespace

void gemv(const GemvParams& params) {
    with_type(params.dtype, [&](auto type) {
        with_batch(params.batch,
                   [&](auto batch) { gemv_typed<decltype(batch)::number, decltype(type)>(params); });
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
