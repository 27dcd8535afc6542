// The QK norm of the qkv GEMVs: RMSNorm over each head of q and k (Qwen3, Gemma 3), or over all of a
// sequence's heads together (OLMo 2), before RoPE.
//
// The rows of a head are spread over blocks, so a block's epilogue leaves the sums of its row pairs in the
// workspace (qk_norm_bytes() of params.h) and then adds their number to the counter of the sequence's head.
// The block that completes a counter normalises the head, rotates and stores it: a warp a (sequence, head),
// or all warps together where all heads are one group. It sets the counter and the sums back to zero.
//
// Sums are flagged: their words are zero until they are written. So there is no fence and no barrier, and a
// counter says only who reads: a count may overtake sums that were stored before it, and those of the block's
// other warps come when they come. Whoever completes a counter polls for them. All of them are in flight by
// then, or their block is running: nobody waits for a block that has not started.
//
// What it costs: the latency of an atomic of the L2, the sum over a warp and the stores. Everything else that
// a warp loads is in flight at the same time as the atomic; and what would come from DRAM is prefetched to
// the L2 when the block begins its row pairs.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/common/rope.cuh"
#include "params.h"

namespace pykernels::cuda {

// The head that row pair `pair` belongs to, where a head has `half` of them. A shift for usual head sizes:
// loads wait for this, and a division would delay them.
__device__ __forceinline__ int head_of(int pair, int half) {
    return half == 64 ? pair / 64 : half == 32 ? pair / 32 : pair / half;
}

template <class T, class Params>
struct QkNorm {
    // Ahead of the mainloop: what the norm will need of a row pair comes to the L2 meanwhile.
    __device__ static void prefetch(const Params& p, int pair, int b, bool is_q, int head, int d) {
        prefetch_l2(sums(p, b) + pair);
        prefetch_l2(counter(p, b, is_q ? head : p.n_heads + head));
        const T* weight = weights(p, is_q, head) + d;
        prefetch_l2(weight);
        prefetch_l2(weight + p.head_dim / 2);
    }

    __device__ static void keep(const Params& p, int pair, int b, float low, float high) {
        store_flagged(sums(p, b) + pair, make_float2(low, high));
    }

    // All threads of a block call once they have kept the sums of row pairs begin to end - 1.
    __device__ __forceinline__ static void end_block(const Params& p, int begin, int end) {
        end = min(end, qk_heads(p) * (p.head_dim / 2));
        if (begin >= end) return;
        if (p.norms_all_heads) return end_block_of_all(p, begin, end);
        const int half = p.head_dim / 2, warps = static_cast<int>(blockDim.x / warp_size);
        int b = static_cast<int>(threadIdx.x / warp_size);
        for (int head = head_of(begin, half); head * half < end; ++head, b -= p.batch) {
            const int count = min(end, (head + 1) * half) - max(begin, head * half);
#pragma unroll 1
            for (; b < p.batch; b += warps) norm_head(p, head, b, count);
        }
    }

  private:
    __device__ static int qk_heads(const Params& p) { return p.n_heads + p.n_kv_heads; }

    // Offsets in the workspace fit 32 bits: max_size of params.h.
    // [row pair of q, then of k]
    __device__ static float2* sums(const Params& p, int b) {
        return static_cast<float2*>(p.workspace) + static_cast<uint32_t>(b * qk_heads(p) * (p.head_dim / 2));
    }

    // Of a head of q, then of k; of the first one where all of q or of k are normalised together.
    __device__ static uint32_t* counter(const Params& p, int b, int head) {
        return static_cast<uint32_t*>(p.workspace) +
               static_cast<uint32_t>(qk_heads(p) * (p.batch * p.head_dim + b) + head);
    }

    // `head` counts from 0 in q and in k.
    __device__ static const T* weights(const Params& p, bool is_q, int head) {
        return static_cast<const T*>(is_q ? p.q_norm : p.k_norm) +
               (p.norms_all_heads ? head * p.head_dim : 0);
    }

    __device__ static const float* angles(const Params& p, int position) {
        return p.cos_sin + static_cast<uint32_t>(position) * static_cast<uint32_t>(p.head_dim);
    }

    __device__ static T* out(const Params& p, int b, bool is_q, int head, int position) {
        return is_q ? static_cast<T*>(p.q_out) + int64_t{b * p.n_heads + head} * p.head_dim
                    : static_cast<T*>(p.k_cache) +
                          (int64_t{b * p.n_kv_heads + head} * p.max_len + position) * p.head_dim;
    }

    // What a row pair is multiplied by, as loaded.
    struct Factors {
        float cosine, sine;
        T low, high;
    };
    __device__ static Factors load_factors(const float* angles, const T* weight, int half) {
        return {load(angles), load(angles + half), load(weight), load(weight + half)};
    }
    // All but the scale, which comes last.
    __device__ static float2 product(const Params& p, const Factors& by, float low, float high) {
        return rotate(by.cosine, by.sine, low * (to_float(by.low) + p.norm_offset),
                      high * (to_float(by.high) + p.norm_offset));
    }
    __device__ static void finish(const float2& product, float scale, T* out, int half) {
        store1(out, product.x * scale);
        store1(out + half, product.y * scale);
    }

    // Of the sums of two row pairs.
    __device__ static float squares(const float4& v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }

