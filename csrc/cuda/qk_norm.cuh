// The QK norm of the qkv GEMVs: RMSNorm over each head of q and k (Qwen3, Gemma 3), or over all of a
// sequence's heads together (OLMo 2), before RoPE.
//
// The rows of a head are spread over blocks, so a block's epilogue leaves the sums of its row pairs in the
// workspace (qk_norm_bytes() of params.h) and adds their number to the head's counter. The block that
// completes a head normalises it, rotates it and writes it, a warp a head, and sets the counter back to zero.
// Nobody waits for another block. What it costs: a fence, an atomic and a read from L2 at the end of the
// kernel.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/common/rope.cuh"
#include "params.h"

namespace pykernels::cuda {

template <class T, class Params>
struct QkNorm {
    // What is normalised together: the row pairs begin to end - 1 of q and k.
    struct Group {
        int begin, end;
    };
    // Group i of those that have row pairs from `first` on; past the last one an empty one at the end.
    __device__ static Group group(const Params& p, int first, int i) {
        const int half = p.head_dim / 2, q_pairs = p.n_heads * half;
        if (p.norms_all_heads) {
            const int index = i + (first >= q_pairs), pairs = qk_pairs(p);
            return index == 0 ? Group{0, q_pairs} : Group{index == 1 ? q_pairs : pairs, pairs};
        }
        const int begin = (first / half + i) * half;
        return {begin, begin + half};
    }
    __device__ static int qk_pairs(const Params& p) { return (p.n_heads + p.n_kv_heads) * (p.head_dim / 2); }

    __device__ static float2* sums(const Params& p, int b) {
        auto* memory =
            static_cast<unsigned char*>(p.workspace) + qk_norm_counter_bytes(p.n_heads, p.n_kv_heads);
        return reinterpret_cast<float2*>(memory) + int64_t{b} * qk_pairs(p);
    }

    __device__ static void keep(const Params& p, int pair, int b, float low, float high) {
        store(sums(p, b) + pair, make_float2(low, high));
    }

    // All threads of a block call once it has kept the sums of row pairs begin to end - 1. Not inlined: every
    // kernel of the GEMVs would hold a copy.
    __device__ static __attribute__((noinline)) void end_block(const Params& p, int begin, int end) {
        end = min(end, qk_pairs(p));
        const int warp = static_cast<int>(threadIdx.x) / warp_size,
                  warps = static_cast<int>(blockDim.x) / warp_size,
                  lane = static_cast<int>(threadIdx.x) % warp_size;
        bool more = begin < end;
        for (int first = 0; more; first += warps) {
            block_barrier();  // all threads have kept their sums
            const Group own = group(p, begin, first + warp);
            uint32_t complete = 0;
            if (own.begin < end && lane == 0) {
                const auto count = static_cast<uint32_t>(min(end, own.end) - max(begin, own.begin)),
                           size = static_cast<uint32_t>(own.end - own.begin);
                fence_device();  // the block's sums before its count
                complete = atomic_add(counter(p, own), count) + count == size;
            }
            complete = shuffle_index(complete, 0);
            block_barrier();  // all counts before anything else that the block writes
            if (complete) {
                fence_device();  // the others' counts before their sums
                if (lane == 0) store(counter(p, own), 0u);
                for (int b = 0; b < p.batch; ++b) norm(p, own.begin, own.end, b, lane);
            }
            more = group(p, begin, first + warps).begin < end;
        }
    }

  private:
    __device__ static uint32_t* counter(const Params& p, const Group& group) {
        return static_cast<uint32_t*>(p.workspace) + group.begin / (p.head_dim / 2);
    }

    // A warp normalises, rotates and writes one group of one sequence.
    __device__ static void norm(const Params& p, int begin, int end, int b, int lane) {
        constexpr int kept = 4;  // pairs that a lane keeps in registers: all of a head_dim up to 256
        const float2* from = sums(p, b);
        const int half = p.head_dim / 2;
        float2 kept_sums[kept];
        float squares = 0;
        const auto add = [&](const float2& v) { squares += v.x * v.x + v.y * v.y; };
#pragma unroll
        for (int i = 0; i < kept; ++i) {
            const int pair = begin + lane + i * warp_size;
            kept_sums[i] = pair < end ? load_fresh(from + pair) : make_float2(0, 0);
        }
#pragma unroll
        for (int i = 0; i < kept; ++i) add(kept_sums[i]);
        const int rest = begin + lane + kept * warp_size;
        for (int pair = rest; pair < end; pair += warp_size) add(load_fresh(from + pair));
        const float scale =
            reciprocal_sqrt(warp_sum(squares) / static_cast<float>(2 * (end - begin)) + p.eps);

        const int position = clamp_index(load(p.position + b), min(p.max_len, p.max_position));
        const float* angles = p.cos_sin + int64_t{position} * p.head_dim;
        const auto finish = [&](int pair, const float2& v) {
            const bool is_q = pair < p.n_heads * half;
            const int own_pair = is_q ? pair : pair - p.n_heads * half, head = own_pair / half,
                      d = own_pair - head * half;
            const T* weight = static_cast<const T*>(is_q ? p.q_norm : p.k_norm) +
                              (p.norms_all_heads ? head * p.head_dim : 0) + d;
            const float2 rotated = rotate(load(angles + d), load(angles + half + d),
                                          v.x * scale * (load1(weight) + p.norm_offset),
                                          v.y * scale * (load1(weight + half) + p.norm_offset));
            T* out = is_q ? static_cast<T*>(p.q_out) + (int64_t{b} * p.n_heads + head) * p.head_dim + d
                          : static_cast<T*>(p.k_cache) +
                                (int64_t{b * p.n_kv_heads + head} * p.max_len + position) * p.head_dim + d;
            store1(out, rotated.x);
            store1(out + half, rotated.y);
        };
#pragma unroll
        for (int i = 0; i < kept; ++i) {
            const int pair = begin + lane + i * warp_size;
            if (pair < end) finish(pair, kept_sums[i]);
        }
        for (int pair = rest; pair < end; pair += warp_size) finish(pair, load_fresh(from + pair));
    }
};

}  // namespace pykernels::cuda
