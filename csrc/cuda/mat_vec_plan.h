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

// Shared memory of a block, in this order: a ring a warp, its barriers, the sums of the norm, x.
struct MatVecPlan {
    int blocks;
    int n_stages;
    bool x_in_shared;
    bool streamed;  // rows are vectors: the kernel with rings; otherwise the plain one
    int shared_bytes;
    int prefetch_bytes;  // of each of a warp's two rows, past what its ring holds, while it waits for x
};

constexpr int mat_vec_barriers_offset(int n_stages) {
    return mat_vec_warps * ring_bytes(n_stages);
}

constexpr int mat_vec_scratch_offset(int n_stages) {
    return mat_vec_barriers_offset(n_stages) + mat_vec_warps * n_stages * 8;
}

constexpr int mat_vec_x_offset(int n_stages, int batch) {
    return (mat_vec_scratch_offset(n_stages) + batch * mat_vec_warps * 4 + 127) / 128 * 128;
}

// x may take this much of a block's shared memory; a larger one is read through the first-level cache.
constexpr int mat_vec_max_x_bytes = 40 * 1024;
constexpr int mat_vec_max_stages = 6;
// All blocks together: far below the second-level cache, and more than memory brings in the 2 us that a
// kernel waits for the one before it.
constexpr int mat_vec_prefetch_bytes = 10 * 1024;

// One block an SM, and one block of the next kernel beside it (programmatic dependent launch): each has half
// of the SM's shared memory, its ring what x leaves of that. Where a norm needs x in shared memory and x is
// larger, the block has an SM to itself.
inline MatVecPlan plan_mat_vec(int64_t units, int width, int batch, bool norm, bool vectors,
                               bool programmatic, const MatVecDevice& device) {
    MatVecPlan plan = {};
    plan.blocks = static_cast<int>(units < device.sm_count ? units : device.sm_count);
    if (!vectors) return plan;
    const int64_t x_bytes = int64_t{batch} * width * 2;
    plan.x_in_shared = norm || x_bytes <= mat_vec_max_x_bytes;
    const int64_t shared_x = plan.x_in_shared ? x_bytes : 0;
    const auto shared_bytes = [&](int n_stages) { return mat_vec_x_offset(n_stages, batch) + shared_x; };
    plan.n_stages = ring_async_stages;
    if (device.bulk_copy) {
        // A KB of a block's half is the driver's.
        const int64_t half = device.shared_bytes / 2 - 1024;
        plan.n_stages = mat_vec_max_stages;
        while (plan.n_stages > 3 && shared_bytes(plan.n_stages) > half) --plan.n_stages;
    }
    if (shared_bytes(plan.n_stages) > device.shared_bytes) return plan;
    plan.streamed = true;
    plan.shared_bytes = static_cast<int>(shared_bytes(plan.n_stages));
    plan.prefetch_bytes = programmatic && device.bulk_copy ? mat_vec_prefetch_bytes : 0;
    return plan;
}

// Block i's units: equal shares of consecutive ones, so that what an SM reads is consecutive too.
constexpr int64_t mat_vec_first_unit(int64_t units, int block, int blocks) {
    return units * block / blocks;
}

}  // namespace pykernels::cuda
