// How a mat-vec is laid over a GPU: a pure function of the sizes and the device.
#pragma once

#include <cstdint>

#include "cuda/ring_plan.h"

namespace pykernels::cuda {

constexpr int mat_vec_warps = 8;
constexpr int mat_vec_threads = 32 * mat_vec_warps;

// What of a plan depends on the device.
struct MatVecDevice {
    int sm_count;
    int shared_bytes;  // a block's at most
    bool bulk_copy;
};

struct MatVecPlan {
    int blocks;
    bool streamed;  // rows are vectors: the kernel with rings; otherwise the plain one
    bool x_in_shared;
    int slice;        // columns of a warp
    int piece;        // columns that one slot of its ring holds, of both rows
    int n_stages;     // slots
    int chunk_units;  // units whose sums wait in shared memory to be finished together
    int shared_bytes;
};

// Shared memory of a block, in this order: a ring a warp, its barriers, the sums of the norm, the sums of a
// chunk (two rows of every warp and thread), x.
constexpr int mat_vec_barriers_offset(const MatVecPlan& plan) {
    return mat_vec_warps * ring_bytes(plan.n_stages, plan.piece * 2);
}

constexpr int mat_vec_norm_offset(const MatVecPlan& plan) {
    return mat_vec_barriers_offset(plan) + mat_vec_warps * plan.n_stages * 8;
}

constexpr int mat_vec_sums_offset(const MatVecPlan& plan, int batch) {
    return (mat_vec_norm_offset(plan) + batch * mat_vec_warps * 4 + 127) / 128 * 128;
}

constexpr int mat_vec_x_offset(const MatVecPlan& plan, int batch) {
    return mat_vec_sums_offset(plan, batch) + mat_vec_warps * mat_vec_threads * 8;
}

// x may take this much of a block's shared memory; a larger one is read through the first-level cache.
constexpr int mat_vec_max_x_bytes = 40 * 1024;
// A block has an SM to itself, as far as mat-vecs go: where the next kernel may start early (programmatic
// dependent launch), two of its blocks would otherwise find room on one SM while others are still taken, and
// stay there. What is left beside it is for the blocks of an attention.
constexpr int mat_vec_block_bytes = 184 * 1024;
constexpr int mat_vec_max_stages = 16;

constexpr int round_up(int value, int multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

inline MatVecPlan plan_mat_vec(int units, int width, int batch, bool norm, bool vectors,
                               const MatVecDevice& device) {
    MatVecPlan plan = {};
    plan.blocks = units < device.sm_count ? units : device.sm_count;
    if (!vectors) return plan;
    plan.chunk_units = mat_vec_threads / batch;
    plan.slice = round_up((width + mat_vec_warps - 1) / mat_vec_warps, 8);
    const int pieces = (plan.slice + ring_max_piece - 1) / ring_max_piece;
    plan.piece = round_up((plan.slice + pieces - 1) / pieces, 8);
    const int64_t x_bytes = int64_t{batch} * width * 2;
    plan.x_in_shared = norm || x_bytes <= mat_vec_max_x_bytes;
    const auto shared_bytes = [&] {
        return mat_vec_x_offset(plan, batch) + (plan.x_in_shared ? x_bytes : 0);
    };
    plan.n_stages = ring_async_stages;
    if (device.bulk_copy) {
        const int64_t limit =
            device.shared_bytes < mat_vec_block_bytes ? device.shared_bytes : mat_vec_block_bytes;
        plan.n_stages = mat_vec_max_stages;
        while (plan.n_stages > 2 && shared_bytes() > limit) --plan.n_stages;
    }
    if (shared_bytes() > device.shared_bytes) return plan;
    plan.streamed = true;
    plan.shared_bytes = static_cast<int>(shared_bytes());
    if (device.bulk_copy && plan.shared_bytes < mat_vec_block_bytes &&
        mat_vec_block_bytes <= device.shared_bytes)
        plan.shared_bytes = mat_vec_block_bytes;  // narrow rows: to itself all the same
    return plan;
}

// Block i's units: equal shares of consecutive ones, so that what an SM reads is consecutive too.
constexpr int mat_vec_first_unit(int units, int block, int blocks) {
    return static_cast<int>(int64_t{units} * block / blocks);
}

}  // namespace pykernels::cuda
