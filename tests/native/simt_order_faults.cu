// Faults between launches, between blocks, and within a cluster.
#include "simt_faults.cuh"

namespace pykernels::cuda {
namespace {

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

// Between the halves nothing is in order with the other threads behind the wait.
__global__ void write_after_arrival_kernel(const uint32_t* in, uint32_t*) {
    fill_for_cluster(in);
    cluster_arrive();
    store(shared_words() + threadIdx.x, 1u);
    cluster_wait();
    load(shared_words() + (threadIdx.x + warp_lanes) % fault_threads);  // FAULT write_after_arrival
}

// Each block pushes a float2 a thread into the other's memory, behind the barrier there.
__device__ Mbarrier* make_push_barrier() {
    auto* barrier = reinterpret_cast<Mbarrier*>(shared_memory());
    if (threadIdx.x == 0) {
        barrier_init(barrier, 1);
        barriers_ready();
        barrier_expect(barrier, fault_threads * sizeof(float2));
    }
    block_barrier();
    return barrier;
}

__device__ float2* pushed_place(unsigned thread) {
    return reinterpret_cast<float2*>(shared_memory() + 16) + thread;
}

__device__ float2 pushed_value(const uint32_t* in) {
    return make_float2(static_cast<float>(load(in + threadIdx.x)), static_cast<float>(cluster_rank()));
}

__global__ void push_clean_kernel(const uint32_t* in, uint32_t* out) {
    Mbarrier* barrier = make_push_barrier();
    cluster_arrive();
    const int other = 1 - cluster_rank();
    const float2 value = pushed_value(in);
    cluster_wait();
    push(remote_address(other, pushed_place(threadIdx.x)), value, remote_address(other, barrier));
    wait_for_pushes(barrier);
    const float2 got = load(pushed_place(fault_threads - 1 - threadIdx.x));
    if (cluster_rank() == 0) store(out + threadIdx.x, static_cast<uint32_t>(got.x + 1000.0f * got.y));
}

__global__ void push_read_early_kernel(const uint32_t* in, uint32_t*) {
    Mbarrier* barrier = make_push_barrier();
    cluster_arrive();
    const int other = 1 - cluster_rank();
    cluster_wait();
    push(remote_address(other, pushed_place(threadIdx.x)), pushed_value(in), remote_address(other, barrier));
    load(pushed_place(threadIdx.x));  // FAULT push_read_early
    wait_for_pushes(barrier);
}

__global__ void push_not_shown_kernel(const uint32_t* in, uint32_t*) {
    Mbarrier* barrier = make_push_barrier();
    cluster_arrive();
    const int other = 1 - cluster_rank();
    const ClusterAddress place = remote_address(other, pushed_place(threadIdx.x));
    push(place, pushed_value(in), remote_address(other, barrier));  // FAULT push_not_shown
    cluster_wait();
    wait_for_pushes(barrier);
}

__global__ void ends_while_pushed_kernel(const uint32_t* in, uint32_t*) {
    Mbarrier* barrier = make_push_barrier();
    cluster_arrive();
    const int other = 1 - cluster_rank();
    const ClusterAddress place = remote_address(other, pushed_place(threadIdx.x));
    cluster_wait();
    push(place, pushed_value(in), remote_address(other, barrier));  // FAULT ends_while_pushed
}

// The place is still in use: read behind the barrier that lets others push.
__global__ void push_place_in_use_kernel(const uint32_t* in, uint32_t*) {
    fill_shared();
    Mbarrier* barrier = make_push_barrier();
    cluster_arrive();
    const int other = 1 - cluster_rank();
    const ClusterAddress place = remote_address(other, pushed_place(threadIdx.x));
    cluster_wait();
    load(pushed_place(threadIdx.x));                                // FAULT push_place_in_use
    push(place, pushed_value(in), remote_address(other, barrier));  // FAULT push_place_in_use
    wait_for_pushes(barrier);
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

// Loads ahead of their time that are used: no fault, but they bring NaN.
__global__ void chain_early_fresh_kernel(const uint32_t* in, uint32_t* out) {
    launch_dependents();
    const uint32_t value = load_fresh(in + threadIdx.x);
    wait_for_producers();
    store(out + threadIdx.x, value);
}

__global__ void chain_early_streamed_kernel(const uint32_t* in, uint32_t* out) {
    launch_dependents();
    const uint4 values = load_streamed(reinterpret_cast<const uint4*>(in) + threadIdx.x / 4);
    wait_for_producers();
    const uint32_t words[4] = {values.x, values.y, values.z, values.w};
    store(out + threadIdx.x, words[threadIdx.x % 4]);
}

// The same lines once more, behind the wait: the first load may have left old ones in the L1.
template <bool fresh>
__global__ void chain_again_kernel(const uint32_t* in, uint32_t* out) {
    launch_dependents();
    load_streamed(reinterpret_cast<const uint4*>(in) + threadIdx.x / 4);
    wait_for_producers();
    const uint32_t value =
        fresh ? load_fresh(in + threadIdx.x) : load(in + threadIdx.x);  // FAULT chain_stale
    store(out + threadIdx.x, value + 1);
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
        const bool joins = atomic_increment(counter, last) == last;
        if (joining == Joining::two_counters) {
            if (joins) fence_device();
            for (int i = 0; i < 20000; ++i) load(parts + blockIdx.x);  // others take turns meanwhile
            if (!joins) atomic_increment(parts + gridDim.x, last);
        }
        if (!joins) return;
    }
    if (joining != Joining::two_counters) fence_device();
    uint32_t sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) {
        sum += joining == Joining::stale_load ? load(parts + i)         // FAULT stale_load
                                              : load_fresh(parts + i);  // FAULT join
    }
    store(out, sum);
}

// The block that starts last sums what the others give.
template <Flagging flagging>
__global__ void join_flagged_kernel(uint32_t* ticket, float4* parts, uint32_t* out) {
    if (threadIdx.x != 0) return;
    const uint32_t last = gridDim.x - 1;
    const bool joins = atomic_increment(ticket, last) == last;
    if (!joins) {
        store_flagged(parts + blockIdx.x, make_float4(1.0f, 0.0f, 0.0f, static_cast<float>(blockIdx.x)));
        return;
    }
    float sum = static_cast<float>(blockIdx.x + 1);
    for (unsigned i = 0; i < gridDim.x; ++i) {
        if (i == blockIdx.x) continue;
        float4 part = load_flagged(parts + i);
        while (flagging == Flagging::first_word ? part.x == 0.0f : !is_written(part))
            part = load_flagged(parts + i);
        if (flagging == Flagging::plain_load) part = load(parts + i);  // FAULT plain_load
        sum += part.x + part.w;
        clear_flagged(parts + i);
    }
    store(out, static_cast<uint32_t>(sum));
}

template <void (*kernel)(const uint32_t*, uint32_t*)>
void launch_faulty_cluster(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_clusters(kernel, 2, 2, fault_threads, shared_bytes, stream, in, out);
}

}  // namespace

