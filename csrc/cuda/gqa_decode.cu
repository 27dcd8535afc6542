// gqa_decode: out = softmax(scale * q K^T) V over the first kv_len slots, one query token a sequence.
//
// A block takes a head group (one KV head and up to eight of its query heads, for all of which K and V are
// read once) and one split of the KV axis. Its tiles of 16 keys are divided among its warps
// (gqa_decode_plan.h). Both products are MMA, transposed so that the eight heads are n:
//   S   = K Q^T   16 keys x 8 heads,     summed over head_dim
//   O^T = V^T P^T head_dim x 8 heads,    summed over the 16 keys
// K and V are loaded to registers in 16-byte loads, or in long contexts to shared memory with cp.async.bulk
// (gqa_stream.cuh). The order of dimensions and keys within an MMA is free as long as both operands agree, so
// a lane takes what is contiguous in memory: eight dimensions of a row of K, eight dimensions of four rows of
// V. Softmax is online, in base 2.
//
// The partials of warps, then of splits, are combined by their log-sum-exp (Flash-Decoding, gqa_combine.cuh).
// In a cluster each block combines a part of the output; the others push their partials into its shared
// memory. Without a cluster, partials go through global memory, and a few reducing blocks poll until those of
// all splits are written. The reducing blocks of a head group are those that started last, by a ticket: when
// a block polls, all other blocks of the head group are running or have ended, and there are too few reducing
// blocks to fill the device.
//
// Fewest bytes: K and V of kv_len slots, once. Limit: latency up to some thousand keys, memory bandwidth
// beyond.
//
// Ahead of griddepcontrol.wait the kernel reads kv_len and its warps' first tiles. The tile with the newest
// key is read after it, or read again. The launch right before a programmatic one must not write kv_len or
// older slots.
#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/timestamps.cuh"
#include "cuda/gqa_any_dim.cuh"
#include "cuda/gqa_combine.cuh"
#include "cuda/gqa_decode_plan.h"
#include "cuda/gqa_stream.cuh"

