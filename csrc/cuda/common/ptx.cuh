// Every PTX instruction and intrinsic of the kernels, each behind a name that says what it does. Kernels use
// nothing of CUDA but these, the built-in indices and plain C++: csrc/simt implements the same names for the
// host, and so the same kernels run in tests without a GPU.
//
// What an architecture lacks falls back here: before sm_90 launches are not chained (`launch_dependents` and
// `wait_for_producers` are empty), a block is its own cluster, and has_bulk_copy is false.
#pragma once

#ifdef PYKERNELS_SIMT
#include "simt/device.h"
#else

#include <cuda_runtime.h>

#include <cstdint>

namespace pykernels::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool has_bulk_copy = true;
#else
constexpr bool has_bulk_copy = false;
#endif

// --- the block's dynamic shared memory, 128-byte aligned

__device__ __forceinline__ unsigned char* shared_memory() {
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    return shared_bytes;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- loads and stores: T is 4, 8 or 16 bytes for vectors, any scalar else; naturally aligned

template <class T>
__device__ __forceinline__ T load(const T* pointer) {
    return *pointer;
}

template <class T>
__device__ __forceinline__ void store(T* pointer, T value) {
    *pointer = value;
}

// 16 bytes of global memory that are read once: not kept in the first-level cache.
__device__ __forceinline__ uint4 load_once(const uint4* pointer) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(pointer));
    return value;
}

// A value that another block may have written in this launch: past the first-level cache.
template <class T>
__device__ __forceinline__ T load_fresh(const T* pointer) {
    return __ldcg(pointer);
}

// 16 bytes of global memory that are read once and not soon again: kept in neither cache for long. This
// launch does not write them.
__device__ __forceinline__ uint4 load_streamed(const uint4* pointer) {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    uint4 value;
    asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(pointer), "l"(policy));
    return value;
}

// 16 bytes of a __device__ variable that no running kernel writes: asked for here, not where they are first
// used.
__device__ __forceinline__ uint4 load_variable(const uint4* pointer) {
    uint4 value;
    asm volatile("ld.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(pointer));
    return value;
}

// --- barriers and shuffles

__device__ __forceinline__ void block_barrier() {
    __syncthreads();
}

__device__ __forceinline__ void warp_barrier() {
    __syncwarp();
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

// What lane `lane` has.
template <class T>
__device__ __forceinline__ T shuffle_index(T value, int lane) {
    return __shfl_sync(0xffffffffu, value, lane);
}

// --- mbarriers (sm_90): a phase ends when its arrivals and its bytes have come. Other blocks of
// the cluster push them (below), or the TMA unit brings them, a bulk copy. Small or unaligned copies are
// slow (docs/kernels.md has the measurement).

using TransactionBarrier = uint64_t;

// `arrivals` threads arrive in a phase. One thread calls it; barriers_ready() shows it to the TMA unit,
// and behind that a barrier to the other threads, the cluster's barrier to the cluster.
__device__ __forceinline__ void barrier_init(TransactionBarrier* barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
                 : "memory");
}

__device__ __forceinline__ void barriers_ready() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// Arrives, and adds `bytes` to what the phase waits for.
__device__ __forceinline__ void barrier_expect(TransactionBarrier* barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
#endif
}

// Both addresses and `bytes` are multiples of 16.
__device__ __forceinline__ void bulk_copy(void* to_shared, const void* from_global, uint32_t bytes,
                                          TransactionBarrier* barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(to_shared)),
        "l"(from_global), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
#endif
}

// Waits until the phase of this parity has ended.
__device__ __forceinline__ void barrier_wait(TransactionBarrier* barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
#endif
}

// --- asynchronous copies (sm_80): 16 bytes a thread or 4, in groups that complete in order

__device__ __forceinline__ void async_copy16(void* to_shared, const void* from_global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to_shared)),
                 "l"(from_global)
                 : "memory");
}

// 4 bytes, by way of the first-level cache.
__device__ __forceinline__ void async_copy4(void* to_shared, const void* from_global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to_shared)), "l"(from_global)
                 : "memory");
}

