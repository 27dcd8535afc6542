// How a GEMV with 4-bit weights is laid over a GPU: a pure function of the sizes and the device.
#pragma once

#include <cstdint>

#include "cuda/gemv_plan.h"

namespace pykernels::cuda {

constexpr int int4_max_warps = 16;
constexpr int int4_max_threads = 32 * int4_max_warps;
// A tile is the tensor core's 16 rows: both rows of 8 units.
constexpr int int4_tile_units = 8;
constexpr int int4_tile_rows = 2 * int4_tile_units;
// A piece is what a warp copies and multiplies at once: these columns of a tile, 128 bytes of each row.
constexpr int int4_piece = 256;
constexpr int int4_piece_bytes = int4_piece / 2;
// Rows of a piece in shared memory: 16 bytes apart from a multiple of 128, so that eight lanes that read one
// place of eight rows meet in different banks.
constexpr int int4_piece_pitch = int4_piece_bytes + 16;
// Pieces of a warp in shared memory: one is worked on, the others are on their way, 96 KB an SM of them.
constexpr int int4_stages = 4;
constexpr int int4_stage_bytes = int4_tile_rows * int4_piece_pitch;
constexpr int int4_stream_bytes = int4_stages * int4_stage_bytes;  // of a warp
// The most weights an op has.
constexpr int int4_max_weights = 3;

// What of a GEMV the plan depends on.
struct Int4GemvSizes {
    int units, width, batch;
    int n_groups;  // of a row: the most of all weights
    int variants;  // ways in which the weights read x: by their perm and their groups
    bool norm, zeros;
};

struct Int4GemvPlan {
    int blocks, warps;
    // A phase is what a block does between barriers: some of its units, on one panel of the columns, for one
    // variant of x. One phase is the rule; more are for what shared memory cannot hold at once.
    int phase_units, panel, panels, variants;
    int variant_of[int4_max_weights];      // of every weight
    int x_pitch, scale_pitch, zero_pitch;  // bytes between rows; zero_pitch: 0 where all zero points are 8
    bool x_is_vectors;                     // rows of x, and the norm's weight, begin on 16 bytes
    bool programmatic;
    int shared_bytes;
};

constexpr int int4_round_up(int value, int step) {
    return (value + step - 1) / step * step;
}

// A row of so many bytes that begins anywhere, copied by aligned 16 bytes: an odd number of them, so that
// eight rows lie in different banks.
constexpr int int4_row_pitch(int bytes) {
    return ((bytes + 30) / 16 | 1) * 16;
}

// Rows of x are 64 bytes apart from a multiple of 128: two rows of 64 bytes are read at once.
constexpr int int4_x_pitch(int columns) {
    return int4_round_up(columns * 2 - 64, 128) + 64;
}

// Groups of a row that a panel touches, at most.
constexpr int int4_panel_groups(int width, int n_groups, int panel) {
    const int inside = panel / (width / n_groups) + 2;
    return panel >= width || inside > n_groups ? n_groups : inside;
}

constexpr int int4_tiles(int units) {
    return static_cast<int>((static_cast<uint32_t>(units) + int4_tile_units - 1) / int4_tile_units);
}

// Shared memory of a block, in this order: the stream of every warp, the scales of a phase's rows, their zero
// points, the sums (a slot for each warp's part of each tile), the squares of every sequence and warp, x.
constexpr int int4_scales_offset(const Int4GemvPlan& plan) {
    return plan.warps * int4_stream_bytes;
}

constexpr int int4_zeros_offset(const Int4GemvPlan& plan) {
    return int4_scales_offset(plan) + int4_tiles(plan.phase_units) * int4_tile_rows * plan.scale_pitch;
}

constexpr int int4_sums_offset(const Int4GemvPlan& plan) {
    return int4_zeros_offset(plan) + int4_tiles(plan.phase_units) * int4_tile_rows * plan.zero_pitch;
}

// Parts of tiles are numbered by warp + tile: a warp's are consecutive, and the next warp begins in the tile
// this one ends in or in the next.
constexpr int int4_squares_offset(const Int4GemvPlan& plan, int batch) {
    return int4_sums_offset(plan) +
           (plan.warps + int4_tiles(plan.phase_units) - 1) * int4_tile_rows * batch * 4;
}

constexpr int int4_x_offset(const Int4GemvPlan& plan, int batch) {
    return int4_round_up(int4_squares_offset(plan, batch) + batch * plan.warps * 4, 128);
}

// A norm's weight is one more row.
constexpr int int4_x_end(const Int4GemvPlan& plan, int batch, bool norm) {
    return int4_x_offset(plan, batch) + (batch + norm) * plan.x_pitch;
}

// Sets the sizes of a phase. Does it fit?
inline bool int4_fits(Int4GemvPlan& plan, const Int4GemvSizes& sizes, int warps, int phase_units, int panels,
                      int shared_bytes) {
    plan.warps = warps;
    plan.phase_units = phase_units;
    plan.panel = int4_round_up((sizes.width + panels - 1) / panels, int4_piece);
    plan.panels = (sizes.width + plan.panel - 1) / plan.panel;
    const int groups = int4_panel_groups(sizes.width, sizes.n_groups, plan.panel);
    plan.x_pitch = int4_x_pitch(plan.panel < sizes.width ? plan.panel : sizes.width);
    plan.scale_pitch = int4_row_pitch(groups * 2);
    plan.zero_pitch = sizes.zeros ? int4_row_pitch(groups) : 0;
    plan.shared_bytes = int4_x_end(plan, sizes.batch, sizes.norm);
    return plan.shared_bytes <= shared_bytes;
}

// One block an SM. As in the other GEMVs a block takes more than half of an SM's shared memory, so that
// two never share one. A warp's stream is always as deep. Warps are given up for a single phase, down to
// eight; where that is not enough a phase gets fewer units, and at last fewer columns, for which x is loaded
// anew every time.
inline Int4GemvPlan plan_int4_gemv(const Int4GemvSizes& sizes, bool programmatic, const GemvDevice& device) {
    Int4GemvPlan plan = {};
    plan.blocks = sizes.units < device.sm_count ? sizes.units : device.sm_count;
    plan.variants = sizes.variants;
    plan.programmatic = programmatic;
    const int block_units = (sizes.units + plan.blocks - 1) / plan.blocks;
    // A thread finishes a unit of one sequence.
    const auto most_units = [&](int warps) {
        const int most = 32 * warps / sizes.batch / int4_tile_units * int4_tile_units;
        return block_units < most ? block_units : most;
    };
    bool fits = false;
    for (int warps = int4_max_warps; warps >= 8 && !fits; warps -= 4)
        fits = int4_fits(plan, sizes, warps, most_units(warps), 1, device.shared_bytes);
    const int pieces = (sizes.width + int4_piece - 1) / int4_piece;
    for (int warps = int4_max_warps - 4; warps >= 4 && !fits; warps -= 4) {
        for (int panels = 1; panels <= pieces && !fits; ++panels) {
            for (int units = most_units(warps); units > 0 && !fits; units -= int4_tile_units)
                fits = int4_fits(plan, sizes, warps, int4_round_up(units, int4_tile_units), panels,
                                 device.shared_bytes);
        }
    }
    plan.shared_bytes = gemv_bytes_alone(plan.shared_bytes, device);
    return plan;
}

// The usual case's own kernel (int4_gemv_fast.cuh): four stages of a piece and of its rows' scales.
constexpr int int4_gemv_fast_stages = 4;
constexpr int int4_gemv_fast_stage_bytes = int4_tile_rows * (int4_piece_bytes + 4);
constexpr int int4_gemv_fast_max_batch = 4;

// n / d by a multiplication, exact where n d < 2^32. inverse: 0 for d = 1.
struct Int4Divisor {
    uint32_t inverse;
};

constexpr Int4Divisor int4_divisor(int d) {
    return {d == 1 ? 0u : static_cast<uint32_t>(((uint64_t{1} << 32) + static_cast<uint32_t>(d) - 1) / d)};
}

struct Int4GemvFastPlan {
    bool fits;  // otherwise Int4GemvPlan takes it
    int blocks, warps, warps_log2;
    int block_units, longer_blocks;  // the first so many blocks have one unit more
    int pieces;                      // of a tile
    int group_shift;                 // 2^group_shift times 128 columns are a group
    bool zeros, programmatic;
    int stages_ahead_of_x;               // of a programmatic launch
    int finish_lanes_log2;               // so many lanes add a unit's parts up
    Int4Divisor by_pieces, by_items[2];  // items: of a block with block_units, and of one with one more
    // Shared memory of a block, in this order: the stream of every warp, the sums (a slot for each warp's
    // part of each tile: four floats a row and sequence), the squares of every sequence and warp, the factors
    // of every chunk and sequence, x.
    int sums_offset, squares_offset, factors_offset, x_offset;
    int shared_bytes;
};

// `in_order`: no weight has a perm, rows of x and the norm's weight begin on 16 bytes, and scales and zero
// points where two of them are one word. Warps are given up where shared memory is small.
inline Int4GemvFastPlan plan_int4_gemv_fast(const Int4GemvSizes& sizes, bool in_order, bool programmatic,
                                            const GemvDevice& device) {
    Int4GemvFastPlan plan = {};
    const int group_size = sizes.width / sizes.n_groups;
    while (group_size > 128 << plan.group_shift) ++plan.group_shift;
    if (!in_order || sizes.variants != 1 || sizes.width % int4_piece != 0 ||
        sizes.batch > int4_gemv_fast_max_batch ||
        (sizes.n_groups != 1 && group_size != 128 << plan.group_shift))
        return plan;
    plan.blocks = sizes.units < device.sm_count ? sizes.units : device.sm_count;
    plan.block_units = sizes.units / plan.blocks;
    plan.longer_blocks = sizes.units % plan.blocks;
    plan.pieces = sizes.width / int4_piece;
    plan.zeros = sizes.zeros;
    plan.programmatic = programmatic;
    plan.by_pieces = int4_divisor(plan.pieces);
    const int tiles = int4_tiles(plan.block_units + (plan.longer_blocks > 0));
    const int64_t items = int64_t{tiles} * plan.pieces;
    if (items * int4_max_warps * items >= int64_t{1} << 32) return plan;
    for (const int i : {0, 1})
        plan.by_items[i] = int4_divisor(int4_tiles(plan.block_units + i) * plan.pieces);
    // At most four pieces a warp, and no norm ahead of them, as o's behind attention: half of the warps are
    // as fast, and leave registers of an SM for another kernel's block. In programmatic launches this one
    // then begins, and asks for its weights, while that one is still at work. In others too, for the same
    // bits.
    const bool half_of_warps = !sizes.norm && items > int4_max_warps && items <= 4 * int4_max_warps;
    const bool shares_sm = half_of_warps && programmatic;
    for (plan.warps_log2 = half_of_warps ? 3 : 4; plan.warps_log2 >= 2; --plan.warps_log2) {
        plan.warps = 1 << plan.warps_log2;
        // A tile's pieces lie with so many warps, one more where they begin in the middle of a share.
        const int64_t parts = int64_t{plan.pieces} * plan.warps / items + 2;
        plan.finish_lanes_log2 = parts > 8 ? 3 : parts > 4 ? 2 : 0;
        plan.sums_offset = plan.warps * int4_gemv_fast_stages * int4_gemv_fast_stage_bytes;
        plan.squares_offset = plan.sums_offset + (plan.warps + tiles - 1) * int4_tile_rows * sizes.batch * 16;
        plan.factors_offset = int4_round_up(plan.squares_offset + sizes.batch * plan.warps * 4, 128);
        plan.x_offset = plan.factors_offset + sizes.width / 128 * sizes.batch * 32;
        const int64_t end = plan.x_offset + int64_t{sizes.width} / 128 * sizes.batch * 3 * 128;
        plan.fits = end <= device.shared_bytes;
        plan.shared_bytes = static_cast<int>(end);
        if (plan.fits) break;
    }
    // x comes behind what is asked for before it. Where it is long, or the stream short, all else waits for
    // it; but where the kernel before leaves time.
    const bool x_first = sizes.width > gemv_x_step || items <= 4 * plan.warps;
    plan.stages_ahead_of_x = x_first && !shares_sm ? 1 : 2;
    // As in the other GEMVs two blocks never share an SM; or two do, and three never.
    plan.shared_bytes = gemv_bytes_alone(plan.shared_bytes, device, shares_sm ? 2 : 1);
    return plan;
}

// Warps take equal shares of a phase's pieces, consecutive ones: tile by tile, in a tile from left to right.
constexpr int int4_first_item(int items, int warp, int warps) {
    return items * warp / warps;
}

// The warp whose share has the item.
constexpr int int4_warp_of(int items, int item, int warps) {
    return ((item + 1) * warps - 1) / items;
}

// Columns between scalings, the unit of which is a block of 32: a group of any size is a whole number of
// them.
constexpr int int4_step_blocks(int group_size) {
    return group_size % 128 == 0 ? 4 : group_size % 64 == 0 ? 2 : 1;
}

}  // namespace pykernels::cuda
