// The launch plan of a GEMV with 4-bit weights: a pure function of the sizes and the device.
#pragma once

#include <cstdint>

#include "cuda/gemv_plan.h"

namespace pykernels::cuda {

constexpr int int4_max_warps = 16;
constexpr int int4_max_threads = 32 * int4_max_warps;
// A row tile is the 16 rows of an MMA: both rows of 8 row pairs.
constexpr int int4_tile_pairs = 8;
constexpr int int4_tile_rows = 2 * int4_tile_pairs;
// A K tile is what a warp copies and multiplies at once: this many columns of a row tile, 128 bytes of each
// row.
constexpr int int4_k_tile = 256;
constexpr int int4_k_tile_bytes = int4_k_tile / 2;
// The pitch of a K tile's rows in shared memory is 16 bytes more than a multiple of 128: eight lanes that
// read the same columns of eight rows have no bank conflict.
constexpr int int4_k_tile_pitch = int4_k_tile_bytes + 16;
// K tiles of a warp in shared memory: one is multiplied, three are in flight, 96 KB an SM.
constexpr int int4_stages = 4;
constexpr int int4_stage_bytes = int4_tile_rows * int4_k_tile_pitch;
constexpr int int4_stream_bytes = int4_stages * int4_stage_bytes;  // of a warp
// The most weights that an op has.
constexpr int int4_max_weights = 3;

// What the plan depends on.
struct Int4GemvSizes {
    int pairs, width, batch;  // pairs: of rows
    int n_groups;             // of a row: the largest number of all weights
    int variants;             // distinct (perm, groups) among the weights: each needs x laid out its own way
    bool norm, zeros;
};

struct Int4GemvPlan {
    int blocks, warps;
    // A phase is the work between two block barriers: some of the block's row pairs, one panel of the
    // columns, one variant of x. There is one phase unless shared memory cannot hold it.
    int phase_pairs, panel, panels, variants;
    int variant_of[int4_max_weights];      // of each weight
    int x_pitch, scale_pitch, zero_pitch;  // bytes between rows; zero_pitch is 0 where all zero points are 8
    bool x_is_vectors;                     // rows of x, and the norm's weight, are 16-byte aligned
    bool programmatic;
    bool fits;  // in shared memory
    int shared_bytes;
};

constexpr int int4_round_up(int value, int step) {
    return (value + step - 1) / step * step;
}

// The pitch of a row of `bytes` bytes at any alignment, copied by aligned 16-byte vectors. An odd number of
// vectors: eight rows have no bank conflict.
constexpr int int4_row_pitch(int bytes) {
    return ((bytes + 30) / 16 | 1) * 16;
}

// The pitch of a row of x is 64 bytes more than a multiple of 128: 64 bytes of two rows are read at once.
constexpr int int4_x_pitch(int columns) {
    return int4_round_up(columns * 2 - 64, 128) + 64;
}

// An upper bound of the groups of a row that a panel touches.
constexpr int int4_panel_groups(int width, int n_groups, int panel) {
    const int inside = panel / (width / n_groups) + 2;
    return panel >= width || inside > n_groups ? n_groups : inside;
}

constexpr int int4_row_tiles(int pairs) {
    return static_cast<int>((static_cast<uint32_t>(pairs) + int4_tile_pairs - 1) / int4_tile_pairs);
}

// Shared memory of a block, in this order: each warp's stages, the scales of a phase's rows, their zero
// points, the partial sums (a slot for each warp's part of each row tile), the squares of each sequence and
// warp, x.
constexpr int int4_scales_offset(const Int4GemvPlan& plan) {
    return plan.warps * int4_stream_bytes;
}

constexpr int int4_zeros_offset(const Int4GemvPlan& plan) {
    return int4_scales_offset(plan) + int4_row_tiles(plan.phase_pairs) * int4_tile_rows * plan.scale_pitch;
}

constexpr int int4_sums_offset(const Int4GemvPlan& plan) {
    return int4_zeros_offset(plan) + int4_row_tiles(plan.phase_pairs) * int4_tile_rows * plan.zero_pitch;
}

// Partials are numbered warp + row tile: those of a warp are consecutive, and the next warp begins in the row
// tile in which this one ends, or in the one after it.
constexpr int int4_squares_offset(const Int4GemvPlan& plan, int batch) {
    return int4_sums_offset(plan) +
           (plan.warps + int4_row_tiles(plan.phase_pairs) - 1) * int4_tile_rows * batch * 4;
}

constexpr int int4_x_offset(const Int4GemvPlan& plan, int batch) {
    return int4_round_up(int4_squares_offset(plan, batch) + batch * plan.warps * 4, 128);
}

// The norm's weight takes one more row.
constexpr int int4_x_end(const Int4GemvPlan& plan, int batch, bool norm) {
    return int4_x_offset(plan, batch) + (batch + norm) * plan.x_pitch;
}

// Sets the sizes of a phase. Returns whether it fits in shared memory.
inline bool int4_fits(Int4GemvPlan& plan, const Int4GemvSizes& sizes, int warps, int phase_pairs, int panels,
                      int shared_bytes) {
    plan.warps = warps;
    plan.phase_pairs = phase_pairs;
    plan.panel = int4_round_up((sizes.width + panels - 1) / panels, int4_k_tile);
    plan.panels = (sizes.width + plan.panel - 1) / plan.panel;
    const int groups = int4_panel_groups(sizes.width, sizes.n_groups, plan.panel);
    plan.x_pitch = int4_x_pitch(plan.panel < sizes.width ? plan.panel : sizes.width);
    plan.scale_pitch = int4_row_pitch(groups * 2);
    plan.zero_pitch = sizes.zeros ? int4_row_pitch(groups) : 0;
    plan.shared_bytes = int4_x_end(plan, sizes.batch, sizes.norm);
    return plan.shared_bytes <= shared_bytes;
}

// One block an SM. As in the other GEMVs a block takes more than half of an SM's shared memory, so that two
// are never resident on one SM. The number of stages is fixed. To fit in a single phase, the number of warps
// is reduced to no less than eight. If that is not enough, a phase gets fewer row pairs, and finally fewer
// columns; x is then loaded again in each phase.
// A choice of warps is of a single phase; `fits` says whether shared memory holds it.
inline Int4GemvPlan plan_int4_gemv(const Int4GemvSizes& sizes, bool programmatic, const GemvDevice& device,
                                   const PlanChoice& choice = {}) {
    Int4GemvPlan plan = {};
    plan.blocks = sizes.pairs < device.sm_count ? sizes.pairs : device.sm_count;
    plan.variants = sizes.variants;
    plan.programmatic = programmatic;
    const int block_pairs = (sizes.pairs + plan.blocks - 1) / plan.blocks;
    // In the epilogue a thread finishes one row pair of one sequence.
    const auto most_pairs = [&](int warps) {
        const int most = 32 * warps / sizes.batch / int4_tile_pairs * int4_tile_pairs;
        return block_pairs < most ? block_pairs : most;
    };
    bool fits = false;
    if (choice.warps) {
        plan.fits = int4_fits(plan, sizes, choice.warps, most_pairs(choice.warps), 1, device.shared_bytes);
        plan.shared_bytes = gemv_bytes_alone(plan.shared_bytes, device);
        return plan;
    }
    for (int warps = int4_max_warps; warps >= 8 && !fits; warps -= 4)
        fits = int4_fits(plan, sizes, warps, most_pairs(warps), 1, device.shared_bytes);
    const int k_tiles = (sizes.width + int4_k_tile - 1) / int4_k_tile;
    for (int warps = int4_max_warps - 4; warps >= 4 && !fits; warps -= 4) {
        for (int panels = 1; panels <= k_tiles && !fits; ++panels) {
            for (int pairs = most_pairs(warps); pairs > 0 && !fits; pairs -= int4_tile_pairs)
                fits = int4_fits(plan, sizes, warps, int4_round_up(pairs, int4_tile_pairs), panels,
                                 device.shared_bytes);
        }
    }
    plan.fits = fits;
    plan.shared_bytes = gemv_bytes_alone(plan.shared_bytes, device);
    return plan;
}

// The fast path (int4_gemv_fast.cuh): a stage is a K tile and the scales of its rows.
constexpr int int4_gemv_fast_stages = 4;
// Of blocks that have half of the columns, and so half of x in shared memory.
constexpr int int4_gemv_split_stages = 5;
constexpr int int4_gemv_fast_stage_bytes = int4_tile_rows * (int4_k_tile_bytes + 4);
constexpr int int4_gemv_fast_max_batch = 4;
// Pairs of blocks share rows of at least as many columns. On an H200 (2026-11-30) with PDL a layer takes 2.4%
// less time for 18,944 columns and 1.1% less for 14,336: nothing would be gained for some 10,000. In a plain
// graph it takes 1.4 and 1.2% more. The plan is the same there, so that sums are the same to the bit.
constexpr int int4_gemv_min_split_columns = 12 * 1024;

// n / d as a multiplication by the inverse, exact where n * d < 2^32. inverse is 0 for d = 1.
struct Int4Divisor {
    uint32_t inverse;
};

constexpr Int4Divisor int4_divisor(int d) {
    return {d == 1 ? 0u : static_cast<uint32_t>(((uint64_t{1} << 32) + static_cast<uint32_t>(d) - 1) / d)};
}

struct Int4GemvFastPlan {
    bool fits;  // false: the general path takes the op
    int blocks, warps, warps_log2;
    // Blocks that share row pairs, a cluster: each multiplies an equal part of the columns, and the first
    // adds up. 1 or 2.
    int ranks;
    int block_pairs, longer_blocks;  // row pairs of a cluster; the first `longer_blocks` have one more
    int k_tiles;                     // of a row tile: those of a block's columns
    int group_shift;                 // a group is 2^group_shift times 128 columns
    bool zeros, programmatic;
    int stages_ahead_of_x;                // issued before griddepcontrol.wait in a PDL launch
    int finish_lanes_log2;                // log2 of the lanes that add the partials of one row pair
    Int4Divisor by_k_tiles, by_items[2];  // by_items: of a block with block_pairs, of one with one more
    // Shared memory of a block, in this order: each warp's stages, the partial sums (a slot for each warp's
    // part of each row tile: four floats a row and sequence), the squares of each sequence and warp, the
    // factors of each chunk and sequence, x; and with two ranks an mbarrier and the sums of the other block.
    int sums_offset, squares_offset, factors_offset, x_offset, pushed_offset;
    int shared_bytes;
};

// The mbarrier, padded to a vector.
constexpr int int4_push_barrier_bytes = 16;

// `in_order`: no weight has a perm; rows of x and the norm's weight are 16-byte aligned; two scales, and two
// zero points, can be loaded as one word. The number of warps is reduced where shared memory is small.
//
// `clusters`: how many of two blocks are resident at once, or 0. Where x is long, converting it takes longer
// than the copies in flight: with clusters each of two blocks then takes half of the columns of twice the
// rows, whether the launch is programmatic or not.
//
// A choice of warps, 4, 8 or 16, is taken or does not fit; one of the general path fits nowhere here.
inline Int4GemvFastPlan plan_int4_gemv_fast(const Int4GemvSizes& sizes, bool in_order, bool programmatic,
                                            const GemvDevice& device, int clusters = 0,
                                            const PlanChoice& choice = {}) {
    Int4GemvFastPlan plan = {};
    if (choice.kernel == PlanKernel::general) return plan;
    const int group_size = sizes.width / sizes.n_groups;
    while (group_size > 128 << plan.group_shift) ++plan.group_shift;
    if (!in_order || sizes.variants != 1 || sizes.width % int4_k_tile != 0 ||
        sizes.batch > int4_gemv_fast_max_batch ||
        (sizes.n_groups != 1 && group_size != 128 << plan.group_shift))
        return plan;
    const bool split = clusters > 0 && !sizes.norm && sizes.width >= int4_gemv_min_split_columns &&
                       sizes.width % (2 * int4_k_tile) == 0;
    plan.ranks = split ? 2 : 1;
    const int most = split ? clusters : device.sm_count, sharing = sizes.pairs < most ? sizes.pairs : most;
    plan.blocks = sharing * plan.ranks;
    plan.block_pairs = sizes.pairs / sharing;
    plan.longer_blocks = sizes.pairs % sharing;
    const int width = sizes.width / plan.ranks;
    plan.k_tiles = width / int4_k_tile;
    plan.zeros = sizes.zeros;
    plan.programmatic = programmatic;
    plan.by_k_tiles = int4_divisor(plan.k_tiles);
    const int tiles = int4_row_tiles(plan.block_pairs + (plan.longer_blocks > 0));
    const int64_t items = int64_t{tiles} * plan.k_tiles;
    if (items * int4_max_warps * items >= int64_t{1} << 32) return plan;
    for (const int i : {0, 1})
        plan.by_items[i] = int4_divisor(int4_row_tiles(plan.block_pairs + i) * plan.k_tiles);
    // At most four items a warp and no norm, as for the output projection behind attention: half the warps
    // are as fast and leave registers for a block of another kernel. In a PDL launch this block then
    // becomes resident and prefetches weights while the attention kernel still runs. Other launches use the
    // same plan, so that results are bitwise the same.
    const bool few_items = !sizes.norm && items > int4_max_warps && items <= 4 * int4_max_warps;
    const bool half_of_warps = few_items && (choice.warps == 0 || choice.warps == 8);
    const bool shares_sm = half_of_warps && programmatic;
    for (plan.warps_log2 = half_of_warps ? 3 : 4; plan.warps_log2 >= 2; --plan.warps_log2) {
        plan.warps = 1 << plan.warps_log2;
        if (choice.warps && plan.warps != choice.warps) continue;
        // The warps that a row tile's items are spread over; one more where a warp begins in the middle of
        // it.
        const int64_t partials = int64_t{plan.k_tiles} * plan.warps / items + 2;
        plan.finish_lanes_log2 = partials > 8 ? 3 : partials > 4 ? 2 : 0;
        const int stages = split ? int4_gemv_split_stages : int4_gemv_fast_stages;
        plan.sums_offset = plan.warps * stages * int4_gemv_fast_stage_bytes;
        plan.squares_offset = plan.sums_offset + (plan.warps + tiles - 1) * int4_tile_rows * sizes.batch * 16;
        plan.factors_offset = int4_round_up(plan.squares_offset + sizes.batch * plan.warps * 4, 128);
        plan.x_offset = plan.factors_offset + width / 128 * sizes.batch * 32;
        plan.pushed_offset = plan.x_offset + width / 128 * sizes.batch * 3 * 128;
        const int64_t end =
            plan.pushed_offset +
            (split ? int4_push_barrier_bytes + (int64_t{plan.block_pairs} + 1) * sizes.batch * 8 : 0);
        plan.fits = end <= device.shared_bytes;
        plan.shared_bytes = static_cast<int>(end);
        if (plan.fits) break;
    }
    // Loads return in order, so x waits for the stages issued ahead of it. Where x is long or there are few
    // items, only one stage goes ahead; but two where the kernel before leaves time for them.
    const bool x_first = sizes.width > gemv_x_step || items <= 4 * plan.warps;
    plan.stages_ahead_of_x = x_first && !shares_sm && !split ? 1 : 2;
    // As in the other GEMVs, at most one block an SM; at most two where an SM is shared.
    plan.shared_bytes = gemv_bytes_alone(plan.shared_bytes, device, shares_sm ? 2 : 1);
    return plan;
}

// Whether the plans above do what the choice says for these sizes.
inline bool int4_allows(const Int4GemvSizes& sizes, bool in_order, const GemvDevice& device,
                        const PlanChoice& choice) {
    if (choice.kernel == PlanKernel::fast)
        return (choice.warps == 0 || choice.warps == 4 || choice.warps == 8 || choice.warps == 16) &&
               plan_int4_gemv_fast(sizes, in_order, false, device, 0, choice).fits;
    if (choice.kernel != PlanKernel::general) return choice.warps == 0;
    // A block's threads finish the row pairs of all sequences.
    if (choice.warps && (choice.warps % 4 != 0 || choice.warps < 4 || choice.warps > int4_max_warps))
        return false;
    return plan_int4_gemv(sizes, false, device, choice).fits;
}

// Warps are assigned equal numbers of consecutive items. Items are the K tiles of the row tiles, row tile by
// row tile.
constexpr int int4_first_item(int items, int warp, int warps) {
    return items * warp / warps;
}

// The warp that is assigned the item.
constexpr int int4_warp_of(int items, int item, int warps) {
    return ((item + 1) * warps - 1) / items;
}

// Blocks of 32 columns between two scalings. A group of any size is a multiple of them.

constexpr int int4_step_blocks(int group_size) {
    return group_size % 128 == 0 ? 4 : group_size % 64 == 0 ? 2 : 1;
}

}  // namespace pykernels::cuda
