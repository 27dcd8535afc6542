// The launch plan of gqa_decode: pure functions of the sizes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cuda/common/resident_clusters.h"
#include "params.h"
#include "plan_choice.h"
#include "unified_softmax.h"

namespace pykernels::cuda {

constexpr int gqa_warps = 8;
constexpr int gqa_threads = 32 * gqa_warps;
// Query heads of a block: n of mma.m16n8k16.
constexpr int gqa_tile_heads = 8;
// Keys of a tile, which a warp takes at once: m (S = K Q^T) and k (O^T = V^T P^T) of mma.m16n8k16.
constexpr int gqa_tile_keys = 16;
// V's dimensions that a block takes: those of a warp's sums of eight heads are 32 registers. Where head_dim
// is larger, blocks take slices of V, and each reads all of K.
constexpr int gqa_max_value_dims = 128;
// The most dimensions of a head on CUDA cores, 16 lanes a row; half as many would leave half of them idle.
constexpr int gqa_core_dims = 128;
// A split has at least one tile per warp: below that, combining it costs more than reading it.
constexpr int gqa_min_split_keys = gqa_warps * gqa_tile_keys;

// Splits that are the blocks of a cluster push their partials into each other's shared memory. A cluster must
// fit in one GPC, so the clusters of a launch may leave SMs idle, which a long context needs.
constexpr int gqa_max_cluster_splits = max_cluster_blocks;
// A block of a cluster has at least this many keys: a tile for every other warp.
constexpr int gqa_min_cluster_keys = gqa_min_split_keys / 2;
// The most tiles of a warp. More where clusters occupy two thirds of the SMs, which read at nearly the
// memory's bandwidth.
constexpr int gqa_max_cluster_tiles = 4, gqa_max_spread_cluster_tiles = 16;
// By cp.async.bulk an SM reads more, and clusters on two fifths of the SMs are enough; not with head_dim 64,
// whose copies are too small. The most tiles then; half as many where a cluster of 16 is bound by what its
// GPC reads. In a PDL launch, twice as many where clusters have half of the SMs. Clusters that leave no SM
// idle have no limit.
constexpr int gqa_max_bulk_cluster_tiles = 8;
// Clusters that are few behind a GEMV have at most this many blocks (few_clusters below).
constexpr int gqa_max_few_cluster_blocks = 64;

// Without clusters, some blocks of a head group, the reducing blocks, poll until all its splits have written
// their partials. A polling block occupies an SM: at most one SM of this many is occupied so.
constexpr int gqa_sms_per_reducer = 4;

// A warp with at least this many tiles in a full cache loads K and V with cp.async.bulk: one copy each for K
// and V of a tile, into a ring of its own. With fewer tiles, loads to registers are faster. `small`: without
// a cluster and of head_dim 64. A PDL launch has these borders at more tiles: behind a GEMV that still reads,
// loads to registers are ahead for longer.
constexpr int gqa_min_bulk_tiles = 2, gqa_min_small_bulk_tiles = 8;
constexpr int gqa_min_pdl_bulk_tiles = 16, gqa_min_pdl_bulk_cluster_tiles = 4;
// Stages of a ring: one, where all SMs read. More in flight than its 64 KB an SM makes memory slower. Where
// clusters leave SMs idle, two from more tiles than these on. A PDL launch has two: it fills them while the
// kernel before it ends.
constexpr int gqa_max_one_stage_tiles = 2, gqa_max_widest_one_stage_tiles = 4,
              gqa_max_full_one_stage_tiles = 16;

// What the plan needs to know of the device.
struct GqaDevice {
    int sm_count;
    int shared_bytes;  // the largest amount a block can have
    bool sm_90;        // clusters and cp.async.bulk
    ResidentClusters resident_clusters;
};

struct GqaPlan {
    int group_size;      // query heads of a KV head
    int head_tiles;      // tiles of a KV head's query heads, a block each (per split)
    int heads;           // query heads of a head tile; the last one may have fewer
    int groups;          // head groups: batch * n_kv_heads * head_tiles * value_slices
    int splits;          // of the KV axis
    int cluster_splits;  // the splits, where they are a cluster; else 1
    int cluster_items;   // items of one head that each block of the cluster combines
    int reducers;        // reducing blocks of a head group, where there is no cluster
    int reducer_items;   // items that a reducing block combines
    int reducer_lanes;   // neighbouring lanes that combine one item: a power of two
    bool programmatic;
    bool bulk_copies;  // K and V come by cp.async.bulk
    int ring_stages;   // of a warp's ring
    int ring_offset;   // of its ring in shared memory
    int shared_bytes;
    bool any_dim;       // the kernel for any head_dim and any size of cluster, and for a soft cap
    bool cuda_cores;    // the same on CUDA cores, of which two blocks are resident on an SM
    int value_slices;   // slices of V's dimensions, a block each (per split); 1 unless any_dim
    int value_dims;     // dimensions of a slice; the last one may have fewer
    int cluster_lanes;  // lanes that combine one item of a cluster: cluster_splits, rounded up to a power of
                        // two
};

// Floats of a warp's partial of one head: head_dim sums, the maximum, the sum of exponentials. Padded to 16
// bytes.
constexpr int gqa_row_floats(int head_dim) {
    return head_dim + 4;
}

// Elements between rows of q in shared memory: 64 bytes more than a multiple of 128, so that reads of two
// rows at once have no bank conflict.
constexpr int gqa_q_row_elements(int head_dim) {
    return head_dim + 32;
}

// The partials of all warps and heads.
constexpr int gqa_rows_bytes(int head_dim) {
    return gqa_warps * gqa_tile_heads * gqa_row_floats(head_dim) * 4;
}

// K or V of a tile.
constexpr int gqa_tile_bytes(int head_dim) {
    return gqa_tile_keys * head_dim * 2;
}

// The rings of all warps for K and V, and an mbarrier for each of their slots.
constexpr int gqa_ring_bytes(int head_dim, int stages) {
    return gqa_warps * stages * 2 * (gqa_tile_bytes(head_dim) + 8);
}

constexpr int power_of_two_below(int value) {
    int power = 1;
    while (2 * power <= value) power *= 2;
    return power;
}

// An item is four dimensions of one head's output, the granularity of combining. Items are divided among the
// blocks of a cluster, or among the reducing blocks.

constexpr int gqa_items(int heads, int head_dim) {
    return heads * head_dim / 4;
}

// A block's partial of an item as pushed to another block: four sums, the maximum, the sum of exponentials.
// The mbarrier that counts their bytes comes first.
constexpr int gqa_partial_bytes = 24, gqa_push_barrier_bytes = 16;

constexpr int gqa_pushed_bytes(int items) {
    return gqa_push_barrier_bytes + items * gqa_partial_bytes;
}

namespace gqa_planning {

constexpr int ceil_div(int value, int divisor) {
    return (value + divisor - 1) / divisor;
}

// One split per SM as long as each has enough keys.
inline int splits_of(const GqaDecodeParams& params, const GqaPlan& plan, int blocks) {
    return std::max(std::min(ceil_div(params.max_len, gqa_min_split_keys), blocks / plan.groups), 1);
}

// Tiles of a warp in a full cache.
inline int tiles_of(const GqaDecodeParams& params, int splits) {
    return ceil_div(params.max_len, splits * gqa_min_split_keys);
}

// Items of one head that each block of a cluster combines; the last blocks may have fewer.
inline int cluster_items_of(const GqaPlan& plan, int cluster) {
    return ceil_div(gqa_items(1, plan.value_dims), cluster);
}

// Shared memory up to the ring: the warps' partials, which overwrite q, and behind them the partials that the
// blocks of a cluster push, or the ticket.
inline int bytes_before_ring(const GqaPlan& plan, int head_dim, int cluster) {
    const int pushed = cluster * plan.heads * cluster_items_of(plan, cluster);
    return gqa_rows_bytes(plan.any_dim ? gqa_max_value_dims : head_dim) +
           (cluster > 1 ? gqa_pushed_bytes(pushed) : 16);
}

constexpr int ring_offset_of(int bytes_before) {
    return (bytes_before + 127) / 128 * 128;
}

// Whether clusters of so many blocks leave next to no SM idle.
inline bool fill_all(const GqaPlan& plan, const GqaDevice& device, int cluster) {
    return 10 * plan.groups * cluster >= 9 * device.sm_count;
}

// Of the ring, in clusters of so many blocks, or 1: splits on all SMs.
inline int ring_stages_of(const GqaDecodeParams& params, const GqaPlan& plan, const GqaDevice& device,
                          int cluster) {
    if (params.head_dim <= 64 || plan.programmatic) return 2;
    if (cluster == 1) return 1;
    const int one_stage = fill_all(plan, device, cluster)     ? gqa_max_full_one_stage_tiles
                          : cluster == gqa_max_cluster_splits ? gqa_max_widest_one_stage_tiles
                                                              : gqa_max_one_stage_tiles;
    return tiles_of(params, cluster) <= one_stage ? 1 : 2;
}

// Whether K and V can come by bulk copies. Only whole tiles: a copy must not pass the cache's end.
inline bool can_copy_bulk(const GqaDecodeParams& params, const GqaPlan& plan, const GqaDevice& device,
                          int cluster) {
    const int ring = gqa_ring_bytes(params.head_dim, ring_stages_of(params, plan, device, cluster));
    return device.sm_90 && !plan.any_dim && params.max_len % gqa_tile_keys == 0 &&
           ring_offset_of(bytes_before_ring(plan, params.head_dim, cluster)) + ring <= device.shared_bytes;
}

inline bool bulk_in_clusters(const GqaDecodeParams& params, const GqaPlan& plan, const GqaDevice& device,
                             int cluster) {
    return params.head_dim > 64 && can_copy_bulk(params, plan, device, cluster);
}

// Whether a warp has enough tiles for bulk copies.
inline bool has_bulk_tiles(const GqaDecodeParams& params, const GqaPlan& plan) {
    if (plan.cluster_splits > 1) {
        const int least = plan.programmatic ? gqa_min_pdl_bulk_cluster_tiles : gqa_min_bulk_tiles;
        return params.head_dim > 64 && tiles_of(params, plan.splits) >= least;
    }
    const int least = plan.programmatic      ? gqa_min_pdl_bulk_tiles
                      : params.head_dim > 64 ? gqa_min_bulk_tiles
                                             : gqa_min_small_bulk_tiles;
    return params.max_len >= least * plan.splits * gqa_min_split_keys;
}

// A warp's, in clusters of so many blocks.
inline int most_cluster_tiles(const GqaDecodeParams& params, const GqaPlan& plan, const GqaDevice& device,
                              int cluster) {
    const int blocks = plan.groups * cluster;
    const int resident_blocks = (plan.cuda_cores ? 2 : 1) * device.sm_count;
    if (bulk_in_clusters(params, plan, device, cluster) && 5 * blocks >= 2 * resident_blocks) {
        if (fill_all(plan, device, cluster)) return std::numeric_limits<int>::max();
        const bool widest = cluster == gqa_max_cluster_splits, half = 2 * blocks <= resident_blocks;
        if (plan.programmatic) return (half && !widest ? 2 : 1) * gqa_max_bulk_cluster_tiles;
        return widest ? gqa_max_bulk_cluster_tiles / 2 : gqa_max_bulk_cluster_tiles;
    }
    return 3 * blocks >= 2 * resident_blocks ? gqa_max_spread_cluster_tiles : gqa_max_cluster_tiles;
}

// Blocks of a cluster. All clusters are resident at once.
inline int cluster_of(const GqaDecodeParams& params, const GqaPlan& plan, const GqaDevice& device) {
    if (!device.sm_90) return 1;

    const auto fits = [&](int cluster) {
        const ResidentClusters& resident = device.resident_clusters;
        return (plan.cuda_cores ? resident.paired : resident.counts)[cluster] >= plan.groups;
    };
    const auto most_of = [&](int keys) {
        return std::clamp(ceil_div(params.max_len, keys), 1, gqa_max_cluster_splits);
    };
    int cluster = 1;
    if (!plan.any_dim) {
        cluster = power_of_two_below(most_of(gqa_min_cluster_keys));
        while (cluster > 1 && !fits(cluster)) cluster /= 2;
    } else {
        // The lanes of all items of a block are its threads.
        const auto combines = [&](int size) {
            return cluster_items_of(plan, size) * plan.heads * power_of_two_below(2 * size - 1) <=
                   gqa_threads;
        };
        cluster = most_of(gqa_min_split_keys);
        while (cluster > 1 && !(fits(cluster) && combines(cluster))) --cluster;
    }
    return tiles_of(params, cluster) <= most_cluster_tiles(params, plan, device, cluster) ? cluster : 1;
}

inline GqaPlan plan_kernel(const GqaDecodeParams& params, const GqaDevice& device, bool programmatic,
                           bool any_dim, bool cuda_cores = false, const PlanChoice& choice = {}) {
    GqaPlan plan = {};
    plan.programmatic = programmatic;
    plan.any_dim = any_dim;
    plan.cuda_cores = cuda_cores;
    plan.group_size = params.n_heads / params.n_kv_heads;
    plan.head_tiles = ceil_div(plan.group_size, gqa_tile_heads);
    plan.heads = ceil_div(plan.group_size, plan.head_tiles);
    plan.value_slices = ceil_div(params.head_dim, gqa_max_value_dims);
    plan.value_dims = ceil_div(params.head_dim, 8 * plan.value_slices) * 8;
    plan.groups = params.batch * params.n_kv_heads * plan.head_tiles * plan.value_slices;

    plan.splits = choice.splits ? choice.splits : splits_of(params, plan, device.sm_count);
    plan.cluster_splits = choice.splits    ? 1
                          : choice.cluster ? choice.cluster
                                           : cluster_of(params, plan, device);
    if (plan.cluster_splits > 1) plan.splits = plan.cluster_splits;
    plan.cluster_lanes = power_of_two_below(2 * plan.cluster_splits - 1);
    plan.cluster_items = cluster_items_of(plan, plan.cluster_splits);
    const int items = gqa_items(plan.heads, plan.value_dims);
    const int reducers = std::clamp(device.sm_count / gqa_sms_per_reducer / plan.groups, 1, plan.splits);
    plan.reducer_items = ceil_div(items, reducers);
    plan.reducers = ceil_div(items, plan.reducer_items);
    plan.reducer_lanes =
        std::min({gqa_threads / gqa_warps, power_of_two_below(gqa_threads / plan.reducer_items),
                  power_of_two_below(2 * plan.splits - 1)});
    plan.shared_bytes = bytes_before_ring(plan, params.head_dim, plan.cluster_splits);
    plan.ring_offset = ring_offset_of(plan.shared_bytes);
    // Right after a GEMV, most of an SM's L1 is still configured as shared memory, and loads to registers go
    // through the L1. A few clusters, which wait for SMs of one GPC, lose by that; with more of them the ring
    // costs more.
    const bool few_clusters = programmatic && plan.cluster_splits > 1 &&
                              plan.groups * gqa_max_cluster_splits <= gqa_max_few_cluster_blocks;
    plan.bulk_copies = (has_bulk_tiles(params, plan) || few_clusters) &&
                       can_copy_bulk(params, plan, device, plan.cluster_splits);
    if (choice.kernel != PlanKernel::built_in) plan.bulk_copies = choice.kernel == PlanKernel::bulk;
    plan.ring_stages = ring_stages_of(params, plan, device, plan.cluster_splits);
    if (plan.bulk_copies)
        plan.shared_bytes = plan.ring_offset + gqa_ring_bytes(params.head_dim, plan.ring_stages);
    return plan;
}

// head_dim 64 and 128 have kernels of their own; all others, and a soft cap, take the kernel for any
// head_dim.
inline GqaPlan plan_on_tensor_cores(const GqaDecodeParams& params, const GqaDevice& device,
                                    bool programmatic) {
    const bool any_dim = params.softcap != 0 || (params.head_dim != 64 && params.head_dim != 128);
    const GqaPlan plan = plan_kernel(params, device, programmatic, any_dim);
    // As many KV heads as query heads: clusters of a power of two would be pairs, on half of the SMs. They
    // were measured for few tiles only. The kernel for any head_dim has no unified softmax.
    const bool few_tiles = plan.cluster_splits > 1 && tiles_of(params, plan.splits) <= gqa_max_cluster_tiles;
    if (!any_dim && plan.group_size == 1 && params.softmax == Softmax::online && !few_tiles) {
        const GqaPlan clustered = plan_kernel(params, device, programmatic, true);
        if (clustered.cluster_splits > 1) return clustered;
    }
    return plan;
}

}  // namespace gqa_planning

// One query head a KV head goes to the kernel on CUDA cores, where that has clusters of more blocks. The plan
// depends on max_len and not on kv_len, which is in device memory: a captured graph stays valid while kv_len
// grows.
//
// A choice has a kernel, and a number of splits or a size of cluster: gqa_allows() says whether the op can.
inline GqaPlan plan_gqa_decode(const GqaDecodeParams& params, const GqaDevice& device, bool programmatic,
                               const PlanChoice& choice = {}) {
    if (choice.kernel != PlanKernel::built_in)
        return gqa_planning::plan_kernel(params, device, programmatic, choice.kernel == PlanKernel::any_dim,
                                         false, choice);
    const GqaPlan plan = gqa_planning::plan_on_tensor_cores(params, device, programmatic);
    if (plan.group_size > 1 || params.softcap != 0 || params.softmax != Softmax::online ||
        params.head_dim <= gqa_core_dims / 2 || params.head_dim > gqa_core_dims)
        return plan;
    const GqaPlan cores = gqa_planning::plan_kernel(params, device, programmatic, true, true);
    const bool paired = cores.shared_bytes <= paired_bytes(device.shared_bytes);
    return paired && cores.cluster_splits > plan.splits ? cores : plan;
}

inline bool gqa_allows(const GqaDecodeParams& params, const GqaDevice& device, const PlanChoice& choice) {
    if (choice.kernel == PlanKernel::built_in) return choice.splits == 0 && choice.cluster == 0;
    const bool any_dim = choice.kernel == PlanKernel::any_dim;
    if (!any_dim && params.softcap != 0) return false;
    if (!any_dim && params.head_dim != 64 && params.head_dim != 128) return false;
    if ((choice.splits > 0) == (choice.cluster > 0)) return false;
    if (choice.splits > gqa_planning::ceil_div(params.max_len, gqa_tile_keys)) return false;
    const GqaPlan plan = gqa_planning::plan_kernel(params, device, false, any_dim, false, choice);
    // The ring of a PDL launch may be the larger one.
    const GqaPlan behind = gqa_planning::plan_kernel(params, device, true, any_dim, false, choice);
    for (const GqaPlan& one : {plan, behind}) {
        if (one.bulk_copies && !gqa_planning::can_copy_bulk(params, one, device, one.cluster_splits))
            return false;
        if (one.shared_bytes > device.shared_bytes) return false;
    }
    if (choice.splits > 0) return true;
    // Of the clusters one must be resident; a block's lanes combine all its items.
    const int cluster = choice.cluster;
    if (cluster < 2 || cluster > gqa_max_cluster_splits || !device.sm_90) return false;
    if (device.resident_clusters.counts[cluster] < plan.groups) return false;
    if (!any_dim) return (cluster & (cluster - 1)) == 0;
    return plan.cluster_items * plan.heads * plan.cluster_lanes <= gqa_threads;
}

// Tile i is assigned to split i % splits, and there to warp i / splits % gqa_warps. Any kv_len is divided
// evenly, and a warp's first tile does not depend on kv_len. Splits from the returned number on have no keys.
constexpr int gqa_active_splits(int kv_len, int splits) {
    const int tiles = (kv_len + gqa_tile_keys - 1) / gqa_tile_keys;
    return tiles < splits ? tiles : splits;
}

// The workspace where splits are combined without a cluster: a counter per head group, then a slot per head
// group, split and item. It is zeroed before the first launch, and every launch leaves it zero. The bytes of
// unified_counter_bytes() lie before it.
constexpr int gqa_slot_floats = 8;  // four sums, the maximum, the sum of exponentials, two unused

constexpr int64_t gqa_counter_bytes(const GqaPlan& plan) {
    return (int64_t{plan.groups} * 4 + 63) / 64 * 64;
}

constexpr int64_t gqa_workspace_bytes(const GqaPlan& plan, Softmax softmax = Softmax::online) {
    const int64_t slots = int64_t{plan.groups} * plan.splits * gqa_items(plan.heads, plan.value_dims);
    return unified_counter_bytes(softmax) + gqa_counter_bytes(plan) +
           (plan.cluster_splits > 1 ? 0 : slots * gqa_slot_floats * 4);
}

}  // namespace pykernels::cuda
