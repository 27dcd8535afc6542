// silu_mul: out = silu(gate) * up.
#include "cuda/common/elementwise.cuh"

namespace pykernels::cuda {
namespace {

struct SiluProduct {
    __device__ float operator()(float gate, float up) const { return silu(gate) * up; }
};

}  // namespace

void silu_mul(const SiluMulParams& params, const Stream& stream) {
    launch_elementwise("silu_mul", params.gate, params.up, params.out,
                       int64_t{params.batch} * params.features, params.dtype, SiluProduct{}, stream);
}

}  // namespace pykernels::cuda
