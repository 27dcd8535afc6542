// Decodes words of a 4-bit weight (docs/int4.md) to pairs of 16-bit floats, the operands of MMA.
//
// A nibble q in the lowest bits of a 16-bit float is the subnormal number q * 2^-133 (bf16) or q * 2^-24
// (fp16). In the next four bits it is 16 times that. (The top one of these bits is the lowest bit of bf16's
// exponent; the smallest normal numbers have the spacing of the subnormals, so the value is the same.) One
// AND therefore yields a pair of numbers, and one FMA scales it and subtracts the zero point. The result is
// (q - zero) * 2^-6 (bf16) or
// * 2^-9 (fp16): the scale keeps the FMA's factor finite. Both steps are exact, since q - zero is an integer
// of at most 9 bits. Zero points are 0 to 255.
#pragma once

#include "cuda/common/numeric.cuh"

namespace pykernels::cuda {

// Decoded weights are (q - zero) / steps.
template <class T>
struct Int4Code;

template <>
struct Int4Code<Bf16> {
    static constexpr float steps = 64;
    // Pairs of 2^-6 / 2^-133 (for nibbles from bit 0), of 2^-6 / 2^-129 (from bit 4), and the first negated.
    static constexpr uint32_t low = 0x7f007f00, high = 0x7d007d00, negative = 0xff00ff00;
    __device__ static __forceinline__ uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
        return fma_bf16x2(a, b, c);
    }
};

template <>
struct Int4Code<Fp16> {
    static constexpr float steps = 512;
    // Likewise 2^-9 / 2^-24 and 2^-9 / 2^-20.
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

// pairs[i] holds elements 2i and 2i + 1 of the word. 9 instructions for 8 weights.

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
