// swiglu_gemv: out[b, n] = silu(g) * u with g = dot(norm(x[b]), gate_weight[n]) and u the same with
// up_weight.
//
// The caller's thread normalises x into the workspace (as the op's dtype, as a separate rmsnorm would), then
// the threads stream runs of rows of both weights. Bytes: both weights once. Limit: memory bandwidth.
#include "cpu/dot.h"
#include "cpu/kernels.h"
#include "cpu/rmsnorm.h"
#include "cpu/thread_pool.h"

namespace pykernels::cpu::PYKERNELS_ISA {
namespace {

// Rows whose sums are kept before the activation is taken of all of them at once, as vectors.
constexpr int64_t block = 16;

template <int batch, class T>
void swiglu_gemv_typed(const SwigluGemvParams& params) {
    const int64_t k = params.in_features, n_rows = params.out_features;
    const auto* x = static_cast<const T*>(params.x);
    if (params.norm_weight) {
        auto* normed = static_cast<T*>(params.workspace);
        for (int64_t b = 0; b < batch; ++b) {
            rmsnorm_row(x + b * k, static_cast<const T*>(params.norm_weight), k, params.eps, normed + b * k);
        }
        x = normed;
    }
    const auto* gate_weight = static_cast<const T*>(params.gate_weight);
    const auto* up_weight = static_cast<const T*>(params.up_weight);
    auto* out = static_cast<T*>(params.out);
    const int64_t rows = ceil_div(rows_per_chunk(2 * k * static_cast<int64_t>(sizeof(T))), block) * block;
    parallel_chunks(ceil_div(n_rows, rows), [=](int64_t chunk) {
        const int64_t end = smaller(n_rows, (chunk + 1) * rows);
        for (int64_t first = chunk * rows; first < end; first += block) {
            const int64_t count = smaller(block, end - first);
            float gate[batch][block] = {}, up[batch][block] = {};
            float sums[batch];
            // One weight after the other: two linear streams, not one that alternates between them.
            for (int64_t i = 0; i < count; ++i) {
                dot_row<batch>(gate_weight + (first + i) * k, x, k, sums);
                for (int b = 0; b < batch; ++b) gate[b][i] = sums[b];
            }
            for (int64_t i = 0; i < count; ++i) {
                dot_row<batch>(up_weight + (first + i) * k, x, k, sums);
                for (int b = 0; b < batch; ++b) up[b][i] = sums[b];
            }
            for (int b = 0; b < batch; ++b) {
                for (int64_t i = 0; i < block; i += lanes) {
                    store(gate[b] + i, silu(load(gate[b] + i)) * load(up[b] + i));
                }
                for (int64_t i = 0; i < count; ++i) from_float(gate[b][i], out + b * n_rows + first + i);
            }
        }
    });
}

}  // namespace

void swiglu_gemv(const SwigluGemvParams& params) {
    with_type(params.dtype, [&](auto type) {
        with_batch(params.batch,
                   [&](auto batch) { swiglu_gemv_typed<decltype(batch)::number, decltype(type)>(params); });
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
