// How int4_out_mlp is laid over a GPU: the plans of its three mat-vecs, made to fit one kernel.
#pragma once

#include "cuda/int4_mat_vec_plan.h"

namespace pykernels::cuda {

constexpr int int4_out_mlp_phases = 3;  // o, gate and up, down
// Vectors of x that a thread has on their way at once, and so the widest row.
constexpr int int4_out_mlp_x_vectors = 5;
constexpr int int4_out_mlp_max_width = int4_out_mlp_x_vectors * int4_max_threads * 8;

struct Int4OutMlpPlan {
    bool fits;  // otherwise there is no kernel for these sizes
    int blocks, shared_bytes;
    Int4OnePhasePlan phases[int4_out_mlp_phases];  // of one layout of shared memory
};

// One block an SM at most: they wait for one another, and so all must be on the device at once. All have
// units of gate and up: whoever has all of what these give knows that every block has begun.
inline Int4OutMlpPlan plan_int4_out_mlp(const Int4MatVecSizes (&sizes)[int4_out_mlp_phases], bool in_order,
                                        bool programmatic, const MatVecDevice& device) {
    Int4OutMlpPlan plan = {};
    const auto at_least = [](int& value, int other) { value = value < other ? other : value; };
    int sums_bytes = 0, factors_bytes = 0, x_bytes = 0;
    for (int i = 0; i < int4_out_mlp_phases; ++i) {
        const Int4OnePhasePlan phase = plan_int4_one_phase(sizes[i], in_order, programmatic, device);
        if (!phase.fits || phase.warps != int4_max_warps || sizes[i].batch != 1 ||
            sizes[i].width > int4_out_mlp_max_width || (i > 0 && phase.blocks != plan.blocks))
            return plan;
        plan.phases[i] = phase;
        plan.blocks = phase.blocks;
        at_least(sums_bytes, phase.squares_offset - phase.sums_offset);
        at_least(factors_bytes, phase.x_offset - phase.factors_offset);
        at_least(x_bytes, sizes[i].width / 128 * 3 * 128);
    }
    // What a warp still reads of one phase, another may write of the next: the same lies in the same place.
    for (Int4OnePhasePlan& phase : plan.phases) {
        phase.squares_offset = phase.sums_offset + sums_bytes;
        phase.factors_offset = int4_round_up(phase.squares_offset + int4_max_warps * 4, 128);
        phase.x_offset = phase.factors_offset + factors_bytes;
        plan.shared_bytes = phase.x_offset + x_bytes;
    }
    plan.fits = plan.shared_bytes <= device.shared_bytes;
    plan.shared_bytes = mat_vec_bytes_alone(plan.shared_bytes, device);
    return plan;
}

}  // namespace pykernels::cuda
