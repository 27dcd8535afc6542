// swiglu_gemv: out[b, n] = activation(g) * u with g = dot(norm(x[b]), gate_weight[n]) and u the same with
// up_weight.
//
// The caller's thread normalises x into the workspace (as the op's dtype, as a separate rmsnorm would), then
// the threads stream runs of rows of both weights. Bytes: both weights once. Limit: memory bandwidth.
#include "cpu/gemv_rows.h"
#include "cpu/kernels.h"
#include "cpu/rmsnorm.h"

namespace pykernels::cpu::PYKERNELS_ISA {
namespace {

template <int batch, class T>
void swiglu_gemv_typed(const SwigluGemvParams& params) {
    const int64_t k = params.in_features;
    const T* x = rmsnorm_rows<T>(params.x, params.norm_weight, batch, k, params.eps, params.norm_offset,
                                 params.workspace);
    const DenseRows<batch, T> gate{static_cast<const T*>(params.gate_weight), x, k};
    const DenseRows<batch, T> up{static_cast<const T*>(params.up_weight), x, k};
    swiglu_rows<batch, T>(gate, up, k * static_cast<int64_t>(sizeof(T)), params);
}

}  // namespace

void swiglu_gemv(const SwigluGemvParams& params) {
    with_type(params.dtype, [&](auto type) {
        with_batch(params.batch,
                   [&](auto batch) { swiglu_gemv_typed<decltype(batch)::number, decltype(type)>(params); });
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
