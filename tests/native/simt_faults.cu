#include "simt_faults.h"

#include "cuda/common/launch.h"
#include "cuda/common/ptx.cuh"

namespace pykernels::cuda {
namespace {

constexpr int warp_lanes = 32;
constexpr int shared_bytes = 1024;

__device__ uint32_t* shared_words() {
    return reinterpret_cast<uint32_t*>(shared_memory());
}

// All of shared memory is written, so that who comes too early finds something.
__device__ void fill_shared() {
    for (unsigned i = threadIdx.x; i < shared_bytes / 4; i += fault_threads) store(shared_words() + i, 0u);
    block_barrier();
}

// Every thread passes its number on to its neighbour: with barriers, through a warp, through copies.
__global__ void clean_kernel(const uint32_t* in, uint32_t* out) {
    uint32_t* shared = shared_words();
    const unsigned i = threadIdx.x, lane = i % warp_lanes, warp = i / warp_lanes;
    store(shared + i, load(in + i));
    block_barrier();
    uint32_t value = load(shared + (i + 1) % fault_threads);
    block_barrier();
    store(shared + i, value);
    warp_barrier();
    value = load(shared + warp * warp_lanes + (lane + 1) % warp_lanes);
    value +=
        shuffle_xor(value, 1) + shuffle_down(value, 3) + shuffle_index(value, 5) + (ballot(lane < 4) == 15);
    block_barrier();
    if (i % 4 == 0) async_copy16(shared + i, in + i);
    async_commit();
    async_wait<0>();
    block_barrier();
    value += load(shared + fault_threads - 1 - i);
    if constexpr (has_bulk_copy) {
        auto* barrier = reinterpret_cast<TransactionBarrier*>(shared + 128);
        if (i == 0) {
            barrier_init(barrier, 1);
            barriers_ready();
        }
        block_barrier();
        for (uint32_t phase = 0; phase < 3; ++phase) {
            if (i == 0) {
                barrier_expect(barrier, fault_threads * 4);
                bulk_copy(shared, in, fault_threads * 4, barrier);
            }
            barrier_wait(barrier, phase % 2);
            value += load(shared + fault_threads - 1 - i);
            block_barrier();
        }
    }
    store(out + i, value);
}

__global__ void missing_block_barrier_kernel(const uint32_t* in, uint32_t* out) {
    uint32_t* shared = shared_words();
    const unsigned i = threadIdx.x;
    fill_shared();
    store(shared + i, load(in + i));  // FAULT missing_block_barrier
    warp_barrier();
    store(out + i, load(shared + (i + warp_lanes) % fault_threads));  // FAULT missing_block_barrier
}

__global__ void missing_warp_barrier_kernel(const uint32_t* in, uint32_t* out) {
    uint32_t* shared = shared_words();
    const unsigned i = threadIdx.x, lane = i % warp_lanes;
    fill_shared();
    store(shared + i, load(in + i));                                    // FAULT missing_warp_barrier
    store(out + i, load(shared + i - lane + (lane + 1) % warp_lanes));  // FAULT missing_warp_barrier
}

// What was read is written over too soon.
__global__ void missing_barrier_before_reuse_kernel(const uint32_t* in, uint32_t* out) {
    uint32_t* shared = shared_words();
    const unsigned i = threadIdx.x;
    store(shared + i, load(in + i));
    block_barrier();
    const uint32_t value = load(shared + fault_threads - 1 - i);  // FAULT missing_barrier_before_reuse
    store(shared + i, value + 1);                                 // FAULT missing_barrier_before_reuse
    store(out + i, value);
}

__global__ void missing_async_wait_kernel(const uint32_t* in, uint32_t* out) {
    uint32_t* shared = shared_words();
    const unsigned i = threadIdx.x;
    if (i % 4 == 0) async_copy16(shared + i, in + i);
    async_commit();
    if (i % 4 != 0) async_wait<0>();
    block_barrier();
    store(out + i, load(shared + i));  // FAULT missing_async_wait
    async_wait<0>();
}

__global__ void too_weak_async_wait_kernel(const uint32_t* in, uint32_t* out) {
    uint32_t* shared = shared_words();
    const unsigned i = threadIdx.x;
    if (i % 4 == 0) async_copy16(shared + i, in + i);
    async_commit();
    async_wait<1>();
    block_barrier();
    store(out + i, load(shared + i));  // FAULT too_weak_async_wait
    async_wait<0>();
}

__global__ void barrier_missing_after_async_wait_kernel(const uint32_t* in, uint32_t* out) {
    uint32_t* shared = shared_words();
    const unsigned i = threadIdx.x;
    if (i % 4 == 0) async_copy16(shared + i, in + i);
    async_commit();
    block_barrier();
    async_wait<0>();
    store(out + i, load(shared + (i + 4) % fault_threads));  // FAULT barrier_missing_after_async_wait
}

__device__ TransactionBarrier* start_bulk_copy(const uint32_t* in) {
    uint32_t* shared = shared_words();
    auto* barrier = reinterpret_cast<TransactionBarrier*>(shared + 128);
    if (threadIdx.x == 0) {
        barrier_init(barrier, 1);
        barriers_ready();
        barrier_expect(barrier, fault_threads * 4);
        bulk_copy(shared, in, fault_threads * 4, barrier);
    }
    block_barrier();
    return barrier;
}

__global__ void missing_bulk_wait_kernel(const uint32_t* in, uint32_t* out) {
    TransactionBarrier* barrier = start_bulk_copy(in);
    store(out + threadIdx.x, load(shared_words() + threadIdx.x));  // FAULT missing_bulk_wait
    barrier_wait(barrier, 0);
}

// One thread waits; the others rely on it without meeting it.
__global__ void bulk_wait_of_one_kernel(const uint32_t* in, uint32_t* out) {
    TransactionBarrier* barrier = start_bulk_copy(in);
    if (threadIdx.x == 0) barrier_wait(barrier, 0);
    store(out + threadIdx.x, load(shared_words() + threadIdx.x));  // FAULT bulk_wait_of_one
}

__global__ void wrong_parity_kernel(const uint32_t* in, uint32_t* out) {
    TransactionBarrier* barrier = start_bulk_copy(in);
    barrier_wait(barrier, 1);
    store(out + threadIdx.x, load(shared_words() + threadIdx.x));  // FAULT wrong_parity
}

__global__ void wrong_byte_count_kernel(const uint32_t* in, uint32_t* out) {
    uint32_t* shared = shared_words();
    auto* barrier = reinterpret_cast<TransactionBarrier*>(shared + 128);
    if (threadIdx.x == 0) {
        barrier_init(barrier, 1);
        barriers_ready();
        barrier_expect(barrier, fault_threads * 4 + 16);
        bulk_copy(shared, in, fault_threads * 4, barrier);
    }
    block_barrier();
    barrier_wait(barrier, 0);  // FAULT wrong_byte_count
    store(out + threadIdx.x, load(shared + threadIdx.x));
}

__global__ void divergent_barrier_kernel(const uint32_t* in, uint32_t* out) {
    if (load(in + threadIdx.x) % 2 == 0) block_barrier();  // FAULT divergent_barrier
    store(out + threadIdx.x, 1u);
}

__global__ void divergent_shuffle_kernel(const uint32_t* in, uint32_t* out) {
    uint32_t value = load(in + threadIdx.x);
    if (value % 2 == 0) value += shuffle_xor(value, 1);  // FAULT divergent_shuffle
    block_barrier();                                     // FAULT divergent_shuffle
    store(out + threadIdx.x, value);
}

__global__ void two_barriers_kernel(const uint32_t* in, uint32_t* out) {
    if (load(in + threadIdx.x) % 2 == 0) {
        block_barrier();  // FAULT two_barriers
    } else {
        block_barrier();  // FAULT two_barriers
    }
    store(out + threadIdx.x, 1u);
}

__global__ void read_past_the_end_kernel(const uint32_t* in, uint32_t* out) {
    store(out + threadIdx.x, load(in + threadIdx.x + 1));  // FAULT read_past_the_end
}

__global__ void write_past_the_end_kernel(const uint32_t* in, uint32_t* out) {
    store(out + threadIdx.x + 1, load(in + threadIdx.x));  // FAULT write_past_the_end
}

__global__ void shared_past_the_end_kernel(const uint32_t* in, uint32_t* out) {
    store(shared_words() + shared_bytes / 4 - threadIdx.x, load(in));  // FAULT shared_past_the_end
    store(out + threadIdx.x, 1u);
}

__global__ void misaligned_load_kernel(const uint32_t* in, uint32_t* out) {
    if (threadIdx.x == 3)
        store(out, load(reinterpret_cast<const uint4*>(in + 3)).x);  // FAULT misaligned_load
}

__global__ void misaligned_copy_kernel(const uint32_t* in, uint32_t* out) {
    if (threadIdx.x == 3) async_copy16(shared_words() + 4, in + 2);  // FAULT misaligned_copy
    async_commit();
    async_wait<0>();
    store(out + threadIdx.x, 1u);
}

__global__ void misaligned_bulk_copy_kernel(const uint32_t* in, uint32_t* out) {
    auto* barrier = reinterpret_cast<TransactionBarrier*>(shared_words() + 128);
    if (threadIdx.x == 0) {
        barrier_init(barrier, 1);
        barriers_ready();
        barrier_expect(barrier, 24);
        bulk_copy(shared_words(), in, 24, barrier);  // FAULT misaligned_bulk_copy
    }
    store(out + threadIdx.x, 1u);
}

__global__ void uninitialised_read_kernel(const uint32_t*, uint32_t* out) {
    if (threadIdx.x > 0) store(shared_words() + threadIdx.x, 1u);
    store(out + threadIdx.x, load(shared_words() + threadIdx.x));  // FAULT uninitialised_read
}

__global__ void copy_never_waited_for_kernel(const uint32_t* in, uint32_t*) {
    if (threadIdx.x == 0) async_copy16(shared_words(), in);  // FAULT copy_never_waited_for
    async_commit();
}

__global__ void barrier_not_shown_kernel(const uint32_t* in, uint32_t*) {
    auto* barrier = reinterpret_cast<TransactionBarrier*>(shared_words() + 128);
    if (threadIdx.x != 0) return;
    barrier_init(barrier, 1);
    barrier_expect(barrier, 16);
    bulk_copy(shared_words(), in, 16, barrier);  // FAULT barrier_not_shown
}

// Two blocks of a cluster, each reading the other's memory.
__device__ const float4* fill_for_cluster(const uint32_t* in) {
    fill_shared();
    cluster_arrive();
    cluster_wait();
    store(shared_words() + threadIdx.x, load(in + threadIdx.x));  // FAULT no_cluster_barrier
    return reinterpret_cast<const float4*>(shared_words()) + threadIdx.x / 4;
}

__global__ void cluster_clean_kernel(const uint32_t* in, uint32_t* out) {
    const float4* place = fill_for_cluster(in);
    cluster_arrive();
    cluster_wait();
    const float4 value = load_shared_of(1 - cluster_rank(), place);
    cluster_arrive();
    if (cluster_rank() == 0) store(out + threadIdx.x, static_cast<uint32_t>(value.x));
    cluster_wait();
}

__global__ void no_cluster_barrier_kernel(const uint32_t* in, uint32_t*) {
    const float4* place = fill_for_cluster(in);
    block_barrier();
    load_shared_of(1 - cluster_rank(), place);  // FAULT no_cluster_barrier
    cluster_arrive();
    cluster_wait();
}

__global__ void no_cluster_wait_kernel(const uint32_t* in, uint32_t*) {
    const float4* place = fill_for_cluster(in);
    cluster_arrive();
    load_shared_of(1 - cluster_rank(), place);  // FAULT no_cluster_wait
    cluster_wait();
    cluster_arrive();
    cluster_wait();
}

__global__ void ends_while_read_kernel(const uint32_t* in, uint32_t*) {
    const float4* place = fill_for_cluster(in);
    cluster_arrive();
    cluster_wait();
    load_shared_of(1 - cluster_rank(), place);  // FAULT ends_while_read
}

__global__ void two_arrivals_kernel(const uint32_t* in, uint32_t*) {
    fill_for_cluster(in);
    cluster_arrive();
    cluster_arrive();  // FAULT two_arrivals
    cluster_wait();
}

__global__ void chain_clean_kernel(const uint32_t* in, uint32_t* out) {
    launch_dependents();
    wait_for_producers();
    store(out + threadIdx.x, load(in + threadIdx.x) + 1);  // FAULT chain_clean
}

__global__ void chain_without_wait_kernel(const uint32_t* in, uint32_t* out) {
    launch_dependents();
    store(out + threadIdx.x, load(in + threadIdx.x) + 1);  // FAULT chain_without_wait
}

__global__ void chain_late_wait_kernel(const uint32_t* in, uint32_t* out) {
    launch_dependents();
    const uint32_t value = load(in + threadIdx.x);  // FAULT chain_late_wait
    wait_for_producers();
    store(out + threadIdx.x, value + 1);
}

__global__ void chain_early_write_kernel(const uint32_t* in, uint32_t* out) {
    launch_dependents();
    store(out + threadIdx.x, 7u);  // FAULT chain_early_write
    wait_for_producers();
    load(in + threadIdx.x);
}

// A load ahead of its time that is used: no fault, but it brings NaN.
__global__ void chain_early_fresh_kernel(const uint32_t* in, uint32_t* out) {
    launch_dependents();
    const uint32_t value = load_fresh(in + threadIdx.x);
    wait_for_producers();
    store(out + threadIdx.x, value);
}

template <Joining joining>
__global__ void join_blocks_kernel(uint32_t* counter, uint32_t* parts, uint32_t* out) {
    if (threadIdx.x != 0) return;
    store(parts + blockIdx.x, blockIdx.x + 1);  // FAULT parts
    if (joining != Joining::no_fence) fence_device();
    const uint32_t last = gridDim.x - 1;
    if (joining == Joining::no_atomic) {
        if (blockIdx.x != last) return;
    } else {
        if (atomic_increment(counter, last) != last) return;
    }
    fence_device();
    uint32_t sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) {
        sum += joining == Joining::stale_load ? load(parts + i)         // FAULT stale_load
                                              : load_fresh(parts + i);  // FAULT join
    }
    store(out, sum);
}

template <void (*kernel)(const uint32_t*, uint32_t*)>
void launch_faulty(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch(kernel, 1, fault_threads, shared_bytes, stream, in, out);
}

template <void (*kernel)(const uint32_t*, uint32_t*)>
void launch_faulty_cluster(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_clusters(kernel, 2, 2, fault_threads, shared_bytes, stream, in, out);
}

}  // namespace

