// What nvcc adds to C++ of itself: the qualifiers, the built-in indices, the vector types, min and max.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

struct alignas(8) uint2 {
    unsigned x, y;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

struct alignas(8) float2 {
    float x, y;
};

struct alignas(16) float4 {
    float x, y, z, w;
};

inline uint2 make_uint2(unsigned x, unsigned y) {
    return {x, y};
}

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}

inline float2 make_float2(float x, float y) {
    return {x, y};
}

inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}

inline int min(int a, int b) {
    return b < a ? b : a;
}

inline int max(int a, int b) {
    return a < b ? b : a;
}

inline uint32_t min(uint32_t a, uint32_t b) {
    return b < a ? b : a;
}

inline uint64_t min(uint64_t a, uint64_t b) {
    return b < a ? b : a;
}

inline uint32_t max(uint32_t a, uint32_t b) {
    return a < b ? b : a;
}

inline int64_t min(int64_t a, int64_t b) {
    return b < a ? b : a;
}

inline int64_t max(int64_t a, int64_t b) {
    return a < b ? b : a;
}

namespace pykernels::simt {

struct Indices {
    uint3 thread_index, block_index;
    dim3 block_size, grid_size;
};

// Of the thread that runs.
extern const Indices* indices;

}  // namespace pykernels::simt

#define threadIdx (::pykernels::simt::indices->thread_index)
#define blockIdx (::pykernels::simt::indices->block_index)
#define blockDim (::pykernels::simt::indices->block_size)
#define gridDim (::pykernels::simt::indices->grid_size)
