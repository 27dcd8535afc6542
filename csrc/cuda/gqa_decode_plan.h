// How gqa_decode is laid over a GPU: pure functions of the sizes.
#pragma once

#include <cstdint>

#include "cuda/ring_plan.h"
#include "params.h"

namespace pykernels::cuda {

constexpr int gqa_warps = 8;
constexpr int gqa_threads = 32 * gqa_warps;
// Query heads a block takes at once: their q and sums live in registers.
constexpr int gqa_max_heads = 8;
// Below this many keys a split's combining costs more than its reading.
constexpr int gqa_min_split_keys = 64;

struct GqaPlan {
    int tiles;     // blocks that share the query heads of one KV head
    int heads;     // query heads of a block, at most; the last tile may have fewer
    int units;     // batch * n_kv_heads * tiles
    int splits;    // of the KV axis
    int n_stages;  // of a warp's ring
    int shared_bytes;
};

// One split an SM as long as each has keys enough. It depends on the cache, not on kv_len, which lies on the
// device: a captured graph keeps its shape while kv_len grows.
inline GqaPlan plan_gqa_decode(const GqaDecodeParams& params, int sm_count, bool bulk_copy) {
    GqaPlan plan = {};
    const int group = params.n_heads / params.n_kv_heads;
    plan.tiles = (group + gqa_max_heads - 1) / gqa_max_heads;
    plan.heads = (group + plan.tiles - 1) / plan.tiles;
    plan.units = params.batch * params.n_kv_heads * plan.tiles;
    const int by_keys = (params.max_len + gqa_min_split_keys - 1) / gqa_min_split_keys;
    const int by_sms = sm_count / plan.units;
    plan.splits = by_keys < by_sms ? by_keys : by_sms;
    if (plan.splits < 1) plan.splits = 1;
    plan.n_stages = bulk_copy ? ring_max_stages : ring_async_stages;
    const int rings = gqa_warps * (ring_bytes(plan.n_stages) + plan.n_stages * 8);
    // When the keys are done, the warps' results take the rings' place; the last block keeps a factor a
    // split.
    const int results = gqa_warps * plan.heads * (params.head_dim + 2) * 4;
    const int factors = plan.splits * plan.heads * 2 * 4;
    plan.shared_bytes = rings > results ? rings : results;
    if (factors > plan.shared_bytes) plan.shared_bytes = factors;
    return plan;
}

// The workspace: a counter a unit (zero before the first launch, left zero by every launch), then what each
// split leaves: head_dim sums, the maximum and the sum of exponentials, for each of its heads.
constexpr int64_t gqa_counter_bytes(const GqaPlan& plan) {
    return (int64_t{plan.units} * 4 + 63) / 64 * 64;
}

constexpr int64_t gqa_workspace_bytes(const GqaPlan& plan, int head_dim) {
    return gqa_counter_bytes(plan) + int64_t{plan.units} * plan.splits * plan.heads * (head_dim + 2) * 4;
}

// Keys of one warp of one split: consecutive, a multiple of the keys a warp reads at once, and equal but for
// the last ones. Every worker = split * gqa_warps + warp takes [worker * this, ...).
constexpr int gqa_worker_keys(int kv_len, int splits, int keys_at_once) {
    const int workers = splits * gqa_warps;
    const int keys = (kv_len + workers - 1) / workers;
    return (keys + keys_at_once - 1) / keys_at_once * keys_at_once;
}

}  // namespace pykernels::cuda
