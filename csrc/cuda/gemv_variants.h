// Launches of the GEMV at batch 1 that are off: pure functions of the sizes and the device. docs/tried.md has
// what each was predicted to gain, and what an H200 said. They are for PDL, and give the same bits as
// plan_gemv's.
#pragma once

#include "cuda/gemv_plan.h"

namespace pykernels::cuda {

// Bits of a set.
enum GemvVariant : int {
    // Blocks of two consecutive GEMVs share an SM: the next one's weights are in flight while this one ends.
    // So do o and gate with up, and gate with up and down. An op says from which width on, and whether it
    // may be short.
    gemv_beside = 1,
    // A short GEMV behind attention: the blocks that find an SM free fill its shared memory, and have more
    // row pairs for it.
    gemv_ahead = 2,
};

// From now on, in all threads: a set of GemvVariant. At start 0: plan_gemv's launches.
void set_gemv_variants(int variants);

// A short GEMV is o: an op without a norm, rows that a thread has one vector of, and at most this much for a
// block to read.
constexpr int64_t gemv_short_block_bytes = 256 * 1024;

constexpr bool gemv_is_short(int pairs, int width, const GemvDevice& device) {
    return pairs >= device.sm_count && width <= gemv_x_step &&
           int64_t{4} * width * ((pairs + device.sm_count - 1) / device.sm_count) <= gemv_short_block_bytes;
}

// Of a short GEMV, whose kernel has that many stages and fills all of them before its wait.
template <int stages_, int stage_vectors_>
struct GemvShortPlan : GemvPlan {
    static constexpr int stages = stages_, stage_vectors = stage_vectors_;
    // What the stages take more than plan_gemv's: the other regions of shared memory lie as much further on.
    static constexpr int more_bytes = (stages - gemv_stages) * 2 * stage_vectors * gemv_threads * 16;
    // The first early_blocks blocks have the first early_pairs row pairs; 0: all blocks have equal numbers.
    int early_blocks, early_pairs;

    constexpr int first_pair(int pairs, int block) const {
        if (block < early_blocks) return gemv_first_pair(early_pairs, block, early_blocks);
        if (block == blocks) return pairs;  // also where all blocks are early
        return early_pairs +
               gemv_first_pair(pairs - early_pairs, block - early_blocks, blocks - early_blocks);
    }
};

// 112 KB in flight: no two such blocks fit an SM, but one of the next kernel's beside it does.
using GemvBesidePlan = GemvShortPlan<7, 1>;
// 192 KB.
using GemvAheadPlan = GemvShortPlan<6, 2>;

template <class Plan>
constexpr int gemv_stages_of = Plan::stages;
template <>
inline constexpr int gemv_stages_of<GemvPlan> = gemv_stages;

// Attention's blocks, of which the plan of a GEMV behind it knows nothing: at ctx 2048 its clusters have 64.
constexpr int gemv_producer_blocks = 64;

// `even`: what plan_gemv gives. Blocks are started in order, so the first find the SMs that attention leaves
// free. With gemv_ahead they are assigned what they prefetch before the wait, and an equal share of the rest.
// Where they prefetch all of W, there are no other blocks. `streamed` is false where it does not fit.
template <class Plan>
Plan plan_short_gemv(const GemvPlan& even, int pairs, int width, const GemvDevice& device, int variants) {
    Plan plan = {};
    static_cast<GemvPlan&>(plan) = even;
    plan.vectors = Plan::stage_vectors;
    plan.shared_bytes = gemv_x_offset(plan, 1) + Plan::more_bytes + 2 * width;
    plan.streamed = plan.x_in_shared && plan.shared_bytes <= device.shared_bytes;
    if (!plan.streamed || !(variants & gemv_ahead)) return plan;
    const int k_tile = Plan::stage_vectors * gemv_step, half = device.sm_count / 2,
              held = half < gemv_producer_blocks ? half : gemv_producer_blocks,
              ring_pairs = Plan::stages * gemv_groups / ((width + k_tile - 1) / k_tile);
    plan.early_blocks = plan.blocks - held;
    const int prefetched = plan.early_blocks * ring_pairs, rest = pairs > prefetched ? pairs - prefetched : 0;
    plan.early_pairs = pairs - rest + static_cast<int>(int64_t{rest} * plan.early_blocks / plan.blocks);
    if (rest == 0) plan.blocks = plan.early_blocks;
    return plan;
}

// Of another GEMV with gemv_beside: one vector of a row a stage, and as many blocks on an SM as fit.
inline GemvPlan plan_gemv_beside(const GemvPlan& alone, int width) {
    GemvPlan plan = alone;
    if (!plan.streamed || !plan.x_in_shared) return plan;
    plan.vectors = 1;
    plan.shared_bytes = gemv_x_offset(plan, 1) + 2 * width;
    return plan;
}

}  // namespace pykernels::cuda