const FaultCase fault_cases[] = {
    {"missing_block_barrier", launch_faulty<missing_block_barrier_kernel>, false},
    {"missing_warp_barrier", launch_faulty<missing_warp_barrier_kernel>, false},
    {"missing_barrier_before_reuse", launch_faulty<missing_barrier_before_reuse_kernel>, false},
    {"missing_async_wait", launch_faulty<missing_async_wait_kernel>, false},
    {"too_weak_async_wait", launch_faulty<too_weak_async_wait_kernel>, false},
    {"barrier_missing_after_async_wait", launch_faulty<barrier_missing_after_async_wait_kernel>, false},
    {"missing_bulk_wait", launch_faulty<missing_bulk_wait_kernel>, true},
    {"bulk_wait_of_one", launch_faulty<bulk_wait_of_one_kernel>, true},
    {"wrong_parity", launch_faulty<wrong_parity_kernel>, true},
    {"wrong_byte_count", launch_faulty<wrong_byte_count_kernel>, true},
    {"divergent_barrier", launch_faulty<divergent_barrier_kernel>, false},
    {"divergent_shuffle", launch_faulty<divergent_shuffle_kernel>, false},
    {"two_barriers", launch_faulty<two_barriers_kernel>, false},
    {"read_past_the_end", launch_faulty<read_past_the_end_kernel>, false},
    {"write_past_the_end", launch_faulty<write_past_the_end_kernel>, false},
    {"shared_past_the_end", launch_faulty<shared_past_the_end_kernel>, false},
    {"misaligned_load", launch_faulty<misaligned_load_kernel>, false},
    {"misaligned_copy", launch_faulty<misaligned_copy_kernel>, false},
    {"misaligned_bulk_copy", launch_faulty<misaligned_bulk_copy_kernel>, true},
    {"uninitialised_read", launch_faulty<uninitialised_read_kernel>, false},
    {"copy_never_waited_for", launch_faulty<copy_never_waited_for_kernel>, false},
    {"barrier_not_shown", launch_faulty<barrier_not_shown_kernel>, true},
    {"no_cluster_barrier", launch_faulty_cluster<no_cluster_barrier_kernel>, true},
    {"no_cluster_wait", launch_faulty_cluster<no_cluster_wait_kernel>, true},
    {"ends_while_read", launch_faulty_cluster<ends_while_read_kernel>, true},
    {"two_arrivals", launch_faulty_cluster<two_arrivals_kernel>, true},
};
const int n_fault_cases = sizeof fault_cases / sizeof *fault_cases;

