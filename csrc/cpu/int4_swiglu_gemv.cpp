// int4_swiglu_gemv: out[b, n] = activation(g) * u with g = dot(norm(x[b]), gate[n]) and u the same with up,
// both of 4 bits.
//
// As swiglu_gemv: the caller's thread normalises x (as the op's dtype, as a separate rmsnorm would) and lays
// it out (int4_x.h), then the threads stream runs of rows of both weights. Bytes: both packed weights, scales
// and zeros once. Limit: memory bandwidth.
#include "cpu/gemv_rows.h"
#include "cpu/int4_rows.h"
#include "cpu/kernels.h"
#include "cpu/rmsnorm.h"

namespace pykernels::cpu::PYKERNELS_ISA {
namespace {

template <int batch, class T>
void int4_swiglu_gemv_typed(const Int4SwigluGemvParams& params) {
    const int64_t k = params.in_features;
    auto* memory = static_cast<char*>(params.workspace);
    const T* x =
        rmsnorm_rows<T>(params.x, params.norm_weight, batch, k, params.eps, params.norm_offset, memory);
    if (params.norm_weight) memory += int4_normed_bytes(batch, k, params.dtype);
    Int4X<T> prepared[2];
    int4_prepare_all(x, {&params.gate, &params.up}, batch, k, memory, prepared);
    const Int4Rows<batch, T> gate{params.gate, prepared[0]}, up{params.up, prepared[1]};
    swiglu_rows<batch, T>(gate, up, k / 2, params);
}

}  // namespace

void int4_swiglu_gemv(const Int4SwigluGemvParams& params) {
    with_type(params.dtype, [&](auto type) {
        with_batch(params.batch, [&](auto batch) {
            int4_swiglu_gemv_typed<decltype(batch)::number, decltype(type)>(params);
        });
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
