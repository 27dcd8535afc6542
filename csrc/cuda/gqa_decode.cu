// gqa_decode: out = softmax(scale * q K^T) V over the first kv_len slots, one query token a sequence.
//
// A block takes one KV head, up to eight of its query heads (K and V are read once for all of them) and one
// split of the KV axis; its warps deal its tiles of 16 keys out among themselves (gqa_decode_plan.h). Both
// products run on the tensor core, turned so that the eight heads are its narrow side:
//   S   = K Q^T   16 keys x 8 heads,     summed over head_dim
//   O^T = V^T P^T head_dim x 8 heads,    summed over the 16 keys
// K and V go from memory to registers in 16-byte loads, or in long contexts by bulk copies through shared
// memory (gqa_stream.cuh). Which dimension or key an index of the product means is free as long as both
// factors agree, so lanes take what lies together in memory: of K eight dimensions of a row, of V eight
// dimensions of four rows. Softmax is online, in base 2. Warps, then splits are joined by their log-sum-exp
// (Flash-Decoding): in a cluster every block joins a part of the output, of which the others push their
// shares into its shared memory; else through global memory by a few of the blocks, which look until all
// splits' words are there. These are the blocks of a unit that started last, by a ticket: whoever waits knows
// that all others but its fellow joiners run, and joiners are too few to fill the device.
//
// Least bytes: K and V of kv_len slots, once. What limits it: latency up to some thousand keys, memory
// beyond.
//
// Before wait_for_producers() it reads kv_len and its warps' first tiles; the one with the newest key is read
// after it, or again. Older slots and kv_len must not be written by the launch right before a programmatic
// one.
#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/timestamps.cuh"
#include "cuda/gqa_combine.cuh"
#include "cuda/gqa_decode_plan.h"
#include "cuda/gqa_stream.cuh"

