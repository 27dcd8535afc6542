// qkv_gemv: q, k, v = rmsnorm(x) @ weight^T + bias; q and k turned by RoPE; k and v into the cache.
//
// A unit is dimensions d and d + head_dim / 2 of one head, the two that RoPE turns together: units count the
// first halves of all query heads, then of the K heads, then of the V heads (which are not turned).
#include "cuda/common/rope.cuh"
#include "cuda/mat_vec.cuh"

namespace pykernels::cuda {
namespace {

template <class Element>
struct QkvGemv {
    using T = Element;
    using Params = QkvGemvParams;

    __host__ __device__ static int units(const Params& p) {
        return (p.n_heads + 2 * p.n_kv_heads) * (p.head_dim / 2);
    }
    __host__ __device__ static int width(const Params& p) { return p.hidden; }
    __host__ __device__ static int batch(const Params& p) { return p.batch; }
    __host__ __device__ static const T* norm_weight(const Params& p) {
        return static_cast<const T*>(p.norm_weight);
    }
    __device__ static const T* x(const Params& p) { return static_cast<const T*>(p.x); }
    __device__ static float eps(const Params& p) { return p.eps; }

    // Which of q, k, v a unit belongs to, its head there and its first dimension.
    struct Place {
        int part, head, d;
    };
    __device__ static Place place(const Params& p, int unit) {
        const int half = p.head_dim / 2, head = unit / half, d = unit % half;
        if (head < p.n_heads) return {0, head, d};
        if (head < p.n_heads + p.n_kv_heads) return {1, head - p.n_heads, d};
        return {2, head - p.n_heads - p.n_kv_heads, d};
    }

    __device__ static RowPair<T> rows(const Params& p, int unit) {
        const Place at = place(p, unit);
        const void* weight = at.part == 0 ? p.q_weight : at.part == 1 ? p.k_weight : p.v_weight;
        const T* row = static_cast<const T*>(weight) + int64_t{at.head * p.head_dim + at.d} * p.hidden;
        return {row, row + int64_t{p.head_dim / 2} * p.hidden};
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

}  // namespace

void qkv_gemv(const QkvGemvParams& params, const Stream& stream) {
    with_type("qkv_gemv", params.dtype, [&](auto type) {
        launch_mat_vec<QkvGemv<decltype(type)>>(
            params,
            are_vectors(params.hidden, params.x, params.norm_weight, params.q_weight, params.k_weight,
                        params.v_weight),
            stream);
    });
}

}  // namespace pykernels::cuda
