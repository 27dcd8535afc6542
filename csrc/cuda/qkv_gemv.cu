// qkv_gemv: q, k, v = rmsnorm(x) @ weight^T + bias; q and k normalised (QK norm) and rotated by RoPE; k and v
// into the cache. The row pairs are those of gemv_epilogues.cuh.
#include "cuda/gemv_epilogues.cuh"
#include "cuda/gemv_launch.cuh"

namespace pykernels::cuda {
namespace {

template <class Element>
struct QkvGemv : QkvEpilogue<Element, QkvGemvParams> {
    using T = Element;
    using Params = QkvGemvParams;

    __host__ __device__ static int width(const Params& p) { return p.hidden; }
    __host__ __device__ static int batch(const Params& p) { return p.batch; }
    __host__ __device__ static const T* norm_weight(const Params& p) {
        return static_cast<const T*>(p.norm_weight);
    }
    __device__ static const T* x(const Params& p) { return static_cast<const T*>(p.x); }
    __device__ static float eps(const Params& p) { return p.eps; }

    __device__ static RowPair<T> rows(const Params& p, int pair) {
        const auto [projection, head, d] = QkvGemv::head_row(p, pair);
        const void* weight = projection == 0 ? p.q_weight : projection == 1 ? p.k_weight : p.v_weight;
        const T* row = static_cast<const T*>(weight) + int64_t{head * p.head_dim + d} * p.hidden;
        return {row, row + int64_t{p.head_dim / 2} * p.hidden};
    }
};

}  // namespace

void qkv_gemv(const QkvGemvParams& params, const Stream& stream) {
    with_type("qkv_gemv", params.dtype, [&](auto type) {
        launch_gemv<QkvGemv<decltype(type)>>(params,
                                             are_vectors(params.hidden, params.x, params.norm_weight,
                                                         params.q_weight, params.k_weight, params.v_weight),
                                             stream);
    });
}

}  // namespace pykernels::cuda
