// The launch plan of a GEMV: a pure function of the sizes and the device.
#pragma once

#include <cstdint>

#include "plan_choice.h"

namespace pykernels::cuda {

constexpr int gemv_warps = 16;
constexpr int gemv_threads = 32 * gemv_warps;
// Warps that work on one row pair, a warp group. Few, so that adding their partials takes little of a row
// pair's time, and so that many row pairs in flight hide each other's latency (docs/tried.md has the
// measurements).
constexpr int gemv_group_warps = 2;
constexpr int gemv_groups = gemv_warps / gemv_group_warps;
// Columns of a row that a warp group takes at once, 16 bytes a thread; and columns of x that the block takes.
constexpr int gemv_step = 32 * gemv_group_warps * 8;
constexpr int gemv_x_step = gemv_threads * 8;
// K tiles of a thread: one is multiplied, the others are in flight. cp.async.wait_group takes an immediate,
// so all plans have the same number.
constexpr int gemv_stages = 5;

// What the plan needs to know of the device.
struct GemvDevice {
    int sm_count;
    int shared_bytes;  // the largest amount a block can have
};

struct GemvPlan {
    int blocks;
    bool streamed;  // rows are 16-byte aligned: the kernel with cp.async stages; false: the plain kernel
    bool x_in_shared;
    bool programmatic;
    int vectors;      // 16-byte vectors of each row that a thread copies per stage: 1 or 2
    int chunk_pairs;  // row pairs whose sums are kept in shared memory for one epilogue
    int shared_bytes;
};

// Shared memory of a block, in this order: the stages ([stage][row][vector][thread] of 16 bytes), the partial
// sums of a chunk ([warp of a group][thread] of two rows), the squares of each sequence and warp, x.
constexpr int gemv_sums_offset(const GemvPlan& plan) {
    return gemv_stages * 2 * plan.vectors * gemv_threads * 16;
}

constexpr int gemv_squares_offset(const GemvPlan& plan) {
    return gemv_sums_offset(plan) + gemv_group_warps * gemv_threads * 8;
}

constexpr int gemv_x_offset(const GemvPlan& plan, int batch) {
    return (gemv_squares_offset(plan) + batch * gemv_warps * 4 + 127) / 128 * 128;
}

// x may take this much of a block's shared memory; a larger x is read through the L1.
constexpr int gemv_max_x_bytes = 64 * 1024;

// Enough shared memory that no more than `blocks` such blocks are resident on an SM.
constexpr int gemv_bytes_alone(int shared_bytes, const GemvDevice& device, int blocks = 1) {
    const int more_than_fits = device.shared_bytes / (blocks + 1) + 1024;
    return shared_bytes < more_than_fits ? more_than_fits : shared_bytes;
}

// One block an SM, where there are so many row pairs.
constexpr int gemv_blocks(int pairs, const GemvDevice& device, const PlanChoice& choice) {
    const int most = choice.blocks ? choice.blocks : device.sm_count;
    return pairs < most ? pairs : most;
}

// One block an SM. In a programmatic dependent launch the next kernel's blocks must not all go to the SMs
// that become free first: a block takes more than half of an SM's shared memory, so that two are never
// resident on one SM.
//
// A choice of `vectors` or `blocks` replaces the built-in one; where it does not fit, the plan is not
// streamed.
inline GemvPlan plan_gemv(int pairs, int width, int batch, bool vectors, bool programmatic,
                          const GemvDevice& device, const PlanChoice& choice = {}) {
    GemvPlan plan = {};
    plan.blocks = gemv_blocks(pairs, device, choice);
    plan.programmatic = programmatic;
    if (!vectors || batch > 1) return plan;  // gemv_mma_plan.h plans several sequences
    plan.chunk_pairs = gemv_threads / batch / gemv_groups * gemv_groups;
    const int64_t x_bytes = int64_t{batch} * width * 2;
    const auto fits = [&](int vectors_of_stage, bool x_in_shared) {
        if (choice.vectors && choice.vectors != vectors_of_stage) return false;
        if (x_in_shared && x_bytes > gemv_max_x_bytes) return false;
        plan.vectors = vectors_of_stage;
        plan.x_in_shared = x_in_shared;
        plan.shared_bytes = gemv_x_offset(plan, batch) + static_cast<int>(x_in_shared ? x_bytes : 0);
        return plan.shared_bytes <= device.shared_bytes;
    };
    plan.streamed = fits(2, true) || fits(1, true) || fits(1, false);
    if (!plan.streamed) return {plan.blocks, false, false, programmatic, 0, 0, 0};
    if (programmatic) plan.shared_bytes = gemv_bytes_alone(plan.shared_bytes, device);
    return plan;
}

// The first row pair of a block. Blocks are assigned equal numbers of consecutive row pairs, so that an SM
// reads consecutive memory.
constexpr int gemv_first_pair(int pairs, int block, int blocks) {
    return static_cast<int>(int64_t{pairs} * block / blocks);
}

}  // namespace pykernels::cuda
