// The vector vocabulary of the CPU kernels, for the instruction set this file is compiled for.
//
// Every kernel source is compiled once an instruction set, with PYKERNELS_ISA naming the namespace. All
// inline functions live in that namespace, and kernels use no inline function of the standard library: the
// linker merges equal inline functions, and would otherwise be free to keep an AVX-512 copy for a CPU that
// has none.
//
// F32 is a vector of `lanes` floats (a compiler vector type: + - * work on it, and a * b + c contracts to
// FMA).
#pragma once

#include <cstdint>

#include "cpu/types.h"
#include "params.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pykernels::cpu::PYKERNELS_ISA {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

#if defined(__AVX512BF16__)
constexpr bool has_bf16_dot = true;
#else
constexpr bool has_bf16_dot = false;
#endif

typedef float F32 __attribute__((vector_size(lanes * 4)));
typedef int32_t I32 __attribute__((vector_size(lanes * 4)));
typedef uint32_t U32 __attribute__((vector_size(lanes * 4)));
typedef uint16_t U16 __attribute__((vector_size(lanes * 2)));

template <class T>
inline T smaller(T a, T b) {
    return b < a ? b : a;
}

template <class T>
inline T larger(T a, T b) {
    return a < b ? b : a;
}

inline int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

inline F32 broadcast(float value) {
    return F32{} + value;
}

template <class To, class From>
inline To bit_copy(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof(to));
    return to;
}

// --- one value

inline float to_float(float value) {
    return value;
}

inline float to_float(Bf16 value) {
    return bit_copy<float>(static_cast<uint32_t>(value.bits) << 16);
}

inline float to_float(Fp16 value) {
#if defined(__F16C__)
    return _cvtsh_ss(value.bits);
#else
    // Shifted into a float's fields, the number is 2^-112 of what it should be; this holds for subnormals
    // too.
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
    if ((value.bits & 0x7c00) == 0x7c00) return bit_copy<float>(sign | magnitude | 0x7f800000);
    return bit_copy<float>(sign | bit_copy<uint32_t>(bit_copy<float>(magnitude) * 0x1p112f));
#endif
}

// Round to nearest, ties to even; NaN stays NaN.
inline void from_float(float value, float* out) {
    *out = value;
}

inline void from_float(float value, Bf16* out) {
    const uint32_t bits = bit_copy<uint32_t>(value);
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    const uint32_t rounded = nan ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
    out->bits = static_cast<uint16_t>(rounded >> 16);
}

inline void from_float(float value, Fp16* out) {
#if defined(__F16C__)
    out->bits = static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
#else
    const uint32_t bits = bit_copy<uint32_t>(value);
    const uint32_t sign = bits >> 16 & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    uint32_t half;
    if (magnitude > 0x7f800000) {
        half = 0x7e00;
    } else if (magnitude >= 0x477ff000) {  // rounds past 65504
        half = 0x7c00;
    } else if (magnitude < 0x38800000) {  // subnormal: let the addition of 0.5 round at the right bit
        half = bit_copy<uint32_t>(bit_copy<float>(magnitude) + 0.5f) - 0x3f000000;
    } else {
        half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    }
    out->bits = static_cast<uint16_t>(sign | half);
#endif
}

// --- vectors

inline F32 load(const float* from) {
    F32 value;
    __builtin_memcpy(&value, from, sizeof(value));
    return value;
}

inline F32 load(const Bf16* from) {
    U16 bits;
    __builtin_memcpy(&bits, from, sizeof(bits));
    return bit_copy<F32>(__builtin_convertvector(bits, U32) << 16);
}

inline F32 load(const Fp16* from) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    F32 value;
    for (int i = 0; i < lanes; ++i) value[i] = to_float(from[i]);
    return value;
#endif
}

inline void store(float* to, F32 value) {
    __builtin_memcpy(to, &value, sizeof(value));
}

inline void store(Bf16* to, F32 value) {
    const U32 bits = bit_copy<U32>(value);
    const U32 rounded = bits + 0x7fff + (bits >> 16 & 1);
    const U32 nan = bit_copy<U32>((bits & 0x7fffffff) > 0x7f800000);
    const U16 result = __builtin_convertvector(((rounded & ~nan) | ((bits | 0x400000) & nan)) >> 16, U16);
    __builtin_memcpy(to, &result, sizeof(result));
}

inline void store(Fp16* to, F32 value) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < lanes; ++i) from_float(value[i], to + i);
#endif
}

// a > b ? a : b in every lane; b where either is NaN.
inline F32 maximum(F32 a, F32 b) {
    return a > b ? a : b;
}

inline float reduce_add(F32 value) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(value);
#else
    float sum = 0;
    for (int width = lanes / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) value[i] += value[i + width];
    }
    sum = value[0];
    return sum;
#endif
}

inline float reduce_max(F32 value) {
    float result = value[0];
    for (int i = 1; i < lanes; ++i) result = value[i] > result ? value[i] : result;
    return result;
}

// 2^x: x = n + f with |f| <= 1/2, 2^f by its Taylor polynomial of degree 7 (relative error under 1e-7), 2^n
// by the exponent field in two halves, so that the ends of the range neither wrap nor flush early. NaN stays
// NaN.
inline F32 exp2(F32 x) {
    x = x < broadcast(-150.0f) ? broadcast(-150.0f) : x;
    x = x > broadcast(129.0f) ? broadcast(129.0f) : x;
    const F32 magic = broadcast(0x1.8p23f);  // adding it leaves the nearest integer in the low bits
    const F32 shifted = x + magic;
    const F32 f = x - (shifted - magic);
    const I32 n = bit_copy<I32>(shifted) - 0x4b400000;
    F32 p = broadcast(1.5252734e-5f);
    p = p * f + 1.5403530e-4f;
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    const I32 half = n >> 1;
    return p * bit_copy<F32>((half + 127) << 23) * bit_copy<F32>((n - half + 127) << 23);
}

constexpr float log2_e = 1.44269504f;  // exp(x) = exp2(x * log2_e)

// x / (1 + exp(-x))
inline F32 silu(F32 x) {
    return x / (1.0f + exp2(x * -log2_e));
}

inline float silu(float x) {
    F32 value = broadcast(x);
    return silu(value)[0];
}

// x * (1 + tanh(u)) / 2 with u = sqrt(2 / pi) * (x + 0.044715 x^3), which is x / (1 + exp(-2 u))
inline F32 gelu_tanh(F32 x) {
    return x / (1.0f + exp2((x + x * x * x * 0.044715f) * (-2.0f * 0.79788456f * log2_e)));
}

inline float gelu_tanh(float x) {
    F32 value = broadcast(x);
    return gelu_tanh(value)[0];
}

// PREFETCHNTA, for data that is read once: it does not displace the L2 and L3. 5% faster on Zen 5.
inline void prefetch_once(const void* address) {
    __builtin_prefetch(address, 0, 0);
}

// Calls body(T{}) with the type of `dtype`.
template <class Body>
inline void with_type(Dtype dtype, Body&& body) {
    switch (dtype) {
        case Dtype::float32:
            return body(float{});
        case Dtype::bfloat16:
            return body(Bf16{});
        case Dtype::float16:
            return body(Fp16{});
    }
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