namespace pykernels::cuda {
namespace {

using namespace gqa;

// What a block does.
struct Place {
    int unit, split, sequence, kv_head, first_head, n_heads;
    __device__ __forceinline__ Place(const GqaDecodeParams& params, const GqaPlan& plan, int block) {
        unit = block / plan.splits;
        split = block - unit * plan.splits;
        const int head_tile = plan.head_tiles == 1 ? 0 : unit % plan.head_tiles;
        const int pair = plan.head_tiles == 1 ? unit : unit / plan.head_tiles;
        sequence = pair / params.n_kv_heads;
        kv_head = pair - sequence * params.n_kv_heads;
        first_head = kv_head * plan.group_size + head_tile * plan.heads;
        n_heads = min(plan.heads, plan.group_size - head_tile * plan.heads);
    }
};

template <class T, int head_dim, template <class, int> class KvStream>
__global__ void __launch_bounds__(gqa_threads, 1)
    gqa_decode_kernel(const __grid_constant__ GqaDecodeParams params, const __grid_constant__ GqaPlan plan) {
    if (KvStream<T, head_dim>::needs_bulk_copy && !has_bulk_copy) return;  // such plans are sm_90's
    Timestamps timestamps;
    constexpr int row = gqa_row_floats(head_dim);
    const int warp = static_cast<int>(threadIdx.x) / warp_size, g = lane_group(), t = lane_in_group();
    const Place at(params, plan, static_cast<int>(blockIdx.x));
    const int64_t slots = int64_t{at.sequence * params.n_kv_heads + at.kv_head} * params.max_len * head_dim;

    // Blocks of a cluster push once all have made their barriers, which is long before they have something.
    const int items = gqa_items(at.n_heads, head_dim);
    unsigned char* const behind_rows = shared_memory() + gqa_rows_bytes(head_dim);
    const PushedShares pushed(behind_rows, items, at.n_heads * plan.cluster_items);
    if (plan.cluster_splits > 1) {
        pushed.expect();
        warp_barrier();  // all lanes arrive together
        cluster_arrive();
    }

    // q in shared memory, 0 past the last head. It is asked for before K and V where nothing has to be waited
    // for: behind them it would arrive a microsecond after them.
    T* q = reinterpret_cast<T*>(shared_memory());
    const auto fetch_q = [&] {
        constexpr int q_vectors = head_dim / vector_elements;
        static_assert(gqa_tile_heads * q_vectors <= gqa_threads);
        const int i = static_cast<int>(threadIdx.x), head = i / q_vectors,
                  d = i % q_vectors * vector_elements;
        if (head < gqa_tile_heads) {
            T* to = q + head * gqa_q_row_elements(head_dim) + d;
            if (head < at.n_heads) {
                async_copy16(to, static_cast<const T*>(params.q) +
                                     int64_t{at.sequence * params.n_heads + at.first_head + head} * head_dim +
                                     d);
            } else {
                store(reinterpret_cast<uint4*>(to), make_uint4(0, 0, 0, 0));
            }
        }
        async_commit();
    };
    const int kv_len = load(params.kv_len + at.sequence);
    if (!plan.programmatic) fetch_q();

    const Tiles<T> tiles = {static_cast<const T*>(params.k_cache) + slots,
                            static_cast<const T*>(params.v_cache) + slots,
                            params.max_len,
                            kv_len,
                            (warp * plan.splits + at.split) * gqa_tile_keys,
                            plan.splits * gqa_warps * gqa_tile_keys,
                            plan.programmatic};
    KvStream<T, head_dim> kv_stream(tiles, shared_memory() + plan.ring_offset);
    kv_stream.start();
    timestamps.mark(TimestampPoint::first_copies);
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
        takes_ticket ? atomic_increment(counters + at.unit, static_cast<uint32_t>(plan.splits) - 1) : 0;
    async_wait<0>();
    block_barrier();  // q is there
    timestamps.mark(TimestampPoint::x_ready);
    q += g * gqa_q_row_elements(head_dim) +
         t * vector_elements;  // of head g, the dimensions of this lane's part of K
    Partial<head_dim> partial;
    kv_stream.run(q, params.scale * 1.44269504f, partial);
    timestamps.mark(TimestampPoint::streamed);
    const int active_splits = gqa_active_splits(kv_len, plan.splits);

    // The warps become one. In shared memory, in q's place: [warp][head][row].
    float* results = reinterpret_cast<float*>(shared_memory());
    block_barrier();  // every warp is done with q
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float sum = partial.sum[h];
#pragma unroll
        for (int mask = 4; mask < warp_size; mask *= 2) sum += shuffle_xor(sum, mask);
        float* mine = results + (warp * gqa_tile_heads + 2 * t + h) * row;
#pragma unroll
        for (int j = 0; j < head_dim / 64; ++j) {
#pragma unroll
            for (int p = 0; p < 4; ++p) {
                store(reinterpret_cast<float2*>(mine + KvStream<T, head_dim>::value_dim(j) + p * 2),
                      make_float2(partial.out[j][p][h], partial.out[j][p][2 + h]));
            }
        }
        if (g == 0)
            store(reinterpret_cast<float4*>(mine + head_dim), make_float4(partial.maximum[h], sum, 0, 0));
    }
    auto* ticket_place = reinterpret_cast<uint32_t*>(behind_rows);  // which only a cluster needs
    if (takes_ticket) store(ticket_place, ticket);
    block_barrier();  // all warps' results are there, and the ticket
    // All blocks have made their barriers.
    if (plan.cluster_splits > 1) cluster_wait();
    const bool has_own = static_cast<int>(threadIdx.x) < items;
    const Item own(has_own ? static_cast<int>(threadIdx.x) : 0, head_dim);
    Joined joined;
    static_assert(gqa_items(gqa_tile_heads, head_dim) <= gqa_threads);
    if (has_own) {
        float4 weights[gqa_warps], outs[gqa_warps];
#pragma unroll
        for (int w = 0; w < gqa_warps; ++w) {
            const float* theirs = results + (w * gqa_tile_heads + own.head) * row;
            weights[w] = load(reinterpret_cast<const float4*>(theirs + head_dim));
            outs[w] = load(reinterpret_cast<const float4*>(theirs + own.dim));
        }
        joined.add(weights, outs, gqa_warps);
    }
    const auto finish = [&](const Item& item) {
        joined.finish(static_cast<T*>(params.out) +
                      int64_t{at.sequence * params.n_heads + at.first_head + item.head} * head_dim +
                      item.dim);
    };
    if (plan.cluster_splits > 1) {
        // The blocks of the cluster become one: of as many neighbouring lanes, which have one item, each
        // takes the share of one block.
        if (has_own) pushed.send(joined, static_cast<int>(threadIdx.x), at.split);
        const int lanes = plan.cluster_splits, from = static_cast<int>(threadIdx.x) % lanes;
        const int share = static_cast<int>(threadIdx.x) / lanes;
        joined = {};
        wait_for_pushes(pushed.all_here);  // nobody writes here any more: the block may also end
        if (share < pushed.part) joined = pushed.share_of(from, share);
        joined.add_lanes(lanes);
        if (share < pushed.part && from == 0) finish(Item(at.split * pushed.part + share, head_dim));
        return;
    }
    if (active_splits == 1) {
        if (at.split == 0 && has_own) finish(own);
        return;
    }

