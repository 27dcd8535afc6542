// silu_mul: out = activation(gate) * up. Under 150 KB each at batch 1: one thread finishes before a second
// would have started.
#include "cpu/elementwise.h"
#include "cpu/kernels.h"

namespace pykernels::cpu::PYKERNELS_ISA {

void silu_mul(const SiluMulParams& params) {
    with_type(params.dtype, [&](auto type) {
        const auto run = [&](auto function) {
            zip<decltype(type)>(params.gate, params.up, params.out, int64_t{params.batch} * params.features,
                                function);
        };
        if (params.activation == Activation::silu) {
            run([](auto gate, auto up) { return silu(gate) * up; });
        } else {
            run([](auto gate, auto up) { return gelu_tanh(gate) * up; });
        }
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
