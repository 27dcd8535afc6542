// The rotation of one pair, shared by rope_kv_append and qkv_gemv.
#pragma once

#include "cuda/common/numeric.cuh"

namespace pykernels::cuda {

// (low, high) are dimensions d and d + half of a head; `angles` is the position's row of cos_sin.
__device__ __forceinline__ float2 rotate(const float* angles, int d, int half, float low, float high) {
    const float cosine = load(angles + d), sine = load(angles + half + d);
    return make_float2(low * cosine - high * sine, high * cosine + low * sine);
}

}  // namespace pykernels::cuda
