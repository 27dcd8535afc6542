// Words of a 4-bit weight (docs/int4.md) to pairs of 16-bit floats, as the matrix unit takes them.
//
// A nibble q in the lowest bits of the mantissa of a power of two is that power plus q: 0x4300 | q is the
// bf16 number 128 + q, 0x6400 | q the fp16 number 1024 + q, 0x6400 | q << 4 the fp16 number 1024 + 16 q. A
// fused multiply-add takes the power and the zero point off again. Both steps are exact: the result is q -
// zero, a whole number from -63 to 15, not a rounding of it. Zero points are 63 at most.
#pragma once

#include "cuda/common/numeric.cuh"

namespace pykernels::cuda {

// What a group's zero point makes of a row, as pairs of T.
template <class T>
struct Int4Zero;

template <>
struct Int4Zero<Bf16> {
    uint32_t lowest;  // -(128 + zero)
    __device__ __forceinline__ explicit Int4Zero(uint32_t zero) : lowest(0xc300c300u + zero * 0x00010001u) {}
};

template <>
struct Int4Zero<Fp16> {
    uint32_t lowest, second;  // -(1024 + zero), -(64 + zero)
    __device__ __forceinline__ explicit Int4Zero(uint32_t zero)
        : lowest(0xe400e400u + zero * 0x00010001u), second(0xd400d400u + zero * 0x00100010u) {}
};

// pairs[i] is elements 2i and 2i + 1 of the word, each q - zero. bf16: 11 instructions of 8 weights.
__device__ __forceinline__ void int4_decode(uint32_t word, Int4Zero<Bf16> zero, uint32_t (&pairs)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
        pairs[i] = fma_bf16x2((word >> 4 * i & 0x000f000fu) | 0x43004300u, 0x3f803f80u, zero.lowest);
}

// fp16: 9 instructions. The second nibble of a byte needs no shift: it is multiplied by 1 / 16.
__device__ __forceinline__ void int4_decode(uint32_t word, Int4Zero<Fp16> zero, uint32_t (&pairs)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t byte = word >> 4 * i;
        pairs[i] = fma_fp16x2((byte & 0x000f000fu) | 0x64006400u, 0x3c003c00u, zero.lowest);
        pairs[i + 1] = fma_fp16x2((byte & 0x00f000f0u) | 0x64006400u, 0x2c002c00u, zero.second);
    }
}

}  // namespace pykernels::cuda
