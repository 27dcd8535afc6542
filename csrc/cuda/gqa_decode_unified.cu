// The kernels of gqa_decode with a unified maximum (gqa_decode.cu): instantiations only.
#include "cuda/gqa_kernel.cuh"

namespace pykernels::cuda {

GqaKernel gqa_unified_kernel(Dtype dtype, const GqaPlan& plan, int head_dim) {
    GqaKernel kernel = nullptr;
    with_type("gqa_decode", dtype,
              [&](auto type) { kernel = kernel_of<decltype(type), UnifiedSoftmax>(plan, head_dim); });
    return kernel;
}

}  // namespace pykernels::cuda
