// Words of a 4-bit weight (docs/int4.md) to pairs of 16-bit floats, as the tensor core takes them.
//
// A nibble q alone in the lowest bits of a 16-bit float is a subnormal number: q of its smallest steps. In
// the next four bits it is 16 q of them: of bf16 the last bit is the exponent's lowest, which the smallest
// normal numbers continue in the same steps. So one mask makes a pair of numbers, and one multiply-add brings
// it to q - zero, in a power of two small enough that the factor is a number too. Both are exact: whole
// numbers of 9 bits at most, scaled by 2^-6 (bf16) or 2^-9 (fp16). Zero points are any byte whose difference
// from every q has 8 bits at most (bf16): 0 to 255.
#pragma once

#include "cuda/common/numeric.cuh"

namespace pykernels::cuda {

// Decoded weights are (q - zero) / steps.
template <class T>
struct Int4Code;

template <>
struct Int4Code<Bf16> {
    static constexpr float steps = 64;
    // Pairs of 2^-6 over the value of bit 0, which is 2^-133, and of bit 4; and the first one's negative.
    static constexpr uint32_t low = 0x7f007f00, high = 0x7d007d00, negative = 0xff00ff00;
    __device__ static __forceinline__ uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
        return fma_bf16x2(a, b, c);
    }
};

template <>
struct Int4Code<Fp16> {
    static constexpr float steps = 512;
    // 2^-9 over 2^-24 and 2^-20.
    static constexpr uint32_t low = 0x78007800, high = 0x68006800, negative = 0xf800f800;
    __device__ static __forceinline__ uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
        return fma_fp16x2(a, b, c);
    }
};

// A pair of -zero / steps.
template <class T>
__device__ __forceinline__ uint32_t int4_negative_zero(uint32_t zero) {
    return Int4Code<T>::multiply_add(zero * 0x00010001u, Int4Code<T>::negative, 0);
}

// pairs[i] is elements 2i and 2i + 1 of the word: 9 instructions for 8 weights.
template <class T>
__device__ __forceinline__ void int4_decode(uint32_t word, uint32_t negative_zero, uint32_t (&pairs)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t bytes = word >> 4 * i;
        pairs[i] = Int4Code<T>::multiply_add(bytes & 0x000f000fu, Int4Code<T>::low, negative_zero);
        pairs[i + 1] = Int4Code<T>::multiply_add(bytes & 0x00f000f0u, Int4Code<T>::high, negative_zero);
    }
}

}  // namespace pykernels::cuda
