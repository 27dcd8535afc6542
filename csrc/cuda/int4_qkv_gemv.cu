// int4_qkv_gemv: q, k, v = rmsnorm(x) @ w^T + bias, w of 4 bits; q and k normalised (QK norm) and
// rotated by RoPE; k and v into the cache. The row pairs are those of gemv_epilogues.cuh.
#include "cuda/gemv_epilogues.cuh"
#include "cuda/int4_gemv_general.cuh"

namespace pykernels::cuda {
namespace {

template <class Element>
struct Int4QkvGemv : QkvEpilogue<Element, Int4QkvGemvParams> {
    using T = Element;
    using Params = Int4QkvGemvParams;
    static constexpr int n_weights = 3;
    static constexpr bool splits_columns = false;

    __host__ __device__ static int width(const Params& p) { return p.hidden; }
    __host__ __device__ static int batch(const Params& p) { return p.batch; }
    __host__ __device__ static const T* norm_weight(const Params& p) {
        return static_cast<const T*>(p.norm_weight);
    }
    __host__ __device__ static const T* x(const Params& p) { return static_cast<const T*>(p.x); }
    __device__ static float eps(const Params& p) { return p.eps; }

    __host__ __device__ static const Int4WeightParams& weight(const Params& p, int i) {
        return i == 0 ? p.q : i == 1 ? p.k : p.v;
    }
    __device__ static int weight_rows(const Params& p, int i) {
        return (i == 0 ? p.n_heads : p.n_kv_heads) * p.head_dim;
    }
    __device__ static Int4Row row(const Params& p, int pair, int side) {
        const auto [projection, head, d] = Int4QkvGemv::head_row(p, pair);
        return {projection, head * p.head_dim + d + side * (p.head_dim / 2)};
    }
};

}  // namespace

void int4_qkv_gemv(const Int4QkvGemvParams& params, const Stream& stream) {
    with_type("int4_qkv_gemv", params.dtype,
              [&](auto type) { launch_int4_gemv<Int4QkvGemv<decltype(type)>>(params, stream); });
}

}  // namespace pykernels::cuda
