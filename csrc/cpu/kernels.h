// The kernels of every instruction set. launchers.cpp picks one; each <op>.cpp defines its own per set.
#pragma once

#include "params.h"

#define PYKERNELS_DECLARE_KERNELS(isa)                         \
    namespace pykernels::cpu::isa {                            \
    void rmsnorm(const RmsnormParams& params);                 \
    void gemv(const GemvParams& params);                       \
    void rope_kv_append(const RopeKvAppendParams& params);     \
    void gqa_decode(const GqaDecodeParams& params);            \
    void silu_mul(const SiluMulParams& params);                \
    void swiglu_gemv(const SwigluGemvParams& params);          \
    void qkv_gemv(const QkvGemvParams& params);                \
    void int4_gemv(const Int4GemvParams& params);              \
    void int4_swiglu_gemv(const Int4SwigluGemvParams& params); \
    void int4_qkv_gemv(const Int4QkvGemvParams& params);       \
    void add(const AddParams& params);                         \
    void argmax(const ArgmaxParams& params);                   \
    void ceiling_read(const CeilingReadParams& params);        \
    void ceiling_copy(const CeilingCopyParams& params);        \
    }

PYKERNELS_DECLARE_KERNELS(generic)
#ifdef PYKERNELS_X86
PYKERNELS_DECLARE_KERNELS(avx2)
PYKERNELS_DECLARE_KERNELS(avx512)
PYKERNELS_DECLARE_KERNELS(avx512_bf16)
#endif

#undef PYKERNELS_DECLARE_KERNELS
