// The launchers of ops.h that have kernels: the chosen instruction set's.
#include "cpu/kernels.h"
#include "ops.h"

namespace pykernels::cpu {

#ifdef PYKERNELS_X86
#define PYKERNELS_LAUNCHER(op, Params)          \
    void op(const Params& params) {             \
        switch (current_isa()) {                \
            case Isa::avx512_bf16:              \
                return avx512_bf16::op(params); \
            case Isa::avx512:                   \
                return avx512::op(params);      \
            case Isa::avx2:                     \
                return avx2::op(params);        \
            case Isa::generic:                  \
                return generic::op(params);     \
        }                                       \
    }
#else
#define PYKERNELS_LAUNCHER(op, Params) \
    void op(const Params& params) {    \
        generic::op(params);           \
    }
#endif

PYKERNELS_KERNELS(PYKERNELS_LAUNCHER)

}  // namespace pykernels::cpu
