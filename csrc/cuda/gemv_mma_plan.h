// How the GEMV of 2 to 8 sequences on tensor cores (gemv_mma.cuh) is laid over a GPU, and for which sizes it
// is taken: pure functions of the sizes and the device.
#pragma once

#include <cstdint>

#include "cuda/gemv_plan.h"

namespace pykernels::cuda {

// A row tile is M of mma.m16n8k16: both rows of 8 row pairs. N is the batch.
constexpr int gemv_mma_tile_pairs = 8;
constexpr int gemv_mma_tile_rows = 2 * gemv_mma_tile_pairs;
constexpr int gemv_mma_max_batch = 8;
// A line is 128 bytes of a row.
constexpr int gemv_mma_line_columns = 64;
constexpr int gemv_mma_line_bytes = 128;
// Units that a block finishes together: a lane a row pair, a warp a sequence.
constexpr int gemv_mma_chunk_pairs = 32;

// What the kernel is compiled for.
struct GemvMmaShape {
    int warps;
    int row_tiles;         // of a stage, which is one K tile of them, for one warp
    int lines;             // of a K tile
    int stages;            // of a warp
    int resident_k_tiles;  // of x, which a warp keeps in registers; 0: x is loaded again for every stage

    constexpr int k_tile_columns() const { return lines * gemv_mma_line_columns; }
    constexpr int stage_bytes() const { return row_tiles * lines * gemv_mma_tile_rows * gemv_mma_line_bytes; }
    // Shared memory of a block, in this order: the stages of every warp; its sums, two for every row pair of
    // a chunk and sequence; the sums of squares, one for every warp and sequence.
    constexpr int sums_offset() const { return warps * stages * stage_bytes(); }
    constexpr int squares_offset() const {
        return sums_offset() + warps * gemv_mma_chunk_pairs * gemv_mma_max_batch * 8;
    }
    constexpr int shared_bytes() const { return squares_offset() + warps * gemv_mma_max_batch * 4; }
};

// The first that fits is taken. Lines of 256 bytes and as many as shared memory holds measured best on an
// H200 (docs/gemv-batch.md). Rows of up to 4096 columns leave x in registers; of longer ones a stage has two
// row tiles for one K tile of x. The last two are for 99 KB of shared memory (sm_89), and for sm_80.
constexpr GemvMmaShape gemv_mma_shapes[] = {
    {16, 1, 2, 3, 2},
    {12, 2, 2, 2, 0},
    {8, 1, 1, 5, 8},
    {8, 2, 1, 2, 0},
};
constexpr int gemv_mma_shape_count = sizeof gemv_mma_shapes / sizeof *gemv_mma_shapes;

// On sm_90 the second shape takes what the first does not, so the others are not compiled for it, and are no
// plan for any device with as much shared memory.
constexpr int gemv_mma_sm_90_bytes = 227 * 1024;
constexpr bool gemv_mma_is_compiled(const GemvMmaShape& shape, int device_shared_bytes) {
    return device_shared_bytes < gemv_mma_sm_90_bytes || shape.shared_bytes() > 99 * 1024;
}
static_assert(gemv_mma_shapes[1].resident_k_tiles == 0 &&
              gemv_mma_shapes[1].shared_bytes() <= gemv_mma_sm_90_bytes);

struct GemvMmaPlan {
    int shape;  // of gemv_mma_shapes; -1: CUDA cores
    int blocks;
    int block_pairs, longer_blocks;    // the first so many blocks have one row pair more
    int slice_k_tiles, longer_slices;  // the first so many warps have one K tile more
    bool programmatic;
    int shared_bytes;
};

// Share i of consecutive items where the first `longer` shares have one more than `each`.
constexpr int gemv_mma_first(int i, int each, int longer) {
    return i * each + (i < longer ? i : longer);
}

// `aligned`: every row of every operand begins on 16 bytes. A choice of tensor_cores is of the shape with its
// warps and row tiles, where both are given.
inline GemvMmaPlan plan_gemv_mma(int pairs, int width, int batch, bool aligned, bool programmatic,
                                 const GemvDevice& device, const PlanChoice& choice = {}) {
    GemvMmaPlan plan = {};
    plan.shape = -1;
    const int blocks = gemv_blocks(pairs, device, choice);
    const bool chosen = choice.kernel == PlanKernel::tensor_cores;
    // At batch 1 CUDA cores are as fast (docs/gemv-batch.md).
    if (!aligned || (batch == 1 && !chosen) || batch > gemv_mma_max_batch) return plan;
    if (choice.kernel == PlanKernel::cuda_cores) return plan;
    for (int i = 0; i < gemv_mma_shape_count && plan.shape < 0; ++i) {
        const GemvMmaShape& shape = gemv_mma_shapes[i];
        if (choice.warps && (shape.warps != choice.warps || shape.row_tiles != choice.row_tiles)) continue;
        const int k_tiles = (width + shape.k_tile_columns() - 1) / shape.k_tile_columns();
        plan.slice_k_tiles = k_tiles / shape.warps;
        plan.longer_slices = k_tiles % shape.warps;
        const int longest = plan.slice_k_tiles + (plan.longer_slices > 0);
        if (shape.shared_bytes() > device.shared_bytes) continue;
        if (!gemv_mma_is_compiled(shape, device.shared_bytes)) continue;
        if (shape.resident_k_tiles > 0 && longest > shape.resident_k_tiles) continue;
        plan.shape = i;
        plan.shared_bytes = shape.shared_bytes();
    }
    if (plan.shape < 0) return plan;
    plan.blocks = blocks;
    plan.block_pairs = pairs / blocks;
    plan.longer_blocks = pairs % blocks;
    plan.programmatic = programmatic;
    if (programmatic) plan.shared_bytes = gemv_bytes_alone(plan.shared_bytes, device);
    return plan;
}

// Whether the plans above do what the choice says for these sizes, of aligned operands.
inline bool gemv_allows(int pairs, int width, int batch, const GemvDevice& device, const PlanChoice& choice) {
    if (choice.blocks > pairs) return false;
    const bool on_tensor_cores = plan_gemv_mma(pairs, width, batch, true, false, device, choice).shape >= 0;
    if (choice.kernel == PlanKernel::tensor_cores) return on_tensor_cores && choice.vectors == 0;
    if (choice.warps || choice.row_tiles || on_tensor_cores)  // no kernel is named: blocks alone
        return choice.kernel == PlanKernel::built_in && !choice.warps && !choice.row_tiles && !choice.vectors;
    return plan_gemv(pairs, width, batch, true, false, device, choice).streamed;
}

}  // namespace pykernels::cuda
