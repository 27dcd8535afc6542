// What is done with the sums of a unit's two rows, for weights of any kind: `Params` is that of gemv or
// int4_gemv, and so on. gemv.cuh says what the functions mean.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/common/rope.cuh"
#include "params.h"

namespace pykernels::cuda {

// + bias + residual. A unit is rows 2u and 2u + 1.
template <class T, class Params>
struct GemvEpilogue {
    __host__ __device__ static int units(const Params& p) { return (p.out_features + 1) / 2; }

    __device__ static int position(const Params&, int) { return 0; }

    struct Extra {
        T bias[2], residual[2];
    };
    __device__ static Extra prepare(const Params& p, int unit, int b, int) {
        Extra extra = {};  // zeros
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = 2 * unit + i;
            if (row >= p.out_features) break;
            if (p.bias) extra.bias[i] = load(static_cast<const T*>(p.bias) + row);
            if (p.residual)
                extra.residual[i] =
                    load(static_cast<const T*>(p.residual) + int64_t{b} * p.out_features + row);
        }
        return extra;
    }

    __device__ static void finish(const Params& p, int unit, int b, const Extra& extra, float sum_a,
                                  float sum_b) {
        T* out = static_cast<T*>(p.out) + int64_t{b} * p.out_features + 2 * unit;
        store1(out, sum_a + to_float(extra.bias[0]) + to_float(extra.residual[0]));
        if (2 * unit + 1 < p.out_features)
            store1(out + 1, sum_b + to_float(extra.bias[1]) + to_float(extra.residual[1]));
    }
};

// silu(gate) * up. A unit is row u of both weights.
template <class T, class Params>
struct SwigluEpilogue {
    __host__ __device__ static int units(const Params& p) { return p.out_features; }

    __device__ static int position(const Params&, int) { return 0; }

    struct Extra {};
    __device__ static Extra prepare(const Params&, int, int, int) { return {}; }

    __device__ static void finish(const Params& p, int unit, int b, const Extra&, float gate, float up) {
        store1(static_cast<T*>(p.out) + int64_t{b} * p.out_features + unit, silu(gate) * up);
    }
};

// + bias, RoPE for q and k, k and v into the cache. A unit is dimensions d and d + head_dim / 2 of one head,
// the two that RoPE turns together: units count the first halves of all query heads, then of the K heads,
// then of the V heads (which are not turned).
template <class T, class Params>
struct QkvEpilogue {
    __host__ __device__ static int units(const Params& p) {
        return (p.n_heads + 2 * p.n_kv_heads) * (p.head_dim / 2);
    }

    // Which of q, k, v a unit belongs to, its head there and its first dimension.
    struct Place {
        int part, head, d;
    };
    __device__ static Place place(const Params& p, int unit) {
        const int half = p.head_dim / 2;
        // A shift for the models' heads: a division takes as long as a copy that waits for it.
        const int head = half == 64   ? unit / 64
                         : half == 32 ? unit / 32
                                      : unit / half,
                  d = unit - head * half;
        if (head < p.n_heads) return {0, head, d};
        if (head < p.n_heads + p.n_kv_heads) return {1, head - p.n_heads, d};
        return {2, head - p.n_heads - p.n_kv_heads, d};
    }

    __device__ static int position(const Params& p, int b) { return load(p.position + b); }

    // The biases of both dimensions, and how they are turned: v by nothing.
    struct Extra {
        int position;
        T low, high;
        float cosine, sine;
    };
    __device__ static Extra prepare(const Params& p, int unit, int, int position) {
        const Place at = place(p, unit);
        const int half = p.head_dim / 2, row = at.head * p.head_dim + at.d;
        Extra extra = {position, {}, {}, 1, 0};
        const void* bias = at.part == 0 ? p.q_bias : at.part == 1 ? p.k_bias : p.v_bias;
        if (bias) {
            extra.low = load(static_cast<const T*>(bias) + row);
            extra.high = load(static_cast<const T*>(bias) + row + half);
        }
        if (at.part != 2) {
            const float* angles = p.cos_sin + int64_t{position} * p.head_dim + at.d;
            extra.cosine = load(angles);
            extra.sine = load(angles + half);
        }
        return extra;
    }

    __device__ static void finish(const Params& p, int unit, int b, const Extra& extra, float low,
                                  float high) {
        const Place at = place(p, unit);
        const int half = p.head_dim / 2, row = at.head * p.head_dim + at.d;
        const float2 turned =
            rotate(extra.cosine, extra.sine, low + to_float(extra.low), high + to_float(extra.high));
        T* out;
        if (at.part == 0) {
            out = static_cast<T*>(p.q_out) + int64_t{b} * p.n_heads * p.head_dim + row;
        } else {
            out = static_cast<T*>(at.part == 1 ? p.k_cache : p.v_cache) +
                  (int64_t{b * p.n_kv_heads + at.head} * p.max_len + extra.position) * p.head_dim + at.d;
        }
        store1(out, turned.x);
        store1(out + half, turned.y);
    }
};

}  // namespace pykernels::cuda
