// rmsnorm: out = x / sqrt(mean(x^2) + eps) * weight, a row at a time. Bytes: x, weight and out once.
#include "cpu/rmsnorm.h"

#include "cpu/kernels.h"

namespace pykernels::cpu::PYKERNELS_ISA {

void rmsnorm(const RmsnormParams& params) {
    with_type(params.dtype, [&](auto type) {
        using T = decltype(type);
        for (int64_t b = 0; b < params.batch; ++b) {
            rmsnorm_row(static_cast<const T*>(params.x) + b * params.hidden,
                        static_cast<const T*>(params.weight), params.hidden, params.eps,
                        static_cast<T*>(params.out) + b * params.hidden);
        }
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
