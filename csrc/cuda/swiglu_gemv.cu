// swiglu_gemv: out = activation(n @ gate^T) * (n @ up^T), n = rmsnorm(x) or x. Row pair i is row i of both
// weights.
#include "cuda/gemv_epilogues.cuh"
#include "cuda/gemv_launch.cuh"

namespace pykernels::cuda {
namespace {

template <class Element>
struct SwigluGemv : SwigluEpilogue<Element, SwigluGemvParams> {
    using T = Element;
    using Params = SwigluGemvParams;

    __host__ __device__ static int width(const Params& p) { return p.in_features; }
    __host__ __device__ static int batch(const Params& p) { return p.batch; }
    __host__ __device__ static const T* norm_weight(const Params& p) {
        return static_cast<const T*>(p.norm_weight);
    }
    __device__ static const T* x(const Params& p) { return static_cast<const T*>(p.x); }
    __device__ static float eps(const Params& p) { return p.eps; }

    __device__ static RowPair<T> rows(const Params& p, int pair) {
        const int64_t offset = int64_t{pair} * p.in_features;
        return {static_cast<const T*>(p.gate_weight) + offset, static_cast<const T*>(p.up_weight) + offset};
    }
};

}  // namespace

void swiglu_gemv(const SwigluGemvParams& params, const Stream& stream) {
    with_type("swiglu_gemv", params.dtype, [&](auto type) {
        launch_gemv<SwigluGemv<decltype(type)>>(params,
                                                are_vectors(params.in_features, params.x, params.gate_weight,
                                                            params.up_weight, params.norm_weight),
                                                stream);
    });
}

}  // namespace pykernels::cuda
