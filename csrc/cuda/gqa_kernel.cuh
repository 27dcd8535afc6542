// The kernel of gqa_decode (gqa_decode.cu describes it), and the table of what it is compiled for. Softmax
// says how exponentials are kept in range. Unified ones, and what the functions below name, are instantiated
// in files of their own, which compile side by side.
#pragma once

#include <type_traits>

#include "cuda/common/dispatch.h"
#include "cuda/common/timestamps.cuh"
#include "cuda/gqa_block.cuh"
#include "cuda/gqa_decode_plan.h"
#include "unified_softmax.h"

namespace pykernels::cuda {

using GqaKernel = void (*)(GqaDecodeParams, GqaPlan);

// Of softmax unified (gqa_decode_unified.cu).
GqaKernel gqa_unified_kernel(Dtype dtype, const GqaPlan& plan, int head_dim);
// Of any head_dim (gqa_any_dim.cu).
GqaKernel gqa_any_dim_kernel(Dtype dtype, int head_dim);
// The same with a soft cap (gqa_softcap.cu).
GqaKernel gqa_capped_kernel(Dtype dtype);
// Of one query head a KV head, on CUDA cores (gqa_cuda_cores.cu).
GqaKernel gqa_core_kernel(Dtype dtype);

namespace {

using namespace gqa;

template <class T, class Dims, template <class, class> class KvStream, class Softmax>
__global__ void __launch_bounds__(gqa_threads, KvStream<T, Dims>::resident_blocks)
    gqa_decode_kernel(const __grid_constant__ GqaDecodeParams params, const __grid_constant__ GqaPlan plan) {
    if (KvStream<T, Dims>::needs_sm_90 && !has_bulk_copy) return;  // planned on sm_90 only
    // Those of a unified maximum, and of CUDA cores, have no registers left for timestamps.
    constexpr bool unstamped = Softmax::unified || Dims::one_head;
    std::conditional_t<unstamped, NoTimestamps, Timestamps> timestamps;
    constexpr int row = gqa_row_floats(Dims::value_max);
    const int warp = static_cast<int>(threadIdx.x) / warp_size, g = lane_group(), t = lane_in_group();
    const Dims dims(params, plan, static_cast<int>(blockIdx.x) / plan.splits);
    const BlockWork work(params, plan, static_cast<int>(blockIdx.x), dims);
    const int64_t cache_offset =
        int64_t{work.sequence * params.n_kv_heads + work.kv_head} * params.max_len * dims.head_dim;

    // --- mbarrier for the cluster's pushes. The matching cluster_wait() comes before the first push.
    const int items = gqa_items(work.n_heads, dims.n_values);
    unsigned char* const behind_rows = shared_memory() + gqa_rows_bytes(Dims::value_max);
    const bool clustered = Dims::one_head || plan.cluster_splits > 1;
    const int part = work.n_heads * plan.cluster_items;
    // Exactly divided, a block of the cluster combines as many items as any other; else what is left for it.
    const int own_items = Dims::exact ? part : max(min(part, items - work.split * part), 0);
    const int pushed_slots = Dims::exact ? items : own_items * plan.cluster_splits;
    const int pushed_room = Dims::exact ? items : part * plan.cluster_splits;
    const PushedPartials pushed(behind_rows, pushed_slots, part, pushed_room);
    if (clustered) {
        pushed.expect();
        warp_barrier();  // barrier.cluster.arrive is .aligned: all lanes execute it together
        cluster_arrive();
    }

    // --- prefetch q, K and V. q goes to shared memory, 0 past the last head and head_dim. Where nothing has
    // to be waited for it is issued ahead of K and V: behind them it would arrive a microsecond later.
    T* q = reinterpret_cast<T*>(shared_memory());
    const int kv_len =
        clamp_index(static_cast<uint32_t>(load(params.kv_len + work.sequence)) - 1u, params.max_len) + 1;
    if (!plan.programmatic) fetch_q<T>(params, work, dims);

    const Tiles<T> tiles = {static_cast<const T*>(params.k_cache) + cache_offset,
                            static_cast<const T*>(params.v_cache) + cache_offset,
                            params.max_len,
                            kv_len,
                            (warp * plan.splits + work.split) * gqa_tile_keys,
                            plan.splits * gqa_warps * gqa_tile_keys,
                            plan.programmatic};
    KvStream<T, Dims> kv_stream(tiles, plan, dims);
    kv_stream.start();
    timestamps.mark(TimestampPoint::first_copies);

    // --- wait for the producer
    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    if (plan.programmatic) {
        fetch_q<T>(params, work, dims);
        kv_stream.start_late();
    }
    auto* counters = static_cast<uint32_t*>(params.workspace);
    if constexpr (Softmax::unified) counters += unified_counter_bytes(Softmax::kind) / sizeof *counters;
    const bool takes_ticket = !clustered && threadIdx.x == 0;
    const uint32_t ticket =
        takes_ticket ? atomic_increment(counters + work.group, static_cast<uint32_t>(plan.splits) - 1) : 0;
    async_wait<0>();
    block_barrier();  // q is in shared memory
    timestamps.mark(TimestampPoint::x_ready);

    // --- mainloop over the warp's tiles
    q += g * gqa_q_row_elements(Dims::key_max) +
         t * vector_elements;  // head g, the dimensions of this lane's part of K
    typename KvStream<T, Dims>::template State<Softmax> partial;
    if constexpr (Softmax::unified) partial.phi = params.phi * log2_e;
    timestamps.mark(TimestampPoint::first_scores);  // of a warp without a tile
    kv_stream.run(q, params.scale * log2_e, partial, timestamps);
    timestamps.mark(TimestampPoint::streamed);
    const int active_splits = gqa_active_splits(kv_len, plan.splits);

    // --- combine the warps, in shared memory over q
    float* results = reinterpret_cast<float*>(shared_memory());
    block_barrier();  // all warps have read q
    store_rows<KvStream<T, Dims>>(partial);
    auto* shared_ticket =
        reinterpret_cast<uint32_t*>(behind_rows);  // memory that only a cluster uses otherwise
    if (takes_ticket) store(shared_ticket, ticket);
    block_barrier();  // the partials of all warps, and the ticket, are in shared memory
    // The mbarriers of all blocks are initialised.
    if (clustered) cluster_wait();
    const bool has_own = static_cast<int>(threadIdx.x) < items;
    const Item own(has_own ? static_cast<int>(threadIdx.x) : 0, dims.n_values);
    Combined<Softmax> combined;
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
    if constexpr (Softmax::unified) {
        const int thread = static_cast<int>(threadIdx.x);
        const auto out_of = [&](const Item& item) {
            return static_cast<T*>(params.out) +
                   int64_t{work.sequence * params.n_heads + work.first_head + item.head} * dims.head_dim +
                   dims.first_value + item.dim;
        };
        // Finishes the items whose sums are in the safe range, the others with what recompute(total) leaves,
        // which all threads of the block call. Every item of a head has the same sum; the first one counts
        // the head.
        const auto finish = [&](bool finishes, const Item& item, const auto& recompute) {
            timestamps.mark(TimestampPoint::combined);
            const bool again = finishes && !unified_in_range(combined.weight.y, kv_len, dtype_of<T>);
            if (finishes && !again) combined.finish(out_of(item));
            if (!block_any(again)) return;
            if (again && item.dim == 0) atomic_add(static_cast<uint32_t*>(params.workspace), 1u);
            Combined<OnlineSoftmax> total;
            recompute(total);
            if (again) total.finish(out_of(item));
        };
        const auto recompute = [&](int n_splits, const auto& keep) {
            recompute_online<T, Dims, KvStream>(params, plan, work, tiles, n_splits, keep, timestamps);
        };

        // --- combine the splits of a cluster
        if (clustered) {
            if (has_own) pushed.send(combined, thread, work.split);
            const int lanes = plan.cluster_splits, from = thread % lanes, part_item = thread / lanes;
            const auto take = [&](auto& total) {
                if (part_item < own_items) pushed.take(total, from, part_item);
                total.add_lanes(lanes);
            };
            combined = {};
            wait_for_pushes(pushed.arrived);
            take(combined);
            const Item item(work.split * pushed.part + part_item, dims.n_values);
            finish(part_item < own_items && from == 0, item, [&](auto& total) {
                recompute(plan.splits, [&](int split, const auto& of_split) {
                    const int index = thread - work.split * pushed.part;
                    if (index >= 0 && index < own_items) pushed.keep(of_split, index, split);
                });
                take(total);
            });
            return;
        }
        if (active_splits == 1) {
            if (work.split != 0) return;
            finish(has_own, own,
                   [&](auto& total) { recompute(1, [&](int, const auto& of_split) { total = of_split; }); });
            return;
        }

        // --- combine the splits through global memory
        const int slots_of_split = gqa_items(plan.heads, dims.n_values);
        const int64_t split_floats = int64_t{slots_of_split} * gqa_slot_floats;
        float* rows =
            reinterpret_cast<float*>(static_cast<unsigned char*>(params.workspace) +
                                     unified_counter_bytes(Softmax::kind) + gqa_counter_bytes(plan)) +
            int64_t{work.group} * plan.splits * split_floats;  // [split][item]
        const auto send = [&](int split, const auto& of_split) {
            of_split.send(rows + split * split_floats + thread * gqa_slot_floats);
        };
        if (work.split < active_splits && has_own) send(work.split, combined);
        const int reducer = static_cast<int>(load(shared_ticket)) - (plan.splits - plan.reducers);
        if (reducer < 0) return;
        const int lanes = plan.reducer_lanes, from = thread % lanes, own_item = thread / lanes,
                  index = reducer * plan.reducer_items + own_item;
        const bool has_item = own_item < plan.reducer_items && index < items;
        const auto receive = [&](auto& total) {
            constexpr int slots_at_once = 8;
            total = {};
            if (has_item) {
                for (int split = from; split < active_splits; split += slots_at_once * lanes) {
                    total.template receive<slots_at_once>(
                        rows + split * split_floats + index * gqa_slot_floats, lanes * split_floats,
                        (active_splits - split + lanes - 1) / lanes);
                }
            }
            total.add_lanes(lanes);
        };
        receive(combined);
        finish(has_item && from == 0, Item(index, dims.n_values), [&](auto& total) {
            recompute(active_splits, [&](int split, const auto& of_split) {
                if (thread / plan.reducer_items == reducer) send(split, of_split);
            });
            receive(total);
        });
    } else {
        const auto finish = [&](const Item& item) {
            combined.finish(static_cast<T*>(params.out) +
                            int64_t{work.sequence * params.n_heads + work.first_head + item.head} *
                                dims.head_dim +
                            dims.first_value + item.dim);
        };

        // --- combine the splits of a cluster: neighbouring lanes share an item, each takes the partial of
        // one block
        if (clustered) {
            if (has_own) pushed.send(combined, static_cast<int>(threadIdx.x), work.split);
            const int lanes = Dims::exact ? plan.cluster_splits : plan.cluster_lanes,
                      from = static_cast<int>(threadIdx.x) % lanes;
            const int part_item = static_cast<int>(threadIdx.x) / lanes;
            combined = {};
            wait_for_pushes(pushed.arrived);  // no block writes here after this, so this one may also exit
            timestamps.mark(TimestampPoint::combined);
            if (part_item < own_items && (Dims::exact || from < plan.cluster_splits))
                pushed.take(combined, from, part_item);
            combined.add_lanes(lanes);
            if (part_item < own_items && from == 0)
                finish(Item(work.split * pushed.part + part_item, dims.n_values));
            return;
        }
        if (active_splits == 1) {
            timestamps.mark(TimestampPoint::combined);
            if (work.split == 0 && has_own) finish(own);
            return;
        }

        // --- combine the splits through global memory: neighbouring lanes share an item, each takes every
        // n-th split
        const int slots_of_split = gqa_items(plan.heads, Dims::exact ? dims.n_values : plan.value_dims);
        float* rows = reinterpret_cast<float*>(static_cast<unsigned char*>(params.workspace) +
                                               gqa_counter_bytes(plan)) +
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
                combined.template receive<slots_at_once>(rows + split * split_floats + item * gqa_slot_floats,
                                                         lanes * split_floats,
                                                         (active_splits - split + lanes - 1) / lanes);
            }
        }
        timestamps.mark(TimestampPoint::combined);
        combined.add_lanes(lanes);
        if (has_item && from == 0) finish(Item(item, dims.n_values));
    }
}

