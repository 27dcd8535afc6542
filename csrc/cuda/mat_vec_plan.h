// How a mat-vec is laid over a GPU: a pure function of the sizes and the device.
#pragma once

#include <cstdint>

namespace pykernels::cuda {

constexpr int mat_vec_warps = 8;
constexpr int mat_vec_threads = 32 * mat_vec_warps;
// Columns of a row that the block's threads take at once, 16 bytes each.
constexpr int mat_vec_step = mat_vec_threads * 8;
// Pieces a thread has on their way. cp.async waits by a count that is part of the instruction: one depth for
// all.
constexpr int mat_vec_stages = 8;
// Columns of a piece, at most: 8 KB of each of its two rows.
constexpr int mat_vec_max_piece = 2 * mat_vec_step;

// What of a plan depends on the device.
struct MatVecDevice {
    int sm_count;
    int shared_bytes;  // a block's at most
};

struct MatVecPlan {
    int blocks;
    bool streamed;  // rows are vectors: the kernel with copies ahead; otherwise the plain one
    bool x_in_shared;
    bool programmatic;
    int piece;        // columns of a row that are one step of the stream: a multiple of mat_vec_step
    int chunk_units;  // units whose sums wait in shared memory to be finished together
    int shared_bytes;
};

// Shared memory of a block, in this order: the stream (stages of two pieces), the sums of a chunk (two rows
// of every warp and thread), the squares of every sequence and warp, x.
constexpr int mat_vec_sums_offset(const MatVecPlan& plan) {
    return mat_vec_stages * 2 * plan.piece * 2;
}

constexpr int mat_vec_squares_offset(const MatVecPlan& plan) {
    return mat_vec_sums_offset(plan) + mat_vec_warps * mat_vec_threads * 8;
}

constexpr int mat_vec_x_offset(const MatVecPlan& plan, int batch) {
    return (mat_vec_squares_offset(plan) + batch * mat_vec_warps * 4 + 127) / 128 * 128;
}

// x may take this much of a block's shared memory; a larger one is read through the first-level cache.
constexpr int mat_vec_max_x_bytes = 40 * 1024;

// One block an SM. Where the next kernel may start early (programmatic dependent launch), its blocks must not
// crowd on the SMs that are free first: a block takes more than half of an H100's shared memory, so that two
// never share an SM.
inline MatVecPlan plan_mat_vec(int units, int width, int batch, bool norm, bool vectors, bool programmatic,
                               const MatVecDevice& device) {
    MatVecPlan plan = {};
    plan.blocks = units < device.sm_count ? units : device.sm_count;
    plan.programmatic = programmatic;
    if (!vectors) return plan;
    plan.chunk_units = mat_vec_threads / batch;
    const int64_t x_bytes = int64_t{batch} * width * 2;
    plan.x_in_shared = norm || x_bytes <= mat_vec_max_x_bytes;
    const auto shared_bytes = [&] {
        return mat_vec_x_offset(plan, batch) + (plan.x_in_shared ? x_bytes : 0);
    };
    const auto fits = [&] {
        plan.piece = mat_vec_max_piece;
        while (plan.piece > mat_vec_step && shared_bytes() > device.shared_bytes) plan.piece -= mat_vec_step;
        return shared_bytes() <= device.shared_bytes;
    };
    if (!fits()) {  // an SM with less shared memory: x stays where it is, unless a norm has to be put on it
        plan.x_in_shared = norm;
        if (!fits()) return plan;
    }
    plan.streamed = true;
    plan.shared_bytes = static_cast<int>(shared_bytes());
    return plan;
}

// Block i's units: equal shares of consecutive ones, so that what an SM reads is consecutive too.
constexpr int mat_vec_first_unit(int units, int block, int blocks) {
    return static_cast<int>(int64_t{units} * block / blocks);
}

}  // namespace pykernels::cuda
