// Which kernel a GEMV is launched with: tensor cores, CUDA cores, or element by element.
#pragma once

#include "cuda/common/device_name.h"
#include "cuda/gemv_mainloop.cuh"
#include "cuda/gemv_mma.cuh"

namespace pykernels::cuda {

template <int i>
using GemvMmaTraitsOf =
    GemvMmaTraits<gemv_mma_shapes[i].warps, gemv_mma_shapes[i].row_tiles, gemv_mma_shapes[i].lines,
                  gemv_mma_shapes[i].stages, gemv_mma_shapes[i].resident_k_tiles>;

// `aligned`: every row of every operand begins on 16 bytes.
template <class Op>
void launch_gemv(const typename Op::Params& params, bool aligned, const Stream& stream) {
    const DeviceLimits& limits = device_limits();
    const GemvDevice device = {limits.sm_count, limits.shared_bytes};
    const int pairs = Op::row_pairs(params), width = Op::width(params), batch = Op::batch(params);
    PlanChoice choice;
    if (aligned) {  // a table's plans are of aligned operands
        const PlanKey key = plan_key(params, true);
        choice = planned_on_cuda(key, device_name);
        if (choice.is_made() && !gemv_allows(pairs, width, batch, device, choice))
            refuse_plan(key, choice, "sizes and shared memory that its kernel has there");
    }
    const GemvMmaPlan mma_plan =
        plan_gemv_mma(pairs, width, batch, aligned, stream.programmatic, device, choice);
    static_assert(gemv_mma_shape_count == 4, "a case for each");
    switch (mma_plan.shape) {
        case 0:
            return launch_gemv_mma<Op, GemvMmaTraitsOf<0>>(params, mma_plan, stream);
        case 1:
            return launch_gemv_mma<Op, GemvMmaTraitsOf<1>>(params, mma_plan, stream);
        case 2:
            return launch_gemv_mma<Op, GemvMmaTraitsOf<2>>(params, mma_plan, stream);
        case 3:
            return launch_gemv_mma<Op, GemvMmaTraitsOf<3>>(params, mma_plan, stream);
    }
    const GemvPlan plan = plan_gemv(pairs, width, batch, aligned, stream.programmatic, device, choice);
    if (!plan.streamed) {  // shared memory for end_block()
        return launch(gemv_plain_kernel<Op>, plan.blocks, gemv_threads, gemv_warps * sizeof(float), stream,
                      params);
    }
    launch(plan.vectors == 2 ? gemv_kernel<Op, 2> : gemv_kernel<Op, 1>, plan.blocks, gemv_threads,
           static_cast<size_t>(plan.shared_bytes), stream, params, plan);
}

}  // namespace pykernels::cuda
