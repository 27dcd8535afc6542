// The arithmetic half of ptx.cuh: float conversions, FMA, MMA on the tensor core, byte permutes, clocks.
#pragma once

#ifdef PYKERNELS_SIMT
#include "simt/device_math.h"
#else

#include <cuda_runtime.h>

#include <cstdint>

namespace pykernels::cuda {

// --- arithmetic

// ex2.approx.ftz.f32
__device__ __forceinline__ float exp2_approximate(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// rsqrt.approx.f32
__device__ __forceinline__ float reciprocal_sqrt(float x) {
    return rsqrtf(x);
}

// cvt.f32.f16
__device__ __forceinline__ float fp16_to_float(uint16_t bits) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
    return result;
}

// cvt.rn.f16.f32
__device__ __forceinline__ uint16_t float_to_fp16(float value) {
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// cvt.rn.bf16.f32
__device__ __forceinline__ uint16_t float_to_bf16(float value) {
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// mov.b32
__device__ __forceinline__ float bits_to_float(uint32_t bits) {
    return __uint_as_float(bits);
}

// mov.b32
__device__ __forceinline__ uint32_t float_to_bits(float value) {
    return __float_as_uint(value);
}

// max.NaN.f32 of the magnitudes: NaN where either operand is NaN.
__device__ __forceinline__ float max_magnitude(float a, float b) {
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(fabsf(a)), "f"(fabsf(b)));
    return result;
}

// fma.rn.f32: a b + c, rounded once.
__device__ __forceinline__ float fma_float(float a, float b, float c) {
    return fmaf(a, b, c);
}

// fma.rn.bf16x2: a b + c of two packed pairs, each rounded once.
__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

// fma.rn.f16x2
__device__ __forceinline__ uint32_t fma_fp16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t result;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

// --- MMA on the tensor core: c += a b with a 16 x 16, b 16 x 8, c 16 x 8, held by a warp. With g = lane / 4
// and t = lane % 4, a register of two elements, or a float, holds
//   a[0], a[1], a[2], a[3]: columns 2t, 2t + 1 of rows g, g + 8, and columns 2t + 8, 2t + 9 of rows g, g + 8
//   b[0], b[1]:             rows 2t, 2t + 1 and rows 2t + 8, 2t + 9 of column g
//   c[0], c[1], c[2], c[3]: columns 2t, 2t + 1 of row g, columns 2t, 2t + 1 of row g + 8

// mma.m16n8k16.f32.bf16.bf16.f32
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// mma.m16n8k16.f32.f16.f16.f32
__device__ __forceinline__ void mma_fp16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// mma.m16n8k32.s32.u8.s8.s32 (integer MMA): a of 16 x 32 unsigned bytes, b of 32 x 8 signed bytes. A register
// of four bytes, the first the lowest, holds
//   a[0], a[1], a[2], a[3]: columns 4t to 4t + 3 of rows g, g + 8, and columns 4t + 16 to 4t + 19 of both
//   b[0], b[1]:             rows 4t to 4t + 3 and rows 4t + 16 to 4t + 19 of column g
// and c is laid out as above.
__device__ __forceinline__ void mma_u8s8(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// movmatrix.m8n8.trans: transposes an 8 x 8 matrix of 16-bit elements. A lane holds columns 2t, 2t + 1 of row
// g.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t rows) {
    uint32_t columns;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(columns) : "r"(rows));
    return columns;
}

// prmt.b32 0x5410: the low 16 bits of both words.
__device__ __forceinline__ uint32_t low_halves(uint32_t first, uint32_t second) {
    return __byte_perm(first, second, 0x5410);
}

// prmt.b32 0x7632: the high 16 bits of both words.
__device__ __forceinline__ uint32_t high_halves(uint32_t first, uint32_t second) {
    return __byte_perm(first, second, 0x7632);
}

// prmt.b32: byte i of the result is the byte of {first, second} that hexadecimal digit i of `selector` names,
// both counted from the lowest.
template <uint32_t selector>
__device__ __forceinline__ uint32_t select_bytes(uint32_t first, uint32_t second) {
    return __byte_perm(first, second, selector);
}

// --- clocks

// %globaltimer: nanoseconds of the device's clock. Its resolution is about a microsecond or better.
__device__ __forceinline__ uint64_t device_clock_ns() {
    uint64_t ns;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
    return ns;
}

// %clock64: cycles of this SM. The "memory" clobber keeps memory accesses on their side of the reading.
__device__ __forceinline__ uint64_t sm_clock() {
    uint64_t ticks;
    asm volatile("mov.u64 %0, %clock64;" : "=l"(ticks)::"memory");
    return ticks;
}

// %smid
__device__ __forceinline__ uint32_t sm_index() {
    uint32_t index;
    asm volatile("mov.u32 %0, %smid;" : "=r"(index));
    return index;
}

}  // namespace pykernels::cuda

#endif