    // The splits become one: of neighbouring lanes, which have one item, each takes every so many splits.
    const int slots_of_split = gqa_items(plan.heads, head_dim);
    float* rows =
        reinterpret_cast<float*>(static_cast<unsigned char*>(params.workspace) + gqa_counter_bytes(plan)) +
        int64_t{at.unit} * plan.splits * slots_of_split * gqa_slot_floats;  // [split][item]
    const int64_t split_floats = int64_t{slots_of_split} * gqa_slot_floats;
    if (at.split < active_splits && has_own)
        joined.send(rows + at.split * split_floats + static_cast<int>(threadIdx.x) * gqa_slot_floats);
    const int joiner = static_cast<int>(load(ticket_place)) - (plan.splits - plan.joiners);
    if (joiner < 0) return;
    const int lanes = plan.joiner_lanes, from = static_cast<int>(threadIdx.x) % lanes;
    const int share = static_cast<int>(threadIdx.x) / lanes, mine = joiner * plan.joiner_items + share;
    const bool has_item = share < plan.joiner_items && mine < items;
    constexpr int at_once = 8;
    joined = {};
    if (has_item) {
        for (int split = from; split < active_splits; split += at_once * lanes) {
            joined.receive<at_once>(rows + split * split_floats + mine * gqa_slot_floats,
                                    lanes * split_floats, (active_splits - split + lanes - 1) / lanes);
        }
    }
    joined.add_lanes(lanes);
    if (has_item && from == 0) finish(Item(mine, head_dim));
}

template <class Body>
void with_head_dim(int head_dim, Body&& body) {
    if (head_dim == 64) return body(Constant<64>{});
    if (head_dim == 128) return body(Constant<128>{});
    throw std::invalid_argument("pykernels::gqa_decode: on CUDA, head_dim must be 64 or 128, got " +
                                std::to_string(head_dim));
}

GqaPlan plan_here(const GqaDecodeParams& params, bool programmatic) {
    const DeviceLimits& limits = device_limits();
    return plan_gqa_decode(params, limits.sm_count, limits.shared_bytes, limits.sm_90, programmatic);
}

}  // namespace

size_t gqa_decode_workspace_bytes(const GqaDecodeParams& params) {
    return static_cast<size_t>(gqa_workspace_bytes(plan_here(params, false), params.head_dim));
}

void gqa_decode(const GqaDecodeParams& params, const Stream& stream) {
    const GqaPlan plan = plan_here(params, stream.programmatic);
    with_type("gqa_decode", params.dtype, [&](auto type) {
        with_head_dim(params.head_dim, [&](auto head_dim) {
            using T = decltype(type);
            constexpr int dim = decltype(head_dim)::value;
            const auto kernel = plan.bulk_copies ? gqa_decode_kernel<T, dim, BulkStream>
                                                 : gqa_decode_kernel<T, dim, RegisterStream>;
            launch_clusters(kernel, plan.cluster_splits, plan.units * plan.splits, gqa_threads,
                            static_cast<size_t>(plan.shared_bytes), stream, params, plan);
        });
    });
}

}  // namespace pykernels::cuda
