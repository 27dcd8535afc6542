// gqa_decode: out = softmax(scale * q K^T) V over the first kv_len slots, one query token a sequence.
//
// A block takes a head group (one KV head and up to eight of its query heads, for all of which K and V are
// read once) and one split of the KV axis. Its tiles of 16 keys are divided among its warps
// (gqa_decode_plan.h). Both products are MMA, transposed so that the eight heads are n:
//   S   = K Q^T   16 keys x 8 heads,     summed over head_dim
//   O^T = V^T P^T head_dim x 8 heads,    summed over the 16 keys
// K and V are loaded to registers in 16-byte loads, or where a warp has several tiles to shared memory with
// cp.async.bulk (gqa_stream.cuh). The order of dimensions and keys within an MMA is free as long as both
// operands agree, so a lane takes what is contiguous in memory: eight dimensions of a row of K, eight
// dimensions of four rows of V. Softmax is online, in base 2.
//
// The partials of warps, then of splits, are combined by their log-sum-exp (Flash-Decoding, gqa_combine.cuh).
// In a cluster each block combines a part of the output; the others push their partials into its shared
// memory. Without a cluster, partials go through global memory, and a few reducing blocks poll until those of
// all splits are written. The reducing blocks of a head group are those that started last, by a ticket: when
// a block polls, all other blocks of the head group are running or have ended, and there are too few reducing
// blocks to fill the device.
//
// With a unified maximum (unified_softmax.h) the weights of V are exp(score - phi), and partials add without
// their maxima. The block that finishes an item sees whether its head's sum has left the safe range. If so,
// it computes the head group again by itself, online: all splits, one after another, so that the result is
// the online one bit for bit. That takes about as many times longer as there are splits.
//
// Fewest bytes: K and V of kv_len slots, once. Limit: latency up to some thousand keys, memory bandwidth
// beyond.
//
// Ahead of griddepcontrol.wait the kernel reads kv_len and its warps' first tiles. The tile with the newest
// key is read after it, or read again. The launch right before a programmatic one must not write kv_len or
// older slots.
#include "cuda/common/device_name.h"
#include "cuda/common/launch.h"
#include "cuda/gqa_kernel.cuh"

namespace pykernels::cuda {
namespace {

GqaPlan plan_here(const GqaDecodeParams& params, bool programmatic) {
    const DeviceLimits& limits = device_limits();
    const GqaDevice device = {limits.sm_count, limits.shared_bytes, limits.sm_90, resident_clusters()};
    const PlanKey key = plan_key(params, true);
    // A table's plans are of scores without a soft cap.
    const PlanChoice choice = params.softcap == 0 ? planned_on_cuda(key, device_name) : PlanChoice{};
    if (choice.is_made() && !gqa_allows(params, device, choice))
        refuse_plan(key, choice, "a head_dim, clusters and shared memory that its kernel has there");
    return plan_gqa_decode(params, device, programmatic, choice);
}

// A table may have been set or cleared since the workspace was made.
void check_workspace(const GqaDecodeParams& params, const GqaPlan& plan) {
    const int64_t needed = gqa_workspace_bytes(plan, params.softmax);
    if (needed <= params.workspace_bytes) return;
    throw std::invalid_argument(
        "pykernels::gqa_decode: workspace must be of at least " + std::to_string(needed) + " bytes, got " +
        std::to_string(params.workspace_bytes) + ": it was made under another table of plans");
}

}  // namespace

size_t gqa_decode_workspace_bytes(const GqaDecodeParams& params) {
    // It does for PDL launches too, which have clusters wherever plain ones do (test_gqa_plan.cpp).
    return static_cast<size_t>(gqa_workspace_bytes(plan_here(params, false), params.softmax));
}

void gqa_decode(const GqaDecodeParams& params, const Stream& stream) {
    const GqaPlan plan = plan_here(params, stream.programmatic);
    check_workspace(params, plan);
    with_type("gqa_decode", params.dtype, [&](auto type) {
        const GqaKernel kernel =
            params.softmax == Softmax::unified
                ? gqa_unified_kernel(params.dtype, plan, params.head_dim)
                : kernel_of<decltype(type), OnlineSoftmax>(plan, params.head_dim, params.softcap);
        launch_clusters(kernel, plan.cluster_splits, plan.groups * plan.splits, gqa_threads,
                        static_cast<size_t>(plan.shared_bytes), stream, params, plan);
    });
}

}  // namespace pykernels::cuda
