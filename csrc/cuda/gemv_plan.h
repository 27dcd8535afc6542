// How a GEMV is laid over a GPU: a pure function of the sizes and the device.
#pragma once

#include <cstdint>

namespace pykernels::cuda {

constexpr int gemv_warps = 16;
constexpr int gemv_threads = 32 * gemv_warps;
// Warps that work on one unit together: few, so that a unit's sums and their joining are a small part of its
// time, and so many units at once that their latencies hide one another (docs/kernels.md has the figures).
constexpr int gemv_team_warps = 2;
constexpr int gemv_teams = gemv_warps / gemv_team_warps;
// Columns of a row that a team takes at once, 16 bytes a thread; and those of x that the block does.
constexpr int gemv_step = 32 * gemv_team_warps * 8;
constexpr int gemv_x_step = gemv_threads * 8;
// Pieces a thread has on their way. cp.async waits by a count that is part of the instruction: one depth for
// all.
constexpr int gemv_stages = 5;

// What of a plan depends on the device.
struct GemvDevice {
    int sm_count;
    int shared_bytes;  // a block's at most
};

struct GemvPlan {
    int blocks;
    bool streamed;  // rows are vectors: the kernel with copies ahead; otherwise the plain one
    bool x_in_shared;
    bool programmatic;
    int vectors;      // 16-byte vectors of each of its two rows that a thread copies a stage: 1 or 2
    int chunk_units;  // units whose sums wait in shared memory to be finished together
    int shared_bytes;
};

// Shared memory of a block, in this order: the stream (of every stage, row, vector and thread 16 bytes), the
// sums of a chunk (two rows of every warp of a team and every thread), the squares of every sequence and
// warp, x.
constexpr int gemv_sums_offset(const GemvPlan& plan) {
    return gemv_stages * 2 * plan.vectors * gemv_threads * 16;
}

constexpr int gemv_squares_offset(const GemvPlan& plan) {
    return gemv_sums_offset(plan) + gemv_team_warps * gemv_threads * 8;
}

constexpr int gemv_x_offset(const GemvPlan& plan, int batch) {
    return (gemv_squares_offset(plan) + batch * gemv_warps * 4 + 127) / 128 * 128;
}

// x may take this much of a block's shared memory; a larger one is read through the first-level cache.
constexpr int gemv_max_x_bytes = 64 * 1024;

// So much shared memory that no second block fits an SM beside this one; or, of so many, that no more do.
constexpr int gemv_bytes_alone(int shared_bytes, const GemvDevice& device, int blocks = 1) {
    const int more_than_fits = device.shared_bytes / (blocks + 1) + 1024;
    return shared_bytes < more_than_fits ? more_than_fits : shared_bytes;
}

// One block an SM. Where the next kernel may start early (programmatic dependent launch), its blocks must not
// crowd on the SMs that are free first: a block takes more than half of an SM's shared memory, so that two
// never share one.
inline GemvPlan plan_gemv(int units, int width, int batch, bool vectors, bool programmatic,
                          const GemvDevice& device) {
    GemvPlan plan = {};
    plan.blocks = units < device.sm_count ? units : device.sm_count;
    plan.programmatic = programmatic;
    if (!vectors) return plan;
    plan.chunk_units = gemv_threads / batch / gemv_teams * gemv_teams;
    const int64_t x_bytes = int64_t{batch} * width * 2;
    const auto fits = [&](int vectors_of_stage, bool x_in_shared) {
        if (x_in_shared && x_bytes > gemv_max_x_bytes) return false;
        plan.vectors = vectors_of_stage;
        plan.x_in_shared = x_in_shared;
        plan.shared_bytes = gemv_x_offset(plan, batch) + static_cast<int>(x_in_shared ? x_bytes : 0);
        return plan.shared_bytes <= device.shared_bytes;
    };
    // Several sequences keep a thread busy enough with one vector a row and stage, and short of registers.
    plan.streamed = (batch == 1 && fits(2, true)) || fits(1, true) || fits(1, false);
    if (!plan.streamed) return {plan.blocks, false, false, programmatic, 0, 0, 0};
    if (programmatic) plan.shared_bytes = gemv_bytes_alone(plan.shared_bytes, device);
    return plan;
}

// Block i's units: equal shares of consecutive ones, so that what an SM reads is consecutive too.
constexpr int gemv_first_unit(int units, int block, int blocks) {
    return static_cast<int>(int64_t{units} * block / blocks);
}

}  // namespace pykernels::cuda
