// What gqa_decode with a soft cap has of its own: scores become softcap * tanh(score / softcap) ahead of the
// softmax (Gemma 2). All else is the kernel for any head_dim.
#pragma once

#include "cuda/gqa_any_dim.cuh"

namespace pykernels::cuda::gqa {

template <int max_dims>
struct CappedDims : AnyDims<max_dims> {
    float softcap;  // of scores in base 2

    __device__ __forceinline__ CappedDims(const GqaDecodeParams& params, const GqaPlan& plan, int group)
        : AnyDims<max_dims>(params, plan, group), softcap(params.softcap * log2_e) {}

    // The score of a masked key stays what it is: a capped one would have a weight.
    __device__ __forceinline__ void cap(float (&scores)[4]) const {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            scores[i] = scores[i] == lowest ? lowest : soft_capped(scores[i], softcap);
    }
};

}  // namespace pykernels::cuda::gqa