void clean(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_faulty<clean_kernel>(in, out, stream);
}

void chain_clean(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_faulty<chain_clean_kernel>(in, out, stream);
}

void cluster_clean(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_faulty_cluster<cluster_clean_kernel>(in, out, stream);
}

void chain_early_fresh(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_faulty<chain_early_fresh_kernel>(in, out, stream);
}

void chain_without_wait(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_faulty<chain_without_wait_kernel>(in, out, stream);
}

void chain_late_wait(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_faulty<chain_late_wait_kernel>(in, out, stream);
}

void chain_early_write(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_faulty<chain_early_write_kernel>(in, out, stream);
}

void join_blocks(Joining joining, uint32_t* workspace, uint32_t* out, const Stream& stream) {
    const auto with = [&](auto kernel) {
        launch(kernel, 5, warp_lanes, 0, stream, workspace, workspace + 1, out);
    };
    switch (joining) {
        case Joining::clean:
            return with(join_blocks_kernel<Joining::clean>);
        case Joining::no_fence:
            return with(join_blocks_kernel<Joining::no_fence>);
        case Joining::no_atomic:
            return with(join_blocks_kernel<Joining::no_atomic>);
        case Joining::stale_load:
            return with(join_blocks_kernel<Joining::stale_load>);
    }
}

}  // namespace pykernels::cuda
