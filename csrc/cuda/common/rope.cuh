// The rotation of one pair, shared by rope_kv_append and qkv_gemv.
#pragma once

#include "cuda/common/numeric.cuh"

namespace pykernels::cuda {

// (low, high) are dimensions d and d + head_dim / 2 of a head.
__device__ __forceinline__ float2 rotate(float cosine, float sine, float low, float high) {
    return make_float2(low * cosine - high * sine, high * cosine + low * sine);
}

}  // namespace pykernels::cuda
