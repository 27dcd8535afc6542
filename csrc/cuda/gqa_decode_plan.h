// How gqa_decode is laid over a GPU: pure functions of the sizes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "params.h"

namespace pykernels::cuda {

constexpr int gqa_warps = 8;
constexpr int gqa_threads = 32 * gqa_warps;
// Query heads a block takes at once: the width of the tensor core's product.
constexpr int gqa_tile_heads = 8;
// Keys a warp works on at once: its depth. The KV axis is dealt out in tiles of this many keys.
constexpr int gqa_tile_keys = 16;
// A split has at least a tile for each of its warps: below that its combining costs more than its reading.
constexpr int gqa_min_split_keys = gqa_warps * gqa_tile_keys;

// Short contexts are joined in clusters, whose blocks push their shares into one another's shared memory. The
// blocks of a cluster share a GPC, of which some have fewer than 16 SMs free: up to this many blocks in all
// find room at once. Longer contexts need all SMs.
constexpr int gqa_max_cluster_splits = 16;
constexpr int gqa_max_cluster_blocks = 64;
constexpr int gqa_max_cluster_tiles = 4;  // of a warp
// Without clusters some of the blocks, joiners, wait for all splits of their unit. Blocks that wait hold an
// SM each: together at most one SM of this many.
constexpr int gqa_sms_per_joiner = 4;

// Where a warp has at least this many tiles in a full cache, K and V come by bulk copies: K and V of a tile
// are one copy each, into a ring of so many stages a warp. With fewer, loads to registers are faster (but see
// below for few clusters).
constexpr int gqa_min_bulk_tiles = 16;
constexpr int gqa_ring_stages = 2;

struct GqaPlan {
    int group_size;      // query heads of a KV head
    int head_tiles;      // blocks that share the query heads of one KV head
    int heads;           // query heads of a block, at most; the last head tile may have fewer
    int units;           // batch * n_kv_heads * head_tiles
    int splits;          // of the KV axis
    int cluster_splits;  // splits, a power of two, where they are a cluster; else 1
    int cluster_items;   // of one head's items, those that a block of the cluster joins
    int joiners;         // blocks of a unit that join it, where there is no cluster
    int joiner_items;    // of the output's items, a joiner's share
    int joiner_lanes;    // neighbouring lanes that join one item: a power of two
    bool programmatic;
    bool bulk_copies;  // K and V come so
    int ring_offset;   // of the ring of bulk copies, in shared memory
    int shared_bytes;
};

// What one warp, or one split, leaves of one head, in floats: head_dim sums, the maximum, the sum of
// exponentials; rows stay 16-byte aligned.
constexpr int gqa_row_floats(int head_dim) {
    return head_dim + 4;
}

// Rows of q in shared memory, in elements: 64 bytes apart from a multiple of 128, so that the rows two lanes
// read at once lie in different banks.
constexpr int gqa_q_row_elements(int head_dim) {
    return head_dim + 32;
}

// The rows of all warps and heads.
constexpr int gqa_rows_bytes(int head_dim) {
    return gqa_warps * gqa_tile_heads * gqa_row_floats(head_dim) * 4;
}

// K or V of a tile.
constexpr int gqa_tile_bytes(int head_dim) {
    return gqa_tile_keys * head_dim * 2;
}

// The warps' rings of K and V, and a barrier for each place of them.
constexpr int gqa_ring_bytes(int head_dim) {
    return gqa_warps * gqa_ring_stages * 2 * (gqa_tile_bytes(head_dim) + 8);
}

constexpr int power_of_two_below(int value) {
    int power = 1;
    while (2 * power <= value) power *= 2;
    return power;
}

// A head's output is joined four dimensions at a time: an item. Items are dealt out to
// the blocks of a cluster, or to the joiners.
constexpr int gqa_items(int heads, int head_dim) {
    return heads * head_dim / 4;
}

// A block's share of an item, as it is pushed to another block: the item, the maximum, the sum of
// exponentials. Before the shares lies the barrier that counts their bytes.
constexpr int gqa_share_bytes = 24, gqa_push_barrier_bytes = 16;

constexpr int gqa_pushed_bytes(int items) {
    return gqa_push_barrier_bytes + items * gqa_share_bytes;
}

// One split an SM as long as each has keys enough. It depends on the cache, not on kv_len, which lies on the
// device: a captured graph keeps its shape while kv_len grows.
inline GqaPlan plan_gqa_decode(const GqaDecodeParams& params, int sm_count, int max_shared_bytes, bool sm_90,
                               bool programmatic) {
    GqaPlan plan = {};
    plan.group_size = params.n_heads / params.n_kv_heads;
    plan.head_tiles = (plan.group_size + gqa_tile_heads - 1) / gqa_tile_heads;
    plan.heads = (plan.group_size + plan.head_tiles - 1) / plan.head_tiles;
    plan.units = params.batch * params.n_kv_heads * plan.head_tiles;
    const auto splits_of = [&](int keys, int blocks) {
        const int by_keys = (params.max_len + keys - 1) / keys, by_blocks = blocks / plan.units;
        return std::max(std::min(by_keys, by_blocks), 1);
    };
    plan.splits = splits_of(gqa_min_split_keys, sm_count);
    plan.cluster_splits = 1;
    const int joined = std::min(power_of_two_below(splits_of(gqa_min_split_keys, gqa_max_cluster_blocks)),
                                gqa_max_cluster_splits);
    if (sm_90 && joined > 1 && params.max_len <= joined * gqa_max_cluster_tiles * gqa_min_split_keys)
        plan.splits = plan.cluster_splits = joined;
    plan.cluster_items = gqa_items(1, params.head_dim) / plan.cluster_splits;
    const int items = gqa_items(plan.heads, params.head_dim);
    const int joiners = std::clamp(sm_count / gqa_sms_per_joiner / plan.units, 1, plan.splits);
    plan.joiner_items = (items + joiners - 1) / joiners;
    plan.joiners = (items + plan.joiner_items - 1) / plan.joiner_items;
    plan.joiner_lanes =
        std::min({gqa_threads / gqa_warps, power_of_two_below(gqa_threads / plan.joiner_items),
                  power_of_two_below(2 * plan.splits - 1)});
    plan.programmatic = programmatic;
    // A row for every warp and head, in q's place. Behind them what a cluster's blocks push, else a ticket.
    plan.shared_bytes =
        gqa_rows_bytes(params.head_dim) + (plan.cluster_splits > 1 ? gqa_pushed_bytes(items) : 16);
    // The ring lies behind them. Whole tiles only: a copy must not pass the cache's end.
    plan.ring_offset = (plan.shared_bytes + 127) / 128 * 128;
    const int with_ring = plan.ring_offset + gqa_ring_bytes(params.head_dim);
    const bool long_cache =
        plan.cluster_splits == 1 && params.max_len >= gqa_min_bulk_tiles * plan.splits * gqa_min_split_keys;
    // Right behind a GEMV an SM still has little first-level cache, through which loads to registers pass.
    // Few clusters, which wait for SMs in one place, lose by it; with more of them the ring costs more.
    const bool few_clusters = programmatic && plan.cluster_splits > 1 &&
                              plan.units * gqa_max_cluster_splits <= gqa_max_cluster_blocks;
    plan.bulk_copies = sm_90 && (long_cache || few_clusters) && params.max_len % gqa_tile_keys == 0 &&
                       with_ring <= max_shared_bytes;
    if (plan.bulk_copies) plan.shared_bytes = with_ring;
    return plan;
}

// Tile i belongs to split i % splits, and there to warp i / splits % gqa_warps: any kv_len is dealt out
// evenly, and a warp knows its first tile before it knows kv_len. Splits from the returned number on have no
// keys.
constexpr int gqa_active_splits(int kv_len, int splits) {
    const int tiles = (kv_len + gqa_tile_keys - 1) / gqa_tile_keys;
    return tiles < splits ? tiles : splits;
}

// The workspace, where splits are joined without a cluster: a counter for every unit, then a slot for every
// unit, split and item. All of it is zero before the first launch, and every launch leaves it zero.
constexpr int gqa_slot_floats = 8;  // the item, the maximum, the sum of exponentials, two that mean nothing

constexpr int64_t gqa_counter_bytes(const GqaPlan& plan) {
    return (int64_t{plan.units} * 4 + 63) / 64 * 64;
}

constexpr int64_t gqa_workspace_bytes(const GqaPlan& plan, int head_dim) {
    const int64_t slots = int64_t{plan.units} * plan.splits * gqa_items(plan.heads, head_dim);
    return gqa_counter_bytes(plan) + (plan.cluster_splits > 1 ? 0 : slots * gqa_slot_floats * 4);
}

}  // namespace pykernels::cuda
