// The rows of a 4-bit weight, a Rows of gemv_rows.h. Their dot products are compiled once an instruction set
// (int4_rows.cpp) for the three ops that stream them: a row is long, and a call costs nothing beside it.
#pragma once

#include "cpu/int4_x.h"

namespace pykernels::cpu::PYKERNELS_ISA {

// The rows of one weight, against one prepared x, which both outlive it.
//
// x takes at least four times the bytes of a row and is often larger than the L1: a few rows at once share
// its loads, as many as the registers hold accumulators for.
template <int batch, class T>
struct Int4Rows {
    static constexpr int at_once = lanes == 16 ? (batch <= 2 ? 4 : 2) : (batch <= 2 ? 2 : 1);

    const Int4WeightParams& weight;
    const Int4X<T>& x;

    // sums[i][b] = dot(row n + i * stride, x[b]) for i in [0, count), count at most at_once
    void dot(int64_t n, int64_t stride, int64_t count, float (*sums)[batch]) const;
};

}  // namespace pykernels::cpu::PYKERNELS_ISA
