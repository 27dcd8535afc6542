// gemv: out = x @ weight^T + bias + residual. A unit is rows 2u and 2u + 1 of the weight.
#include "cuda/mat_vec.cuh"

namespace pykernels::cuda {
namespace {

template <class Element>
struct Gemv {
    using T = Element;
    using Params = GemvParams;

    __host__ __device__ static int units(const Params& p) { return (p.out_features + 1) / 2; }
    __host__ __device__ static int width(const Params& p) { return p.in_features; }
    __host__ __device__ static int batch(const Params& p) { return p.batch; }
    __host__ __device__ static const T* norm_weight(const Params&) { return nullptr; }
    __device__ static const T* x(const Params& p) { return static_cast<const T*>(p.x); }
    __device__ static float eps(const Params&) { return 0; }

    __device__ static RowPair<T> rows(const Params& p, int unit) {
        const T* row = static_cast<const T*>(p.weight) + int64_t{2 * unit} * p.in_features;
        return {row, 2 * unit + 1 < p.out_features ? row + p.in_features : row};  // the last of an odd number
    }

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

}  // namespace

void gemv(const GemvParams& params, const Stream& stream) {
    with_type("gemv", params.dtype, [&](auto type) {
        launch_mat_vec<Gemv<decltype(type)>>(params, are_vectors(params.in_features, params.x, params.weight),
                                             stream);
    });
}

}  // namespace pykernels::cuda
