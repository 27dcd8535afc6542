// Where a sequence's token stands, and the rotation of one pair, shared by rope_kv_append and qkv_gemv.
#pragma once

#include "cuda/common/numeric.cuh"

namespace pykernels::cuda {

// In the cache and in the table of angles, whatever was given.
template <class Params>
__device__ __forceinline__ int position_of(const Params& p, int b) {
    return clamp_index(load(p.position + b), min(p.max_len, p.max_position));
}

// (low, high) are dimensions d and d + head_dim / 2 of a head.
__device__ __forceinline__ float2 rotate(float cosine, float sine, float low, float high) {
    return make_float2(low * cosine - high * sine, high * cosine + low * sine);
}

}  // namespace pykernels::cuda
