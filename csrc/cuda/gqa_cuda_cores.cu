// gqa_decode on CUDA cores, for as many KV heads as query heads (gqa_cuda_cores.cuh): instantiations only.
#include "cuda/gqa_cuda_cores.cuh"

#include "cuda/gqa_kernel.cuh"

namespace pykernels::cuda {

GqaKernel gqa_core_kernel(Dtype dtype) {
    return dtype == Dtype::bfloat16 ? gqa_decode_kernel<Bf16, CoreDims, CoreStream, OnlineSoftmax>
                                    : gqa_decode_kernel<Fp16, CoreDims, CoreStream, OnlineSoftmax>;
}

}  // namespace pykernels::cuda