    // A warp counts `count` row pairs of a head, and normalises the head if that makes it complete. A lane
    // has row pairs 2 i and 2 i + 1, i = lane and lane + 32: all of a head_dim up to 256.
    __device__ __forceinline__ static void norm_head(const Params& p, int head, int b, int count) {
        constexpr int vectors = 2;
        const int half = p.head_dim / 2, lane = static_cast<int>(threadIdx.x % warp_size);
        const bool is_q = head < p.n_heads;
        const int own_head = is_q ? head : head - p.n_heads;
        auto* const from = reinterpret_cast<float4*>(sums(p, b) + static_cast<uint32_t>(head * half)) + lane;
        const auto exists = [&](int i) { return 2 * (lane + i * warp_size) < half; };

        uint32_t before = 0;
        if (lane == 0) before = atomic_add(counter(p, b, head), static_cast<uint32_t>(count));
        float4 v[vectors] = {};
#pragma unroll
        for (int i = 0; i < vectors; ++i) {
            if (exists(i)) v[i] = load_flagged(from + i * warp_size);
        }
        const int position = position_of(p, b);
        const float* const angle = angles(p, position) + 2 * lane;
        const T* const weight = weights(p, is_q, own_head) + 2 * lane;
        Factors by[2 * vectors] = {};
#pragma unroll
        for (int i = 0; i < 2 * vectors; ++i) {
            const int d = i / 2 * 2 * warp_size + i % 2;
            if (exists(i / 2)) by[i] = load_factors(angle + d, weight + d, half);
        }
        T* const to = out(p, b, is_q, own_head, position) + 2 * lane;
        const float root =
            reciprocal_sqrt(static_cast<float>(p.head_dim));  // squared: no division to wait for
        if (shuffle_index(before, 0) + static_cast<uint32_t>(count) != static_cast<uint32_t>(half)) return;

        if (lane == 0) atomic_add(counter(p, b, head), 0u - static_cast<uint32_t>(half));
        float sum = 0;
        float2 products[2 * vectors];
#pragma unroll
        for (int i = 0; i < vectors; ++i) {
            if (!exists(i)) break;
            while (!is_written(v[i])) v[i] = load_flagged(from + i * warp_size);
            clear_flagged(from + i * warp_size);
            sum += squares(v[i]);
            products[2 * i] = product(p, by[2 * i], v[i].x, v[i].y);
            products[2 * i + 1] = product(p, by[2 * i + 1], v[i].z, v[i].w);
        }
        const float scale = reciprocal_sqrt(warp_sum(sum) * (root * root) + p.eps);
#pragma unroll
        for (int i = 0; i < 2 * vectors; ++i) {
            if (exists(i / 2)) finish(products[i], scale, to + i / 2 * 2 * warp_size + i % 2, half);
        }
    }

    // The same with all heads of q, and all of k, as one group each; all threads share one. Not inlined: few
    // models take it.
    __device__ static __attribute__((noinline)) void end_block_of_all(const Params& p, int begin, int end) {
        const int half = p.head_dim / 2, thread = static_cast<int>(threadIdx.x),
                  threads = static_cast<int>(blockDim.x), q_pairs = p.n_heads * half;
#pragma unroll 1
        for (int group = 0; group < 2; ++group) {
            const bool is_q = group == 0;
            const int first = is_q ? 0 : q_pairs, pairs = is_q ? q_pairs : p.n_kv_heads * half,
                      count = min(end, first + pairs) - max(begin, first);
            if (count <= 0) continue;
            const auto counter = [&](int b) { return QkNorm::counter(p, b, is_q ? 0 : p.n_heads); };
            bool completes = false;  // of thread b: sequence b
            if (thread < p.batch) {
                const uint32_t before = atomic_add(counter(thread), static_cast<uint32_t>(count));
                completes = before + static_cast<uint32_t>(count) == static_cast<uint32_t>(pairs);
            }
#pragma unroll 1
            for (int b = 0; b < p.batch; ++b) {
                // Behind this barrier nothing in shared memory is needed any more: neither what the kernel
                // has there, nor the last sequence's sums of warps.
                if (!block_any(completes && thread == b)) continue;
                if (thread == 0) atomic_add(counter(b), 0u - static_cast<uint32_t>(pairs));
                auto* const from = reinterpret_cast<float4*>(sums(p, b) + static_cast<uint32_t>(first));
                float sum = 0;
#pragma unroll 1
                for (int i = thread; i < pairs / 2; i += threads) {
                    float4 v;
                    do v = load_flagged(from + i);
                    while (!is_written(v));
                    sum += squares(v);
                }
                sum = block_sum(sum, reinterpret_cast<float*>(shared_memory()));
                const float scale = reciprocal_sqrt(sum / static_cast<float>(2 * pairs) + p.eps);
                const int position = position_of(p, b);
#pragma unroll 1
                for (int i = thread; i < pairs / 2; i += threads) {
                    const float4 v = load_flagged(from + i);
                    clear_flagged(from + i);
                    const int head = head_of(2 * i, half), d = 2 * i - head * half;  // half is even
                    const float* const angle = angles(p, position) + d;
                    const T* const weight = weights(p, is_q, head) + d;
                    T* const to = out(p, b, is_q, head, position) + d;
                    finish(product(p, load_factors(angle, weight, half), v.x, v.y), scale, to, half);
                    finish(product(p, load_factors(angle + 1, weight + 1, half), v.z, v.w), scale, to + 1,
                           half);
                }
            }
        }
    }
};

}  // namespace pykernels::cuda
