// gqa_decode with a soft cap (gqa_softcap.cuh): one kernel for every head_dim, which is right everywhere and
// made for the 256 of Gemma 2. Instantiations only.
#include "cuda/gqa_softcap.cuh"

#include "cuda/gqa_kernel.cuh"

namespace pykernels::cuda {

GqaKernel gqa_capped_kernel(Dtype dtype) {
    return dtype == Dtype::bfloat16 ? gqa_decode_kernel<Bf16, CappedDims<256>, GuardedStream, OnlineSoftmax>
                                    : gqa_decode_kernel<Fp16, CappedDims<256>, GuardedStream, OnlineSoftmax>;
}

}  // namespace pykernels::cuda
