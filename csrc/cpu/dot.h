// Dot products of one weight row with the 1 to 8 rows of x: the inner loop of every GEMV.
//
// A thread reads its rows in memory order, one or two at a time. x stays in the L1. The bf16 dot product
// instruction (two products a lane, summed in float32) is used where the CPU has it; otherwise both operands
// are widened to float32.
#pragma once

#include <cstddef>

#include "cpu/simd.h"

namespace pykernels::cpu::PYKERNELS_ISA {

// The prefetch distance. Hardware prefetchers stop at 4 KB page boundaries; software prefetch covers the gap.
// Measured on Zen 5: 2 to 4 KB are the same, no prefetch is 10% slower.
constexpr int64_t prefetch_bytes = 3072;

// Rows of the weight that share the loads of x, and their conversion to float32: with several sequences that
// is most of the work (docs/tried.md). The bf16 dot product takes x as it is in memory.
template <int batch, class T>
constexpr int dot_rows_at_once = batch == 1 || (has_bf16_dot && __is_same(T, Bf16)) ? 1 : 2;

// sums[i][b] = dot(weight[i * stride..k), x[b * k .. b * k + k)) for i in [0, rows), b in [0, batch). Rows
// are long, so a call costs nothing, and one copy serves all callers.
template <int batch, int rows, class T>
[[gnu::noinline]] inline void dot_rows(const T* weight, int64_t stride, const T* x, int64_t k,
                                       float (*sums)[batch]) {
    // Several accumulators hide the latency of FMA; with more rows there are enough independent ones. Their
    // number does not depend on `rows`: a sum has the same bits whether its row is alone or one of two.
    constexpr int chains = batch == 1 ? 4 : batch * dot_rows_at_once<batch, T> == 2 ? 2 : 1;
    F32 acc[rows][batch][chains];
    for (auto& of_row : acc) {
        for (auto& of_sequence : of_row) {
            for (auto& chain : of_sequence) chain = F32{};
        }
    }
    int64_t i = 0;
#if defined(__AVX512BF16__)
    if constexpr (rows == 1 && __is_same(T, Bf16)) {
        constexpr int step = 32;
        for (; i + step * chains <= k; i += step * chains) {
#pragma GCC unroll 4
            for (int c = 0; c < chains; ++c) {
                const T* w = weight + i + c * step;
                prefetch_once(reinterpret_cast<const char*>(w) + prefetch_bytes);
                const auto wv = reinterpret_cast<__m512bh>(_mm512_loadu_si512(w));
#pragma GCC unroll 8
                for (int b = 0; b < batch; ++b) {
                    const auto xv = reinterpret_cast<__m512bh>(_mm512_loadu_si512(x + b * k + i + c * step));
                    acc[0][b][c] = _mm512_dpbf16_ps(acc[0][b][c], wv, xv);
                }
            }
        }
    }
#endif
    for (; i + lanes * chains <= k; i += lanes * chains) {
#pragma GCC unroll 2
        for (int r = 0; r < rows; ++r) {
            for (size_t line = 0; line < lanes * chains * sizeof(T); line += 64) {
                prefetch_once(reinterpret_cast<const char*>(weight + r * stride + i) + prefetch_bytes + line);
            }
        }
#pragma GCC unroll 4
        for (int c = 0; c < chains; ++c) {
            F32 wv[rows];
#pragma GCC unroll 2
            for (int r = 0; r < rows; ++r) wv[r] = load(weight + r * stride + i + c * lanes);
#pragma GCC unroll 8
            for (int b = 0; b < batch; ++b) {
                const F32 xv = load(x + b * k + i + c * lanes);
#pragma GCC unroll 2
                for (int r = 0; r < rows; ++r) acc[r][b][c] = wv[r] * xv + acc[r][b][c];
            }
        }
    }
    for (int r = 0; r < rows; ++r) {
        for (int b = 0; b < batch; ++b) {
            F32 sum = acc[r][b][0];
            for (int c = 1; c < chains; ++c) sum += acc[r][b][c];
            sums[r][b] = reduce_add(sum);
            for (int64_t j = i; j < k; ++j)
                sums[r][b] += to_float(weight[r * stride + j]) * to_float(x[b * k + j]);
        }
    }
}

// Rows of `bytes` bytes in a chunk of about 256 KB: long enough for the prefetchers, short enough that all
// threads end at about the same time.
inline int64_t rows_per_chunk(int64_t bytes) {
    return larger<int64_t>(1, (256 << 10) / larger<int64_t>(1, bytes));
}

// Calls body(Constant<n>{}) with the batch n as a compile-time constant.
template <int value>
struct Constant {
    static constexpr int number = value;
};

template <class Body>
inline void with_batch(int batch, Body&& body) {
    switch (batch) {
        case 1:
            return body(Constant<1>{});
        case 2:
            return body(Constant<2>{});
        case 3:
            return body(Constant<3>{});
        case 4:
            return body(Constant<4>{});
        case 5:
            return body(Constant<5>{});
        case 6:
            return body(Constant<6>{});
        case 7:
            return body(Constant<7>{});
        default:
            return body(Constant<8>{});
    }
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
