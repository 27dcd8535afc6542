// Faults within a block.
#include "simt_faults.cuh"

namespace pykernels::cuda {
namespace {

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
    if (has_bulk_copy) {
        auto* barrier = reinterpret_cast<Mbarrier*>(shared + 128);
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

__device__ Mbarrier* start_bulk_copy(const uint32_t* in) {
    uint32_t* shared = shared_words();
    auto* barrier = reinterpret_cast<Mbarrier*>(shared + 128);
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
    Mbarrier* barrier = start_bulk_copy(in);
    store(out + threadIdx.x, load(shared_words() + threadIdx.x));  // FAULT missing_bulk_wait
    barrier_wait(barrier, 0);
}

// One thread waits; the others rely on it without meeting it.
__global__ void bulk_wait_of_one_kernel(const uint32_t* in, uint32_t* out) {
    Mbarrier* barrier = start_bulk_copy(in);
    if (threadIdx.x == 0) barrier_wait(barrier, 0);
    store(out + threadIdx.x, load(shared_words() + threadIdx.x));  // FAULT bulk_wait_of_one
}

__global__ void wrong_parity_kernel(const uint32_t* in, uint32_t* out) {
    Mbarrier* barrier = start_bulk_copy(in);
    barrier_wait(barrier, 1);
    store(out + threadIdx.x, load(shared_words() + threadIdx.x));  // FAULT wrong_parity
}

__global__ void wrong_byte_count_kernel(const uint32_t* in, uint32_t* out) {
    uint32_t* shared = shared_words();
    auto* barrier = reinterpret_cast<Mbarrier*>(shared + 128);
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

__global__ void prefetch_past_the_end_kernel(const uint32_t* in, uint32_t* out) {
    prefetch_l2(in + threadIdx.x + 1);  // FAULT prefetch_past_the_end
    store(out + threadIdx.x, load(in + threadIdx.x));
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
    auto* barrier = reinterpret_cast<Mbarrier*>(shared_words() + 128);
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
    auto* barrier = reinterpret_cast<Mbarrier*>(shared_words() + 128);
    if (threadIdx.x != 0) return;
    barrier_init(barrier, 1);
    barrier_expect(barrier, 16);
    bulk_copy(shared_words(), in, 16, barrier);  // FAULT barrier_not_shown
}

}  // namespace

const FaultCase block_faults[] = {
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
    {"prefetch_past_the_end", launch_faulty<prefetch_past_the_end_kernel>, false},
    {"write_past_the_end", launch_faulty<write_past_the_end_kernel>, false},
    {"shared_past_the_end", launch_faulty<shared_past_the_end_kernel>, false},
    {"misaligned_load", launch_faulty<misaligned_load_kernel>, false},
    {"misaligned_copy", launch_faulty<misaligned_copy_kernel>, false},
    {"misaligned_bulk_copy", launch_faulty<misaligned_bulk_copy_kernel>, true},
    {"uninitialised_read", launch_faulty<uninitialised_read_kernel>, false},
    {"copy_never_waited_for", launch_faulty<copy_never_waited_for_kernel>, false},
    {"barrier_not_shown", launch_faulty<barrier_not_shown_kernel>, true},
};
const int n_block_faults = sizeof block_faults / sizeof *block_faults;

void clean(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch_faulty<clean_kernel>(in, out, stream);
}

}  // namespace pykernels::cuda
