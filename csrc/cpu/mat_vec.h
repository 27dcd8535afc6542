// What the mat-vecs do with their rows, whatever a row is made of: a Rows has dot(n, sums), the dot products
// of row n with the rows of x.
#pragma once

#include "cpu/dot.h"
#include "cpu/thread_pool.h"

namespace pykernels::cpu::PYKERNELS_ISA {

// Rows of the op's own dtype: [rows, k] against x [batch, k].
template <int batch, class T>
struct DenseRows {
    const T* weight;
    const T* x;
    int64_t k;
    void dot(int64_t n, float* sums) const { dot_row<batch>(weight + n * k, x, k, sums); }
};

// out[b, n] = row n . x[b] + bias[n] + residual[b, n]. A chunk is a run of rows that one thread streams in
// the order they lie in memory.
template <int batch, class T, class Rows>
inline void gemv_rows(const Rows& weight, int64_t n_rows, int64_t row_bytes, const T* bias, const T* residual,
                      T* out) {
    const int64_t rows = rows_per_chunk(row_bytes);
    parallel_chunks(ceil_div(n_rows, rows), [=, &weight](int64_t chunk) {
        const int64_t end = smaller(n_rows, (chunk + 1) * rows);
        for (int64_t n = chunk * rows; n < end; ++n) {
            float sums[batch];
            weight.dot(n, sums);
            for (int b = 0; b < batch; ++b) {
                float value = sums[b];
                if (bias) value += to_float(bias[n]);
                if (residual) value += to_float(residual[b * n_rows + n]);
                from_float(value, out + b * n_rows + n);
            }
        }
    });
}

// Rows whose sums are kept before the activation is taken of all of them at once, as vectors.
constexpr int64_t swiglu_block = 16;

// out[b, n] = silu(gate row n . x[b]) * (up row n . x[b])
template <int batch, class T, class Rows>
inline void swiglu_rows(const Rows& gate_weight, const Rows& up_weight, int64_t n_rows, int64_t row_bytes,
                        T* out) {
    constexpr int64_t block = swiglu_block;
    const int64_t rows = ceil_div(rows_per_chunk(2 * row_bytes), block) * block;
    parallel_chunks(ceil_div(n_rows, rows), [=, &gate_weight, &up_weight](int64_t chunk) {
        const int64_t end = smaller(n_rows, (chunk + 1) * rows);
        for (int64_t first = chunk * rows; first < end; first += block) {
            const int64_t count = smaller(block, end - first);
            float gate[batch][block] = {}, up[batch][block] = {};
            float sums[batch];
            // One weight after the other: two linear streams, not one that alternates between them.
            for (int64_t i = 0; i < count; ++i) {
                gate_weight.dot(first + i, sums);
                for (int b = 0; b < batch; ++b) gate[b][i] = sums[b];
            }
            for (int64_t i = 0; i < count; ++i) {
                up_weight.dot(first + i, sums);
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

}  // namespace pykernels::cpu::PYKERNELS_ISA
