// embedding: out[b] = scale * table[token[b]]. Bytes: a row a sequence, read and written.
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace pykernels::cpu::PYKERNELS_ISA {

void embedding(const EmbeddingParams& params) {
    const int64_t row_bytes = params.hidden * dtype_bytes(params.dtype);
    if (params.scale != 1) {
        with_type(params.dtype, [&](auto type) {
            using T = decltype(type);
            for (int64_t b = 0; b < params.batch; ++b) {
                const T* row = static_cast<const T*>(params.table) + params.token[b] * params.hidden;
                T* out = static_cast<T*>(params.out) + b * params.hidden;
                for (int64_t i = 0; i < params.hidden; ++i)
                    from_float(to_float(row[i]) * params.scale, out + i);
            }
        });
        return;
    }
    for (int64_t b = 0; b < params.batch; ++b) {
        __builtin_memcpy(static_cast<char*>(params.out) + b * row_bytes,
                         static_cast<const char*>(params.table) + params.token[b] * row_bytes,
                         static_cast<size_t>(row_bytes));
    }
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