// Or 16 zeros, where nothing is read.
__device__ __forceinline__ void async_copy16_or_zeros(void* to_shared, const void* from_global, bool copies) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)),
                 "l"(from_global), "r"(copies ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `pending` of this thread's groups are under way.
template <int pending>
__device__ __forceinline__ void async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// --- programmatic dependent launch (sm_90)

// Lets the next kernel of the stream start where this one leaves room, once every block has said so or ended.
// One thread of a block speaks for it.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the kernels before this one have ended and their writes are visible. Before it only constants
// may be read, and nothing written.
__device__ __forceinline__ void wait_for_producers() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// --- between blocks

// Blocks of a cluster (sm_90) run at the same time, and read and write one another's shared memory. Before
// sm_90, and in a launch without clusters, a block is its own cluster.

// The block's number in its cluster.
__device__ __forceinline__ int cluster_rank() {
    uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %cluster_ctarank;" : "=r"(rank));
#endif
    return static_cast<int>(rank);
}

// All threads of the cluster arrive and wait in turns: behind the wait they see what all wrote to shared
// memory before they arrived. In between, a thread may do what needs nobody else.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
}

// What lies at this place of the shared memory of the cluster's block `rank`.
__device__ __forceinline__ float4 load_shared_of(int rank, const float4* own) {
    float4 value;
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n"
        ".reg .b32 place;\n"
        "mapa.shared::cluster.u32 place, %4, %5;\n"
        "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [place];\n"
        "}"
        : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
        : "r"(shared_address(own)), "r"(rank)
        : "memory");
#else
    value = *own;
#endif
    return value;
}

// A place of the shared memory of the cluster's block `rank`: where `own` is in this block's.
struct ClusterPlace {
    uint32_t address;
};

__device__ __forceinline__ ClusterPlace place_in(int rank, const void* own) {
    ClusterPlace place = {};
#if __CUDA_ARCH__ >= 900
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(place.address) : "r"(shared_address(own)), "r"(rank));
#endif
    return place;
}

// Stores there, and tells a mbarrier of the same block how many bytes have come (sm_90). That
// block has shown its barrier to the cluster, uses the place no more, and does not end, until it has waited
// for all it expects.
__device__ __forceinline__ void push(ClusterPlace to, float4 value, ClusterPlace barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::
            "r"(to.address),
        "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(barrier.address)
        : "memory");
#endif
}

__device__ __forceinline__ void push(ClusterPlace to, float2 value, ClusterPlace barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
            to.address),
        "f"(value.x), "f"(value.y), "r"(barrier.address)
        : "memory");
#endif
}

// Waits until the barrier's first phase has ended: what the cluster's blocks pushed is there.
__device__ __forceinline__ void wait_for_pushes(TransactionBarrier* barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(barrier))
        : "memory");
#endif
}

// Floats that carry their own flag: a word of them is all zero bits until a block has written it, so that who
// reads them needs no counter and no fence, only to look again. 0 itself is written as -0.
__device__ __forceinline__ float never_zero_bits(float x) {
    return x == 0.0f ? -0.0f : x;
}

__device__ __forceinline__ void store_flagged(float4* pointer, float4 value) {
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(pointer),
                 "f"(never_zero_bits(value.x)), "f"(never_zero_bits(value.y)), "f"(never_zero_bits(value.z)),
                 "f"(never_zero_bits(value.w))
                 : "memory");
}

// Some words of it may be there before others: is_written() before any is used, or cleared.
__device__ __forceinline__ float4 load_flagged(const float4* pointer) {
    float4 value;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                 : "l"(pointer)
                 : "memory");
    return value;
}

__device__ __forceinline__ bool is_written(const float4& words) {
    return __float_as_uint(words.x) != 0 && __float_as_uint(words.y) != 0 && __float_as_uint(words.z) != 0 &&
           __float_as_uint(words.w) != 0;
}

// All zero bits again, by the one thread that has read it.
__device__ __forceinline__ void clear_flagged(float4* pointer) {
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %1, %1, %1};" ::"l"(pointer), "f"(0.0f) : "memory");
}

__device__ __forceinline__ void fence_device() {
    __threadfence();
}

