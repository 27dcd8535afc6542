// 16-bit floats as bit patterns, vectors of eight of them, and sums over a warp and a block.
#pragma once

#include "cuda/common/ptx.cuh"
#include "cuda/common/ptx_math.cuh"
#include "params.h"

namespace pykernels::cuda {

struct Bf16 {
    uint16_t bits;
};

struct Fp16 {
    uint16_t bits;
};

constexpr int warp_size = 32;
// Elements of one 16-byte access.
constexpr int vector_elements = 8;

__device__ __forceinline__ float to_float(Bf16 value) {
    return bits_to_float(static_cast<uint32_t>(value.bits) << 16);
}

__device__ __forceinline__ float to_float(Fp16 value) {
    return fp16_to_float(value.bits);
}

template <class T>
__device__ __forceinline__ T from_float(float value);

template <>
__device__ __forceinline__ Bf16 from_float<Bf16>(float value) {
    return {float_to_bf16(value)};
}

template <>
__device__ __forceinline__ Fp16 from_float<Fp16>(float value) {
    return {float_to_fp16(value)};
}

// An index that comes from memory, clamped to [0, size): what is outside, negative too, becomes the last. It
// keeps a wrong value's accesses inside the tensor; runtime/ranges.h finds the value.
__device__ __forceinline__ int clamp_index(uint32_t index, int size) {
    return static_cast<int>(min(index, static_cast<uint32_t>(size - 1)));
}

// The two elements of a 32-bit word, the lower address first.
__device__ __forceinline__ float2 unpack(uint32_t word, Bf16) {
    return make_float2(bits_to_float(word << 16), bits_to_float(word & 0xffff0000u));
}

__device__ __forceinline__ float2 unpack(uint32_t word, Fp16) {
    return make_float2(fp16_to_float(static_cast<uint16_t>(word)),
                       fp16_to_float(static_cast<uint16_t>(word >> 16)));
}

template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
    return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

// c += a b on the tensor core; ptx_math.cuh has the layouts.
template <class T>
__device__ __forceinline__ void matrix_multiply_add(float (&c)[4], const uint32_t (&a)[4],
                                                    const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void matrix_multiply_add<Bf16>(float (&c)[4], const uint32_t (&a)[4],
                                                          const uint32_t (&b)[2]) {
    mma_bf16(c, a, b);
}

template <>
__device__ __forceinline__ void matrix_multiply_add<Fp16>(float (&c)[4], const uint32_t (&a)[4],
                                                          const uint32_t (&b)[2]) {
    mma_fp16(c, a, b);
}

// Eight elements as float32.
struct Floats8 {
    float values[8];
    __device__ __forceinline__ float& operator[](int i) { return values[i]; }
    __device__ __forceinline__ float operator[](int i) const { return values[i]; }
};

// Word i of a vector; i must be a compile-time constant.
__device__ __forceinline__ uint32_t word(const uint4& vector, int i) {
    return i == 0 ? vector.x : i == 1 ? vector.y : i == 2 ? vector.z : vector.w;
}

template <class T>
__device__ __forceinline__ Floats8 unpack8(uint4 vector) {
    const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
    Floats8 result;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack(words[i], T{});
        result[2 * i] = pair.x;
        result[2 * i + 1] = pair.y;
    }
    return result;
}

template <class T>
__device__ __forceinline__ uint4 pack8(const Floats8& v) {
    return make_uint4(pack<T>(v[0], v[1]), pack<T>(v[2], v[3]), pack<T>(v[4], v[5]), pack<T>(v[6], v[7]));
}

template <class T>
__device__ __forceinline__ Floats8 load8(const T* pointer) {
    return unpack8<T>(load(reinterpret_cast<const uint4*>(pointer)));
}

template <class T>
__device__ __forceinline__ void store8(T* pointer, const Floats8& values) {
    store(reinterpret_cast<uint4*>(pointer), pack8<T>(values));
}

template <class T>
__device__ __forceinline__ float load1(const T* pointer) {
    return to_float(load(pointer));
}

template <class T>
__device__ __forceinline__ void store1(T* pointer, float value) {
    store(pointer, from_float<T>(value));
}

__device__ __forceinline__ float dot8(const Floats8& a, const Floats8& b, float sum) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += a[i] * b[i];
    return sum;
}

// Every lane gets the sum over groups of `width` lanes.
template <int width = warp_size>
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int mask = width / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

// Two warp sums with the shuffles of one: lanes 0 to 15 get the sum of `a`, lanes 16 to 31 the sum of `b`.
__device__ __forceinline__ float warp_sum_pair(float a, float b) {
    const bool upper = threadIdx.x % warp_size >= warp_size / 2;
    const float own = upper ? b : a;
    return warp_sum<warp_size / 2>(own + shuffle_xor(upper ? a : b, warp_size / 2));
}

// Every thread gets the sum over the block. `scratch`: one float per warp, in shared memory. Threads may
// still read it after the return, so a second call before the next barrier needs another scratch.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
    value = warp_sum(value);
    if (threadIdx.x % warp_size == 0) store(scratch + threadIdx.x / warp_size, value);
    block_barrier();  // the sums of all warps are in scratch
    float sum = 0;
    for (unsigned i = 0; i < blockDim.x / warp_size; ++i) sum += load(scratch + i);
    return sum;
}

// exp(x) = exp2(x * log2_e)
constexpr float log2_e = 1.44269504f;

// x / (1 + exp(-x))
__device__ __forceinline__ float silu(float x) {
    return x / (1.0f + exp2_approximate(x * -log2_e));
}

// x * (1 + tanh(u)) / 2 with u = sqrt(2 / pi) * (x + 0.044715 x^3), which is x / (1 + exp(-2 u))
__device__ __forceinline__ float gelu_tanh(float x) {
    return x / (1.0f + exp2_approximate((x + x * x * x * 0.044715f) * (-2.0f * 0.79788456f * log2_e)));
}

__device__ __forceinline__ float activate(Activation activation, float x) {
    return activation == Activation::silu ? silu(x) : gelu_tanh(x);
}

// softcap * tanh(x / softcap)
__device__ __forceinline__ float soft_capped(float x, float softcap) {
    return softcap * (2.0f / (1.0f + exp2_approximate(x / softcap * (-2.0f * log2_e))) - 1.0f);
}

}  // namespace pykernels::cuda
