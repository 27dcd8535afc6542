// RMSNorm of one row, shared by the op and by the GEMVs with a fused norm.
#pragma once

#include "cpu/simd.h"

namespace pykernels::cpu::PYKERNELS_ISA {

// out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]. A row is a few KB: one thread finishes before a second
// would have started.
template <class T>
inline void rmsnorm_row(const T* x, const T* weight, int64_t n, float eps, T* out) {
    F32 acc[2] = {};
    int64_t i = 0;
    for (; i + 2 * lanes <= n; i += 2 * lanes) {
        const F32 a = load(x + i), b = load(x + i + lanes);
        acc[0] += a * a;
        acc[1] += b * b;
    }
    float sum = reduce_add(acc[0] + acc[1]);
    for (; i < n; ++i) sum += to_float(x[i]) * to_float(x[i]);
    const float scale = 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
    for (i = 0; i + lanes <= n; i += lanes) store(out + i, load(x + i) * scale * load(weight + i));
    for (; i < n; ++i) from_float(to_float(x[i]) * scale * to_float(weight[i]), out + i);
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
