// gqa_decode for any head_dim (gqa_any_dim.cuh): instantiations only.
#include "cuda/gqa_kernel.cuh"

namespace pykernels::cuda {
namespace {

template <class T>
GqaKernel any_dim_kernel_of(int head_dim) {
    return head_dim <= 128 ? gqa_decode_kernel<T, AnyDims<128>, GuardedStream, OnlineSoftmax>
                           : gqa_decode_kernel<T, AnyDims<256>, GuardedStream, OnlineSoftmax>;
}

}  // namespace

GqaKernel gqa_any_dim_kernel(Dtype dtype, int head_dim) {
    return dtype == Dtype::bfloat16 ? any_dim_kernel_of<Bf16>(head_dim) : any_dim_kernel_of<Fp16>(head_dim);
}

}  // namespace pykernels::cuda