template <class T, class Softmax>
GqaKernel kernel_of(const GqaPlan& plan, int head_dim, float softcap = 0) {
    if (head_dim % vector_elements != 0 || head_dim < vector_elements || head_dim > 256) {
        throw std::invalid_argument(
            "pykernels::gqa_decode: head_dim must be a multiple of 8 up to 256, got " +
            std::to_string(head_dim));
    }
    // Two tiles twice, and what lies between, are more than a thread's registers.
    if constexpr (Softmax::unified) {
        if (plan.any_dim) {
            throw std::invalid_argument(
                "pykernels::gqa_decode: on CUDA, softmax unified takes head_dim 64 or 128, got " +
                std::to_string(head_dim));
        }
    } else {
        if (softcap != 0) return gqa_capped_kernel(dtype_of<T>);
        if (plan.cuda_cores) return gqa_core_kernel(dtype_of<T>);
        if (plan.any_dim) return gqa_any_dim_kernel(dtype_of<T>, head_dim);
    }
    if (head_dim == 64) {
        return plan.bulk_copies ? gqa_decode_kernel<T, ExactDims<64>, BulkStream, Softmax>
                                : gqa_decode_kernel<T, ExactDims<64>, RegisterStream, Softmax>;
    }
    return plan.bulk_copies ? gqa_decode_kernel<T, ExactDims<128>, BulkStream, Softmax>
                            : gqa_decode_kernel<T, ExactDims<128>, RegisterStream, Softmax>;
}

}  // namespace
}  // namespace pykernels::cuda
