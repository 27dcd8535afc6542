// cuda/common/ptx_math.cuh for the host: the same names, run by the executor (device.h says how one is
// added).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "simt/device.h"
#include "simt/numeric.h"

namespace pykernels::cuda {

// --- arithmetic

// 2^x; what float32 holds only as a subnormal number is 0.
inline float exp2_approximate(float x) {
    const float result = std::exp2(x);
    return result < 0x1p-126f ? 0.0f : result;
}

inline float reciprocal_sqrt(float x) {
    return 1.0f / std::sqrt(x);
}

inline float fp16_to_float(uint16_t bits) {
    return simt::fp16_to_float(bits);
}

inline uint16_t float_to_fp16(float value) {
    return simt::float_to_fp16(value);
}

inline uint16_t float_to_bf16(float value) {
    return simt::float_to_bf16(value);
}

inline float bits_to_float(uint32_t bits) {
    return simt::bits_to_float(bits);
}

inline uint32_t float_to_bits(float value) {
    return simt::float_to_bits(value);
}

inline float max_magnitude(float a, float b) {
    if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<float>::quiet_NaN();
    return std::max(std::fabs(a), std::fabs(b));
}

inline float fma_float(float a, float b, float c) {
    return std::fma(a, b, c);
}

// Rounded to float32 on the way, so twice where a result needs more than its 24 bits.
template <class ToFloat, class FromFloat>
uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c, ToFloat to_float, FromFloat from_float) {
    uint32_t result = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        const auto half = [&](uint32_t pair) {
            return double{to_float(static_cast<uint16_t>(pair >> shift))};
        };
        const double sum = half(a) * half(b) + half(c);
        result |= uint32_t{from_float(static_cast<float>(sum))} << shift;
    }
    return result;
}

inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
    return fma_halves(
        a, b, c, [](uint16_t bits) { return bits_to_float(uint32_t{bits} << 16); }, simt::float_to_bf16);
}

inline uint32_t fma_fp16x2(uint32_t a, uint32_t b, uint32_t c) {
    return fma_halves(a, b, c, simt::fp16_to_float, simt::float_to_fp16);
}

// --- the tensor core, in ptx.cuh's layouts

struct MatrixOperands {
    uint32_t a[4], b[2];
};

// Products and their sum in float64: more exact than the hardware, whose order of additions is not told.
template <class ToFloat>
void multiply_matrices(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* name,
                       ToFloat to_float, Site site) {
    const Lanes<MatrixOperands> lanes(name, {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, site);
    const auto half = [&](uint32_t pair, int i) {
        return double{to_float(static_cast<uint16_t>(i % 2 ? pair >> 16 : pair))};
    };
    const int group = simt::lane_index() / 4, t = simt::lane_index() % 4;
    for (int i = 0; i < 4; ++i) {
        const int column = 2 * t + i % 2, upper = i / 2;  // of c; upper: row group + 8
        double sum = 0;
        for (int k = 0; k < 16; ++k) {
            const int owner = k % 8 / 2, second = k / 8;
            sum += half(lanes[4 * group + owner].a[upper + 2 * second], k) *
                   half(lanes[4 * column + owner].b[second], k);
        }
        c[i] = static_cast<float>(sum + double{c[i]});
    }
}

inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     Site site = Site::here()) {
    multiply_matrices(
        c, a, b, "mma_bf16", [](uint16_t bits) { return bits_to_float(uint32_t{bits} << 16); }, site);
}

inline void mma_fp16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     Site site = Site::here()) {
    multiply_matrices(c, a, b, "mma_fp16", simt::fp16_to_float, site);
}

inline void mma_u8s8(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
    const Lanes<MatrixOperands> lanes("mma_u8s8", {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, site);
    const int group = simt::lane_index() / 4, t = simt::lane_index() % 4;
    for (int i = 0; i < 4; ++i) {
        const int column = 2 * t + i % 2, upper = i / 2;  // of c; upper: row group + 8
        for (int k = 0; k < 32; ++k) {
            const int owner = k % 16 / 4, second = k / 16, shift = 8 * (k % 4);
            const uint32_t a_word = lanes[4 * group + owner].a[upper + 2 * second],
                           b_word = lanes[4 * column + owner].b[second];
            c[i] += static_cast<int>(a_word >> shift & 0xffu) * static_cast<int8_t>(b_word >> shift);
        }
    }
}

inline uint32_t transpose_8x8(uint32_t rows, Site site = Site::here()) {
    const Lanes<uint32_t> lanes("transpose_8x8", rows, site);
    const int row = simt::lane_index() / 4, t = simt::lane_index() % 4;
    // Columns 2t and 2t + 1 of the transpose's row are rows 2t and 2t + 1, column `row`, of the matrix.
    const auto element = [&](int from_row) {
        return lanes[4 * from_row + row / 2] >> (row % 2 ? 16 : 0) & 0xffffu;
    };
    return element(2 * t) | element(2 * t + 1) << 16;
}

inline uint32_t low_halves(uint32_t first, uint32_t second) {
    return (first & 0xffffu) | second << 16;
}

inline uint32_t high_halves(uint32_t first, uint32_t second) {
    return first >> 16 | (second & 0xffff0000u);
}

template <uint32_t selector>
uint32_t select_bytes(uint32_t first, uint32_t second) {
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t byte = selector >> 4 * i & 7u, word = byte < 4 ? first : second;
        result |= (word >> 8 * (byte % 4) & 0xffu) << 8 * i;
    }
    return result;
}

// --- clocks

// The executor's own clock: every call advances it by 1 us, so that a timeout of seconds ends soon.
inline uint64_t device_clock_ns(Site site = Site::here()) {
    return simt::clock_ns(site);
}

// The same clock, a tick a nanosecond.
inline uint64_t sm_clock(Site site = Site::here()) {
    return simt::clock_ns(site);
}

inline uint32_t sm_index() {
    return simt::sm_index();
}

}  // namespace pykernels::cuda
