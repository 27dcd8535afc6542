// embedding: out[b] = table[token[b]]. Bytes: a row a sequence, read and written.
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace pykernels::cpu::PYKERNELS_ISA {

void embedding(const EmbeddingParams& params) {
    const int64_t row_bytes = params.hidden * dtype_bytes(params.dtype);
    for (int64_t b = 0; b < params.batch; ++b) {
        __builtin_memcpy(static_cast<char*>(params.out) + b * row_bytes,
                         static_cast<const char*>(params.table) + params.token[b] * row_bytes,
                         static_cast<size_t>(row_bytes));
    }
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
