// rope_kv_append: q and k rotated by RoPE, k and v appended to the cache at each sequence's position. One
// thread per pair of dimensions, numbered through the heads of q, then k, then v.

#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/rope.cuh"
#include "cuda/common/timestamps.cuh"

namespace pykernels::cuda {
namespace {

constexpr int rope_threads = 128;

template <class T>
__global__ void __launch_bounds__(rope_threads)
    rope_kv_append_kernel(const __grid_constant__ RopeKvAppendParams params) {
    Timestamps timestamps;
    wait_for_producers();
    timestamps.mark(TimestampPoint::producers_done);
    launch_dependents();
    const int half = params.head_dim / 2, heads = params.n_heads + 2 * params.n_kv_heads;
    const int index = static_cast<int>(blockIdx.x) * rope_threads + static_cast<int>(threadIdx.x);
    if (index >= params.batch * heads * half) return;
    const int b = index / (heads * half), head = index / half % heads, d = index % half;
    const int position = position_of(params, b);
    const bool is_q = head < params.n_heads, is_k = !is_q && head < params.n_heads + params.n_kv_heads;
    const int own_head = is_q   ? head
                         : is_k ? head - params.n_heads
                                : head - params.n_heads - params.n_kv_heads;
    const int64_t row =
        (int64_t{b} * (is_q ? params.n_heads : params.n_kv_heads) + own_head) * params.head_dim + d;
    const T* in = static_cast<const T*>(is_q ? params.q : is_k ? params.k : params.v) + row;
    T* out = static_cast<T*>(params.q_out) + row;
    if (!is_q) {
        out = static_cast<T*>(is_k ? params.k_cache : params.v_cache) +
              (int64_t{b * params.n_kv_heads + own_head} * params.max_len + position) * params.head_dim + d;
    }
    float2 pair = make_float2(load1(in), load1(in + half));
    if (is_q || is_k) {
        const float* angles = params.cos_sin + int64_t{position} * params.head_dim + d;
        pair = rotate(load(angles), load(angles + half), pair.x, pair.y);
    }
    store1(out, pair.x);
    store1(out + half, pair.y);
}

}  // namespace

void rope_kv_append(const RopeKvAppendParams& params, const Stream& stream) {
    const int pairs = params.batch * (params.n_heads + 2 * params.n_kv_heads) * (params.head_dim / 2);
    with_type("rope_kv_append", params.dtype, [&](auto type) {
        launch(rope_kv_append_kernel<decltype(type)>, (pairs + rope_threads - 1) / rope_threads, rope_threads,
               0, stream, params);
    });
}

}  // namespace pykernels::cuda
