// rmsnorm: out = x / sqrt(mean(x^2) + eps) * (weight + norm_offset) + residual, a row at a time. Bytes: x,
// weight, residual and out once.
#include "cpu/rmsnorm.h"

#include "cpu/kernels.h"

namespace pykernels::cpu::PYKERNELS_ISA {

void rmsnorm(const RmsnormParams& params) {
    with_type(params.dtype, [&](auto type) {
        using T = decltype(type);
        for (int64_t b = 0; b < params.batch; ++b) {
            const auto* residual = static_cast<const T*>(params.residual);
            rmsnorm_row(static_cast<const T*>(params.x) + b * params.hidden,
                        static_cast<const T*>(params.weight), params.hidden, params.eps, params.norm_offset,
                        static_cast<T*>(params.out) + b * params.hidden,
                        residual ? residual + b * params.hidden : nullptr);
        }
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