namespace pykernels::cuda {
namespace {

using namespace gqa;

// The work of a block: a head group, and a split of its KV axis.
struct BlockWork {
    int group, split, sequence, kv_head, first_head, n_heads;
    template <class Dims>
    __device__ __forceinline__ BlockWork(const GqaDecodeParams& params, const GqaPlan& plan, int block,
                                         const Dims& dims) {
        group = block / plan.splits;
        split = block - group * plan.splits;
        const int cell = dims.cell(plan, group);  // its slices of V are neighbours
        const int head_tile = plan.head_tiles == 1 ? 0 : cell % plan.head_tiles;
        const int cache = plan.head_tiles == 1 ? cell : cell / plan.head_tiles;
        sequence = cache / params.n_kv_heads;
        kv_head = cache - sequence * params.n_kv_heads;
        first_head = kv_head * plan.group_size + head_tile * plan.heads;
        n_heads = min(plan.heads, plan.group_size - head_tile * plan.heads);
    }
};

template <class T, class Dims, template <class, class> class KvStream>
__global__ void __launch_bounds__(gqa_threads, 1)
    gqa_decode_kernel(const __grid_constant__ GqaDecodeParams params, const __grid_constant__ GqaPlan plan) {
    if (KvStream<T, Dims>::needs_bulk_copy && !has_bulk_copy) return;  // planned on sm_90 only
    Timestamps timestamps;
    constexpr int row = gqa_row_floats(Dims::value_max);
    const int warp = static_cast<int>(threadIdx.x) / warp_size, g = lane_group(), t = lane_in_group();
    const Dims dims(params, plan, static_cast<int>(blockIdx.x) / plan.splits);
    const BlockWork work(params, plan, static_cast<int>(blockIdx.x), dims);
    const int64_t cache_offset =
        int64_t{work.sequence * params.n_kv_heads + work.kv_head} * params.max_len * dims.head_dim;

    // --- mbarrier for the cluster's pushes. The matching cluster_wait() comes before the first push.
    const int items = gqa_items(work.n_heads, dims.n_values);
    unsigned char* const behind_rows = shared_memory() + gqa_rows_bytes(Dims::value_max);
    const int part = work.n_heads * plan.cluster_items;
    // Exactly divided, a block of the cluster combines as many items as any other; else what is left for it.
    const int own_items = Dims::exact ? part : max(min(part, items - work.split * part), 0);
    const int pushed_slots = Dims::exact ? items : own_items * plan.cluster_splits;
    const int pushed_room = Dims::exact ? items : part * plan.cluster_splits;
    const PushedPartials pushed(behind_rows, pushed_slots, part, pushed_room);
    if (plan.cluster_splits > 1) {
        pushed.expect();
        warp_barrier();  // barrier.cluster.arrive is .aligned: all lanes execute it together
        cluster_arrive();
    }

    // --- prefetch q, K and V. q goes to shared memory, 0 past the last head and head_dim. Where nothing has
    // to be waited for it is issued ahead of K and V: behind them it would arrive a microsecond later.
    T* q = reinterpret_cast<T*>(shared_memory());
    const auto fetch_q = [&] {
        constexpr int q_vectors = Dims::key_max / vector_elements;
        static_assert(gqa_tile_heads * q_vectors <= gqa_threads);
        const int i = static_cast<int>(threadIdx.x), head = i / q_vectors,
                  d = i % q_vectors * vector_elements;
        if (head < gqa_tile_heads) {
            T* to = q + head * gqa_q_row_elements(Dims::key_max) + d;
            if (head < work.n_heads && (Dims::exact || d < dims.head_dim)) {
                const int64_t q_row = int64_t{work.sequence * params.n_heads + work.first_head + head};
                async_copy16(to, static_cast<const T*>(params.q) + q_row * dims.head_dim + d);
            } else {
                store(reinterpret_cast<uint4*>(to), make_uint4(0, 0, 0, 0));
            }
        }
        async_commit();
    };
    const int kv_len =
        clamp_index(static_cast<uint32_t>(load(params.kv_len + work.sequence)) - 1u, params.max_len) + 1;
    if (!plan.programmatic) fetch_q();

    const Tiles<T> tiles = {static_cast<const T*>(params.k_cache) + cache_offset,
                            static_cast<const T*>(params.v_cache) + cache_offset,
                            params.max_len,
                            kv_len,
                            (warp * plan.splits + work.split) * gqa_tile_keys,
                            plan.splits * gqa_warps * gqa_tile_keys,
                            plan.programmatic};
    KvStream<T, Dims> kv_stream(tiles, shared_memory() + plan.ring_offset, dims);
    kv_stream.start();
    timestamps.mark(TimestampPoint::first_copies);

    // --- wait for the producer
    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    if (plan.programmatic) {
        fetch_q();
        kv_stream.start_late();
    }
    auto* counters = static_cast<uint32_t*>(params.workspace);
    const bool takes_ticket = plan.cluster_splits == 1 && threadIdx.x == 0;
    const uint32_t ticket =
        takes_ticket ? atomic_increment(counters + work.group, static_cast<uint32_t>(plan.splits) - 1) : 0;
    async_wait<0>();
    block_barrier();  // q is in shared memory
    timestamps.mark(TimestampPoint::x_ready);

    // --- mainloop over the warp's tiles
    q += g * gqa_q_row_elements(Dims::key_max) +
         t * vector_elements;  // head g, the dimensions of this lane's part of K
    Partial<Dims::value_max> partial;
    kv_stream.run(q, params.scale * log2_e, partial);
    timestamps.mark(TimestampPoint::streamed);
    const int active_splits = gqa_active_splits(kv_len, plan.splits);

    // --- combine the warps, in shared memory over q: [warp][head][row]
    float* results = reinterpret_cast<float*>(shared_memory());
    block_barrier();  // all warps have read q
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float sum = partial.sum[h];
#pragma unroll
        for (int mask = 4; mask < warp_size; mask *= 2) sum += shuffle_xor(sum, mask);
        float* warp_row = results + (warp * gqa_tile_heads + 2 * t + h) * row;
#pragma unroll
        for (int j = 0; j < Dims::value_max / 64; ++j) {
#pragma unroll
            for (int p = 0; p < 4; ++p) {
                store(reinterpret_cast<float2*>(warp_row + KvStream<T, Dims>::value_dim(j) + p * 2),
                      make_float2(partial.out[j][p][h], partial.out[j][p][2 + h]));
            }
        }
        if (g == 0)
            store(reinterpret_cast<float4*>(warp_row + Dims::value_max),
                  make_float4(partial.maximum[h], sum, 0, 0));
    }
    auto* shared_ticket =
        reinterpret_cast<uint32_t*>(behind_rows);  // memory that only a cluster uses otherwise
    if (takes_ticket) store(shared_ticket, ticket);
    block_barrier();  // the partials of all warps, and the ticket, are in shared memory
    // The mbarriers of all blocks are initialised.
    if (plan.cluster_splits > 1) cluster_wait();
    const bool has_own = static_cast<int>(threadIdx.x) < items;
    const Item own(has_own ? static_cast<int>(threadIdx.x) : 0, dims.n_values);
    Combined combined;
    static_assert(gqa_items(gqa_tile_heads, Dims::value_max) <= gqa_threads);
    if (has_own) {
        float4 weights[gqa_warps], outs[gqa_warps];
#pragma unroll
        for (int w = 0; w < gqa_warps; ++w) {
            const float* warp_row = results + (w * gqa_tile_heads + own.head) * row;
            weights[w] = load(reinterpret_cast<const float4*>(warp_row + Dims::value_max));
            outs[w] = load(reinterpret_cast<const float4*>(warp_row + own.dim));
        }
        combined.add(weights, outs, gqa_warps);
    }
    const auto finish = [&](const Item& item) {
        combined.finish(static_cast<T*>(params.out) +
                        int64_t{work.sequence * params.n_heads + work.first_head + item.head} *
                            dims.head_dim +
                        dims.first_value + item.dim);
    };

