// Wrappers of the PTX instructions and intrinsics that the kernels use: memory, barriers, copies, clusters.
// The arithmetic is in ptx_math.cuh. The first comment line of a function names its PTX instruction. Kernels
// use nothing of CUDA but these wrappers, the built-in indices and C++. csrc/simt implements the same names
// for the host, so that tests run the same kernels without a GPU.
//
// Before sm_90, wait_for_producers() and launch_dependents() do nothing, a block is its own cluster, and
// has_bulk_copy is false.
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

// --- shared memory

// The block's dynamic shared memory, 128-byte aligned.
__device__ __forceinline__ unsigned char* shared_memory() {
    extern __shared__ __align__(128) unsigned char shared_bytes[];
    return shared_bytes;
}

// cvta.to.shared: the 32-bit address that shared-memory instructions take.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- loads and stores. T is a scalar, or a vector of 4, 8 or 16 bytes, naturally aligned.

// ld
template <class T>
__device__ __forceinline__ T load(const T* pointer) {
    return *pointer;
}

// st
template <class T>
__device__ __forceinline__ void store(T* pointer, T value) {
    *pointer = value;
}

// ld.global.nc.L1::no_allocate: 16 bytes that are read once and do not stay in the L1.
__device__ __forceinline__ uint4 load_once(const uint4* pointer) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(pointer));
    return value;
}

// ld.global.cg: bypasses the L1, for values that another block may have written in this launch.
template <class T>
__device__ __forceinline__ T load_fresh(const T* pointer) {
    return __ldcg(pointer);
}

// createpolicy.fractional.L2::evict_first: for what is read once.
__device__ __forceinline__ uint64_t evict_first_policy() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// ld.global.L1::no_allocate.L2::cache_hint (evict_first): 16 bytes of a streaming load. L1 does not allocate
// them, L2 evicts them first. No block of this launch may write them.
__device__ __forceinline__ uint4 load_streamed(const uint4* pointer) {
    uint4 value;
    asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(pointer), "l"(evict_first_policy()));
    return value;
}

// prefetch.global.L2: brings the line to the L2.
__device__ __forceinline__ void prefetch_l2(const void* pointer) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(pointer));
}

// ld (volatile): 16 bytes of a __device__ variable that no running kernel writes. The load is issued here and
// not where the value is first used.
__device__ __forceinline__ uint4 load_variable(const uint4* pointer) {
    uint4 value;
    asm volatile("ld.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(pointer));
    return value;
}

// --- barriers and shuffles

// bar.sync 0 (__syncthreads)
__device__ __forceinline__ void block_barrier() {
    __syncthreads();
}

// bar.red.or (__syncthreads_or): a block barrier; whether a thread of the block gave true.
__device__ __forceinline__ bool block_any(bool vote) {
    return __syncthreads_or(vote) != 0;
}

// bar.warp.sync (__syncwarp)
__device__ __forceinline__ void warp_barrier() {
    __syncwarp();
}

// shfl.sync.bfly
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

// shfl.sync.idx: the value of lane `lane`.
template <class T>
__device__ __forceinline__ T shuffle_index(T value, int lane) {
    return __shfl_sync(0xffffffffu, value, lane);
}

// --- mbarriers and bulk copies (sm_90). An mbarrier's phase completes when its pending arrivals and its
// transaction bytes (tx-count) are both zero. Bytes come from cp.async.bulk, executed by the TMA unit, or
// from st.async of other blocks of the cluster. Small or unaligned bulk copies are slow: docs/tried.md.

using Mbarrier = uint64_t;

// mbarrier.init: `arrivals` threads arrive in each phase. One thread calls it. barriers_ready() then makes it
// visible to the TMA unit; a block barrier after that makes it visible to the block, a cluster barrier to the
// cluster.
__device__ __forceinline__ void barrier_init(Mbarrier* barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
                 : "memory");
}

// fence.mbarrier_init
__device__ __forceinline__ void barriers_ready() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// mbarrier.arrive.expect_tx: arrives, and adds `bytes` to the phase's tx-count.
__device__ __forceinline__ void barrier_expect(Mbarrier* barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
#endif
}

// cp.async.bulk.shared::cluster.global.L2::cache_hint (TMA, evict_first): both addresses and `bytes` are
// multiples of 16. Completion subtracts `bytes` from the tx-count of `barrier`.
__device__ __forceinline__ void bulk_copy(void* to_shared, const void* from_global, uint32_t bytes,
                                          Mbarrier* barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to_shared)),
        "l"(from_global), "r"(bytes), "r"(shared_address(barrier)), "l"(evict_first_policy())
        : "memory");
#endif
}

// mbarrier.try_wait.parity: spins until the phase of this parity has completed.
__device__ __forceinline__ void barrier_wait(Mbarrier* barrier, uint32_t parity) {
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

// --- cp.async (sm_80): 4 or 16 bytes a thread, in groups that complete in order

// cp.async.cg: 16 bytes through the L2 alone.
__device__ __forceinline__ void async_copy16(void* to_shared, const void* from_global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to_shared)),
                 "l"(from_global)
                 : "memory");
}

// cp.async.ca: 4 bytes, through the L1.
__device__ __forceinline__ void async_copy4(void* to_shared, const void* from_global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to_shared)), "l"(from_global)
                 : "memory");
}

