// The epilogues of the GEMVs, for dense and 4-bit weights: what is done with the sums of a row pair. `Params`
// is that of gemv or int4_gemv, and so on. gemv_mainloop.cuh documents the functions.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/common/rope.cuh"
#include "cuda/qk_norm.cuh"
#include "params.h"

namespace pykernels::cuda {

// + bias, scaled and capped, + residual. Row pair i is rows 2i and 2i + 1.
template <class T, class Params>
struct GemvEpilogue {
    __device__ static float norm_offset(const Params&) { return 0; }

    __host__ __device__ static int row_pairs(const Params& p) { return (p.out_features + 1) / 2; }

    __device__ static int position(const Params&, int) { return 0; }

    struct Extra {
        T bias[2], residual[2];
    };
    __device__ static Extra prepare(const Params& p, int pair, int b, int) {
        Extra extra = {};  // zeros
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = 2 * pair + i;
            if (row >= p.out_features) break;
            if (p.bias) extra.bias[i] = load(static_cast<const T*>(p.bias) + row);
            if (p.residual)
                extra.residual[i] =
                    load(static_cast<const T*>(p.residual) + int64_t{b} * p.out_features + row);
        }
        return extra;
    }

    __device__ static void finish(const Params& p, int pair, int b, const Extra& extra, float sum_a,
                                  float sum_b) {
        T* out = static_cast<T*>(p.out) + int64_t{b} * p.out_features + 2 * pair;
        store1(out, value(p, sum_a + to_float(extra.bias[0])) + to_float(extra.residual[0]));
        if (2 * pair + 1 < p.out_features)
            store1(out + 1, value(p, sum_b + to_float(extra.bias[1])) + to_float(extra.residual[1]));
    }

    __device__ static float value(const Params& p, float sum) {
        sum *= p.scale;
        return p.softcap > 0 ? soft_capped(sum, p.softcap) : sum;
    }

    __device__ static void end_block(const Params&, int, int) {}
};

// activation(gate) * up. Row pair i is row i of both weights.
template <class T, class Params>
struct SwigluEpilogue {
    __device__ static float norm_offset(const Params& p) { return p.norm_offset; }

    __host__ __device__ static int row_pairs(const Params& p) { return p.out_features; }

    __device__ static int position(const Params&, int) { return 0; }

    struct Extra {};
    __device__ static Extra prepare(const Params&, int, int, int) { return {}; }

    __device__ static void finish(const Params& p, int pair, int b, const Extra&, float gate, float up) {
        store1(static_cast<T*>(p.out) + int64_t{b} * p.out_features + pair,
               activate(p.activation, gate) * up);
    }

    __device__ static void end_block(const Params&, int, int) {}
};

// + bias, QK norm, RoPE for q and k, k and v into the cache. A row pair is dimensions d and d + head_dim / 2
// of one head, which RoPE rotates together. Row pairs number the first halves of all query heads, then of the
// K heads, then of the V heads (which are not rotated).
template <class T, class Params>
struct QkvEpilogue {
    __device__ static float norm_offset(const Params& p) { return p.norm_offset; }

    __host__ __device__ static int row_pairs(const Params& p) {
        return (p.n_heads + 2 * p.n_kv_heads) * (p.head_dim / 2);
    }

    // The projection (0: q, 1: k, 2: v), the head and the first dimension of a row pair.
    struct HeadRow {
        int projection, head, d;
    };
    __device__ static HeadRow head_row(const Params& p, int pair) {
        const int half = p.head_dim / 2, head = head_of(pair, half), d = pair - head * half;
        if (head < p.n_heads) return {0, head, d};
        if (head < p.n_heads + p.n_kv_heads) return {1, head - p.n_heads, d};
        return {2, head - p.n_heads - p.n_kv_heads, d};
    }

    __device__ static int position(const Params& p, int b) { return position_of(p, b); }

    // The biases of both dimensions, and the rotation's cosine and sine: 1 and 0 for v.
    struct Extra {
        int position;
        T low, high;
        float cosine, sine;
    };
    __device__ static Extra prepare(const Params& p, int pair, int b, int position) {
        const auto [projection, head, d] = head_row(p, pair);
        if (p.q_norm && projection != 2) QkNorm<T, Params>::prefetch(p, pair, b, projection == 0, head, d);
        const int half = p.head_dim / 2, row = head * p.head_dim + d;
        Extra extra = {position, {}, {}, 1, 0};
        const void* bias = projection == 0 ? p.q_bias : projection == 1 ? p.k_bias : p.v_bias;
        if (bias) {
            extra.low = load(static_cast<const T*>(bias) + row);
            extra.high = load(static_cast<const T*>(bias) + row + half);
        }
        if (projection != 2) {
            const float* angles = p.cos_sin + int64_t{position} * p.head_dim + d;
            extra.cosine = load(angles);
            extra.sine = load(angles + half);
        }
        return extra;
    }

    __device__ static void finish(const Params& p, int pair, int b, const Extra& extra, float low,
                                  float high) {
        const auto [projection, head, d] = head_row(p, pair);
        const int half = p.head_dim / 2, row = head * p.head_dim + d;
        low += to_float(extra.low);
        high += to_float(extra.high);
        if (p.q_norm && projection != 2) return QkNorm<T, Params>::keep(p, pair, b, low, high);
        const float2 rotated = rotate(extra.cosine, extra.sine, low, high);
        T* out;
        if (projection == 0) {
            out = static_cast<T*>(p.q_out) + int64_t{b} * p.n_heads * p.head_dim + row;
        } else {
            out = static_cast<T*>(projection == 1 ? p.k_cache : p.v_cache) +
                  (int64_t{b * p.n_kv_heads + head} * p.max_len + extra.position) * p.head_dim + d;
        }
        store1(out, rotated.x);
        store1(out + half, rotated.y);
    }

    __device__ static void end_block(const Params& p, int begin, int end) {
        if (p.q_norm) QkNorm<T, Params>::end_block(p, begin, end);
    }
};

}  // namespace pykernels::cuda
