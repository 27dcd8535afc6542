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

// One block an SM, and the next kernel's blocks beside it (programmatic dependent launch): two of them must
// fit the 227 KB of an H100's SM, whence five stages. Normed x is always in shared memory; plain x is when it
// is small, and is read through the first-level cache otherwise.
inline MatVecPlan plan_mat_vec(int64_t units, int width, int batch, bool norm, bool vectors,
                               const MatVecDevice& device) {
    MatVecPlan plan = {};
    plan.blocks = static_cast<int>(units < device.sm_count ? units : device.sm_count);
    plan.streamed = vectors;
    if (!vectors) return plan;
    plan.n_stages = device.bulk_copy ? 5 : ring_async_stages;
    const int64_t x_bytes = int64_t{batch} * width * 2;
    const int64_t rest = mat_vec_x_offset(plan.n_stages, batch);
    const int64_t wanted = norm ? device.shared_bytes - rest : 40 * 1024;
    plan.x_in_shared = x_bytes <= wanted && rest + x_bytes <= device.shared_bytes;
    plan.streamed = plan.x_in_shared || !norm;
    plan.shared_bytes = static_cast<int>(rest + (plan.x_in_shared ? x_bytes : 0));
    if (!plan.streamed) plan.shared_bytes = 0;
    return plan;
}

// Block i's units: equal shares of consecutive ones, so that what an SM reads is consecutive too.
constexpr int64_t mat_vec_first_unit(int64_t units, int block, int blocks) {
    return units * block / blocks;
}

}  // namespace pykernels::cuda