// cp.async.cg with src-size: copies 16 bytes, or writes 16 zero bytes and reads nothing.
__device__ __forceinline__ void async_copy16_or_zeros(void* to_shared, const void* from_global, bool copies) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)),
                 "l"(from_global), "r"(copies ? 16 : 0)
                 : "memory");
}

// cp.async.commit_group
__device__ __forceinline__ void async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// cp.async.wait_group: waits until at most `pending` of this thread's groups are in flight.
template <int pending>
__device__ __forceinline__ void async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// --- programmatic dependent launch, PDL (sm_90)

// griddepcontrol.launch_dependents: the next kernel of the stream may be scheduled once every block of this
// one has executed it or exited. One thread of a block is enough.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// griddepcontrol.wait: returns when the grids this one depends on have completed and their writes are
// visible. Code ahead of it may only read memory that no earlier kernel of the stream writes, and may write
// nothing.
__device__ __forceinline__ void wait_for_producers() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// --- clusters (sm_90). The blocks of a cluster are co-scheduled and can access each other's shared memory.
// Before sm_90, and in a launch without clusters, a block is its own cluster.

// %cluster_ctarank: the block's rank in its cluster.
__device__ __forceinline__ int cluster_rank() {
    uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %cluster_ctarank;" : "=r"(rank));
#endif
    return static_cast<int>(rank);
}

// barrier.cluster.arrive.release. Every thread of the cluster arrives, then waits. Work between the two must
// not depend on other blocks.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

// barrier.cluster.wait.acquire: returns when all threads of the cluster have arrived. Their earlier writes to
// shared memory are then visible.
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
}

// mapa, ld.shared::cluster: the value at address `own` in the shared memory of the cluster's block `rank`.
__device__ __forceinline__ float4 load_shared_of(int rank, const float4* own) {
    float4 value;
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %4, %5;\n"
        "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n"
        "}"
        : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
        : "r"(shared_address(own)), "r"(rank)
        : "memory");
#else
    value = *own;
#endif
    return value;
}

// An address in the shared memory of another block of the cluster.
struct ClusterAddress {
    uint32_t address;
};

// mapa: the address in block `rank` that corresponds to `own` in this block.
__device__ __forceinline__ ClusterAddress remote_address(int rank, const void* own) {
    ClusterAddress remote = {};
#if __CUDA_ARCH__ >= 900
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote.address) : "r"(shared_address(own)), "r"(rank));
#endif
    return remote;
}

// st.async (sm_90): stores to a block of the cluster, and subtracts the bytes from the tx-count of an
// mbarrier of the same block. The receiving block must have initialised the barrier, must not touch the
// destination, and must not exit, until it has waited for all the bytes it expects.
__device__ __forceinline__ void push(ClusterAddress to, float4 value, ClusterAddress barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::
            "r"(to.address),
        "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(barrier.address)
        : "memory");
#endif
}

__device__ __forceinline__ void push(ClusterAddress to, float2 value, ClusterAddress barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
            to.address),
        "f"(value.x), "f"(value.y), "r"(barrier.address)
        : "memory");
#endif
}

// mbarrier.try_wait.parity.acquire.cluster: spins until the barrier's first phase has completed. What the
// blocks of the cluster pushed is then visible.
__device__ __forceinline__ void wait_for_pushes(Mbarrier* barrier) {
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

// --- between blocks without a cluster

// Flagged floats: a word is all zero bits until a block has written it. A reader polls the words and needs no
// counter and no fence. The value 0 is written as -0.
__device__ __forceinline__ float never_zero_bits(float x) {
    return x == 0.0f ? -0.0f : x;
}

// st.relaxed.gpu.v4
__device__ __forceinline__ void store_flagged(float4* pointer, float4 value) {
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(pointer),
                 "f"(never_zero_bits(value.x)), "f"(never_zero_bits(value.y)), "f"(never_zero_bits(value.z)),
                 "f"(never_zero_bits(value.w))
                 : "memory");
}

// st.relaxed.gpu.v2
__device__ __forceinline__ void store_flagged(float2* pointer, float2 value) {
    asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(pointer), "f"(never_zero_bits(value.x)),
                 "f"(never_zero_bits(value.y))
                 : "memory");
}

// ld.relaxed.gpu.v4. Its words may become visible one by one: test is_written() before using or clearing any.
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

// st.relaxed.gpu.v4: sets the words to zero bits again. The one thread that has read them calls it.
__device__ __forceinline__ void clear_flagged(float4* pointer) {
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %1, %1, %1};" ::"l"(pointer), "f"(0.0f) : "memory");
}

// fence.acq_rel.gpu (__threadfence)
__device__ __forceinline__ void fence_device() {
    __threadfence();
}

// atom.global.inc.u32: adds one; `last` wraps to 0. Returns the value before.
__device__ __forceinline__ uint32_t atomic_increment(uint32_t* counter, uint32_t last) {
    return atomicInc(counter, last);
}

// atom.global.add.u32. Returns the value before.
__device__ __forceinline__ uint32_t atomic_add(uint32_t* sum, uint32_t value) {
    return atomicAdd(sum, value);
}

// red.global.add.u64
__device__ __forceinline__ void atomic_add(unsigned long long* sum, unsigned long long value) {
    atomicAdd(sum, value);
}

}  // namespace pykernels::cuda

#endif