// Adds one; `last` wraps to 0. Returns the value before.
__device__ __forceinline__ uint32_t atomic_increment(uint32_t* counter, uint32_t last) {
    return atomicInc(counter, last);
}

__device__ __forceinline__ void atomic_add(unsigned long long* sum, unsigned long long value) {
    atomicAdd(sum, value);
}

// --- arithmetic

__device__ __forceinline__ float exp2_approximate(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

__device__ __forceinline__ float reciprocal_sqrt(float x) {
    return rsqrtf(x);
}

__device__ __forceinline__ float fp16_to_float(uint16_t bits) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
    return result;
}

__device__ __forceinline__ uint16_t float_to_fp16(float value) {
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ uint16_t float_to_bf16(float value) {
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ float bits_to_float(uint32_t bits) {
    return __uint_as_float(bits);
}

__device__ __forceinline__ uint32_t float_to_bits(float value) {
    return __float_as_uint(value);
}

// The larger magnitude; NaN where either is none.
__device__ __forceinline__ float max_magnitude(float a, float b) {
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(fabsf(a)), "f"(fabsf(b)));
    return result;
}

// a b + c, rounded once.
__device__ __forceinline__ float fma_float(float a, float b, float c) {
    return fmaf(a, b, c);
}

// a b + c of two pairs at once, each rounded once.
__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

__device__ __forceinline__ uint32_t fma_fp16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t result;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

// --- the tensor core: c += a b for a of 16 x 16, b of 16 x 8, c of 16 x 8, held by a warp. With g = lane / 4
// and t = lane % 4, a register of two elements or a float holds
//   a[0], a[1], a[2], a[3]: columns 2t, 2t + 1 of rows g, g + 8, and columns 2t + 8, 2t + 9 of rows g, g + 8
//   b[0], b[1]:             rows 2t, 2t + 1 and rows 2t + 8, 2t + 9 of column g
//   c[0], c[1], c[2], c[3]: columns 2t, 2t + 1 of row g, columns 2t, 2t + 1 of row g + 8

__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_fp16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same in whole numbers: a of 16 x 32 unsigned bytes, b of 32 x 8 signed ones. A register of four bytes,
// the first the lowest, holds
//   a[0], a[1], a[2], a[3]: columns 4t to 4t + 3 of rows g, g + 8, and columns 4t + 16 to 4t + 19 of both
//   b[0], b[1]:             rows 4t to 4t + 3 and rows 4t + 16 to 4t + 19 of column g
// and c lies as above.
__device__ __forceinline__ void mma_u8s8(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// An 8 x 8 matrix of 16-bit elements, lane holding columns 2t, 2t + 1 of row g, becomes its transpose.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t rows) {
    uint32_t columns;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(columns) : "r"(rows));
    return columns;
}

// The low 16 bits of both, then the high 16 bits of both.
__device__ __forceinline__ uint32_t low_halves(uint32_t first, uint32_t second) {
    return __byte_perm(first, second, 0x5410);
}

__device__ __forceinline__ uint32_t high_halves(uint32_t first, uint32_t second) {
    return __byte_perm(first, second, 0x7632);
}

// Four bytes of two words: hexadecimal digit i of `selector`, from the lowest, is which of the eight byte i
// is.
template <uint32_t selector>
__device__ __forceinline__ uint32_t select_bytes(uint32_t first, uint32_t second) {
    return __byte_perm(first, second, selector);
}

// --- clocks

// Nanoseconds of the device's clock; it ticks about every microsecond or better.
__device__ __forceinline__ uint64_t device_clock_ns() {
    uint64_t ns;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
    return ns;
}

// Cycles of this SM's own clock. What asks memory or waits for it stays on its side of the reading.
__device__ __forceinline__ uint64_t sm_clock() {
    uint64_t ticks;
    asm volatile("mov.u64 %0, %clock64;" : "=l"(ticks)::"memory");
    return ticks;
}

__device__ __forceinline__ uint32_t sm_index() {
    uint32_t index;
    asm volatile("mov.u32 %0, %smid;" : "=r"(index));
    return index;
}

}  // namespace pykernels::cuda

#endif
