// The launchers of ops.h that have kernels: the chosen instruction set's.
#include "cpu/kernels.h"
#include "ops.h"

namespace pykernels::cpu {

// The case of each instruction set that this build has. current_isa() returns no other.
#ifdef PYKERNELS_HAS_GENERIC
#define PYKERNELS_GENERIC(op) \
    case Isa::generic:        \
        return generic::op(params);
#else
#define PYKERNELS_GENERIC(op)
#endif
#ifdef PYKERNELS_HAS_AVX2
#define PYKERNELS_AVX2(op) \
    case Isa::avx2:        \
        return avx2::op(params);
#else
#define PYKERNELS_AVX2(op)
#endif
#ifdef PYKERNELS_HAS_AVX512
#define PYKERNELS_AVX512(op) \
    case Isa::avx512:        \
        return avx512::op(params);
#else
#define PYKERNELS_AVX512(op)
#endif
#ifdef PYKERNELS_HAS_AVX512_BF16
#define PYKERNELS_AVX512_BF16(op) \
    case Isa::avx512_bf16:        \
        return avx512_bf16::op(params);
#else
#define PYKERNELS_AVX512_BF16(op)
#endif

#define PYKERNELS_LAUNCHER(op, Params) \
    void op(const Params& params) {    \
        switch (current_isa()) {       \
            PYKERNELS_AVX512_BF16(op)  \
            PYKERNELS_AVX512(op)       \
            PYKERNELS_AVX2(op)         \
            PYKERNELS_GENERIC(op)      \
            default:                   \
                return;                \
        }                              \
    }

PYKERNELS_KERNELS(PYKERNELS_LAUNCHER)

}  // namespace pykernels::cpu
