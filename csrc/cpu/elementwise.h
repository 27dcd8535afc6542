// The loop of the elementwise ops.
#pragma once

#include "cpu/simd.h"

namespace pykernels::cpu::PYKERNELS_ISA {

// out[i] = function(a[i], b[i]), for vectors and (at the end) single values alike.
template <class T, class Function>
inline void zip(const void* a_, const void* b_, void* out_, int64_t n, Function function) {
    const auto* a = static_cast<const T*>(a_);
    const auto* b = static_cast<const T*>(b_);
    auto* out = static_cast<T*>(out_);
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) store(out + i, function(load(a + i), load(b + i)));
    for (; i < n; ++i) from_float(function(to_float(a[i]), to_float(b[i])), out + i);
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
