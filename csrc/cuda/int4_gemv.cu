// int4_gemv: out = x @ w^T + bias, scaled and capped, + residual, w of 4 bits. Row pair i is rows 2i and
// 2i + 1 of the weight.
#include "cuda/gemv_epilogues.cuh"
#include "cuda/int4_gemv_general.cuh"

namespace pykernels::cuda {
namespace {

template <class Element>
struct Int4Gemv : GemvEpilogue<Element, Int4GemvParams> {
    using T = Element;
    using Params = Int4GemvParams;
    static constexpr int n_weights = 1;
    static constexpr bool splits_columns = true;

    __host__ __device__ static int width(const Params& p) { return p.in_features; }
    __host__ __device__ static int batch(const Params& p) { return p.batch; }
    __host__ __device__ static const T* norm_weight(const Params&) { return nullptr; }
    __host__ __device__ static const T* x(const Params& p) { return static_cast<const T*>(p.x); }
    __device__ static float eps(const Params&) { return 0; }

    __host__ __device__ static const Int4WeightParams& weight(const Params& p, int) { return p.weight; }
    __device__ static int weight_rows(const Params& p, int) { return p.out_features; }
    __device__ static Int4Row row(const Params& p, int pair, int side) {
        const int row = 2 * pair + side;
        return {0, row < p.out_features ? row : -1};
    }
};

}  // namespace

void int4_gemv(const Int4GemvParams& params, const Stream& stream) {
    with_type("int4_gemv", params.dtype,
              [&](auto type) { launch_int4_gemv<Int4Gemv<decltype(type)>>(params, stream); });
}

}  // namespace pykernels::cuda
