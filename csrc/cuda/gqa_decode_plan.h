// How gqa_decode is laid over a GPU: pure functions of the sizes.
#pragma once

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

struct GqaPlan {
    int head_tiles;  // blocks that share the query heads of one KV head
    int heads;       // query heads of a block, at most; the last head tile may have fewer
    int units;       // batch * n_kv_heads * head_tiles
    int splits;      // of the KV axis
    bool programmatic;
    int shared_bytes;
};

// What one warp, or one split, leaves of one head, in floats: head_dim sums, the maximum, the sum of
// exponentials; rows stay 16-byte aligned.
constexpr int gqa_row_floats(int head_dim) {
    return head_dim + 4;
}

// One split an SM as long as each has keys enough. It depends on the cache, not on kv_len, which lies on the
// device: a captured graph keeps its shape while kv_len grows.
inline GqaPlan plan_gqa_decode(const GqaDecodeParams& params, int sm_count, bool programmatic) {
    GqaPlan plan = {};
    const int group = params.n_heads / params.n_kv_heads;
    plan.head_tiles = (group + gqa_tile_heads - 1) / gqa_tile_heads;
    plan.heads = (group + plan.head_tiles - 1) / plan.head_tiles;
    plan.units = params.batch * params.n_kv_heads * plan.head_tiles;
    const int by_keys = (params.max_len + gqa_min_split_keys - 1) / gqa_min_split_keys;
    const int by_sms = sm_count / plan.units;
    plan.splits = by_keys < by_sms ? by_keys : by_sms;
    if (plan.splits < 1) plan.splits = 1;
    plan.programmatic = programmatic;
    plan.shared_bytes = gqa_warps * plan.heads * gqa_row_floats(params.head_dim) * 4;
    return plan;
}

// Tile i belongs to split i % splits, and there to warp i / splits % gqa_warps: any kv_len is dealt out
// evenly, and a warp knows its first tile before it knows kv_len. Splits from the returned number on have no
// keys.
constexpr int gqa_active_splits(int kv_len, int splits) {
    const int tiles = (kv_len + gqa_tile_keys - 1) / gqa_tile_keys;
    return tiles < splits ? tiles : splits;
}

// The workspace: a counter a unit (zero before the first launch, left zero by every launch), then a row for
// every unit, split and head.
constexpr int64_t gqa_counter_bytes(const GqaPlan& plan) {
    return (int64_t{plan.units} * 4 + 63) / 64 * 64;
}

constexpr int64_t gqa_workspace_bytes(const GqaPlan& plan, int head_dim) {
    return gqa_counter_bytes(plan) +
           int64_t{plan.units} * plan.splits * plan.heads * gqa_row_floats(head_dim) * 4;
}

}  // namespace pykernels::cuda
