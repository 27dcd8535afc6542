// int4_gemv: out[b, n] = sum over k of x[b, k] * w[n, k], + bias[n], scaled and capped, + residual[b, n], w
// of 4 bits (docs/int4.md).
//
// The caller's thread lays x out (int4_x.h); then a chunk is a run of rows that one thread streams in the
// order they lie in memory (int4_rows.h). Bytes: the packed weight, scales and zeros once for all rows of x;
// the rest is small. Limit: memory bandwidth.
#include "cpu/gemv_rows.h"
#include "cpu/int4_rows.h"
#include "cpu/kernels.h"

namespace pykernels::cpu::PYKERNELS_ISA {
namespace {

template <int batch, class T>
void int4_gemv_typed(const Int4GemvParams& params) {
    const int64_t k = params.in_features;
    Int4X<T> x[1];
    int4_prepare_all(static_cast<const T*>(params.x), {&params.weight}, batch, k, params.workspace, x);
    gemv_rows<batch, T>(Int4Rows<batch, T>{params.weight, x[0]}, k / 2, params);
}

}  // namespace

void int4_gemv(const Int4GemvParams& params) {
    with_type(params.dtype, [&](auto type) {
        with_batch(params.batch,
                   [&](auto batch) { int4_gemv_typed<decltype(batch)::number, decltype(type)>(params); });
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
