// How much memory the int4 GEMVs keep x in, laid out as they read it (int4_x.h). The same for every
// instruction set, so that a workspace outlives a change of it.
#pragma once

#include <cstdint>

#include "params.h"

namespace pykernels::cpu {

// The longest run of elements that one step of the inner loop takes; a row of x is padded to it.
constexpr int64_t int4_longest_tile = 128;

inline int64_t int4_padded(int64_t in_features) {
    return (in_features + int4_longest_tile - 1) / int4_longest_tile * int4_longest_tile;
}

// Rows of x as float32 at most, a float32 for every eight elements, and the sum over every group of every
// row.
inline int64_t int4_x_bytes(int64_t batch, int64_t in_features, int64_t n_groups) {
    return (batch * (int4_padded(in_features) + n_groups) * 4 + 63) / 64 * 64;
}

// Rows of x behind the norm, as the op's dtype.
inline int64_t int4_normed_bytes(int64_t batch, int64_t in_features, Dtype dtype) {
    return (batch * in_features * dtype_bytes(dtype) + 63) / 64 * 64;
}

}  // namespace pykernels::cpu
