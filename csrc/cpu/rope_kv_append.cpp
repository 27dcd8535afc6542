// rope_kv_append: q and k rotated by their position's angles, k and v appended to the cache.
//
// Bytes: q, k, v and one row of angles in, q and one slot of each cache out: a few KB, so one thread does it.
#include "cpu/kernels.h"
#include "cpu/rope.h"
#include "cpu/simd.h"

namespace pykernels::cpu::PYKERNELS_ISA {
namespace {

template <class T>
void rotate_head(const T* in, const float* angles, int64_t half, T* out) {
    for (int64_t d = 0; d < half; ++d) {
        float low = to_float(in[d]), high = to_float(in[half + d]);
        rotate(angles, d, half, low, high);
        from_float(low, out + d);
        from_float(high, out + half + d);
    }
}

}  // namespace

void rope_kv_append(const RopeKvAppendParams& params) {
    with_type(params.dtype, [&](auto type) {
        using T = decltype(type);
        const int64_t dim = params.head_dim, half = dim / 2;
        for (int64_t b = 0; b < params.batch; ++b) {
            const int64_t position = params.position[b];
            const float* angles = params.cos_sin + position * dim;
            for (int64_t h = b * params.n_heads; h < (b + 1) * params.n_heads; ++h) {
                rotate_head(static_cast<const T*>(params.q) + h * dim, angles, half,
                            static_cast<T*>(params.q_out) + h * dim);
            }
            for (int64_t h = b * params.n_kv_heads; h < (b + 1) * params.n_kv_heads; ++h) {
                const int64_t slot = (h * params.max_len + position) * dim;
                rotate_head(static_cast<const T*>(params.k) + h * dim, angles, half,
                            static_cast<T*>(params.k_cache) + slot);
                __builtin_memcpy(static_cast<T*>(params.v_cache) + slot,
                                 static_cast<const T*>(params.v) + h * dim,
                                 static_cast<size_t>(dim) * sizeof(T));
            }
        }
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
