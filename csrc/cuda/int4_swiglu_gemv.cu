// int4_swiglu_gemv: out = activation(n @ gate^T) * (n @ up^T), n = rmsnorm(x) or x, gate and up of 4 bits.
// Row pair i is row i of both weights.
#include "cuda/gemv_epilogues.cuh"
#include "cuda/int4_gemv_general.cuh"

namespace pykernels::cuda {
namespace {

template <class Element>
struct Int4SwigluGemv : SwigluEpilogue<Element, Int4SwigluGemvParams> {
    using T = Element;
    using Params = Int4SwigluGemvParams;
    static constexpr int n_weights = 2;
    static constexpr bool splits_columns = false;

    __host__ __device__ static int width(const Params& p) { return p.in_features; }
    __host__ __device__ static int batch(const Params& p) { return p.batch; }
    __host__ __device__ static const T* norm_weight(const Params& p) {
        return static_cast<const T*>(p.norm_weight);
    }
    __host__ __device__ static const T* x(const Params& p) { return static_cast<const T*>(p.x); }
    __device__ static float eps(const Params& p) { return p.eps; }

    __host__ __device__ static const Int4WeightParams& weight(const Params& p, int i) {
        return i == 0 ? p.gate : p.up;
    }
    __device__ static int weight_rows(const Params& p, int) { return p.out_features; }
    __device__ static Int4Row row(const Params&, int pair, int side) { return {side, pair}; }
};

}  // namespace

void int4_swiglu_gemv(const Int4SwigluGemvParams& params, const Stream& stream) {
    with_type("int4_swiglu_gemv", params.dtype,
              [&](auto type) { launch_int4_gemv<Int4SwigluGemv<decltype(type)>>(params, stream); });
}

}  // namespace pykernels::cuda
