// PYKERNELS_TORCH_OP(op, schema) registers torch op pykernels::op. `schema` is what follows the name in
// torch's syntax: "(Tensor x, Tensor(a!) out) -> ()". The C++ function `op` in scope implements it on every
// device.
#pragma once

#include <torch/csrc/stable/library.h>

#ifdef PYKERNELS_CUDA
#define PYKERNELS_TORCH_OP(op, schema)                    \
    STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, library) {   \
        library.def(#op schema);                          \
    }                                                     \
    STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, library) {  \
        library.impl(#op, TORCH_BOX(&op));                \
    }                                                     \
    STABLE_TORCH_LIBRARY_IMPL(pykernels, CUDA, library) { \
        library.impl(#op, TORCH_BOX(&op));                \
    }
#else
#define PYKERNELS_TORCH_OP(op, schema)                   \
    STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, library) {  \
        library.def(#op schema);                         \
    }                                                    \
    STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, library) { \
        library.impl(#op, TORCH_BOX(&op));               \
    }
#endif