    // --- combine the splits of a cluster: neighbouring lanes share an item, each takes the partial of one
    // block
    if (plan.cluster_splits > 1) {
        if (has_own) pushed.send(combined, static_cast<int>(threadIdx.x), work.split);
        const int lanes = Dims::exact ? plan.cluster_splits : plan.cluster_lanes,
                  from = static_cast<int>(threadIdx.x) % lanes;
        const int part_item = static_cast<int>(threadIdx.x) / lanes;
        combined = {};
        wait_for_pushes(pushed.arrived);  // no block writes here after this, so this one may also exit
        if (part_item < own_items && (Dims::exact || from < plan.cluster_splits))
            combined = pushed.partial_of(from, part_item);
        combined.add_lanes(lanes);
        if (part_item < own_items && from == 0)
            finish(Item(work.split * pushed.part + part_item, dims.n_values));
        return;
    }
    if (active_splits == 1) {
        if (work.split == 0 && has_own) finish(own);
        return;
    }

    // --- combine the splits through global memory: neighbouring lanes share an item, each takes every n-th
    // split
    const int slots_of_split = gqa_items(plan.heads, Dims::exact ? dims.n_values : plan.value_dims);
    float* rows =
        reinterpret_cast<float*>(static_cast<unsigned char*>(params.workspace) + gqa_counter_bytes(plan)) +
        int64_t{work.group} * plan.splits * slots_of_split * gqa_slot_floats;  // [split][item]
    const int64_t split_floats = int64_t{slots_of_split} * gqa_slot_floats;
    if (work.split < active_splits && has_own)
        combined.send(rows + work.split * split_floats + static_cast<int>(threadIdx.x) * gqa_slot_floats);
    const int reducer = static_cast<int>(load(shared_ticket)) - (plan.splits - plan.reducers);
    if (reducer < 0) return;
    const int lanes = plan.reducer_lanes, from = static_cast<int>(threadIdx.x) % lanes;
    const int own_item = static_cast<int>(threadIdx.x) / lanes,
              item = reducer * plan.reducer_items + own_item;
    const bool has_item = own_item < plan.reducer_items && item < items;
    constexpr int slots_at_once = 8;
    combined = {};
    if (has_item) {
        for (int split = from; split < active_splits; split += slots_at_once * lanes) {
            combined.receive<slots_at_once>(rows + split * split_floats + item * gqa_slot_floats,
                                            lanes * split_floats,
                                            (active_splits - split + lanes - 1) / lanes);
        }
    }
    combined.add_lanes(lanes);
    if (has_item && from == 0) finish(Item(item, dims.n_values));
}

using Kernel = void (*)(GqaDecodeParams, GqaPlan);

template <class T>
Kernel kernel_of(const GqaPlan& plan, int head_dim) {
    if (head_dim % vector_elements != 0 || head_dim < vector_elements || head_dim > 256) {
        throw std::invalid_argument(
            "pykernels::gqa_decode: head_dim must be a multiple of 8 up to 256, got " +
            std::to_string(head_dim));
    }
    if (plan.any_dim) {
        return head_dim <= 128 ? gqa_decode_kernel<T, AnyDims<128>, GuardedStream>
                               : gqa_decode_kernel<T, AnyDims<256>, GuardedStream>;
    }
    if (head_dim == 64) {
        return plan.bulk_copies ? gqa_decode_kernel<T, ExactDims<64>, BulkStream>
                                : gqa_decode_kernel<T, ExactDims<64>, RegisterStream>;
    }
    return plan.bulk_copies ? gqa_decode_kernel<T, ExactDims<128>, BulkStream>
                            : gqa_decode_kernel<T, ExactDims<128>, RegisterStream>;
}

GqaPlan plan_here(const GqaDecodeParams& params, bool programmatic) {
    const DeviceLimits& limits = device_limits();
    return plan_gqa_decode(params, {limits.sm_count, limits.shared_bytes, limits.sm_90, resident_clusters()},
                           programmatic);
}

}  // namespace

size_t gqa_decode_workspace_bytes(const GqaDecodeParams& params) {
    return static_cast<size_t>(gqa_workspace_bytes(plan_here(params, false)));
}

void gqa_decode(const GqaDecodeParams& params, const Stream& stream) {
    const GqaPlan plan = plan_here(params, stream.programmatic);
    with_type("gqa_decode", params.dtype, [&](auto type) {
        const Kernel kernel = kernel_of<decltype(type)>(plan, params.head_dim);
        launch_clusters(kernel, plan.cluster_splits, plan.groups * plan.splits, gqa_threads,
                        static_cast<size_t>(plan.shared_bytes), stream, params, plan);
    });
}

}  // namespace pykernels::cuda
