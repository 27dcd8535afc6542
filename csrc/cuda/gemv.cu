// gemv: out = x @ weight^T + bias, scaled and capped, + residual. Row pair i is rows 2i and 2i + 1 of the
// weight.
#include "cuda/gemv_epilogues.cuh"
#include "cuda/gemv_launch.cuh"

namespace pykernels::cuda {
namespace {

template <class Element>
struct Gemv : GemvEpilogue<Element, GemvParams> {
    using T = Element;
    using Params = GemvParams;

    __host__ __device__ static int width(const Params& p) { return p.in_features; }
    __host__ __device__ static int batch(const Params& p) { return p.batch; }
    __host__ __device__ static const T* norm_weight(const Params&) { return nullptr; }
    __device__ static const T* x(const Params& p) { return static_cast<const T*>(p.x); }
    __device__ static float eps(const Params&) { return 0; }

    __device__ static RowPair<T> rows(const Params& p, int pair) {
        const T* row = static_cast<const T*>(p.weight) + int64_t{2 * pair} * p.in_features;
        return {row,
                2 * pair + 1 < p.out_features ? row + p.in_features : row};  // the last row of an odd number
    }
};

}  // namespace

void gemv(const GemvParams& params, const Stream& stream) {
    with_type("gemv", params.dtype, [&](auto type) {
        launch_gemv<Gemv<decltype(type)>>(params, are_vectors(params.in_features, params.x, params.weight),
                                          stream);
    });
}

}  // namespace pykernels::cuda
