// gemv: out[b, n] = sum over k of x[b, k] * weight[n, k], + bias[n], + residual[b, n].
//
// A chunk is a run of rows that one thread streams in the order they lie in memory (dot.h). Bytes: the weight
// once for all rows of x; the rest is small. Limit: memory bandwidth.
#include "cpu/dot.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace pykernels::cpu::PYKERNELS_ISA {
namespace {

template <int batch, class T>
void gemv_typed(const GemvParams& params) {
    const auto* x = static_cast<const T*>(params.x);
    const auto* weight = static_cast<const T*>(params.weight);
    const auto* bias = static_cast<const T*>(params.bias);
    const auto* residual = static_cast<const T*>(params.residual);
    auto* out = static_cast<T*>(params.out);
    const int64_t k = params.in_features, n_rows = params.out_features;
    const int64_t rows = rows_per_chunk(k * static_cast<int64_t>(sizeof(T)));
    parallel_chunks(ceil_div(n_rows, rows), [=](int64_t chunk) {
        const int64_t end = smaller(n_rows, (chunk + 1) * rows);
        for (int64_t n = chunk * rows; n < end; ++n) {
            float sums[batch];
            dot_row<batch>(weight + n * k, x, k, sums);
            for (int b = 0; b < batch; ++b) {
                float value = sums[b];
                if (bias) value += to_float(bias[n]);
                if (residual) value += to_float(residual[b * n_rows + n]);
                from_float(value, out + b * n_rows + n);
            }
        }
    });
}

}  // namespace

void gemv(const GemvParams& params) {
    with_type(params.dtype, [&](auto type) {
        with_batch(params.batch,
                   [&](auto batch) { gemv_typed<decltype(batch)::number, decltype(type)>(params); });
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
