// Softmax with a unified maximum (Hong et al., FlashDecoding++, 2023, section 3): every exponential is
// exp(score - phi) with one phi for all, so that partial sums add without exchanging maxima. Where phi does
// not fit the scores of a (sequence, head), its sum leaves the range given here, and the head is computed
// again online, with the bits that the online softmax gives.
//
// The range depends on the dtype alone and is the same on every device. On CUDA the exponentials are rounded
// to the dtype before they multiply V.
//   * Upwards no exponential may overflow it: an exponent past the highest makes the sum infinite. What is
//     left of float32's range is for V and the sum: 2^24 keys times 2^60 times |V| below 2^43.
//   * Downwards the exponentials of n keys that are rounded to less than the least normal number are wrong by
//     n * 2^-25 in float16. That is within a rounding of the sum where their mean is at least 2^-14; a sum of
//     1 is what online softmax has at least. bfloat16 and float32 have the exponents of float32, whose
//     numbers below 2^-126 are 0 here.
#pragma once

#include "params.h"

namespace pykernels {

// Of base 2: of (score - phi) * log2(e).
constexpr float unified_highest_exponent(Dtype dtype) {
    return dtype == Dtype::float16 ? 15.0f : 60.0f;
}

constexpr float unified_lowest_mean(Dtype dtype) {
    return dtype == Dtype::float16 ? 0x1p-14f : 0x1p-100f;
}

// NaN is outside, and so is infinity.
constexpr bool unified_in_range(float sum, int32_t kv_len, Dtype dtype) {
    const float mean_sum = unified_lowest_mean(dtype) * static_cast<float>(kv_len);
    return sum >= (mean_sum < 1.0f ? mean_sum : 1.0f) && sum <= 3.0e38f;
}

// The workspace of a unified softmax begins with the number of (sequence, head) pairs that were computed
// again since somebody zeroed it: a uint32. Online softmax has no such bytes.
constexpr int64_t unified_counter_bytes(Softmax softmax) {
    return softmax == Softmax::unified ? 64 : 0;
}

}  // namespace pykernels
