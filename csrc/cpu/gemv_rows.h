// The GEMVs' loops over rows, for dense and 4-bit weights. A Rows type has dot(n, stride, count, sums): the
// dot products of rows n, n + stride, ... with the rows of x.
#pragma once

#include "cpu/chosen_plan.h"
#include "cpu/dot.h"
#include "cpu/thread_pool.h"
#include "ops.h"

namespace pykernels::cpu::PYKERNELS_ISA {

// Rows of the op's own dtype: [rows, k] against x [batch, k].
template <int batch, class T>
struct DenseRows {
    const T* weight;
    const T* x;
    int64_t k;
    static constexpr int at_once = dot_rows_at_once<batch, T>;
    void dot(int64_t n, int64_t stride, int64_t count, float (*sums)[batch]) const {
        if (count == at_once) return dot_rows<batch, at_once>(weight + n * k, stride * k, x, k, sums);
        for (int64_t i = 0; i < count; ++i)
            dot_rows<batch, 1>(weight + (n + i * stride) * k, 0, x, k, sums + i);
    }
};

// store(n, sums) of every row n in [first, last), sums[b] = row n . x[b].
//
// Rows taken at once are `stride` apart: each of the at_once streams reads its own part of the run in
// memory order, so that hardware prefetchers follow them.
template <int batch, class Rows, class Store>
inline void dot_run(const Rows& weight, int64_t first, int64_t last, Store&& store) {
    const int64_t stride = ceil_div(last - first, Rows::at_once);
    for (int64_t n = first; n < first + stride; ++n) {
        const int64_t count = ceil_div(last - n, stride);
        float sums[Rows::at_once][batch];
        weight.dot(n, stride, count, sums);
        for (int64_t i = 0; i < count; ++i) store(n + i * stride, sums[i]);
    }
}

// Rows of a chunk: about rows_per_chunk(), but the same number of chunks for every thread, so that a small
// matrix is divided evenly. Chunks have at least 32 KB: less is not worth waking a thread.
inline int64_t even_rows_per_chunk(int64_t n_rows, int64_t row_bytes) {
    const int64_t threads = num_threads(),
                  chunks = larger<int64_t>(1, ceil_div(n_rows, rows_per_chunk(row_bytes)));
    const int64_t most = larger(chunks, n_rows * row_bytes / (32 << 10));
    return ceil_div(n_rows, smaller(ceil_div(chunks, threads) * threads, most));
}

// out[b, n] = cap(scale * (row n . x[b] + bias[n])) + residual[b, n], as GemvParams and Int4GemvParams say. A
// chunk is a run of consecutive rows.
template <int batch, class T, class Rows, class Params>
inline void gemv_rows(const Rows& weight, int64_t row_bytes, const Params& params) {
    const auto* bias = static_cast<const T*>(params.bias);
    const auto* residual = static_cast<const T*>(params.residual);
    auto* out = static_cast<T*>(params.out);
    const int64_t n_rows = params.out_features;
    const float scale = params.scale, softcap = params.softcap;
    const int64_t chosen = chosen_plan(params).rows;
    const int64_t rows = chosen ? chosen : even_rows_per_chunk(n_rows, row_bytes);
    parallel_chunks(ceil_div(n_rows, rows), [=, &weight](int64_t chunk) {
        dot_run<batch>(weight, chunk * rows, smaller(n_rows, (chunk + 1) * rows),
                       [=](int64_t n, const float* sums) {
                           for (int b = 0; b < batch; ++b) {
                               float value = sums[b];
                               if (bias) value += to_float(bias[n]);
                               value *= scale;
                               if (softcap > 0) value = softcap * __builtin_tanhf(value / softcap);
                               if (residual) value += to_float(residual[b * n_rows + n]);
                               from_float(value, out + b * n_rows + n);
                           }
                       });
    });
}

// out[b, n] = activation(gate row n . x[b]) * (up row n . x[b])
template <int batch, class T, class Rows, class Params>
inline void swiglu_rows(const Rows& gate_weight, const Rows& up_weight, int64_t row_bytes,
                        const Params& params) {
    const int64_t n_rows = params.out_features;
    const Activation activation = params.activation;
    T* const out = static_cast<T*>(params.out);
    // Rows whose sums are kept, so that the activation is computed in vectors: enough for each of the streams
    // to read a while.
    constexpr int64_t block = 16 * Rows::at_once;
    const int64_t chosen = chosen_plan(params).rows;
    const int64_t rows = ceil_div(chosen ? chosen : rows_per_chunk(2 * row_bytes), block) * block;
    parallel_chunks(ceil_div(n_rows, rows), [=, &gate_weight, &up_weight](int64_t chunk) {
        const int64_t end = smaller(n_rows, (chunk + 1) * rows);
        for (int64_t first = chunk * rows; first < end; first += block) {
            const int64_t count = smaller(block, end - first);
            float gate[batch][block] = {}, up[batch][block] = {};
            // One weight, then the other: alternating between them would break the streams.
            dot_run<batch>(gate_weight, first, first + count, [&](int64_t n, const float* sums) {
                for (int b = 0; b < batch; ++b) gate[b][n - first] = sums[b];
            });
            dot_run<batch>(up_weight, first, first + count, [&](int64_t n, const float* sums) {
                for (int b = 0; b < batch; ++b) up[b][n - first] = sums[b];
            });
            for (int b = 0; b < batch; ++b) {
                for (int64_t i = 0; i < block; i += lanes) {
                    const F32 value = load(gate[b] + i);
                    const F32 activated = activation == Activation::silu ? silu(value) : gelu_tanh(value);
                    store(gate[b] + i, activated * load(up[b] + i));
                }
                for (int64_t i = 0; i < count; ++i) from_float(gate[b][i], out + b * n_rows + first + i);
            }
        }
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
