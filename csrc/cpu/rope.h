// The rotation of one pair, shared by rope_kv_append and qkv_gemv.
#pragma once

#include <cstdint>

namespace pykernels::cpu::PYKERNELS_ISA {

// (low, high) are dimensions d and d + head_dim / 2 of a head; `angles` is the position's row of cos_sin.
inline void rotate(const float* angles, int64_t d, int64_t half, float& low, float& high) {
    const float cosine = angles[d], sine = angles[half + d];
    const float rotated = low * cosine - high * sine;
    high = high * cosine + low * sine;
    low = rotated;
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
