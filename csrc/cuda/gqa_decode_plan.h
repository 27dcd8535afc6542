// How gqa_decode is laid over a GPU: pure functions of the sizes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "params.h"

namespace pykernels::cuda {

constexpr int gqa_warps = 8;
constexpr int gqa_threads = 32 * gqa_warps;
// Query heads a block takes at once: the width of the matrix unit's product.
constexpr int gqa_tile_heads = 8;
// Keys a warp works on at once: its depth. The KV axis is dealt out in tiles of this many keys.
constexpr int gqa_tile_keys = 16;
// A split has at least a tile for each of its warps: below that its combining costs more than its reading.
constexpr int gqa_min_split_keys = gqa_warps * gqa_tile_keys;

// Short contexts are joined in clusters: a block reads another's shared memory in half a microsecond, and
// joining through global memory takes two to three (docs/kernels.md). The blocks of a cluster share a GPC, of
// which some have fewer than 16 SMs free: up to this many blocks in all find room at once. Longer contexts
// need all SMs.
constexpr int gqa_max_cluster_splits = 16;
constexpr int gqa_max_cluster_blocks = 64;
constexpr int gqa_max_cluster_tiles = 4;  // of a warp
// Clusters whose rows the last block reads at once, and so the splits that are joined in two readings.
constexpr int gqa_join_at_once = 16;
constexpr int gqa_max_splits = 2 * gqa_join_at_once;

struct GqaPlan {
    int group_size;      // query heads of a KV head
    int head_tiles;      // blocks that share the query heads of one KV head
    int heads;           // query heads of a block, at most; the last head tile may have fewer
    int units;           // batch * n_kv_heads * head_tiles
    int splits;          // of the KV axis
    int cluster_splits;  // splits that are one cluster: a power of two, a divisor of splits
    bool programmatic;
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

constexpr int power_of_two_below(int value) {
    int power = 1;
    while (2 * power <= value) power *= 2;
    return power;
}

// One split an SM as long as each has keys enough. It depends on the cache, not on kv_len, which lies on the
// device: a captured graph keeps its shape while kv_len grows.
inline GqaPlan plan_gqa_decode(const GqaDecodeParams& params, int sm_count, bool clusters,
                               bool programmatic) {
    GqaPlan plan = {};
    plan.group_size = params.n_heads / params.n_kv_heads;
    plan.head_tiles = (plan.group_size + gqa_tile_heads - 1) / gqa_tile_heads;
    plan.heads = (plan.group_size + plan.head_tiles - 1) / plan.head_tiles;
    plan.units = params.batch * params.n_kv_heads * plan.head_tiles;
    const auto splits_of = [&](int keys, int blocks) {
        const int by_keys = (params.max_len + keys - 1) / keys, by_blocks = blocks / plan.units;
        return std::max(std::min({by_keys, by_blocks, gqa_max_splits}), 1);
    };
    plan.splits = splits_of(gqa_min_split_keys, sm_count);
    // Two blocks that share an SM pair join first where the last block would otherwise need a second reading.
    plan.cluster_splits = clusters && plan.splits > gqa_join_at_once ? 2 : 1;
    if (plan.cluster_splits == 2) plan.splits = plan.splits / 2 * 2;
    const int joined = std::min(power_of_two_below(splits_of(gqa_min_split_keys, gqa_max_cluster_blocks)),
                                gqa_max_cluster_splits);
    if (clusters && joined > 1 && params.max_len <= joined * gqa_max_cluster_tiles * gqa_min_split_keys)
        plan.splits = plan.cluster_splits = joined;
    plan.programmatic = programmatic;
    // A row for every warp and head, and a row for every head of the split; before them, q.
    const int rows = (gqa_warps + 1) * gqa_tile_heads * gqa_row_floats(params.head_dim) * 4;
    const int q = gqa_tile_heads * gqa_q_row_elements(params.head_dim) * 2;
    plan.shared_bytes = rows > q ? rows : q;
    return plan;
}

// Tile i belongs to split i % splits, and there to warp i / splits % gqa_warps: any kv_len is dealt out
// evenly, and a warp knows its first tile before it knows kv_len. Splits from the returned number on have no
// keys.
constexpr int gqa_active_splits(int kv_len, int splits) {
    const int tiles = (kv_len + gqa_tile_keys - 1) / gqa_tile_keys;
    return tiles < splits ? tiles : splits;
}

// A head's output is joined four dimensions at a time: an item. A cluster's items are dealt out to its
// blocks.
constexpr int gqa_items(int heads, int head_dim) {
    return heads * head_dim / 4;
}

// The workspace, for the clusters of a unit to be joined: a counter for every unit and block of a cluster
// (zero before the first launch, left zero by every launch), then a row for every unit, cluster and head.
constexpr int64_t gqa_counter_bytes(const GqaPlan& plan) {
    return (int64_t{plan.units} * plan.cluster_splits * 4 + 63) / 64 * 64;
}

constexpr int64_t gqa_workspace_bytes(const GqaPlan& plan, int head_dim) {
    return gqa_counter_bytes(plan) + int64_t{plan.units} * (plan.splits / plan.cluster_splits) * plan.heads *
                                         gqa_row_floats(head_dim) * 4;
}

}  // namespace pykernels::cuda
