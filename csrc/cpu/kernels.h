// The kernels of every instruction set. launchers.cpp picks one; each <op>.cpp defines its own per set.
#pragma once

#include "op_list.h"
#include "params.h"

#define PYKERNELS_DECLARE(op, Params) void op(const Params& params);

namespace pykernels::cpu::generic {
PYKERNELS_KERNELS(PYKERNELS_DECLARE)
}
#ifdef PYKERNELS_X86
namespace pykernels::cpu::avx2 {
PYKERNELS_KERNELS(PYKERNELS_DECLARE)
}
namespace pykernels::cpu::avx512 {
PYKERNELS_KERNELS(PYKERNELS_DECLARE)
}
namespace pykernels::cpu::avx512_bf16 {
PYKERNELS_KERNELS(PYKERNELS_DECLARE)
}
#endif

#undef PYKERNELS_DECLARE