const FaultCase cluster_faults[] = {
    {"no_cluster_barrier", launch_faulty_cluster<no_cluster_barrier_kernel>, true},
    {"no_cluster_wait", launch_faulty_cluster<no_cluster_wait_kernel>, true},
    {"ends_while_read", launch_faulty_cluster<ends_while_read_kernel>, true},
    {"write_after_arrival", launch_faulty_cluster<write_after_arrival_kernel>, true},
    {"two_arrivals", launch_faulty_cluster<two_arrivals_kernel>, true},
    {"push_read_early", launch_faulty_cluster<push_read_early_kernel>, true},
    {"push_not_shown", launch_faulty_cluster<push_not_shown_kernel>, true},
    {"ends_while_pushed", launch_faulty_cluster<ends_while_pushed_kernel>, true},
    {"push_place_in_use", launch_faulty_cluster<push_place_in_use_kernel>, true},
};
const int n_cluster_faults = sizeof cluster_faults / sizeof *cluster_faults;

void chain_clean(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_faulty<chain_clean_kernel>(in, out, stream);
}

void cluster_clean(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_faulty_cluster<cluster_clean_kernel>(in, out, stream);
}

void push_clean(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_faulty_cluster<push_clean_kernel>(in, out, stream);
}

void chain_early_fresh(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_faulty<chain_early_fresh_kernel>(in, out, stream);
}

void chain_early_streamed(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_faulty<chain_early_streamed_kernel>(in, out, stream);
}

void chain_again(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_faulty<chain_again_kernel<true>>(in, out, stream);
}

void chain_stale(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_faulty<chain_again_kernel<false>>(in, out, stream);
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
        case Joining::two_counters:
            return with(join_blocks_kernel<Joining::two_counters>);
        case Joining::no_fence:
            return with(join_blocks_kernel<Joining::no_fence>);
        case Joining::no_atomic:
            return with(join_blocks_kernel<Joining::no_atomic>);
        case Joining::stale_load:
            return with(join_blocks_kernel<Joining::stale_load>);
    }
}

void join_flagged(Flagging flagging, uint32_t* workspace, uint32_t* out, const Stream& stream) {
    const auto with = [&](auto kernel) {
        launch(kernel, 5, warp_lanes, 0, stream, workspace, reinterpret_cast<float4*>(workspace + 4), out);
    };
    switch (flagging) {
        case Flagging::clean:
            return with(join_flagged_kernel<Flagging::clean>);
        case Flagging::first_word:
            return with(join_flagged_kernel<Flagging::first_word>);
        case Flagging::plain_load:
            return with(join_flagged_kernel<Flagging::plain_load>);
    }
}

}  // namespace pykernels::cuda
