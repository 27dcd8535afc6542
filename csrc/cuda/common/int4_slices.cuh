// x for integer MMA: 128 neighbouring columns as int8 slices with one scale (as in Ozaki's splitting).
//
// X = round(x * 2^17 / s), where s is the power of two at or below the largest magnitude of the 128 columns.
// |X| < 2^18. X is exact for elements above s * 2^-10 (bf16; fp16: s * 2^-7) and off by at most s * 2^-18 for
// smaller ones. x ranges from 2^-108 to 2^108: below, the absolute spacing stays 2^-126; above, products with
// q overflow.
//
// A byte of the packed weight is 16 high + low. One nibble belongs to a column with X_high, one to a column
// with X_low, and
//
//   16 (high X_high + low X_low) = (16 high + low) X_high + low (16 X_low - X_high):
//
// the whole byte times one factor, plus its low nibble (a single AND) times another. Both factors are 24-bit
// integers, split into three int8 slices. Each slice is a column of the MMA's b operand: mma.m16n8k32
// multiplies 16 rows of weights by 32 columns, and its int32 sums are exact. The zero point is subtracted
// with the sum of all X.
#pragma once

#include "cuda/common/numeric.cuh"

namespace pykernels::cuda {

constexpr int int4_chunk = 128;  // columns with one scale
constexpr int int4_slices = 3;

// The float format of float32, and where X lies in it.
constexpr int float_mantissa_bits = 23;
constexpr uint32_t float_exponent_mask = 255;  // also the biased exponent of Inf and NaN
constexpr uint32_t float_exponent_bias = 127;
constexpr uint32_t int4_x_bits = 17;  // the largest element of a chunk is 2^17 <= |X| < 2^18
// The scale s 2^-17 has biased exponent e - 17, e that of s: at least 1, so that it is no subnormal number.
constexpr uint32_t int4_min_exponent = int4_x_bits + 1;
// 2^17 / s has biased exponent 127 - (e - 127) + 17.
constexpr uint32_t int4_inverse_exponent = 2 * float_exponent_bias + int4_x_bits;
// x + 1.5 * 2^23 rounds x to an integer and leaves it in the low bits of the sum, over those of 1.5 * 2^23.
constexpr float int4_round_to_integer = 12582912.0f;
constexpr uint32_t int4_round_bits = 0x4b400000u;

// The scales of a chunk: of the sums of each slice, and the sum of x.
struct Int4ChunkFactors {
    float slice[int4_slices];
    float sum;
};

// Eight neighbouring columns of x as int8 slices: per slice two words of four bytes, which meet the four
// bytes of a word of the weight: {the factors of the whole bytes, those of the low nibbles}. Sixteen
// neighbouring lanes hold a chunk. All lanes of a warp call.
struct Int4Slices {
    uint2 words[int4_slices];
    Int4ChunkFactors factors;  // of the chunk: the same in all its lanes

    __device__ __forceinline__ explicit Int4Slices(const Floats8& x) {
        // --- the chunk's scale
        float largest = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) largest = max_magnitude(largest, x[i]);
#pragma unroll
        for (int mask = 8; mask > 0; mask /= 2) largest = max_magnitude(largest, shuffle_xor(largest, mask));
        const uint32_t exponent =
            max(float_to_bits(largest) >> float_mantissa_bits & float_exponent_mask, int4_min_exponent);
        const float to_integer = bits_to_float((int4_inverse_exponent - exponent) << float_mantissa_bits);
        // A NaN or Inf in the chunk makes all of its products NaN.
        const float step = exponent == float_exponent_mask
                               ? bits_to_float(0x7fffffffu)
                               : bits_to_float((exponent - int4_x_bits) << float_mantissa_bits);

        // --- X, over the bits of 1.5 * 2^23, and its sum
        uint32_t integers[8];
        uint32_t sum = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            integers[i] = float_to_bits(fma_float(x[i], to_integer, int4_round_to_integer));
            sum += integers[i];
        }
        sum -= 8 * int4_round_bits;
#pragma unroll
        for (int mask = 8; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);

        // --- the slices. A factor plus 0x8080 holds its lower two slices, each plus 128, and its highest
        // slice in its bytes. The bytes of the weight hold elements 0, 4, 1, 5 in their low nibbles and 2, 6,
        // 3, 7 in the high ones (docs/int4.md).
        constexpr uint32_t offset = 0x8080u;
        uint32_t byte_factors[2][4];  // of the whole bytes, of the low nibbles
#pragma unroll
        for (int byte = 0; byte < 4; ++byte) {
            const int low = byte / 2 + byte % 2 * 4, high = low + 2;
            byte_factors[0][byte] = integers[high] + (offset - int4_round_bits);
            byte_factors[1][byte] = integers[low] * 16 - integers[high] + (offset - 15 * int4_round_bits);
        }
        const auto highest = [](const uint32_t (&n)[4]) {
            return low_halves(select_bytes<0x0062>(n[0], n[1]), select_bytes<0x0062>(n[2], n[3]));
        };
        const auto lower = [](const uint32_t (&n)[4], int half) {
            const uint32_t first = select_bytes<0x5140>(n[0], n[1]),
                           second = select_bytes<0x5140>(n[2], n[3]);
            return (half ? high_halves(first, second) : low_halves(first, second)) ^ 0x80808080u;
        };
        words[0] = make_uint2(highest(byte_factors[0]), highest(byte_factors[1]));
        words[1] = make_uint2(lower(byte_factors[0], 1), lower(byte_factors[1], 1));
        words[2] = make_uint2(lower(byte_factors[0], 0), lower(byte_factors[1], 0));
        // 2^16, 2^8 and 1 for the slices, over the 16 that the sums of products carry.
        factors = {{step * 4096.0f, step * 16.0f, step * 0.0625f},
                   step * static_cast<float>(static_cast<int>(sum))};
    }
};

// 16 times the sum of q X for slice t over a lane's part of a chunk of a row; the sum over the row's four
// lanes is the row's. `row` is the 16 bytes as loaded: words 0 and 2 are row g of the MMA's a operand, words
// 1 and 3 row g + 8. Column 2 j of the b operand is slice j of what words 0 and 2 are multiplied by, column 2
// j + 1 that of words 1 and 3. Of the four sums of a lane, the first and the last are therefore used.
// `slices` is column g: {factors of whole bytes, of low nibbles} for its two words.
__device__ __forceinline__ int int4_multiply_slices(const uint4& row, const uint4& slices) {
    constexpr uint32_t low_nibbles = 0x0f0f0f0fu;
    int c[4] = {0, 0, 0, 0};
    mma_u8s8(c, {row.x, row.y, row.z, row.w}, {slices.x, slices.y});
    mma_u8s8(c, {row.x & low_nibbles, row.y & low_nibbles, row.z & low_nibbles, row.w & low_nibbles},
             {slices.z, slices.w});
    return c[0] + c[3];
}

// The byte offset of a word of slices in its chunk: [column][lane of four][whole bytes, low nibbles][words 0
// and 2, or 1 and 3], so that lanes load the MMA's operand pairs as they are. `word` is the word of a row's
// four that it is multiplied by.
__device__ __forceinline__ int int4_slice_offset(int slice, int t, int word, int low) {
    return (2 * slice + word % 2) * 64 + t * 16 + low * 8 + word / 2 * 4;
}
constexpr int int4_slices_bytes = int4_slices * 128;  // of a chunk

}  // namespace pykernels::cuda
