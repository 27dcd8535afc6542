// int4_qkv_gemv: RMSNorm in; q, k and v rows of 4 bits; bias; QK norm; RoPE; q out, k and v appended to the
// cache.
//
// As qkv_gemv, with x normalised and then laid out (int4_x.h) by the caller's thread: once where the three
// weights read it alike. Bytes: the packed weights, scales and zeros once. Limit: memory bandwidth.
#include "cpu/int4_rows.h"
#include "cpu/kernels.h"
#include "cpu/qkv_rows.h"
#include "cpu/rmsnorm.h"

namespace pykernels::cpu::PYKERNELS_ISA {
namespace {

template <int batch, class T>
void int4_qkv_gemv_typed(const Int4QkvGemvParams& params) {
    const int64_t hidden = params.hidden;
    auto* memory = static_cast<char*>(params.workspace) + qk_norm_bytes(params);
    const T* normed =
        rmsnorm_rows<T>(params.x, params.norm_weight, batch, hidden, params.eps, params.norm_offset, memory);
    Int4X<T> x[3];
    int4_prepare_all(normed, {&params.q, &params.k, &params.v}, batch, hidden,
                     memory + int4_normed_bytes(batch, hidden, params.dtype), x);
    qkv_rows<batch, T>(params, Int4Rows<batch, T>{params.q, x[0]}, Int4Rows<batch, T>{params.k, x[1]},
                       Int4Rows<batch, T>{params.v, x[2]}, hidden / 2);
}

}  // namespace

void int4_qkv_gemv(const Int4QkvGemvParams& params) {
    with_type(params.dtype, [&](auto type) {
        with_batch(params.batch,
                   [&](auto batch) { int4_qkv_gemv_typed<decltype(batch)::number, decltype(type)>(params); });
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
