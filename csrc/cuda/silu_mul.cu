// silu_mul: out = activation(gate) * up.
#include "cuda/common/elementwise.cuh"

namespace pykernels::cuda {
namespace {

template <Activation activation>
struct ActivatedProduct {
    __device__ float operator()(float gate, float up) const { return activate(activation, gate) * up; }
};

}  // namespace

void silu_mul(const SiluMulParams& params, const Stream& stream) {
    const auto launch_with = [&](auto product) {
        launch_elementwise("silu_mul", params.gate, params.up, params.out,
                           int64_t{params.batch} * params.features, params.dtype, product, stream);
    };
    if (params.activation == Activation::silu) return launch_with(ActivatedProduct<Activation::silu>{});
    launch_with(ActivatedProduct<Activation::gelu_tanh>{});
}

}  // namespace pykernels::cuda
