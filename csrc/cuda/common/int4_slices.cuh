// x for the tensor core's whole numbers: 128 neighbouring columns as 8-bit digits of one step.
//
// X = round(x 2^17 / s), s the power of two at or below the largest magnitude of the 128: |X| < 2^18, exact
// for all elements above s 2^-10 (bf16; fp16: 2^-7), and off by s 2^-18 at most for smaller ones. For x from
// 2^-108 to 2^108: what is smaller keeps an absolute step of 2^-126, what is larger overflows in its products
// with whole q. Of a byte of the packed weight, 16 high + low, one nibble belongs to a column with X_high and
// one to a column with X_low, and
//
//   16 (high X_high + low X_low) = (16 high + low) X_high + low (16 X_low - X_high):
//
// the byte as it comes times one number, and its low nibble, a single mask, times another. Both are whole
// numbers of 24 bits, three signed digits of 8, each digit a column of the tensor core: 16 rows of weights by
// 32 columns in one instruction, sums exact in 32 bits. The zero point enters by the sum of all X.
#pragma once

#include "cuda/common/numeric.cuh"

namespace pykernels::cuda {

constexpr int int4_chunk = 128;  // columns of one step
constexpr int int4_digits = 3;

// What is made of the sums of a chunk: each digit's weight, and the sum of x.
struct Int4ChunkFactors {
    float digit[int4_digits];
    float sum;
};

// Eight neighbouring columns of x, as whole numbers in digits: of each digit a word for the four bytes of the
// weight's word, {what the whole bytes are multiplied by, what the low nibbles are}. Sixteen neighbouring
// lanes have a chunk; all of a warp call.
struct Int4Digits {
    uint2 words[int4_digits];
    Int4ChunkFactors factors;  // of the chunk: the same in all its lanes

    __device__ __forceinline__ explicit Int4Digits(const Floats8& x) {
        float largest = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) largest = max_magnitude(largest, x[i]);
#pragma unroll
        for (int mask = 8; mask > 0; mask /= 2) largest = max_magnitude(largest, shuffle_xor(largest, mask));
        // The exponent's bits, high enough for a step that is no subnormal number.
        const uint32_t exponent = max(float_to_bits(largest) >> 23 & 255u, 18u);
        const float to_whole = bits_to_float((271u - exponent) << 23);
        // What is no number, or infinite, makes all of the chunk's products NaN.
        const float step =
            exponent == 255 ? bits_to_float(0x7fffffffu) : bits_to_float((exponent - 17u) << 23);

        // Adding 1.5 2^23 rounds to a whole number and leaves it in the low bits, over those of 1.5 2^23.
        constexpr uint32_t zero_bits = 0x4b400000u;
        uint32_t whole[8];
        uint32_t sum = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            whole[i] = float_to_bits(fma_float(x[i], to_whole, 12582912.0f));
            sum += whole[i];
        }
        sum -= 8 * zero_bits;
#pragma unroll
        for (int mask = 8; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);

        // A number plus 0x8080 has its lower two digits, each plus 128, and its highest in its bytes. The
        // weight's bytes hold elements 0, 4, 1, 5 in their low nibbles and 2, 6, 3, 7 in the high ones
        // (docs/int4.md).
        constexpr uint32_t offset = 0x8080u;
        uint32_t numbers[2][4];  // the whole bytes' factors, the low nibbles'
#pragma unroll
        for (int byte = 0; byte < 4; ++byte) {
            const int low = byte / 2 + byte % 2 * 4, high = low + 2;
            numbers[0][byte] = whole[high] + (offset - zero_bits);
            numbers[1][byte] = whole[low] * 16 - whole[high] + (offset - 15 * zero_bits);
        }
        const auto highest = [](const uint32_t (&n)[4]) {
            return low_halves(select_bytes<0x0062>(n[0], n[1]), select_bytes<0x0062>(n[2], n[3]));
        };
        const auto lower = [](const uint32_t (&n)[4], int half) {
            const uint32_t first = select_bytes<0x5140>(n[0], n[1]),
                           second = select_bytes<0x5140>(n[2], n[3]);
            return (half ? high_halves(first, second) : low_halves(first, second)) ^ 0x80808080u;
        };
        words[0] = make_uint2(highest(numbers[0]), highest(numbers[1]));
        words[1] = make_uint2(lower(numbers[0], 1), lower(numbers[1], 1));
        words[2] = make_uint2(lower(numbers[0], 0), lower(numbers[1], 0));
        factors = {{step * 4096.0f, step * 16.0f, step * 0.0625f},
                   step * static_cast<float>(static_cast<int>(sum))};
    }
};

// 16 times the sum of q X over a lane's share of a chunk of a row, of digit t (its lanes' sum is the row's):
// the whole of a row's 16 bytes as they were loaded are one operand. Words 0 and 2 are row g of it, words 1
// and 3 row g + 8; so column 2 j of the tensor core has digit j of what words 0 and 2 are multiplied by,
// column 2 j + 1 that of words 1 and 3, and of the four sums a lane gets, the first and the last are of use.
// digits, of column g: of words 0 and 2, or 1 and 3, {what whole bytes are multiplied by, what low nibbles
// are}.
__device__ __forceinline__ int int4_multiply_digits(const uint4& row, const uint4& digits) {
    constexpr uint32_t low_nibbles = 0x0f0f0f0fu;
    int c[4] = {0, 0, 0, 0};
    mma_u8s8(c, {row.x, row.y, row.z, row.w}, {digits.x, digits.y});
    mma_u8s8(c, {row.x & low_nibbles, row.y & low_nibbles, row.z & low_nibbles, row.w & low_nibbles},
             {digits.z, digits.w});
    return c[0] + c[3];
}

// Where a word of digits lies in a chunk's: [column][lane of four][whole bytes' factors, low nibbles'][words
// 0 and 2, or 1 and 3]: pairs as the tensor core takes them. `word` is the one of a row's four that it is
// multiplied by.
__device__ __forceinline__ int int4_digits_place(int digit, int t, int word, int low) {
    return (2 * digit + word % 2) * 64 + t * 16 + low * 8 + word / 2 * 4;
}
constexpr int int4_digits_bytes = int4_digits * 128;  // of a chunk

}  // namespace pykernels::cuda
