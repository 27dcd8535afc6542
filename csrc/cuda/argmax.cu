// argmax: the greedy token of each sequence (the lowest index of its largest logit, or the first NaN), and
// the increment of position and kv_len.
//
// A cluster of blocks takes a sequence (argmax_plan.h). A block takes a contiguous part of the vocabulary, a
// thread every 512th item of it. The results of lanes, warps and blocks are reduced by value, then index, so
// that ties do not depend on the order of the reduction. It uses no global scratch memory.
//
// Fewest bytes: the logits, once. lm_head has just written them, so they are in the L2. Limit: latency.
//
// It writes token, position and kv_len. A kernel that reads them ahead of griddepcontrol.wait must not be the
// PDL launch right behind it.
#include <cmath>
#include <cstdint>

#include "cuda/argmax_plan.h"
#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/timestamps.cuh"

namespace pykernels::cuda {
namespace {

constexpr int warps = argmax_threads / warp_size;
static_assert(warps <= warp_size && argmax_max_cluster <= warp_size, "one warp reduces them");

struct Best {
    // The identity of the reduction: any logit replaces it.
    float value = -INFINITY;
    int32_t index = INT32_MAX;

    __device__ __forceinline__ void offer(float other, int32_t other_index) {
        const bool is_nan = other != other, have_nan = value != value;
        const bool equal = other == value || (is_nan && have_nan);
        if (equal ? other_index < index : is_nan || other > value) {
            value = other;
            index = other_index;
        }
    }

    // All lanes get the result of their warp.
    __device__ __forceinline__ void reduce_lanes() {
#pragma unroll
        for (int mask = warp_size / 2; mask > 0; mask /= 2) {
            const float other = shuffle_xor(value, mask);
            offer(other, shuffle_xor(index, mask));
        }
    }

    // As a float4, which blocks of a cluster read from each other. Both halves of the index are exact as
    // floats.
    __device__ __forceinline__ float4 packed() const {
        return make_float4(value, static_cast<float>(index >> 16), static_cast<float>(index & 0xffff), 0);
    }
    __device__ __forceinline__ void offer(const float4& packed) {
        offer(packed.x, static_cast<int32_t>(packed.y) << 16 | static_cast<int32_t>(packed.z));
    }
};

template <class T, bool vectors>
__global__ void __launch_bounds__(argmax_threads)
    argmax_kernel(const __grid_constant__ ArgmaxParams params, const __grid_constant__ ArgmaxPlan plan) {
    Timestamps timestamps;
    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    auto* results = reinterpret_cast<float4*>(shared_memory());  // [warps], then the block's
    const int thread = static_cast<int>(threadIdx.x), lane = thread % warp_size, warp = thread / warp_size;
    const int rank = cluster_rank(), sequence = static_cast<int>(blockIdx.x) / plan.cluster_blocks;
    const T* logits = static_cast<const T*>(params.logits) + int64_t{sequence} * params.vocab;
    const int items = vectors ? params.vocab / vector_elements : params.vocab;
    const int begin = rank * plan.block_items, end = min(begin + plan.block_items, items);
    Best best;
#pragma unroll 4
    for (int i = begin + thread; i < end; i += argmax_threads) {
        if constexpr (vectors) {
            const Floats8 v = load8(logits + i * vector_elements);
#pragma unroll
            for (int j = 0; j < vector_elements; ++j) best.offer(v[j], i * vector_elements + j);
        } else {
            best.offer(load1(logits + i), i);
        }
    }
    best.reduce_lanes();
    if (lane == 0) store(results + warp, best.packed());
    block_barrier();  // the results of all warps are in shared memory
    if (warp == 0) {
        best = {};
        if (lane < warps) best.offer(load(results + lane));
        best.reduce_lanes();
        if (lane == 0) store(results + warps, best.packed());
    }
    cluster_arrive();
    cluster_wait();  // the results of all blocks are in their shared memory
    if (rank == 0 && warp == 0) {
        best = {};
        if (lane < plan.cluster_blocks) best.offer(load_shared_of(lane, results + warps));
        best.reduce_lanes();
        if (lane == 0) {
            store(params.token + sequence, int64_t{best.index});
            if (params.position != nullptr) {
                const int32_t position = load(params.position + sequence);
                if (position < params.max_len - 1) {
                    store(params.position + sequence, position + 1);
                    store(params.kv_len + sequence, load(params.kv_len + sequence) + 1);
                }
            }
        }
    }
    cluster_arrive();
    cluster_wait();  // the first block has read them: the others may exit
}

}  // namespace

void argmax(const ArgmaxParams& params, const Stream& stream) {
    const ArgmaxPlan plan =
        plan_argmax(params.vocab, are_vectors(params.vocab, params.logits), device_limits().sm_90);
    with_type("argmax", params.dtype, [&](auto type) {
        using T = decltype(type);
        launch_clusters(plan.vectors ? argmax_kernel<T, true> : argmax_kernel<T, false>, plan.cluster_blocks,
                        params.batch * plan.cluster_blocks, argmax_threads, (warps + 1) * sizeof(float4),
                        stream, params, plan);
    });
}

}  // namespace pykernels::cuda
