// The one list of ops. Everything that has a line an op is made from it: the launchers' declarations (ops.h),
// the kernels of every instruction set (cpu/kernels.h, cpu/launchers.cpp), the op's variant, name and launch
// (runtime/program.*), the SIMT executor's C interface (simt/c_api.cpp), and, by _runtime.op_names, the fakes
// and NVTX ranges of pykernels/ops.py. Sources are found by CMake.
//
//     X(op, Params)    launchers cpu::op and cuda::op, torch op pykernels::op, parameters Params of params.h
//
// An op of PYKERNELS_KERNELS has a CPU kernel that is compiled once an instruction set. The controls have
// none: they measure nothing but the way to them.
#pragma once

#define PYKERNELS_KERNELS(X)                  \
    X(rmsnorm, RmsnormParams)                 \
    X(gemv, GemvParams)                       \
    X(rope_kv_append, RopeKvAppendParams)     \
    X(gqa_decode, GqaDecodeParams)            \
    X(silu_mul, SiluMulParams)                \
    X(swiglu_gemv, SwigluGemvParams)          \
    X(qkv_gemv, QkvGemvParams)                \
    X(int4_gemv, Int4GemvParams)              \
    X(int4_swiglu_gemv, Int4SwigluGemvParams) \
    X(int4_qkv_gemv, Int4QkvGemvParams)       \
    X(add, AddParams)                         \
    X(embedding, EmbeddingParams)             \
    X(argmax, ArgmaxParams)                   \
    X(ceiling_read, CeilingReadParams)        \
    X(ceiling_copy, CeilingCopyParams)

#define PYKERNELS_CONTROLS(X) \
    X(null, NullParams)       \
    X(spin, SpinParams)

#define PYKERNELS_OPS(X) \
    PYKERNELS_KERNELS(X) \
    PYKERNELS_CONTROLS(X)

// The ops with scratch memory: cpu::op_workspace_bytes(params).
#define PYKERNELS_WORKSPACES(X)               \
    X(gqa_decode, GqaDecodeParams)            \
    X(swiglu_gemv, SwigluGemvParams)          \
    X(qkv_gemv, QkvGemvParams)                \
    X(int4_gemv, Int4GemvParams)              \
    X(int4_swiglu_gemv, Int4SwigluGemvParams) \
    X(int4_qkv_gemv, Int4QkvGemvParams)
