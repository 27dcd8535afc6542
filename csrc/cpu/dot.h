// Dot products of one weight row with the 1 to 8 rows of x: the inner loop of every GEMV.
//
// A thread reads its rows one at a time in memory order: a single linear stream. x stays in the L1. The bf16
// dot product instruction (two products a lane, summed in float32) is used where the CPU has it; otherwise
// both operands are widened to float32.
#pragma once

#include <cstddef>

#include "cpu/simd.h"

namespace pykernels::cpu::PYKERNELS_ISA {

// The prefetch distance. Hardware prefetchers stop at 4 KB page boundaries; software prefetch covers the gap.
// Measured on Zen 5: 2 to 4 KB are the same, no prefetch is 10% slower.
constexpr int64_t prefetch_bytes = 3072;

// sums[b] = dot(weight[0..k), x[b * k .. b * k + k)) for b in [0, batch). Rows are long, so a call
// costs nothing, and one copy serves all callers.
template <int batch, class T>
[[gnu::noinline]] inline void dot_row(const T* weight, const T* x, int64_t k, float* sums) {
    // Several accumulators hide the latency of FMA; with more rows of x there are enough independent ones.
    constexpr int chains = batch == 1 ? 4 : batch == 2 ? 2 : 1;
    F32 acc[batch][chains];
    for (auto& row : acc) {
        for (auto& chain : row) chain = F32{};
    }
    int64_t i = 0;
#if defined(__AVX512BF16__)
    if constexpr (sizeof(T) == 2 && !__is_same(T, Fp16)) {
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
                    acc[b][c] = _mm512_dpbf16_ps(acc[b][c], wv, xv);
                }
            }
        }
    }
#endif
    for (; i + lanes * chains <= k; i += lanes * chains) {
        for (size_t line = 0; line < lanes * chains * sizeof(T); line += 64) {
            prefetch_once(reinterpret_cast<const char*>(weight + i) + prefetch_bytes + line);
        }
#pragma GCC unroll 4
        for (int c = 0; c < chains; ++c) {
            const F32 wv = load(weight + i + c * lanes);
#pragma GCC unroll 8
            for (int b = 0; b < batch; ++b) acc[b][c] = wv * load(x + b * k + i + c * lanes) + acc[b][c];
        }
    }
    for (int b = 0; b < batch; ++b) {
        F32 sum = acc[b][0];
        for (int c = 1; c < chains; ++c) sum += acc[b][c];
        sums[b] = reduce_add(sum);
        for (int64_t j = i; j < k; ++j) sums[b] += to_float(weight[j]) * to_float(x[b * k + j]);
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
