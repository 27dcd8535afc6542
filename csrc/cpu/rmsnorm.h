// RMSNorm of one row, shared by the op and by the GEMVs with a fused norm.
#pragma once

#include "cpu/simd.h"

namespace pykernels::cpu::PYKERNELS_ISA {

// out[i] = x[i] / sqrt(mean(x^2) + eps) * (weight[i] + offset) + residual[i], a null residual is left out. A
// row is a few KB: one thread finishes before a second would have started.
template <class T>
inline void rmsnorm_row(const T* x, const T* weight, int64_t n, float eps, float offset, T* out,
                        const T* residual = nullptr) {
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
    for (i = 0; i + lanes <= n; i += lanes) {
        const F32 value = load(x + i) * scale * (load(weight + i) + offset);
        store(out + i, residual ? value + load(residual + i) : value);
    }
    for (; i < n; ++i) {
        const float value = to_float(x[i]) * scale * (to_float(weight[i]) + offset);
        from_float(residual ? value + to_float(residual[i]) : value, out + i);
    }
}

// The rows of x [batch, n] normalised, in `out`; x itself where there is no weight.
template <class T>
inline const T* rmsnorm_rows(const void* x_, const void* weight, int64_t batch, int64_t n, float eps,
                             float offset, void* out_) {
    const auto* x = static_cast<const T*>(x_);
    if (weight == nullptr) return x;
    auto* out = static_cast<T*>(out_);
    for (int64_t b = 0; b < batch; ++b)
        rmsnorm_row(x + b * n, static_cast<const T*>(weight), n, eps, offset, out + b * n);
    return out;
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
